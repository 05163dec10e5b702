"""Files that hold a network's operations beside its weights: `torch.export` and TorchScript. Nothing in them is run.

`torch.export.load` unpickles what the file says, so its archive is read here: the graph is JSON, the weights are bytes.
`torch.jit.load` runs the `__setstate__` of what it loads; a file with such code is refused, and what is loaded is a
copy of the parts that were looked at. Its graph is then read step by step, and no method is called.
"""

import io
import json
import math
import operator
import re
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exhume.errors import InputError
from exhume.foreign.files import MOST_DEFLATED, kind_of
from exhume.foreign.modules import BGR, FLAT, HWC
from exhume.foreign.operations import OPERATIONS
from exhume.foreign.program import (
    Constant,
    Operation,
    Output,
    Program,
    Reader,
    ReadLayers,
    Reference,
    Value,
    do,
    finished,
    read_layers,
    resolved,
    with_whole_modules,
)
from exhume.layers import Settings
from exhume.networks import Shape, Task

DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    OSError,
    EOFError,
    RuntimeError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    OverflowError,
    RecursionError,
)
"""What reading an archive, and the graph in it, raises where they are not as they were written."""
BATCH = 2
"""Images in the batch that a program for any number is read with."""
DTYPES = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    12: torch.bool,
    13: torch.bfloat16,
}
"""The types of tensors by their numbers in an exported program."""


def read_program(
    path: Path, shape: Shape, task: Task | None, *, layout: str = "chw", channels: str = "rgb"
) -> ReadLayers:
    """The layers of a program in a file.

    Args:
        layout, channels: how it takes its images, as of `read_module`.

    Raises:
        InputError: the file is damaged, would run code of its own, or does what is not supported.
    """
    read = _read_exported if kind_of(path) == "export" else _read_script
    try:
        with zipfile.ZipFile(path) as archive:
            _check_sizes(archive, path.stat().st_size)
            return read(path, archive, shape, task, (layout, channels))
    except DAMAGE as error:
        if isinstance(error, InputError):
            raise InputError(f"{path}: {error}") from None
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None


def _check_sizes(archive: zipfile.ZipFile, size: int) -> None:
    """Raises `InputError` for an archive that unpacks to more than a file of its size can hold."""
    claimed = sum(member.file_size for member in archive.infolist())
    if claimed > MOST_DEFLATED * size:
        raise InputError(f"It claims {claimed:,} bytes and does not hold them.")


def _entry(taken: Sequence[int], shape: Shape, order: tuple[str, str]) -> list[tuple[str, Settings]]:
    """The layers that turn images [n, c, h, w] into what a program takes, whose own shape is known."""
    layout, channels = order
    entry = [BGR] if channels == "bgr" else []
    entry += [HWC] if layout == "hwc" else []
    outer = (shape[1], shape[2], shape[0]) if layout == "hwc" else shape
    if tuple(taken) == tuple(outer):
        return entry
    if tuple(taken) == (math.prod(shape),):
        return [*entry, FLAT]
    raise InputError(f"The network takes images of shape {tuple(taken)}, not {tuple(outer)}.")


# ---- torch.export


