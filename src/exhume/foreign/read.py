"""Any network that was trained elsewhere becomes a checkpoint: a file of weights, a program, a module."""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.foreign.files import PROGRAMS, StateDict, kind_of, read_state_dict, weights_file
from exhume.foreign.modules import read_module, unwrapped
from exhume.foreign.normalising import SURE, Numbers, as_image, check_mean, check_scale, tell_layout
from exhume.foreign.optimiser_state import read_momentum
from exhume.foreign.program import ReadLayers
from exhume.foreign.programs import read_program
from exhume.foreign.state_dicts import Chain, first_mean, read_chain, without_prefixes
from exhume.layers import IMAGES, Layer, LayerGraph
from exhume.networks import ACTIVATIONS, NetworkConfig, Shape, Task

LAYOUTS = ("chw", "hwc")
CHANNELS = ("rgb", "bgr")
MOST_NAMED = 5
"""Names of a file that a sentence lists."""


@dataclass(frozen=True, kw_only=True)
class ForeignNetwork:
    """A network that was read.

    notes: what was assumed or left out, in sentences; scaling: who says what is subtracted from images and what they
    are divided by: the network itself, the user, or nobody, and then it is nothing.

        network = exhume.read_network("model.pt", shape=(1, 28, 28))
        candidates = exhume.reconstruct(network.checkpoint)
    """

    checkpoint: Checkpoint
    notes: tuple[str, ...] = ()
    scaling: Literal["the network", "the user", "nobody"] = "nobody"


@dataclass(frozen=True, kw_only=True)
class _Given:
    """What the user said of the network."""

    shape: Shape
    task: Task | None
    activation: str | None
    layout: str | None
    channels: str
    mean: Numbers | None
    std: Numbers | None

    @property
    def scaling(self) -> Literal["the user", "nobody"]:
        return "nobody" if self.mean is None and self.std is None else "the user"


def read_network(
    source: Path | str | nn.Module,
    *,
    shape: Shape,
    task: Task | None = None,
    classes: Sequence[str] | None = None,
    weights: Path | str | None = None,
    activation: str | None = None,
    mean: Numbers | None = None,
    std: Numbers | None = None,
    layout: str | None = "chw",
    channels: str | None = "rgb",
) -> ForeignNetwork:
    """A network that was trained elsewhere, as a checkpoint, and what was assumed of it.

        network = exhume.read_network("model.safetensors", shape=(3, 32, 32), mean=(0.49, 0.48, 0.45), std=0.25)

    Args:
        source: a file of weights (.pt, .pth, .bin, .ckpt, .safetensors, .npz), a program of `torch.export` (.pt2) or
            TorchScript, a folder with one such file, a module, or `path/model.py:name` for a function or class that
            makes one. No code of a file is run but that of such a .py file.
        shape: (channels, height, width) of an image.
        task: what the outputs mean; None: multiclass if there are several, else binary.
        classes: their names; None: numbers.
        weights: for code, the file of its weights; None: as the code makes them, the same each time that it is called.
        activation: for a plain file of weights, a row of ACTIVATIONS; None: relu.
        mean, std: what its training subtracted from images in [0, 1] and divided by: one number, one a channel, or an
            image, in the order in which the network takes its images; None: what the network itself says, or nothing.
        layout: chw, or hwc where it takes images [h, w, c]; None: told from the weights, where these show it.
        channels: rgb, or bgr where it takes the channels in reverse; None: rgb, for weights do not tell.

    Raises:
        InputError: it cannot be read, or is no network on such images; the sentence says what it is and what to do.
    """
    said = _Given(
        shape=shape,
        task=task,
        activation=activation,
        layout=layout,
        channels="rgb" if channels is None or shape[:1] == (1,) else channels,
        mean=mean,
        std=std,
    )
    given = _checked(said)
    source = _module_or_path(source, weights_given=weights is not None)
    if isinstance(source, nn.Module):
        module, notes = source, list[str]()
        if weights is not None:
            notes += _load(module, Path(weights))
        network = _of_layers(_read_by_layers(module, given), given, classes, notes)
        return network if weights is None else _with_momentum(network, Path(weights))
    if weights is not None:
        raise InputError("The weights' own file is for a network's code, path/model.py:name.")
    path = weights_file(source)
    if kind_of(path) in PROGRAMS:
        layout_given = given.layout or "chw"
        read = read_program(path, shape, task, layout=layout_given, channels=given.channels)
        return _of_layers(read, given, classes, [])
    return _with_momentum(_of_state(read_state_dict(path), path, given, classes), path)


