"""A network as a list of ATen operations, and how it is read as layers."""

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.errors import InputError
from exhume.layers import IMAGES, Layer, LayeredNetwork, LayerGraph, Settings, build_layers, make_layer
from exhume.networks import Centre, Shape, Task

HEADS = ("softmax", "log-softmax")
"""Last layers that turn scores into probabilities: what is trained with the cross-entropy are the scores before."""


@dataclass(frozen=True)
class Reference:
    """A value of the program, by its name."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Operation:
    """One step of a program.

    target: the ATen operation, without namespace and overload; arguments: by their names in ATen's schema, a
    `Reference` for each value; module: the module in whose code it stands, "" for the outermost; whole: whether it is
    all that this module does.
    """

    target: str
    arguments: Mapping[str, Any]
    output: str
    module: str = ""
    whole: bool = False


@dataclass(frozen=True, kw_only=True)
class Program:
    """What a network does, step by step.

    images, scores: the values that it takes and gives; batch: how many images it takes, None: any number; tensors: by
    the value's name, each with its name in the state dict; names: all of the state dict's, in its order.
    """

    operations: Sequence[Operation]
    images: str
    scores: str
    tensors: Mapping[str, tuple[str, Tensor]]
    names: Sequence[str]
    batch: int


@dataclass(frozen=True)
class Constant:
    """A value that does not depend on the images; name: in the state dict, "" for what was computed of others."""

    name: str
    tensor: Tensor
    transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Output:
    """What a layer gives.

    number: of the layer, IMAGES for the images; shape: of all images' values; order: where it is nothing but the
    images' values in another order, the index of each, [1, ...]; subtracted, divided: what the images were normalised
    by before, in the order of the images.
    """

    number: int
    shape: tuple[int, ...]
    order: Tensor | None = None
    subtracted: Tensor | None = None
    divided: Tensor | None = None


Value = Any
"""An `Output`, a `Constant`, a number, or a list of these."""


@dataclass(frozen=True, kw_only=True)
class ReadLayers:
    """A network that was read.

    graph: its layers; weights: their tensors; centre, scale: as of `Checkpoint`; outputs: scores of an image; notes:
    what was assumed or left out, in sentences.
    """

    graph: LayerGraph
    weights: dict[str, Tensor]
    centre: Float[Tensor, "c h w"]
    scale: Float[Tensor, "c h w"] | None
    outputs: int
    notes: tuple[str, ...] = ()

    def build(self) -> LayeredNetwork:
        """The network as a module, whose parameters have the names that they had."""
        dtype = next(iter(self.weights.values())).dtype
        scale = None if self.scale is None else self.scale.to(dtype)
        plain = scale is None and not self.centre.any()
        return build_layers(self.graph, self.weights, None if plain else Centre(self.centre.to(dtype), scale))


class Reader:
    """Collects the layers of a program while it is gone through."""

    def __init__(self, program: Program, shape: Shape, entry: Sequence[tuple[str, Settings]]) -> None:
        """shape: (channels, height, width) of an image; entry: as of `read_layers`."""
        self.program, self.layers, self.notes = program, list[Layer](), list[str]()
        self.weights: dict[str, Tensor] = {}
        self.taken: set[str] = {name.rpartition(".")[0] or name for name in program.names}
        self.normalised: dict[int, tuple[Tensor | None, Tensor | None]] = {}
        self.uses = Counter(name for step in program.operations for name in _references(step.arguments.values()))
        self.current = Operation(target="", arguments={}, output="")
        order = torch.arange(torch.Size(shape).numel()).reshape(1, *shape)
        self.images = taken = Output(number=IMAGES, shape=(program.batch, *shape), order=order)
        for kind, settings in entry:
            taken = self.rearranged(kind, taken, settings)
        self.values: dict[str, Value] = {program.images: taken}
        self.values |= {value: Constant(name, tensor) for value, (name, tensor) in program.tensors.items()}

    def layer(
        self,
        kind: str,
        inputs: Sequence[Output],
        settings: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Constant] | None = None,
    ) -> Output:
        """Adds a layer and gives its output."""
        parameters, settings = parameters or {}, dict(settings or {})
        name = self._name(kind, parameters)
        layer = Layer(name=name, kind=kind, inputs=tuple(one.number for one in inputs), settings=settings)
        before = next((one for one in self.layers if one.name == name), None)
        if before is not None and (before.kind, before.settings) != (kind, settings):
            raise InputError(f"The parameters of {name} are used in two ways, which is not supported.")
        tensors = {parameter: value.tensor.detach() for parameter, value in parameters.items()}
        module = make_layer(layer, tensors).to("meta")
        try:
            shape = tuple(module(*(torch.empty(one.shape, device="meta") for one in inputs)).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            detail = str(error).strip().partition("\n")[0]
            raise InputError(f"The layer {name} ({kind}) does not fit what comes before it: {detail}") from None
        if shape[:1] != (self.program.batch,):
            raise InputError(f"The layer {name} ({kind}) mixes the images of a batch, which is not supported.")
        self.weights |= {f"{name}.{parameter}": tensor for parameter, tensor in tensors.items()}
        self.layers.append(layer)
        number = len(self.layers) - 1
        for one in inputs:
            if one.order is not None:
                self.normalised[number] = one.subtracted, one.divided
        return Output(number=number, shape=shape)

    def rearranged(self, kind: str, of: Output, settings: Mapping[str, Any]) -> Output:
        """Adds a layer that gives the same values of each image in another order or shape.

        What only undoes an earlier change of order is no layer.
        """
        if of.order is None:
            return self.layer(kind, [of], settings)
        order = make_layer(Layer(name="order", kind=kind, inputs=(IMAGES,), settings=dict(settings)), {})(of.order)
        assert self.images.order is not None
        plain = order.shape == self.images.order.shape and torch.equal(order, self.images.order)
        flat = order.ndim == 2 and torch.equal(order, self.images.order.flatten(1))
        if plain:
            output = self.images
        else:
            output = self.layer("flatten", [self.images]) if flat else self.layer(kind, [of], settings)
            self.normalised.pop(output.number)  # it works on values before and after normalising alike
        return replace(output, order=order, subtracted=of.subtracted, divided=of.divided)

    def _name(self, kind: str, parameters: Mapping[str, Constant]) -> str:
        """The layer's name: that of its parameters, of its module, or one for what has none."""
        named = parameters.get("weight") or parameters.get("running_mean")
        if named is not None and named.name:
            name = named.name.removesuffix(".weight").removesuffix(".running_mean")
            return name if name not in ("weight", "running_mean") else "layer"
        module = self.current.module
        if named is not None and module and module not in {layer.name for layer in self.layers}:
            return module
        name = module if self.current.whole else f"{module}.{kind.replace('-', '_')}".lstrip(".")
        used = {layer.name for layer in self.layers} | self.taken
        for count in itertools.count(1):
            for plain in (name, name.replace(".", "_")):
                one = plain if count == 1 else f"{plain}_{count}"
                if not any(
                    one == other or f"{other}.".startswith(f"{one}.") or one.startswith(f"{other}.") for other in used
                ):
                    return one
        raise AssertionError