def _read_exported(
    path: Path, archive: zipfile.ZipFile, shape: Shape, task: Task | None, order: tuple[str, str]
) -> ReadLayers:
    names = archive.namelist()
    inside = next((name for name in names if name.endswith("models/model.json")), None)
    if inside is None:
        raise InputError("It was saved by an older version of PyTorch; save its state dict, or export it anew.")
    root = inside.removesuffix("models/model.json")
    content = json.loads(archive.read(inside))
    graph, signature = content["graph_module"]["graph"], content["graph_module"]["signature"]
    tensors = _exported_tensors(archive, f"{root}data/weights/", "model_weights_config.json")
    tensors |= _exported_tensors(archive, f"{root}data/constants/", "model_constants_config.json")
    named, images = dict[str, tuple[str, Tensor]](), list[str]()
    for spec in signature["input_specs"]:
        (kind, one), *_ = spec.items()
        if kind == "user_input":
            images.append(one["arg"]["as_tensor"]["name"])
        elif kind in ("parameter", "buffer", "tensor_constant"):
            name = one[f"{kind}_name"]
            named[one["arg"]["name"]] = ("" if kind == "tensor_constant" else name, tensors[name])
        else:
            raise InputError(f"The program takes a {kind}, which is not supported.")
    scores = [one["as_tensor"]["name"] for one in graph["outputs"] if "as_tensor" in one]
    if len(images) != 1 or len(scores) != 1 or len(graph["outputs"]) != 1:
        raise InputError("The program must take images and give their scores alone.")
    batch, *taken = (one.get("as_int", BATCH) for one in graph["tensor_values"][images[0]]["sizes"])
    program = Program(
        operations=with_whole_modules([_exported_operation(node) for node in graph["nodes"]]),
        images=images[0],
        scores=scores[0],
        tensors=named,
        names=tuple(name for name, _ in named.values() if name),
        batch=batch,
    )
    return read_layers(program, shape, task, OPERATIONS, entry=_entry(taken, shape, order))


def _exported_tensors(archive: zipfile.ZipFile, folder: str, config: str) -> dict[str, Tensor]:
    """The tensors of a folder of the archive, by name; those that are pickled are refused."""
    if f"{folder}{config}" not in archive.namelist():
        return {}
    found = {}
    for name, one in json.loads(archive.read(f"{folder}{config}"))["config"].items():
        if one["use_pickle"]:
            raise InputError(f"{name} is a pickled object, and no code in a file is run.")
        meta, data = one["tensor_meta"], bytearray(archive.read(f"{folder}{one['path_name']}"))
        sizes, strides = ([int(number["as_int"]) for number in meta[key]] for key in ("sizes", "strides"))
        dtype, offset = DTYPES[meta["dtype"]], int(meta["storage_offset"]["as_int"])
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if min([*sizes, *strides, offset, 0]) < 0 or (0 not in sizes and (last + 1) * dtype.itemsize > len(data)):
            raise InputError(f"{name} claims more values than the file holds.")
        if math.prod(sizes) * dtype.itemsize > len(data):
            raise InputError(f"{name} claims {math.prod(sizes):,} values and holds {len(data) // dtype.itemsize:,}.")
        flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        found[name] = _checked(name, flat.as_strided(sizes, strides, offset).clone())
    return found


def _checked(name: str, tensor: Tensor) -> Tensor:
    tensor = tensor.float() if tensor.is_floating_point() and tensor.dtype != torch.float64 else tensor
    if tensor.is_floating_point() and not tensor.isfinite().all():
        raise InputError(f"{name} holds weights that are not finite.")
    return tensor.contiguous()


def _exported_operation(node: Mapping[str, Any]) -> Operation:
    parts = node["target"].split(".")
    target = parts[3] if parts[:3] == ["torch", "ops", "aten"] else ".".join(parts)
    outputs = [one.get("as_tensor", one.get("as_sym_int", {})) for one in node["outputs"]]
    output = outputs[0].get("name", outputs[0].get("as_name", "")) if outputs else ""
    stack = node.get("metadata", {}).get("nn_module_stack", "")
    module = stack.rpartition(";")[2].split(",")[1] if stack else ""
    arguments = {one["name"]: _exported_argument(one["arg"]) for one in node["inputs"]}
    return Operation(target=target, arguments=arguments, output=output, module=module)


def _exported_argument(argument: Mapping[str, Any]) -> Any:
    (kind, value), *_ = argument.items()
    if kind in ("as_tensor", "as_name"):
        return Reference(value["name"] if kind == "as_tensor" else value)
    if kind == "as_none":
        return None
    if kind in ("as_tensors", "as_sym_ints", "as_optional_tensors"):
        return [_exported_argument(one if kind != "as_tensors" else {"as_tensor": one}) for one in value]
    if kind == "as_sym_int":
        return _exported_argument(value)
    return value


# ---- TorchScript

MUST_NOT_HOLD = re.compile(rb"__setstate__|__getstate__|torch\.classes")
"""What runs while a file is loaded, or stands for an object that is made by code: a file that holds it is refused."""


