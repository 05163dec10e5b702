"""What a search for the start is given: the trained weights and biases, layer by layer, and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exhume.checkpoint import Checkpoint
from exhume.errors import InputError

HALF = (torch.float16, torch.bfloat16)
FLOATS = (*HALF, torch.float32, torch.float64)


@dataclass(frozen=True, kw_only=True)
class TrainedLayer:
    """One layer's trained parameters.

    name: what its parameters' names begin with, "" if nothing; weight: [out, in] or [out, in, ...]; bias: [out].
    """

    name: str
    kind: Literal["linear", "conv"]
    weight: Tensor
    bias: Tensor | None

    @property
    def weight_name(self) -> str:
        """The weight's name in the state dict."""
        return f"{self.name}.weight".lstrip(".")

    @property
    def bias_name(self) -> str:
        """The bias's name in the state dict, whether there is one or not."""
        return f"{self.name}.bias".lstrip(".")

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Weight and bias by name, in the order in which PyTorch draws them."""
        bias = {} if self.bias is None else {self.bias_name: self.bias}
        return {self.weight_name: self.weight, **bias}


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """The layers whose initial weights are random draws, in order, and the names of all other parameters.

    others: for example BatchNorm's; they begin at constants or are drawn by rules that are not known here.
    """

    layers: tuple[TrainedLayer, ...]
    others: tuple[str, ...] = ()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """All layers' weights and biases by name, in order."""
        return {name: tensor for layer in self.layers for name, tensor in layer.parameters.items()}


def trained_network(source: Checkpoint | nn.Module | Mapping[str, Tensor] | Sequence[TrainedLayer]) -> TrainedNetwork:
    """The layers of a network: its weights of two dimensions (linear) or more (convolutions), in order.

    Args:
        source: a checkpoint, a module, its state dict, or layers that someone has put together by hand.

    Raises:
        InputError: there is no such layer, or a weight is not finite or holds no values yet.

    Example:
        >>> [layer.name for layer in trained_network(torch.nn.Sequential(torch.nn.Linear(3, 2))).layers]
        ['0']
    """
    if isinstance(source, Checkpoint):
        source = source.parameters
    if isinstance(source, nn.Module):
        tensors: dict[str, Tensor] = dict(source.named_parameters())
        if any(isinstance(tensor, UninitializedParameter) or tensor.is_meta for tensor in tensors.values()):
            raise InputError("The network holds no values yet.")
        network = _by_name(tensors)
    elif isinstance(source, Mapping):
        network = _by_name(source)
    else:
        network = TrainedNetwork(layers=tuple(source))
    if not network.layers:
        raise InputError("There is no layer of weights: no tensor named weight with two dimensions or more.")
    for name, tensor in network.parameters.items():
        if not tensor.isfinite().all():
            raise InputError(f"{name} holds weights that are not finite.")
    return network


def _by_name(tensors: Mapping[str, Tensor]) -> TrainedNetwork:
    tensors = {name: t.detach().cpu() for name, t in tensors.items() if isinstance(t, Tensor) and t.dtype in FLOATS}
    layers = []
    for name, weight in tensors.items():
        prefix, _, kind = name.rpartition(".")
        if kind == "weight" and weight.ndim > 1 and weight.numel() > 0:
            bias = tensors.get(f"{prefix}.bias".lstrip("."))
            if bias is not None and bias.shape != weight.shape[:1]:
                bias = None
            layers.append(
                TrainedLayer(name=prefix, kind="linear" if weight.ndim == 2 else "conv", weight=weight, bias=bias)
            )
    network = TrainedNetwork(layers=tuple(layers))
    return TrainedNetwork(
        layers=network.layers, others=tuple(name for name in tensors if name not in network.parameters)
    )
