"""Networks that were built elsewhere, described by their layers: a chain, or a graph, of kinds that are known here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume.errors import InputError
from exhume.networks import Centre, CentredNetwork

IMAGES = -1
"""The number that stands for the images among a layer's inputs."""
Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer.

    name: its name in the network it was read from; the names of its parameters begin with it; kind: a row of KINDS;
    inputs: the numbers of the layers whose outputs it takes, IMAGES for the images; settings: of its kind, in JSON's
    types.
    """

    name: str
    kind: str
    inputs: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LayerGraph:
    """The layers of a network in the order of their work, the last of which gives the scores.

    parameters: names of all parameters and statistics, in the order in which the network was built. Layers of one name
    are one layer that is used several times.
    """

    layers: tuple[Layer, ...]
    parameters: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.layers:
            raise InputError("A network needs at least one layer.")
        for number, layer in enumerate(self.layers):
            if layer.kind not in KINDS:
                raise InputError(f"Unknown layer {layer.kind!r}; there are {', '.join(KINDS)}.")
            if not layer.inputs or not all(IMAGES <= before < number for before in layer.inputs):
                raise InputError(f"The layer {layer.name!r} has no inputs, or some that come after it.")
        names = {layer.name for layer in self.layers}
        if any(outer in names for name in names for outer in _outer(name)) or "" in names:
            raise InputError("A layer has no name, or one within another layer's.")

    @property
    def statistics(self) -> tuple[str, ...]:
        """Names of the tensors that training measures and does not learn: BatchNorm's."""
        return tuple(name for name in self.parameters if name.rpartition(".")[2] in STATISTICS)


STATISTICS = ("running_mean", "running_var")


class LayeredNetwork(nn.Module):
    """Runs layers by their numbers; its parameters have the layers' names, in the order in which they were built."""

    centring: Centre | None

    def __init__(
        self,
        layers: Sequence[tuple[str, nn.Module, tuple[int, ...]]],
        parameters: Sequence[str] = (),
        centring: Centre | None = None,
    ) -> None:
        """layers: name, module and inputs of each; parameters: as of `LayerGraph`; centring: what comes before."""
        super().__init__()
        self.centring = centring
        modules = {name: module for name, module, _ in layers}
        built_first = [name.rpartition(".")[0] for name in parameters]
        for name in dict.fromkeys([*built_first, *modules]):
            _place(self, name.split("."), modules[name])
        self.steps = [(name, inputs) for name, _, inputs in layers]

    def forward(self, images: Tensor) -> Tensor:
        values = {IMAGES: images if self.centring is None else self.centring(images)}
        for number, (name, inputs) in enumerate(self.steps):
            values[number] = self.get_submodule(name)(*(values[before] for before in inputs))
        return values[len(self.steps) - 1]

    @property
    def in_sequence(self) -> list[nn.Module]:
        """The layers if each takes the output of the one before it; [] if they are no chain."""
        chained = all(inputs == (number - 1,) for number, (_, inputs) in enumerate(self.steps))
        return [self.get_submodule(name) for name, _ in self.steps] if chained else []


def centring_of(network: nn.Module) -> Centre | None:
    """What a network does to images before its first layer, where that is known."""
    if isinstance(network, CentredNetwork):
        return network.centre
    return network.centring if isinstance(network, LayeredNetwork) else None


def _place(within: nn.Module, path: Sequence[str], module: nn.Module) -> None:
    """Puts a module where its dotted name says."""
    *outer, last = path
    for part in outer:
        if part not in within._modules:
            within.add_module(part, nn.Module())
        within = within.get_submodule(part)
    within.add_module(last, module)


def _outer(name: str) -> list[str]:
    """The names that a dotted name lies within: a, a.b of a.b.c."""
    parts = name.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def build_layers(graph: LayerGraph, weights: Mapping[str, Tensor], centring: Centre | None = None) -> LayeredNetwork:
    """The network with copies of its weights, in evaluation mode.

    Raises:
        InputError: the weights do not fit the layers, or settings do not fit their kind.
    """
    modules: dict[str, nn.Module] = {}
    of_layer: dict[str, dict[str, Tensor]] = {}
    for name, tensor in weights.items():
        owner, _, parameter = name.rpartition(".")
        of_layer.setdefault(owner, {})[parameter] = tensor
    if set(weights) != set(graph.parameters) or not set(of_layer) <= {layer.name for layer in graph.layers}:
        odd = sorted(set(weights) ^ set(graph.parameters)) or sorted(set(of_layer) - {one.name for one in graph.layers})
        raise InputError(f"The weights do not fit the network: {odd[0]} is missing or belongs to no layer.")
    for layer in graph.layers:
        if layer.name not in modules:
            modules[layer.name] = make_layer(layer, of_layer.get(layer.name, {}))
    named = [(layer.name, modules[layer.name], layer.inputs) for layer in graph.layers]
    return LayeredNetwork(named, graph.parameters, centring).eval()