def _read_script(
    path: Path, archive: zipfile.ZipFile, shape: Shape, task: Task | None, order: tuple[str, str]
) -> ReadLayers:
    module = _loaded(archive)
    graph = module.inlined_graph
    images = list(graph.inputs())[1:]
    if len(images) != 1:
        raise InputError(f"The program must take images alone, and takes {len(images)} values.")
    state = {name: _checked(name, tensor.detach()) for name, tensor in module.state_dict().items()}
    refused: InputError | None = None
    outer = (shape[1], shape[2], shape[0]) if order[0] == "hwc" else shape
    for taken in (outer, (math.prod(shape),)):
        program = Program(
            operations=(),
            images=images[0].debugName(),
            scores=next(iter(graph.outputs())).debugName(),
            tensors={},
            names=tuple(state),
            batch=BATCH,
        )
        reader = Reader(program, shape, _entry(taken, shape, order))
        try:
            reader.values[next(iter(graph.inputs())).debugName()] = _Part("", module._c)
            reader.uses.update(value.debugName() for node in graph.nodes() for value in node.inputs())
            _Script(reader, state).run(graph)
        except InputError as error:
            refused = refused or error
            continue
        return finished(reader, reader.values.get(program.scores), shape, task)
    raise refused or InputError("The program cannot be read.")


