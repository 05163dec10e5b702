"""The networks under attack: their specification, the centring layer, and how weights are initialised."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.errors import InputError

Task = Literal["binary", "multiclass", "regression"]
Shape = tuple[int, int, int]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky-relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network to train.

    Example:
        exhume.train(problem, network=exhume.NetworkConfig(widths=(500,)))
    """

    kind: str = "mlp"
    """A row of NETWORKS: mlp or cnn."""
    widths: tuple[int, ...] = (1000, 1000)
    """Neurons of each hidden dense layer."""
    channels: tuple[int, ...] = ()
    """Channels of each 3x3 convolution of a cnn (stride 2), before the dense layers."""
    activation: str = "relu"
    """A row of ACTIVATIONS: relu, leaky-relu, gelu, silu, mish, elu, softplus, tanh or sigmoid."""
    bias: Literal["first", "all", "none"] = "first"
    """Which layers have a bias."""
    init_scale: float | None = 1e-4
    """Standard deviation of the initial weights and biases; None: PyTorch's default."""
    init_layers: Literal["first", "all"] = "first"
    """Where init_scale applies; the other layers are initialised as PyTorch does."""

    def __post_init__(self) -> None:
        if self.kind not in NETWORKS:
            raise InputError(f"Unknown network {self.kind!r}; there are {', '.join(NETWORKS)}.")
        if self.activation not in ACTIVATIONS:
            raise InputError(f"Unknown activation {self.activation!r}; there are {', '.join(ACTIVATIONS)}.")
        if min(self.widths + self.channels, default=1) < 1:
            raise InputError("Widths and channels must be at least 1.")
        if self.bias not in ("first", "all", "none") or self.init_layers not in ("first", "all"):
            raise InputError("bias must be first, all or none, and init_layers must be first or all.")
        if self.init_scale is not None and not 0 < self.init_scale < math.inf:
            raise InputError(f"init_scale must be positive, not {self.init_scale}; None takes PyTorch's default.")


class Centre(nn.Module):
    """Subtracts the training mean and divides by a scale, so that images outside the network are always in [0, 1]."""

    centre: Tensor
    scale: Tensor | None

    def __init__(self, centre: Float[Tensor, "c h w"], scale: Float[Tensor, "c h w"] | None = None) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("scale", scale)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        centred = images - self.centre
        return centred if self.scale is None else centred / self.scale


class CentredNetwork(nn.Module):
    """Any layers behind their centring layer: images in [0, 1] in, scores out."""

    def __init__(
        self,
        centre: Float[Tensor, "c h w"],
        layers: list[nn.Module] | nn.Module,
        scale: Float[Tensor, "c h w"] | None = None,
    ) -> None:
        super().__init__()
        self.centre = Centre(centre, scale)
        self.layers = layers if isinstance(layers, nn.Module) else nn.Sequential(*layers)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        scores: Tensor = self.layers(self.centre(images))
        return scores


def mlp(network: NetworkConfig, shape: Shape, outputs: int) -> list[nn.Module]:
    """Dense layers on the flattened image: D-widths-outputs."""
    return [nn.Flatten(), *_dense(network, shape[0] * shape[1] * shape[2], outputs, first=True)]


def cnn(network: NetworkConfig, shape: Shape, outputs: int) -> list[nn.Module]:
    """3x3 convolutions of stride 2 with an activation each, then dense layers."""
    channels = (shape[0], *network.channels)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(channels)):
        layers.append(nn.Conv2d(before, after, 3, stride=2, padding=1, bias=_has_bias(network, i == 0)))
        layers.append(ACTIVATIONS[network.activation]())
    height, width = shape[1:]
    for _ in network.channels:
        height, width = -(-height // 2), -(-width // 2)
    layers.append(nn.Flatten())
    return [*layers, *_dense(network, channels[-1] * height * width, outputs, first=False)]


NETWORKS: dict[str, Callable[[NetworkConfig, Shape, int], list[nn.Module]]] = {"mlp": mlp, "cnn": cnn}


def check(network: NetworkConfig) -> None:
    """Raises InputError for a cnn without channels, or another network with them."""
    if (network.kind == "cnn") != bool(network.channels):
        raise InputError("A cnn needs channels (for example 32 64), and only a cnn has them.")


def weight_count(network: NetworkConfig, shape: Shape, outputs: int) -> int:
    """How many weights the network has on images of this shape, without biases."""
    (inputs, height, width), count = shape, 0
    for channels in network.channels:
        count, inputs, height, width = count + 9 * inputs * channels, channels, -(-height // 2), -(-width // 2)
    return count + sum(
        before * after for before, after in pairwise((inputs * height * width, *network.widths, outputs))
    )


def build(
    network: NetworkConfig, centre: Float[Tensor, "c h w"], outputs: int, generator: torch.Generator
) -> CentredNetwork:
    """Builds the network behind its centring layer, freshly initialised from `generator`.

    Args:
        centre: the mean training image, [c, h, w] in [0, 1]; its shape is the input's shape.
        outputs: 1 for binary and regression tasks, the number of classes otherwise.

    Raises:
        InputError: a cnn without channels, or another network with them.
    """
    check(network)
    channels, height, width = centre.shape
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        layers = NETWORKS[network.kind](network, (channels, height, width), outputs)
        weighted = [layer for layer in layers if isinstance(layer, nn.Linear | nn.Conv2d)]
        if network.init_scale is not None:
            for layer in weighted if network.init_layers == "all" else weighted[:1]:
                for parameter in layer.parameters():
                    nn.init.normal_(parameter, std=network.init_scale)
    return CentredNetwork(centre, layers).to(centre.dtype)


def _dense(network: NetworkConfig, inputs: int, outputs: int, *, first: bool) -> list[nn.Module]:
    sizes = (inputs, *network.widths, outputs)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(pairwise(sizes)):
        layers.append(nn.Linear(before, after, bias=_has_bias(network, first and i == 0)))
        layers.append(ACTIVATIONS[network.activation]())
    return layers[:-1]


def _has_bias(network: NetworkConfig, first: bool) -> bool:
    return network.bias == "all" or (network.bias == "first" and first)


@torch.no_grad()
def numbers_kept(network: nn.Module, shape: Shape) -> int:
    """How many numbers the layers with weights give for one image, [c, h, w]: what is kept of it for the way back."""
    sizes = list[int]()

    def note(_: nn.Module, __: object, output: object) -> None:
        parts = output if isinstance(output, tuple) else (output,)  # a recurrent layer gives its state too
        sizes.extend(part.numel() for part in parts if isinstance(part, Tensor))

    learned = [layer for layer in network.modules() if next(layer.parameters(recurse=False), None) is not None]
    hooks = [layer.register_forward_hook(note) for layer in learned]
    like = next(network.parameters(), torch.zeros(()))
    try:
        network(like.new_zeros(1, *shape))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(sizes)