def with_whole_modules(operations: Sequence[Operation]) -> list[Operation]:
    """The operations, told which of them are all that their module does, however often."""
    targets: dict[str, set[str]] = {}
    for step in operations:
        parts = step.module.split(".")
        for count in range(1, len(parts)):
            targets.setdefault(".".join(parts[:count]), set()).add(step.module)
        targets.setdefault(step.module, set()).add(step.target)
    return [replace(step, whole=bool(step.module) and targets[step.module] == {step.target}) for step in operations]


def _references(values: Any) -> list[str]:
    """The names of all values among arguments."""
    found: list[str] = []
    for value in values:
        if isinstance(value, Reference):
            found.append(value.name)
        elif isinstance(value, list | tuple):
            found += _references(value)
    return found


Handler = Callable[[Reader, Mapping[str, Any]], Value]


def read_layers(
    program: Program,
    shape: Shape,
    task: Task | None,
    operations: Mapping[str, Handler],
    *,
    entry: Sequence[tuple[str, Settings]] = (),
) -> ReadLayers:
    """The layers of a program.

    Args:
        shape: (channels, height, width) of an image.
        operations: how each operation becomes a layer.
        entry: kinds and settings of the layers that turn [n, c, h, w] into what the program takes.

    Raises:
        InputError: an operation is not known, or what it does is not supported.
    """
    reader = Reader(program, shape, entry)
    for step in program.operations:
        do(reader, step, operations)
    return finished(reader, reader.values.get(program.scores), shape, task)


def do(reader: Reader, step: Operation, operations: Mapping[str, Handler]) -> None:
    """Reads one operation.

    Raises:
        InputError: it is not known, or what it does is not supported.
    """
    reader.current = step
    inplace = step.target.endswith("_") and step.target.rstrip("_") in operations
    handler = operations.get(step.target.rstrip("_") if inplace else step.target)
    if handler is None:
        where = f" in {step.module}" if step.module else ""
        raise InputError(f"The operation {step.target}{where} is not supported.")
    arguments = {name: resolved(value, reader.values) for name, value in step.arguments.items()}
    try:
        reader.values[step.output] = handler(reader, arguments)
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, AttributeError, StopIteration) as error:
        if isinstance(error, InputError):
            raise
        detail = str(error).strip().partition("\n")[0]
        raise InputError(f"The operation {step.target} has arguments that are not supported ({detail}).") from None
    changed = next(iter(step.arguments.values()), None)
    if inplace and isinstance(changed, Reference):
        reader.values[changed.name] = reader.values[step.output]


