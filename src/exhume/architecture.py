"""Which networks have their gradients written out: chains of dense layers, and such chains behind other layers.

Training and attack both ask here, so that a network is recognised in one place.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from exhume.layers import LayeredNetwork, centring_of
from exhume.networks import ACTIVATIONS, CentredNetwork


@dataclass(frozen=True)
class MLP:
    """A chain of dense layers: weights [out, in], biases [out] or None, one activation between them."""

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    activation: str

    @property
    def parameters(self) -> list[Tensor]:
        """Weights and biases in the order of `nn.Module.parameters`."""
        return [p for pair in zip(self.weights, self.biases, strict=True) for p in pair if p is not None]

    def multiplied_in(self, dtype: torch.dtype) -> "MLP":
        """The same chain with its matrix products in `dtype`; everything else keeps its precision."""
        return replace(self, weights=[weight.to(dtype) for weight in self.weights])


@dataclass(frozen=True)
class SplitNetwork:
    """An MLP behind other layers, convolutions for example: `head` gives an image's features, `mlp` goes on."""

    head: nn.Module
    mlp: MLP


Architecture = MLP | SplitNetwork | None
"""What is recognised of a network; None: neither form."""


def recognise(network: nn.Module) -> Architecture:
    """The network as an MLP, or as an MLP of at least two layers behind a head; None if it is neither.

    The tensors are the network's own, detached: a change of one is a change of the other.
    """
    mlp = as_mlp(network)
    return mlp if mlp is not None else _split(network)


def as_mlp(network: nn.Module) -> MLP | None:
    """The network as an MLP, or None if it is anything else."""
    layers = _in_sequence(network)
    layers = layers[1:] if layers and isinstance(layers[0], nn.Flatten) else layers
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    # by their printed form, which also tells the slope of a leaky ReLU and how a GELU is computed
    between = {repr(layer) for layer in layers[1::2]}
    activations = [name for name, make in ACTIVATIONS.items() if between <= {repr(make())}]
    if len(linear) != len(layers[::2]) or len(layers) != 2 * len(linear) - 1 or not activations:
        return None
    return MLP(
        [layer.weight.detach() for layer in linear],
        [layer.bias.detach() if layer.bias is not None else None for layer in linear],
        activations[0],
    )


def mlp_of(architecture: Architecture) -> MLP | None:
    """The MLP of a network that is one or has one behind a head; None of any other."""
    return architecture.mlp if isinstance(architecture, SplitNetwork) else architecture


def _in_sequence(network: nn.Module) -> list[nn.Module]:
    """The layers applied one after another, without centring and without what does nothing; [] if it is no sequence.

    Dropout does nothing in evaluation mode.
    """
    if isinstance(network, CentredNetwork):
        network = network.layers
    if type(network) not in (nn.Sequential, LayeredNetwork):
        return []
    inner = network.in_sequence if isinstance(network, LayeredNetwork) else list(network.children())
    parts = ((part,) if type(part) is not nn.Sequential else _in_sequence(part) for part in inner)
    return [layer for part in parts for layer in part if not _does_nothing(layer)]


def _does_nothing(layer: nn.Module) -> bool:
    return type(layer) is nn.Identity or (type(layer) in (nn.Dropout, nn.Dropout2d) and not layer.training)


def _split(network: nn.Module) -> SplitNetwork | None:
    """The last dense layers of a network and what stands before them.

    None where a dense layer is among the latter: that layer sees the images better, through what is no chain.
    """
    layers = _in_sequence(network)
    centring = centring_of(network)
    before = [] if centring is None else [centring]
    for start in range(1, len(layers)):
        if isinstance(layers[start - 1], nn.Linear):
            return None
        mlp = as_mlp(nn.Sequential(*layers[start:]))
        if mlp is not None and len(mlp.weights) > 1:
            return SplitNetwork(nn.Sequential(*before, *layers[:start]), mlp)
    return None