def _loaded(archive: zipfile.ZipFile) -> Any:
    """The script module, of a copy of the archive's parts: what was looked at is what is loaded."""
    copy = io.BytesIO()
    with zipfile.ZipFile(copy, "w", zipfile.ZIP_STORED) as clean:
        for name in dict.fromkeys(archive.namelist()):
            content = archive.read(name)
            told = None if _is_tensor(name) else MUST_NOT_HOLD.search(content)
            if told is not None:
                raise InputError(
                    f"It holds code that runs when it is loaded ({told[0].decode()}), and no code in a file is run."
                )
            if not name.endswith(".debug_pkl"):
                clean.writestr(name, content)
    copy.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: Any = torch.jit.load(copy, map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            detail = str(error).strip().partition("\n")[0]
            raise InputError(f"It is a TorchScript file that cannot be loaded: {detail}") from None
        return module.eval()


def _is_tensor(name: str) -> bool:
    """Whether a part of an archive is the values of a tensor, which may be any bytes."""
    parts = name.split("/")
    return len(parts) > 1 and parts[-2] in ("data", "constants") and parts[-1].isdecimal()


class _Part:
    """A module within a script module, and its name."""

    def __init__(self, name: str, of: Any) -> None:
        self.name, self.of = name, of


class _Script:
    """Goes through the graph of a script module: numbers are computed, operations on images are read as layers."""

    def __init__(self, reader: Reader, state: Mapping[str, Tensor]) -> None:
        self.reader, self.values, self.state = reader, reader.values, state

    def run(self, block: Any) -> None:
        for node in block.nodes():
            kind = node.kind()
            outputs = [value.debugName() for value in node.outputs()]
            inputs = [value.debugName() for value in node.inputs()]
            if kind == "prim::Constant":
                self.values[outputs[0]] = _script_constant(node)
            elif kind == "prim::GetAttr":
                self.values[outputs[0]] = self._attribute(self.values[inputs[0]], node.s("name"))
            elif kind in ("prim::ListConstruct", "prim::TupleConstruct"):
                self.values[outputs[0]] = [self.values[name] for name in inputs]
            elif kind in ("prim::ListUnpack", "prim::TupleUnpack"):
                self.values |= dict(zip(outputs, self.values[inputs[0]], strict=True))
            elif kind == "prim::If":
                self._branch(node, self.values[inputs[0]], outputs)
            elif kind == "prim::RaiseException":
                raise InputError("The program does not take images of this shape.")
            elif kind in ("prim::SetAttr", "prim::Uninitialized", "prim::Print"):
                self.values |= dict.fromkeys(outputs)
            else:
                self._operation(node, kind, inputs, outputs)

    def _branch(self, node: Any, chosen: Value, outputs: Sequence[str]) -> None:
        if not isinstance(chosen, bool | int):
            raise InputError("The program decides by the values of the images, which is not supported.")
        block = list(node.blocks())[0 if chosen else 1]
        self.run(block)
        self.values |= {name: self.values[of.debugName()] for name, of in zip(outputs, block.outputs(), strict=True)}

    def _attribute(self, part: Value, name: str) -> Value:
        full = f"{part.name}.{name}".lstrip(".")
        if full in self.state:
            return Constant(full, self.state[full])
        value = part.of.getattr(name)
        if isinstance(value, torch._C.ScriptObject):
            return _Part(full, value)
        return Constant(full, value) if isinstance(value, Tensor) else value

    def _operation(self, node: Any, kind: str, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        namespace, _, target = kind.partition("::")
        given = [self.values[name] for name in inputs]
        plain = not any(isinstance(value, Output | Constant) for value in given)
        if kind in ABOUT_SHAPES and not plain:
            self.values[outputs[0]] = ABOUT_SHAPES[kind](*given)
        elif kind in ON_NUMBERS and plain:
            self.values[outputs[0]] = ON_NUMBERS[kind](*given)
        elif kind in ("aten::__is__", "aten::__isnot__"):
            self.values[outputs[0]] = (given[0] is given[1]) == (kind == "aten::__is__")
        elif kind in UNCHANGED or (namespace == "prim" and target in ("dtype", "device")):
            self.values[outputs[0]] = given[0] if kind in UNCHANGED else None
        elif namespace == "aten":
            names = _argument_names(node, len(inputs))
            arguments = {name: Reference(value) for name, value in zip(names, inputs, strict=False)}
            present = {name: one for name, one in arguments.items() if resolved(one, self.values) is not None}
            module = _script_module(given)
            do(self.reader, Operation(target=target, arguments=present, output=outputs[0], module=module), OPERATIONS)
        else:
            raise InputError(f"The operation {kind} is not supported.")


def _script_module(given: Sequence[Value]) -> str:
    """The module whose parameters an operation takes."""
    named = [value.name for value in given if isinstance(value, Constant) and value.name]
    return named[0].rpartition(".")[0] if named else ""


def _argument_names(node: Any, count: int) -> list[str]:
    """The names of an operation's arguments in ATen's schema."""
    schema = node.schema()
    inside = schema[schema.index("(") + 1 :].split(") ->")[0] if "(" in schema else ""
    parsed = torch._C.parse_schema(schema) if inside else None
    return [argument.name for argument in parsed.arguments] if parsed else [str(k) for k in range(count)]


def _script_constant(node: Any) -> Value:
    value = node.output().toIValue() if node.hasAttribute("value") else None
    return Constant("", value) if isinstance(value, Tensor) else value


def _shape_of(value: Value) -> list[int]:
    return list(value.tensor.shape if isinstance(value, Constant) else value.shape)


ABOUT_SHAPES: dict[str, Callable[..., Any]] = {
    "aten::size": lambda of, *dim: _shape_of(of)[dim[0]] if dim else _shape_of(of),
    "aten::dim": lambda of: len(_shape_of(of)),
    "aten::len": lambda of: _shape_of(of)[0],
    "aten::numel": lambda of: math.prod(_shape_of(of)),
}
"""What a program may ask of a tensor."""
ON_NUMBERS: dict[str, Callable[..., Any]] = {
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::gt": operator.gt,
    "aten::le": operator.le,
    "aten::ge": operator.ge,
    "aten::__not__": operator.not_,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__getitem__": operator.getitem,
    "aten::len": len,
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::floordiv": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::neg": operator.neg,
    "aten::format": lambda text, *_: text,
    "aten::__contains__": operator.contains,
}
"""What a program computes of numbers, to choose its way."""
UNCHANGED = (
    "aten::Int",
    "aten::Float",
    "aten::Bool",
    "prim::NumToTensor",
    "prim::unchecked_cast",
    "aten::ScalarImplicit",
)
"""What hands a number or a value on."""