def resolved(value: Any, values: Mapping[str, Value]) -> Value:
    """An argument with values in place of references."""
    if isinstance(value, Reference):
        if value.name not in values:
            raise InputError(f"The program uses {value.name} before it is there.")
        return values[value.name]
    return [resolved(one, values) for one in value] if isinstance(value, list | tuple) else value


def finished(reader: Reader, scores: Value, shape: Shape, task: Task | None) -> ReadLayers:
    """The layers up to the scores, without what turns them into probabilities.

    Raises:
        InputError: the scores are no row for each image, or do not depend on the images.
    """
    if not isinstance(scores, Output) or scores.number == IMAGES:
        raise InputError("The network must return its scores alone, a tensor [n, outputs] that depends on the images.")
    layers, last, notes = reader.layers, scores.number, list(reader.notes)
    size = scores.shape
    while _is_head(layers[last], size, task) and layers[last].inputs[0] != IMAGES:
        if layers[last].kind not in ("reshape", "flatten"):
            notes.append(f"The last layer, {layers[last].kind}, is left out: the scores are what comes before it.")
        elif len(size) == 1:
            size = (*size, 1)
        last = layers[last].inputs[0]
    if len(size) != 2:
        raise InputError(f"The network must give each image a row of scores, not values of shape {tuple(size[1:])}.")
    kept = _needed(layers, last)
    number = {old: new for new, old in enumerate(kept)} | {IMAGES: IMAGES}
    chosen = [replace(layers[old], inputs=tuple(number[one] for one in layers[old].inputs)) for old in kept]
    names = {layer.name for layer in chosen}
    weights = {name: tensor for name, tensor in reader.weights.items() if name.rpartition(".")[0] in names}
    if not weights:
        raise InputError("The network has no weights.")
    order = {name: place for place, name in enumerate(reader.program.names)}
    built = sorted(weights, key=lambda name: order.get(name, order.get(name.rpartition(".")[0], len(order))))
    unused = [name for name in reader.program.names if name not in weights and _could_be_learned(name)]
    used = {name for name, _ in reader.program.tensors.values()}
    unused = [name for name in unused if name not in used]
    if unused:
        notes.append(
            f"Left out, for the scores do not depend on it: {', '.join(unused[:5])}{', ...' * (len(unused) > 5)}."
        )
    centre, scale = _normalisation(reader, kept, shape)
    return ReadLayers(
        graph=LayerGraph(layers=tuple(chosen), parameters=tuple(built)),
        weights={name: weights[name] for name in built},
        centre=centre,
        scale=scale,
        outputs=size[1],
        notes=tuple(notes),
    )


def _could_be_learned(name: str) -> bool:
    return not name.endswith(("num_batches_tracked", "running_mean", "running_var"))


def _is_head(layer: Layer, size: tuple[int, ...], task: Task | None) -> bool:
    if layer.kind in ("reshape", "flatten"):
        return len(size) == 1
    return task != "regression" and (layer.kind in HEADS or (layer.kind == "sigmoid" and size[1:] in ((), (1,))))


def _needed(layers: Sequence[Layer], last: int) -> list[int]:
    """The numbers of the layers on which the last one depends, in order."""
    needed, waiting = set[int](), [last]
    while waiting:
        number = waiting.pop()
        if number != IMAGES and number not in needed:
            needed.add(number)
            waiting += layers[number].inputs
    return sorted(needed)


def _normalisation(reader: Reader, kept: Sequence[int], shape: Shape) -> tuple[Tensor, Tensor | None]:
    """What the network subtracts from the images and divides them by, both [c, h, w]."""
    found = [reader.normalised[number] for number in kept if number in reader.normalised]
    first = found[0] if found else (None, None)
    if not all(_same(one[0], first[0]) and _same(one[1], first[1]) for one in found):
        raise InputError("The network normalises its images in two ways, which is not supported.")
    dtype = next(iter(reader.weights.values())).dtype
    subtracted, divided = (None if part is None else part.reshape(shape).to(dtype) for part in first)
    return torch.zeros(shape, dtype=dtype) if subtracted is None else subtracted, divided


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))