def _with_momentum(network: ForeignNetwork, path: Path) -> ForeignNetwork:
    """The network with what the optimiser kept beside its weights, if the file holds that."""
    momentum = read_momentum(path, network.checkpoint)
    if momentum is None:
        return network
    note = "The file keeps the optimiser's momentum, a sum of the last gradients: it is attacked too."
    return replace(network, checkpoint=replace(network.checkpoint, momentum=momentum), notes=(*network.notes, note))


def load_state_dict(
    path: Path, *, shape: Shape, task: Task, activation: str = "relu", centre: Tensor | None = None
) -> Checkpoint:
    """Reads a file of weights of dense layers: `read_network`, for those that need nothing else.

    No code in the file is run.

        checkpoint = exhume.load_state_dict(Path("digits.pth"), shape=(1, 28, 28), task="multiclass")

    Args:
        shape: (channels, height, width) of an image.
        centre: the mean that was subtracted from the training images, [c, h, w]; None: nothing was subtracted.

    Raises:
        InputError: the file cannot be read or holds no chain of dense layers on images of this shape.
    """
    if centre is not None and tuple(centre.shape) != tuple(shape):
        raise InputError(f"The shape must be the images' channels, height and width, all at least 1, not {shape}.")
    return read_network(path, shape=shape, task=task, activation=activation, mean=centre).checkpoint


def layout_of(network: Checkpoint) -> str:
    """The layout in which a network that was read takes its images, a row of LAYOUTS."""
    graph = network.network
    return "hwc" if isinstance(graph, LayerGraph) and any(layer.name == "to_hwc" for layer in graph.layers) else "chw"


def _checked(given: _Given) -> _Given:
    """What the user said, if it can be.

    Raises:
        InputError: it cannot.
    """
    shape, task, activation, layout, channels = given.shape, given.task, given.activation, given.layout, given.channels
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(f"The shape must be the images' channels, height and width, all at least 1, not {shape}.")
    if shape[2] in (1, 3) and shape[0] > 4 and shape[1] > 4:
        raise InputError(
            f"The shape is channels, height and width: {shape[2]} {shape[0]} {shape[1]}, not {shape[0]} {shape[1]} "
            f"{shape[2]}."
        )
    if task is not None and task not in get_args(Task):
        raise InputError(f"There is no task {task!r}; there are {', '.join(get_args(Task))}.")
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(f"Unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}.")
    if layout not in (*LAYOUTS, None) or channels not in CHANNELS:
        raise InputError(f"layout must be {' or '.join(LAYOUTS)}, and channels {' or '.join(CHANNELS)}.")
    return replace(given, layout="chw" if shape[0] == 1 and layout is None else layout)


# ---- From a module or a program


def _module_or_path(source: Path | str | nn.Module, *, weights_given: bool) -> Path | nn.Module:
    if isinstance(source, nn.Module):
        return source
    if not isinstance(source, str | Path):
        raise InputError(f"A network is read from a path or a module, not from a {type(source).__name__}.")
    path, colon, name = str(source).rpartition(":")
    if colon and path.endswith(".py"):
        made = _made(Path(path), name)
        if not (weights_given or _same_values(made, _made(Path(path), name))):
            raise InputError(
                f"{source} makes other weights each time, so they were not trained. Give the file of the trained "
                "weights (--weights)."
            )
        return made
    if str(source).endswith(".py"):
        raise InputError(f"Say what in {source} makes the network: {source}:name, a function or a class.")
    return Path(source)


