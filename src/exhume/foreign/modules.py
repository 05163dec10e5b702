"""A module in Python becomes layers: it is traced, and the operations that it does are read."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from exhume.errors import InputError
from exhume.foreign.operations import OPERATIONS
from exhume.foreign.program import Operation, Program, ReadLayers, Reference, read_layers, with_whole_modules
from exhume.layers import Settings
from exhume.networks import Shape, Task

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BATCH = 2
"""Images in the batch that a module is traced with. More than one: export takes 1 for a number that stays."""
WRAPPING = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "GradSampleModule": "_module",
}
"""Modules around a network, and where they keep it: for several GPUs, averaged, compiled, for private gradients."""
HWC: tuple[str, Settings] = ("permute", {"dims": [0, 2, 3, 1]})
FLAT: tuple[str, Settings] = ("flatten", {})
BGR: tuple[str, Settings] = ("reverse-channels", {})


def unwrapped(module: nn.Module) -> nn.Module:
    """The network inside what training puts around it: `DataParallel`, `torch.compile`, and so on."""
    while type(module).__name__ in WRAPPING:
        inner = getattr(module, WRAPPING[type(module).__name__], None)
        if not isinstance(inner, nn.Module):
            break
        module = inner
    return module


def read_module(
    module: nn.Module, shape: Shape, task: Task | None = None, *, layout: str = "chw", channels: str = "rgb"
) -> ReadLayers:
    """The layers of a module in evaluation mode; it takes images [n, c, h, w], or these flattened.

    Args:
        layout: chw, or hwc where it takes [n, h, w, c].
        channels: rgb, or bgr where it takes the channels in reverse.

    Raises:
        InputError: it cannot be traced, takes or gives something else, or does what is not supported.
    """
    module = unwrapped(module).eval()
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    if any(isinstance(tensor, UninitializedParameter) or tensor.is_meta for tensor in tensors.values()):
        raise InputError("The network holds no values yet.")
    if not all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
        raise InputError("The network holds weights that are not finite.")
    order = [HWC] * (layout == "hwc")
    outer = (shape[1], shape[2], shape[0]) if layout == "hwc" else shape
    ways: list[tuple[tuple[int, ...], list[tuple[str, Settings]]]] = [
        (outer, order),
        ((math.prod(shape),), [*order, FLAT]),
    ]
    size, entry = next(((size, entry) for size, entry in ways if _takes(module, size) is None), ways[0])
    why = _takes(module, size)
    if why is not None:
        raise InputError(f"The network does not take images of shape {size}: {why}")
    before = [BGR] if channels == "bgr" else []
    program = exported_program(_traced(module, size))
    return read_layers(program, shape, task, OPERATIONS, entry=[*before, *entry])


def _images(module: nn.Module, size: Sequence[int]) -> Tensor:
    """Black images, where the network is and in its precision."""
    like = next((tensor for tensor in module.parameters() if tensor.is_floating_point()), torch.empty(0))
    return torch.zeros(BATCH, *size, dtype=like.dtype, device=like.device)


def _takes(module: nn.Module, size: Sequence[int]) -> str | None:
    """Why a module does not take images of this size; None: it does.

    Raises:
        InputError: it takes them, and returns something else than scores.
    """
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            scores = module(_images(module, size))
    except Exception as error:  # the code of a module may raise anything
        return str(error).strip().partition("\n")[0] or type(error).__name__
    if not isinstance(scores, Tensor):
        raise InputError(f"The network must return its scores, a tensor [n, outputs], not a {type(scores).__name__}.")
    return None


def _traced(module: nn.Module, size: Sequence[int]) -> "ExportedProgram":
    import torch.export  # noqa: PLC0415

    images = _images(module, size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return torch.export.export(module, (images,), strict=False)
        except Exception as error:  # the code of a module may raise anything
            detail = str(error).strip().partition("\n")[0] or type(error).__name__
            raise InputError(f"The network cannot be traced on images of shape {tuple(size)}: {detail}") from None


def exported_program(exported: "ExportedProgram") -> Program:
    """The operations of a program of `torch.export`."""
    signature = exported.graph_signature
    images, scores = signature.user_inputs, signature.user_outputs
    if len(images) != 1 or len(scores) != 1 or not isinstance(images[0], str) or not isinstance(scores[0], str):
        raise InputError(
            f"The network must take images and return its scores alone, a tensor [n, outputs]; it takes {len(images)} "
            f"values and returns {len(scores)}."
        )
    state = {name: tensor.detach().cpu() for name, tensor in exported.state_dict.items()}
    constants = {
        name: tensor.detach().cpu() for name, tensor in exported.constants.items() if isinstance(tensor, Tensor)
    }
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    lifted = dict(signature.inputs_to_lifted_tensor_constants)
    tensors = {value: (name, state[name] if name in state else constants[name]) for value, name in named.items()}
    tensors |= {value: ("", constants[name]) for value, name in lifted.items()}
    steps = [node for node in exported.graph.nodes if node.op == "call_function"]
    modules = [_module_of(node.meta.get("nn_module_stack")) for node in steps]
    operations = [
        Operation(target=_target_of(node.target), arguments=_arguments(node), output=node.name, module=module)
        for node, module in zip(steps, modules, strict=True)
    ]
    place = next(node for node in exported.graph.nodes if node.name == images[0])
    return Program(
        operations=with_whole_modules(operations),
        images=images[0],
        scores=scores[0],
        tensors=tensors,
        names=tuple(state),
        batch=int(place.meta["val"].shape[0]),
    )


def _target_of(target: Any) -> str:
    """The name of an operation without namespace and overload."""
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return name if namespace == "aten" else f"{namespace}::{name}"
    return str(getattr(target, "__name__", target))


def _arguments(node: Any) -> Mapping[str, Any]:
    """A node's arguments by name."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else [str(k) for k in range(len(node.args))]
    given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    return {name: _value(value) for name, value in given.items()}


def _value(value: Any) -> Any:
    if isinstance(value, torch.fx.Node):
        return Reference(value.name)
    return [_value(one) for one in value] if isinstance(value, list | tuple) else value


def _module_of(stack: Mapping[str, tuple[str, Any]] | None) -> str:
    """The innermost module in whose code an operation stands."""
    return list(stack.values())[-1][0] if stack else ""
