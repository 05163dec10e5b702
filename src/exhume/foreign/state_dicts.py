"""A state dict without its network's code becomes the chain of dense layers that its shapes tell."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

import torch
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import Shape

PREFIXES = ("module.", "_orig_mod.", "_module.", "model.")
"""What training puts before all names: several GPUs, compilation, private gradients, Lightning."""
NORMALISING = re.compile(
    r"(^|[._])(norm|normali[sz]e|normali[sz]er|normali[sz]ation|preprocess|transform)\w*\.(mean|std)$|^(mean|std)$"
)
"""Names of the mean and the deviation that a network normalises its images by."""
BESIDE = re.compile(r"criterion|loss|metric|(^|[._])(train|val|test)_|acc|ema_")
"""Names of what training scripts keep beside the network: a loss's weights, counts of right answers."""
PARTS = ("weight", "bias", "running_mean", "running_var")
"""What a layer may have, in PyTorch's order."""
GIVE_CODE = "give the network's code, as model.py:make_model, with this file as its weights"


@dataclass(frozen=True)
class DenseLayer:
    """One layer of a chain: weight [out, in], bias [out] or None, and BatchNorm's tensors by name, if there is one.

    name: in the state dict; normalised: where its BatchNorm stands, before or after the activation.
    """

    name: str
    weight: Tensor
    bias: Tensor | None
    norm_name: str = ""
    norm: Mapping[str, Tensor] | None = None
    normalised: Literal["before", "after"] = "before"


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Dense layers in the order of their work; built: their names in the order of the file.

    mean, std: what the images are normalised by; usual: the file's order is that of work, and names are PyTorch's.
    """

    layers: tuple[DenseLayer, ...]
    built: tuple[str, ...]
    mean: Tensor | None
    std: Tensor | None
    usual: bool
    notes: tuple[str, ...]


def without_prefixes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors without what stands before all weights' names, and that prefix."""
    found, removed = dict(tensors), ""
    while True:
        weights = [name for name, tensor in found.items() if tensor.ndim > 1] or list(found)
        prefix = next((one for one in PREFIXES if weights and all(name.startswith(one) for name in weights)), None)
        if prefix is None:
            return found, removed
        found = {name.removeprefix(prefix): tensor for name, tensor in found.items()}
        removed += prefix


def read_chain(tensors: Mapping[str, Tensor], shape: Shape, where: str, *, ordered: bool = True) -> Chain:
    """The one chain of dense layers on images of a shape that the tensors can be.

    Args:
        where: what to call the file in a sentence.
        ordered: whether the order of the tensors means anything.

    Raises:
        InputError: it is something else, or there is more than one reading.
    """
    inputs = math.prod(shape)
    if any("lora_" in name.lower() for name in tensors):
        raise InputError(
            f"{where} is a LoRA adapter and no network; merge it into its network (`merge_and_unload()`) and save that."
        )
    found, _ = without_prefixes(tensors)
    found, notes = _without_masks(found)
    found, kernels = _named_as_in_pytorch(found)
    weights = {name: tensor for name, tensor in found.items() if name.endswith("weight") and tensor.ndim == 2}
    many = [
        name
        for name, tensor in found.items()
        if tensor.ndim > 1 and name not in weights and not NORMALISING.search(name)
    ]
    norms = [name.removesuffix("running_mean") for name in found if name.endswith("running_mean")]
    biases = {name: found.get(name.removesuffix("weight") + "bias") for name in weights}
    mean, std, beside = _beside(found, weights, norms)
    notes += beside.notes
    chain = " -> ".join(str(tuple(weight.shape)) for weight in weights.values()) or "no weights"
    if many or beside.odd:
        odd = sorted([*many, *beside.odd])[0]
        hint = f"; {GIVE_CODE}" if weights or any(found[name].ndim == 4 for name in many) else ""
        raise InputError(f"{where} holds no chain of dense layers on {inputs} inputs (unexpected {odd}){hint}.")
    order, transposed = _in_order(weights, shape, where, chain, kernels=kernels)
    if transposed:
        notes.append("The weights are read as [inputs, outputs], as Keras and JAX save them.")
    if ordered and list(order) != list(weights):
        notes.append(f"The layers are read in the order that their sizes tell: {', '.join(order)}.")
    layers = []
    for name in order:
        weight, bias = weights[name], biases[name]
        weight = weight.T.contiguous() if transposed else weight
        layer = DenseLayer(name.removesuffix("weight").removesuffix("."), weight, bias)
        layers.append(layer)
    if layers[-1].weight.shape[0] == inputs:
        raise InputError(f"{where} has as many outputs as inputs ({inputs}): it is an autoencoder and no classifier.")
    layers, more = _with_norms(layers, norms, found, where)
    names = [_dotted(one) for layer in layers for one in _names(layer)]
    built = [name for name in found if any(name.startswith(one) for one in names)]
    if not ordered:
        built = [f"{one}{part}" for one in names for part in PARTS if f"{one}{part}" in found]
    return Chain(
        layers=tuple(layers),
        built=tuple(built),
        mean=mean,
        std=std,
        usual=(not ordered or list(order) == list(weights)) and not norms,
        notes=(*notes, *more),
    )