def _made(path: Path, name: str) -> nn.Module:
    """The module that a user's own file makes."""
    if not path.is_file():
        raise InputError(f"There is no {path}.")
    spec = importlib.util.spec_from_file_location(f"exhume_model_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    code = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(code)
        made = getattr(code, name, None)
        if made is None:
            raise InputError(f"{path} has no {name}{_made_there(code)}.")
        module: Any = made() if callable(made) and not isinstance(made, nn.Module) else made
    except InputError:
        raise
    except Exception as error:  # a user's own code may raise anything
        raise InputError(f"{path} fails at {name}: {type(error).__name__}: {' '.join(str(error).split())}") from None
    finally:
        sys.path.remove(str(path.parent.resolve()))
    if not isinstance(module, nn.Module):
        raise InputError(f"{name} in {path} gives a {type(module).__name__} and no nn.Module.")
    return module


def _made_there(code: ModuleType) -> str:
    """What a user's file defines that may make a network, in words."""
    own = [
        name
        for name, value in vars(code).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == code.__name__ and callable(value)
    ]
    own += [name for name, value in vars(code).items() if isinstance(value, nn.Module)]
    return f"; it has {_some(own)}" if own else " and nothing else that makes a network"


def _some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"{', '.join(names[:MOST_NAMED])}{more}"


def _same_values(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return all(is_lazy(before) or bool(before.isclose(after, 0, 0, equal_nan=True).all()) for before, after in pairs)


def _load(module: nn.Module, path: Path) -> list[str]:
    """Puts a file's weights into a module; returns what was left out of them."""
    state = read_state_dict(weights_file(path))
    inner = unwrapped(module)
    tensors, prefix = state.tensors, ""
    own = inner.state_dict()
    if not set(own) & set(tensors):
        tensors, prefix = without_prefixes(tensors)
    known = {name: tensor for name, tensor in tensors.items() if name in own}
    missing = [name for name in own if name not in known and not name.endswith("num_batches_tracked")]
    if missing or not known:
        lacks = (missing or ["weights"])[0]
        raise InputError(
            f"{path} holds no {lacks}, which the network has; it holds {_some(list(tensors)) or 'nothing'}. "
            "Is it the right class, or the right file?"
        )
    odd = [name for name, tensor in known.items() if tensor.shape != own[name].shape]
    if odd:
        sizes = f"{tuple(known[odd[0]].shape)}, not {tuple(own[odd[0]].shape)}"
        raise InputError(f"The weights in {path} are another network's: {odd[0]} has the shape {sizes}.")
    inner.load_state_dict(known, strict=False)
    extra = [name for name in tensors if name not in own]
    notes = list(state.notes)
    if prefix:
        notes.append(f"The names of the weights are read without {prefix}.")
    if extra:
        notes.append(f"Left out, for the network has none: {', '.join(extra[:5])}{', ...' * (len(extra) > 5)}.")
    return notes


def _read_by_layers(module: nn.Module, given: _Given) -> ReadLayers:
    read = read_module(module, given.shape, given.task, layout=given.layout or "chw", channels=given.channels)
    if given.layout is not None:
        return read
    layout, sure = _told(read, given.shape)
    note = _told_note(layout, sure)
    if layout == "hwc":
        read = read_module(module, given.shape, given.task, layout="hwc", channels=given.channels)
    return replace(read, notes=(*read.notes, note))


def _told(read: ReadLayers, shape: Shape) -> tuple[str, float]:
    """The layout that the first layer shows, where it is dense and takes the images as they are."""
    kinds = [layer.kind for layer in read.graph.layers[:2]]
    if kinds != ["flatten", "linear"]:
        return "chw", 1.0
    weight = read.weights[f"{read.graph.layers[1].name}.weight"]
    return tell_layout(weight, shape)


def _told_note(layout: str, sure: float) -> str:
    if sure < SURE:
        return "The weights do not tell the images' layout; channels, height, width (chw) is assumed."
    return f"The weights tell the layout {layout}: the other one makes the first layer {sure:.1f} times as rough."


def _of_layers(read: ReadLayers, given: _Given, classes: Sequence[str] | None, notes: Sequence[str]) -> ForeignNetwork:
    """The checkpoint of a network by its layers; a plain MLP is described as `train` would describe it."""
    centre, scale, more = read.centre, read.scale, list[str]()
    if bool(centre.any()) or scale is not None:
        more.append("What the network itself subtracts and divides by is read as its normalisation.")
    if given.mean is not None or given.std is not None:
        outer_mean, outer_std = _asked(given, given.layout or "chw")
        # ((x - m) / s - c) / d is (x - (m + s c)) / (s d)
        inner = torch.ones_like(centre) if scale is None else scale
        outer = torch.ones_like(centre) if outer_std is None else outer_std.to(centre)
        centre = outer * centre if outer_mean is None else outer_mean.to(centre) + outer * centre
        scale = outer * inner if outer_std is not None or scale is not None else None
    network, weights = _plain(read) or (read.graph, read.weights)
    task = _task(read.outputs, given.task, "The network")
    checkpoint = Checkpoint(
        network=network,
        task=task,
        classes=_classes(classes, task, read.outputs),
        centre=centre,
        scale=scale,
        weights=weights,
    )
    checkpoint.build()
    own = bool(read.centre.any()) or read.scale is not None
    return ForeignNetwork(
        checkpoint=checkpoint,
        notes=(*notes, *read.notes, *more),
        scaling="the network" if own else given.scaling,
    )


def _plain(read: ReadLayers) -> tuple[NetworkConfig, dict[str, Tensor]] | None:
    """A chain of dense layers that is named and built as `networks.build` does; None of any other."""
    layers = read.graph.layers
    linear, between = layers[1::2], {(layer.kind, str(layer.settings)) for layer in layers[2::2]}
    usual = [f"{1 + 2 * place}" for place in range(len(linear))]
    if layers[0].kind != "flatten" or len(layers) % 2 or [layer.name for layer in linear] != usual or len(between) > 1:
        return None
    if any(layer.kind != "linear" for layer in linear) or any(
        layer.inputs != (number - 1,) for number, layer in enumerate(layers)
    ):
        return None
    kind, settings = next(iter(between), ("relu", "{}"))
    if kind not in ACTIVATIONS or settings != str(_usual_settings(kind)):
        return None
    bias = _bias([f"{name}.bias" in read.weights for name in usual])
    if bias is None or list(read.graph.parameters) != list(read.weights):
        return None
    widths = tuple(len(read.weights[f"{name}.weight"]) for name in usual[:-1])
    return NetworkConfig(widths=widths, activation=kind, init_scale=None, bias=bias), read.weights


def _bias(there: Sequence[bool]) -> Any:
    """Which layers have a bias, in the words of `NetworkConfig`; None: no such word."""
    first, *rest = there
    if len(set(rest)) > 1 or (any(rest) and not first):
        return None
    return "all" if first and all(rest) else "first" if first else "none"


def _task(outputs: int, task: Task | None, what: str) -> Task:
    task = task or ("multiclass" if outputs > 1 else "binary")
    if (task == "multiclass") != (outputs > 1):
        raise InputError(f"{what} has {outputs} outputs, which does not fit the task {task}.")
    return task


def _classes(classes: Sequence[str] | None, task: Task, outputs: int) -> tuple[str, ...]:
    count = outputs if task == "multiclass" else 2
    if classes is not None and len(classes) != count:
        raise InputError(f"The network tells {count} classes apart, and {len(classes)} are named.")
    return tuple(classes) if classes is not None else tuple(str(k) for k in range(count))


def _asked(given: _Given, layout: str) -> tuple[Tensor | None, Tensor | None]:
    """The mean and the deviation that the user gave, [c, h, w]."""
    mean, std = (
        None if values is None else as_image(values, given.shape, what, layout=layout, channels=given.channels)
        for values, what in ((given.mean, "The mean"), (given.std, "The standard deviation"))
    )
    if mean is not None:
        check_mean(mean, "The mean")
    if std is not None:
        check_scale(std, "The standard deviation")
    return mean, std


# ---- From a file of weights alone


def _of_state(state: StateDict, path: Path, given: _Given, classes: Sequence[str] | None) -> ForeignNetwork:
    shape, notes = given.shape, list(state.notes)
    chain = read_chain(state.tensors, shape, str(path), ordered=state.ordered)
    notes += chain.notes
    layout = given.layout
    if layout is None:
        layout, sure = tell_layout(chain.layers[0].weight, shape)
        layout = layout if sure >= SURE else "chw"
        notes.append(_told_note(layout, sure))
    if given.activation is None and len(chain.layers) > 1:
        notes.append("A file of weights does not say the activation; relu is assumed.")
    mean, std = _asked(given, layout)
    if mean is None and std is None:
        mean, std = (
            None
            if values is None
            else as_image(first_mean(values), shape, what, layout=layout, channels=given.channels)
            for values, what in ((chain.mean, "The network's mean"), (chain.std, "The network's deviation"))
        )
        if std is not None:
            check_scale(std, "The network's deviation")
    outputs = len(chain.layers[-1].weight)
    task = _task(outputs, given.task, str(path))
    network, weights = _described(chain, given.activation or "relu", layout, given.channels)
    checkpoint = Checkpoint(
        network=network,
        task=task,
        classes=_classes(classes, task, outputs),
        centre=torch.zeros(shape) if mean is None else mean,
        scale=std,
        weights=weights,
    )
    checkpoint.build()  # refuses a bias of another size
    own = given.scaling == "nobody" and (mean is not None or std is not None)
    return ForeignNetwork(checkpoint=checkpoint, notes=tuple(notes), scaling="the network" if own else given.scaling)


def _described(
    chain: Chain, activation: str, layout: str, channels: str
) -> tuple[NetworkConfig | LayerGraph, dict[str, Tensor]]:
    """A chain as `train` would describe it, or by its layers where it cannot be."""
    bias = _bias([layer.bias is not None for layer in chain.layers])
    if chain.usual and bias is not None and (layout, channels) == ("chw", "rgb"):
        widths = tuple(len(layer.weight) for layer in chain.layers[:-1])
        network = NetworkConfig(widths=widths, activation=activation, init_scale=None, bias=bias)
        named = {f"{1 + 2 * place}": layer for place, layer in enumerate(chain.layers)}
        weights = {f"{name}.weight": layer.weight for name, layer in named.items()}
        return network, weights | {f"{name}.bias": one.bias for name, one in named.items() if one.bias is not None}
    layers, tensors = list[Layer](), dict[str, Tensor]()

    def add(name: str, kind: str, settings: dict[str, Any] | None = None) -> None:
        before = len(layers) - 1 if layers else IMAGES
        layers.append(Layer(name=name, kind=kind, inputs=(before,), settings=settings or {}))

    if channels == "bgr":
        add("reverse_channels", "reverse-channels")
    if layout == "hwc":
        add("to_hwc", "permute", {"dims": [0, 2, 3, 1]})
    add("flatten", "flatten")
    for layer in chain.layers:
        name, last = layer.name or "layer", layer is chain.layers[-1]
        add(name, "linear")
        tensors[f"{name}.weight"] = layer.weight
        if layer.bias is not None:
            tensors[f"{name}.bias"] = layer.bias
        work = [] if last else [(f"{name}_activation".replace(".", "_"), activation, _usual_settings(activation))]
        if layer.norm is not None:
            norm: tuple[str, str, dict[str, Any]] = (layer.norm_name, "batch-norm", {"dims": 1, "eps": 1e-5})
            work.insert(0 if layer.normalised == "before" else len(work), norm)
            tensors |= {f"{layer.norm_name}.{part}": tensor for part, tensor in layer.norm.items()}
        for step in work:
            add(*step)
    order = {name: place for place, name in enumerate(chain.built)}
    built = sorted(tensors, key=lambda name: order.get(name, order.get(name.removeprefix("layer."), len(order))))
    return LayerGraph(layers=tuple(layers), parameters=tuple(built)), {name: tensors[name] for name in built}


def _usual_settings(activation: str) -> dict[str, Any]:
    usual: dict[str, dict[str, Any]] = {
        "leaky-relu": {"negative_slope": 0.01},
        "gelu": {"approximate": "none"},
        "elu": {"alpha": 1.0},
        "softplus": {"beta": 1.0, "threshold": 20.0},
    }
    return usual.get(activation, {})