def make_layer(layer: Layer, parameters: Mapping[str, Tensor]) -> nn.Module:
    """The module of one layer, with copies of its parameters.

    Raises:
        InputError: its parameters or its settings do not fit its kind.
    """
    try:
        with torch.device("meta"):  # no memory is filled and no random number drawn
            module = KINDS[layer.kind](layer.settings, parameters)
        own = {name: tensor.detach().clone() for name, tensor in parameters.items()}
        counted = {"num_batches_tracked": torch.tensor(0)} if layer.kind == "batch-norm" else {}
        module.load_state_dict({**own, **counted}, assign=True)
        if counted:
            module.num_batches_tracked = None  # type: ignore[assignment]  # it counts in training only
    except (RuntimeError, TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
        detail = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"The weights do not fit the layer {layer.name!r} ({layer.kind}): {detail}") from None
    for name, parameter in module.named_parameters(recurse=False):
        parameter.requires_grad_(own[name].is_floating_point())
    return module.eval()


# ---- Layers that PyTorch has no module for


class Add(nn.Module):
    """The sum of two outputs: the end of a residual block."""

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return one + other


class Concatenate(nn.Module):
    """Several outputs side by side along a dimension."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *parts: Tensor) -> Tensor:
        return torch.cat(parts, self.dim)


class Mean(nn.Module):
    """The mean over some dimensions."""

    def __init__(self, dims: Sequence[int], keepdim: bool) -> None:
        super().__init__()
        self.dims, self.keepdim = list(dims), keepdim

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.mean(self.dims, self.keepdim)


class Reshape(nn.Module):
    """The same values of each image in another shape."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = list(shape)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.reshape(len(inputs), *self.shape)


class Permute(nn.Module):
    """The dimensions in another order; the first stays."""

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.dims = list(dims)

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.permute(self.dims)


class ReverseChannels(nn.Module):
    """Images with their channels in reverse: RGB as BGR."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flip(1)


class Affine(nn.Module):
    """factor x + shift, two numbers."""

    def __init__(self, factor: float, shift: float) -> None:
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, inputs: Tensor) -> Tensor:
        return self.factor * inputs + self.shift


class Pad(nn.Module):
    """Zeros around the last dimensions, as `torch.nn.functional.pad` counts them."""

    def __init__(self, padding: Sequence[int]) -> None:
        super().__init__()
        self.padding = list(padding)

    def forward(self, inputs: Tensor) -> Tensor:
        return functional.pad(inputs, self.padding)


def _linear(settings: Settings, parameters: Mapping[str, Tensor]) -> nn.Module:
    outputs, inputs = parameters["weight"].shape
    return nn.Linear(inputs, outputs, bias="bias" in parameters, **settings)


def _conv2d(settings: Settings, parameters: Mapping[str, Tensor]) -> nn.Module:
    outputs, inputs, height, width = parameters["weight"].shape
    inputs *= settings.get("groups", 1)
    return nn.Conv2d(inputs, outputs, (height, width), bias="bias" in parameters, **_tuples(settings))


BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
"""Layers that mix the images of a batch in training."""


def _batch_norm(settings: Settings, parameters: Mapping[str, Tensor]) -> nn.Module:
    of = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[settings["dims"]]
    return of(len(parameters["running_mean"]), eps=settings["eps"], affine="weight" in parameters)


def _layer_norm(settings: Settings, parameters: Mapping[str, Tensor]) -> nn.Module:
    return nn.LayerNorm(
        list(settings["shape"]), settings["eps"], elementwise_affine="weight" in parameters, bias="bias" in parameters
    )


def _without_parameters(of: Callable[..., nn.Module]) -> Callable[[Settings, Mapping[str, Tensor]], nn.Module]:
    return lambda settings, _: of(**_tuples(settings))


def _tuples(settings: Settings) -> dict[str, Any]:
    """Pairs as PyTorch prints them: JSON has lists only."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


KINDS: dict[str, Callable[[Settings, Mapping[str, Tensor]], nn.Module]] = {
    "linear": _linear,
    "conv2d": _conv2d,
    "batch-norm": _batch_norm,
    "layer-norm": _layer_norm,
    "relu": _without_parameters(nn.ReLU),
    "leaky-relu": _without_parameters(nn.LeakyReLU),
    "gelu": _without_parameters(nn.GELU),
    "tanh": _without_parameters(nn.Tanh),
    "sigmoid": _without_parameters(nn.Sigmoid),
    "silu": _without_parameters(nn.SiLU),
    "mish": _without_parameters(nn.Mish),
    "elu": _without_parameters(nn.ELU),
    "relu6": _without_parameters(nn.ReLU6),
    "softplus": _without_parameters(nn.Softplus),
    "softmax": _without_parameters(nn.Softmax),
    "log-softmax": _without_parameters(nn.LogSoftmax),
    "max-pool2d": _without_parameters(nn.MaxPool2d),
    "avg-pool2d": _without_parameters(nn.AvgPool2d),
    "adaptive-avg-pool2d": _without_parameters(nn.AdaptiveAvgPool2d),
    "flatten": _without_parameters(nn.Flatten),
    "reshape": _without_parameters(Reshape),
    "permute": _without_parameters(Permute),
    "reverse-channels": _without_parameters(ReverseChannels),
    "mean": _without_parameters(Mean),
    "add": _without_parameters(Add),
    "concatenate": _without_parameters(Concatenate),
    "affine": _without_parameters(Affine),
    "pad": _without_parameters(Pad),
}
"""How a layer's settings and parameters make its module. What follows from the parameters is no setting."""