def _names(layer: DenseLayer) -> list[str]:
    return [layer.name, layer.norm_name] if layer.norm is not None else [layer.name]


def _dotted(name: str) -> str:
    return f"{name}." if name else ""


def _without_masks(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The weights that a network computes of others: pruned ones, and those of weight normalisation."""
    found, notes = dict(tensors), list[str]()
    for name in list(tensors):
        layer, _, kind = name.rpartition(".")
        layer = _dotted(layer)
        if kind.endswith("_orig") and f"{name.removesuffix('_orig')}_mask" in tensors:
            mask = tensors[f"{name.removesuffix('_orig')}_mask"]
            found = _replaced(found, name, name.removesuffix("_orig"), tensors[name] * mask)
            del found[f"{name.removesuffix('_orig')}_mask"]
            notes.append(f"{name} is multiplied by its mask: the network was pruned.")
        elif kind == "weight_v" and f"{layer}weight_g" in tensors:
            found = _replaced(found, name, f"{layer}weight", _normed(tensors[name], tensors[f"{layer}weight_g"]))
            del found[f"{layer}weight_g"]
            notes.append(f"{layer}weight is computed of weight_g and weight_v, its weight normalisation.")
        elif name.endswith("parametrizations.weight.original1") and name[:-1] + "0" in tensors:
            plain = name.removesuffix("parametrizations.weight.original1") + "weight"
            found = _replaced(found, name, plain, _normed(tensors[name], tensors[name[:-1] + "0"]))
            del found[name[:-1] + "0"]
            notes.append(f"{plain} is computed of its weight normalisation.")
    return found, notes


def _replaced(tensors: Mapping[str, Tensor], name: str, other: str, tensor: Tensor) -> dict[str, Tensor]:
    """Another name and tensor in the same place."""
    return {other if one == name else one: tensor if one == name else value for one, value in tensors.items()}


def _normed(direction: Tensor, size: Tensor) -> Tensor:
    normed: Tensor = size * direction / direction.flatten(1).norm(dim=1).reshape(-1, *[1] * (direction.ndim - 1))
    return normed


def _named_as_in_pytorch(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], bool]:
    """Keras' and JAX's dense/kernel:0 as dense.weight, and whether there are such."""
    kernels = any(re.search(r"(^|[/.])kernel(:0)?$", name) for name in tensors)
    if not kernels:
        return dict(tensors), False
    plain = {name: name.removesuffix(":0").replace("/", ".") for name in tensors}
    return {re.sub(r"(^|\.)kernel$", r"\1weight", plain[name]): tensor for name, tensor in tensors.items()}, True


@dataclass(frozen=True)
class _Beside:
    """What is no layer's: sentences on what was left out, and names of what cannot be."""

    notes: list[str]
    odd: list[str]


def _beside(
    found: Mapping[str, Tensor], weights: Mapping[str, Tensor], norms: Sequence[str]
) -> tuple[Tensor | None, Tensor | None, _Beside]:
    """The mean and the deviation of the images, and what else is beside the layers."""
    layers = {name.removesuffix("weight") for name in weights}
    normalising, left, odd = dict[str, tuple[str, Tensor]](), [], []
    for name, tensor in found.items():
        layer = name.removesuffix("bias")
        if name in weights or (name.endswith("bias") and layer in layers) or name.rpartition(".")[0] + "." in norms:
            continue
        if NORMALISING.search(name) and tensor.is_floating_point():
            normalising[name.rpartition(".")[2]] = name, tensor
        elif BESIDE.search(name) or not tensor.is_floating_point() or _is_count(name, tensor):
            left.append(name)
        elif tensor.ndim <= 1:
            odd.append(name)
    left = [name for name in left if not name.endswith("num_batches_tracked")]
    notes = [f"Left out, for no layer needs it: {', '.join(left[:5])}{', ...' * (len(left) > 5)}."] if left else []
    mean, std = normalising.get("mean"), normalising.get("std")
    if mean or std:
        names = " and ".join(one[0] for one in (mean, std) if one)
        notes.append(f"{names} {'are' if mean and std else 'is'} read as what the network subtracts and divides by.")
    return mean[1] if mean else None, std[1] if std else None, _Beside(notes, odd)


def _is_count(name: str, tensor: Tensor) -> bool:
    return tensor.ndim == 0 or (tensor.shape == (1,) and not name.endswith(("weight", "bias")))


def _in_order(
    weights: Mapping[str, Tensor], shape: Shape, where: str, chain: str, *, kernels: bool
) -> tuple[list[str], bool]:
    """The weights' names in the order of their work, and whether they are [in, out]."""
    ways, inputs = (True, False) if kernels else (False, True), math.prod(shape)
    for transposed in ways if weights else ():
        sizes = {name: tuple(w.shape) if transposed else tuple(w.shape)[::-1] for name, w in weights.items()}
        if _chains(list(sizes.values()), inputs):
            return list(weights), transposed
    for transposed in ways if weights else ():
        sizes = {name: tuple(w.shape) if transposed else tuple(w.shape)[::-1] for name, w in weights.items()}
        orders = list(islice(_orders(sizes, inputs, []), 2)) if _could_chain(list(sizes.values()), inputs) else []
        if len(orders) == 1:
            return orders[0], transposed
        if orders:
            raise InputError(f"{where} can be read as several chains of dense layers ({chain}); {GIVE_CODE}.")
    raise InputError(f"{where} holds no chain of dense layers on {inputs} inputs ({chain}){_taken(weights, shape)}.")


def _taken(weights: Mapping[str, Tensor], shape: Shape) -> str:
    """How many values a chain takes that is one, but on other images, beside those of the images; "" if it is none."""
    for transposed in (False, True):
        sizes = [tuple(w.shape) if transposed else tuple(w.shape)[::-1] for w in weights.values()]
        if sizes and _chains(sizes, sizes[0][0]):
            each = " x ".join(str(side) for side in (shape if shape[0] > 1 else shape[1:]))
            return f": your images have {each} = {math.prod(shape)} values each, and it takes {sizes[0][0]}"
    return ""


def _chains(sizes: Sequence[tuple[int, ...]], inputs: int) -> bool:
    """Whether layers of these sizes, (in, out), follow one another."""
    return [size[0] for size in sizes] == [inputs, *(size[1] for size in sizes)][:-1]


def _could_chain(sizes: Sequence[tuple[int, ...]], inputs: int) -> bool:
    """Whether an order of all layers can exist: every size but the ends is left as often as it is reached."""
    balance = Counter(size[0] for size in sizes)
    balance.subtract(size[1] for size in sizes)
    odd = [size for size, count in balance.items() if count]
    return all(count in (-1, 0, 1) for count in balance.values()) and (not odd or balance[inputs] == 1) and len(odd) < 3


def _orders(sizes: Mapping[str, tuple[int, ...]], inputs: int, before: list[str]) -> Iterator[list[str]]:
    """All orders in which the layers follow one another."""
    if len(before) == len(sizes):
        yield before
    for name, (into, out) in sizes.items():
        if name not in before and into == inputs:
            yield from _orders(sizes, out, [*before, name])


def _with_norms(
    layers: Sequence[DenseLayer], norms: Sequence[str], found: Mapping[str, Tensor], where: str
) -> tuple[list[DenseLayer], list[str]]:
    """The layers with their BatchNorm, in the order of the file: each belongs to the layer before it."""
    result, notes = list(layers), list[str]()
    names = list(found)
    for norm in norms:
        parts = ("weight", "bias", "running_mean", "running_var")
        tensors = {part: found[norm + part] for part in parts if norm + part in found}
        place = names.index(norm + "running_mean")
        before = [k for k, layer in enumerate(result) if names.index(f"{_dotted(layer.name)}weight") < place]
        at = max(before, key=lambda k: names.index(f"{_dotted(result[k].name)}weight"), default=None)
        fits = at is not None and result[at].norm is None and at < len(result) - 1 and "running_var" in tensors
        if at is None or not fits or any(len(t) != len(result[at].weight) for t in tensors.values()):
            raise InputError(
                f"{where} holds {norm}running_mean, whose place among the layers is not clear; {GIVE_CODE}."
            )
        where_it_stands = _place_of(result[at].name, norm[:-1])
        if where_it_stands is None:
            notes.append(f"{norm[:-1]} is read as standing before the activation; if it does not, {GIVE_CODE}.")
        result[at] = replace(result[at], norm_name=norm[:-1], norm=tensors, normalised=where_it_stands or "before")
    return result, notes


def _place_of(layer: str, norm: str) -> Literal["before", "after"] | None:
    """Whether BatchNorm stands before or after the activation, by the numbers of an nn.Sequential; None: unknown."""
    outer, _, number = layer.rpartition(".")
    other, _, second = norm.rpartition(".")
    if outer != other or not (number.isdecimal() and second.isdecimal()):
        return None
    return "before" if int(second) == int(number) + 1 else "after"


def first_mean(values: Tensor) -> Tensor:
    """A mean or deviation that is kept as [1, c, 1, 1] without dimensions of one."""
    return (
        values.detach().reshape(-1) if values.numel() in (1, max(values.shape, default=1)) else torch.squeeze(values, 0)
    )
