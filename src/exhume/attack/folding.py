"""Layers that only change another layer's weights, folded into them, so that a chain of dense layers shows as one.

BatchNorm in evaluation mode multiplies each neuron's output and adds to it, as its weights and bias do. An order of
pixels or channels of its own is one of the first layer's columns.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume.architecture import recognise
from exhume.layers import LayeredNetwork, Permute, ReverseChannels, centring_of
from exhume.networks import CentredNetwork, Shape


@dataclass(frozen=True)
class _Named:
    """A layer of a chain, and its name."""

    name: str
    layer: nn.Module


def folded(network: nn.Module, shape: Shape) -> nn.Module:
    """The same function of the images; its input's order folded into the first layer, BatchNorm into dense layers.

    BatchNorm is left as it is where the network is recognised with it, or is not without it. What cannot be folded
    stays. The network itself is not changed.

    Args:
        shape: (channels, height, width) of an image.
    """
    inner = network.layers if isinstance(network, CentredNetwork) else network
    if not isinstance(inner, LayeredNetwork):
        return network
    layers = [
        _Named(name, layer)
        for (name, _), layer in zip(inner.steps, inner.in_sequence, strict=False)
        if not isinstance(layer, nn.Identity)
    ]
    if not layers:
        return network
    ordered = _fold_order(layers, shape)
    result = network if ordered is layers else _network(network, ordered)
    if recognise(result) is not None or not any(isinstance(one.layer, nn.BatchNorm1d) for one in ordered):
        return result
    without = _network(network, _fold_batch_norm(ordered))
    return result if recognise(without) is None else without


def _network(original: nn.Module, layers: list[_Named]) -> nn.Module:
    """The chain behind the same centring, if there is one."""
    named = [(one.name, one.layer, (number - 1,)) for number, one in enumerate(layers)]
    if not isinstance(original, CentredNetwork):
        return LayeredNetwork(named, centring=centring_of(original)).eval()
    return CentredNetwork(original.centre.centre, LayeredNetwork(named), original.centre.scale).eval()


@torch.no_grad()
def _fold_order(layers: list[_Named], shape: Shape) -> list[_Named]:
    """The chain without the layers that put pixels or channels into another order, if its first layer can take it."""
    count = 0
    while isinstance(layers[count].layer, Permute | ReverseChannels):
        count += 1
    rest = layers[count:]
    pixels = torch.arange(shape[0] * shape[1] * shape[2]).reshape(1, *shape)
    order: Tensor = nn.Sequential(*(one.layer for one in layers[:count]))(pixels)
    if count == 0:
        return layers
    match [one.layer for one in rest[:2]]:
        case [nn.Flatten(), nn.Linear() as first]:
            weight = torch.empty_like(first.weight)
            weight[:, order.flatten()] = first.weight
            return [rest[0], _Named(rest[1].name, _with_weights(first, weight, first.bias)), *rest[2:]]
        case [nn.Conv2d() as first, *_] if first.groups == 1 and order.shape == pixels.shape:
            channels = torch.arange(shape[0]).reshape(1, -1, 1, 1)
            if all(isinstance(one.layer, ReverseChannels) for one in layers[:count]):
                turned: Tensor = nn.Sequential(*(one.layer for one in layers[:count]))(channels)
                weight = torch.empty_like(first.weight)
                weight[:, turned.flatten()] = first.weight
                return [_Named(rest[0].name, _with_weights(first, weight, first.bias)), *rest[1:]]
    return layers


@torch.no_grad()
def _fold_batch_norm(layers: list[_Named]) -> list[_Named]:
    """The chain without the BatchNorm that follows or precedes a dense layer."""
    kept: list[_Named] = []
    for one in layers:
        before = kept[-1].layer if kept else None
        if isinstance(one.layer, nn.BatchNorm1d) and isinstance(before, nn.Linear):
            factor, shift = _affine(one.layer)
            bias = shift if before.bias is None else before.bias * factor + shift
            kept[-1] = _Named(kept[-1].name, _with_weights(before, before.weight * factor[:, None], bias))
        elif isinstance(one.layer, nn.Linear) and isinstance(before, nn.BatchNorm1d):
            factor, shift = _affine(before)
            bias = functional.linear(shift, one.layer.weight, one.layer.bias)
            kept[-1] = _Named(one.name, _with_weights(one.layer, one.layer.weight * factor, bias))
        else:
            kept.append(one)
    return kept


def _affine(layer: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Factor and shift of each neuron in evaluation mode."""
    assert layer.running_mean is not None and layer.running_var is not None
    factor = (layer.running_var + layer.eps).rsqrt()
    factor = factor if layer.weight is None else factor * layer.weight
    shift = -layer.running_mean * factor
    return factor, shift if layer.bias is None else shift + layer.bias


def _with_weights(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """A layer of the same settings with other weights, to be learned as those were."""
    with torch.device("meta"):
        other: nn.Linear | nn.Conv2d
        if isinstance(layer, nn.Linear):
            other = nn.Linear(layer.in_features, layer.out_features, bias=bias is not None)
        else:
            other = nn.Conv2d(
                layer.in_channels,
                layer.out_channels,
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                bias=bias is not None,
            )
    other.weight = nn.Parameter(weight.detach().clone(), requires_grad=layer.weight.requires_grad)
    if bias is not None:
        other.bias = nn.Parameter(bias.detach().clone(), requires_grad=layer.weight.requires_grad)
    return other
