"""Networks as chains of dense layers, and what stands before them: what our method can read."""

from dataclasses import dataclass

from torch import nn

from exhume.networks import ACTIVATIONS, CentredNetwork
from exhume.stationarity import Dense


def as_dense(network: nn.Module) -> Dense | None:
    """The network as a chain of dense layers, or None if it is anything else."""
    layers = _in_a_row(network)
    layers = layers[1:] if layers and isinstance(layers[0], nn.Flatten) else layers
    linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
    # by their printed form, which tells also a leaky ReLU's slope and how a GELU is computed
    between = {repr(layer) for layer in layers[1::2]}
    activations = [name for name, make in ACTIVATIONS.items() if between <= {repr(make())}]
    if len(linear) != len(layers[::2]) or len(layers) != 2 * len(linear) - 1 or not activations:
        return None
    return Dense(
        [layer.weight.detach() for layer in linear],
        [layer.bias.detach() if layer.bias is not None else None for layer in linear],
        activations[0],
    )


def _in_a_row(network: nn.Module) -> list[nn.Module]:
    """The layers applied one after another, less the centring and what evaluation skips; none if it is not so."""
    if isinstance(network, CentredNetwork):
        network = network.layers
    if type(network) is not nn.Sequential:
        return []
    parts = ((part,) if type(part) is not nn.Sequential else _in_a_row(part) for part in network)
    return [layer for part in parts for layer in part if type(layer) not in (nn.Dropout, nn.Dropout2d, nn.Identity)]


@dataclass(frozen=True)
class Behind:
    """Dense layers behind others, convolutions say: head gives an image's features, dense goes on from there."""

    head: nn.Module
    dense: Dense


def dense_behind(network: nn.Module) -> Behind | None:
    """The last dense layers of a network, a chain of at least two, and what stands before them.

    None where a dense layer is among that: it sees the images better, through what is no chain.
    """
    layers = _in_a_row(network)
    before = [network.centre] if isinstance(network, CentredNetwork) else []
    for start in range(1, len(layers)):
        if isinstance(layers[start - 1], nn.Linear):
            return None
        dense = as_dense(nn.Sequential(*layers[start:]))
        if dense is not None and len(dense.weights) > 1:
            return Behind(nn.Sequential(*before, *layers[:start]), dense)
    return None


def dense_part(network: nn.Module) -> Dense | None:
    """The dense layers of a network that is dense, or has dense layers behind others; None of any other."""
    if (dense := as_dense(network)) is not None:
        return dense
    parts = dense_behind(network)
    return parts.dense if parts else None
