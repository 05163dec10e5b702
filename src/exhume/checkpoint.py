"""What is published of a trained network: specification, weights and training mean. All that the attacker sees."""

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import CentredNetwork, NetworkConfig, Shape, Task, build
from exhume.records import encode_together, read, read_tensors, replace_files


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network as its owner would publish it.

    weights: tensors by the names of `networks.build`'s modules; centre: the training mean, [c, h, w] in [0, 1];
    classes: the names of the classes, in the order of the outputs (binary: of labels 0 and 1).

        checkpoint = exhume.load_checkpoint("runs/demo")
        outputs = checkpoint.build()(images)  # [n, outputs], of images in [0, 1]
    """

    network: NetworkConfig
    task: Task
    classes: tuple[str, ...]
    centre: Float[Tensor, "c h w"]
    weights: dict[str, Tensor]

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of an image."""
        channels, height, width = self.centre.shape
        return channels, height, width

    @property
    def outputs(self) -> int:
        """Number of scores the network gives an image."""
        return len(self.classes) if self.task == "multiclass" else 1

    @property
    def fingerprint(self) -> str:
        """A digest of all of it, by which later stages know what they were computed from."""
        # the words of records that are older than the name NetworkConfig
        network = ", ".join(f"{item.name}={getattr(self.network, item.name)!r}" for item in fields(self.network))
        digest = hashlib.sha256(f"(Network({network}), {self.task!r}, {self.classes!r}, {self.shape!r})".encode())
        for name, weight in sorted({**self.weights, "centre": self.centre}.items()):
            digest.update(name.encode() + weight.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def half(self) -> "Checkpoint":
        """The same with weights and centre rounded to float16, a checkpoint of its own; `reconstruct` says so.

        Raises:
            InputError: a weight is beyond float16's range, 65504.
        """
        weights = {name: weight.half() for name, weight in self.weights.items()}
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise InputError("A weight is too large for float16, whose range ends at 65504.")
        return replace(self, centre=self.centre.half(), weights=weights)

    def build(self) -> CentredNetwork:
        """The trained network as a module, in the weights' precision.

        Raises:
            InputError: the weights do not fit the specification.
        """
        dtype = next(iter(self.weights.values())).dtype
        module = build(self.network, self.centre.to(dtype), self.outputs, torch.Generator())
        try:
            module.layers.load_state_dict(self.weights)
        except RuntimeError as error:
            raise InputError(f"The weights do not fit the network: {' '.join(str(error).split())}") from None
        return module.eval()


def check_alike(initial: Checkpoint, trained: Checkpoint) -> None:
    """Raises `InputError` if one network cannot have become the other, as far as weights do not tell."""
    for name in ("kind", "activation"):
        before, after = getattr(initial.network, name), getattr(trained.network, name)
        if before != after:
            raise InputError(f"The initial weights are those of another network: {name} {before}, not {after}.")


def check_fits(initial: Checkpoint, network: NetworkConfig, problem: tuple[Task, int, tuple[int, ...]]) -> None:
    """Raises `InputError` unless training can begin with it; problem: its task, outputs and images' shape."""
    if initial.network != network:
        raise InputError("The network to begin with is another than the one that is asked for.")
    if (initial.task, initial.outputs, initial.shape) != problem:
        raise InputError(
            f"The network to begin with ({initial.task}, {initial.outputs} outputs, images {initial.shape}) does not "
            f"fit the problem ({problem[0]}, {problem[1]}, {problem[2]})."
        )


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What checkpoint.json holds beside checkpoint.safetensors."""

    network: NetworkConfig
    task: Task
    classes: tuple[str, ...]
    fingerprint: str


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes checkpoint.safetensors and checkpoint.json into `folder`, which is made if it is not there.

        exhume.save_checkpoint(exhume.train(problem).checkpoint, Path("runs/mine"))

    Raises:
        InputError: a file cannot be written.
    """
    replace_files(checkpoint_files(checkpoint, folder))


def checkpoint_files(checkpoint: Checkpoint, folder: Path) -> dict[Path, bytes]:
    """What `save_checkpoint` writes: the files' contents, the record last."""
    tensors = {"centre": checkpoint.centre, **{f"layers.{k}": v for k, v in checkpoint.weights.items()}}
    description = _Description(
        network=checkpoint.network,
        task=checkpoint.task,
        classes=checkpoint.classes,
        fingerprint=checkpoint.fingerprint,
    )
    return encode_together(folder / "checkpoint", description, tensors)


def load_checkpoint(folder: Path | str) -> Checkpoint:
    """Reads what `save_checkpoint` wrote.

        checkpoint = exhume.load_checkpoint("runs/demo")

    Raises:
        InputError: a file is missing, damaged, or the two do not belong together.
    """
    folder = Path(folder)
    description = read(folder / "checkpoint.json", _Description)
    tensors = read_tensors(folder / "checkpoint.safetensors")
    if "centre" not in tensors or tensors["centre"].ndim != 3 or len(tensors) < 2:
        raise InputError(f"{folder / 'checkpoint.safetensors'} holds no checkpoint.")
    checkpoint = Checkpoint(
        network=description.network,
        task=description.task,
        classes=description.classes,
        centre=tensors.pop("centre"),
        weights={name.removeprefix("layers."): tensor for name, tensor in tensors.items()},
    )
    if checkpoint.fingerprint != description.fingerprint:
        raise InputError(f"checkpoint.json and checkpoint.safetensors in {folder} do not belong together.")
    return checkpoint


def load_state_dict(
    path: Path, *, shape: Shape, task: Task, activation: str = "relu", centre: Tensor | None = None
) -> Checkpoint:
    """Reads a plain .pt / .pth state dict of a dense network, also `{"state_dict": {"layers.0.weight": ...}}`.

    `model_state_dict`, `model` and `net` are taken for `state_dict`.

    No code in the file is run (`weights_only=True`). The layers are the two-dimensional weights in the file's order.

        checkpoint = exhume.load_state_dict(Path("digits.pth"), shape=(1, 28, 28), task="multiclass")

    Args:
        shape: (channels, height, width) of an image.
        centre: the mean that was subtracted from the training images, [c, h, w]; None: nothing was subtracted.

    Raises:
        InputError: the file cannot be read or holds no chain of dense layers on images of this shape.
    """
    state = _read_state(path)
    if min(shape) < 1 or (centre is not None and tuple(centre.shape) != shape):
        raise InputError(f"The shape must be the images' channels, height and width, all at least 1, not {shape}.")
    weights = {name: tensor for name, tensor in state.items() if name.endswith("weight") and tensor.ndim == 2}
    biases = {name: state.get(name.removesuffix("weight") + "bias") for name in weights}
    extra = set(state) - set(weights) - {name.removesuffix("weight") + "bias" for name in weights}
    sizes = [shape[0] * shape[1] * shape[2], *(len(weight) for weight in weights.values())]
    if extra or not weights or [w.shape[1] for w in weights.values()] != sizes[:-1]:
        detail = (
            f"unexpected {sorted(extra)[0]}" if extra else " -> ".join(str(tuple(w.shape)) for w in weights.values())
        )
        raise InputError(f"{path} holds no chain of dense layers on {sizes[0]} inputs ({detail or 'no weights'}).")
    if (task == "multiclass") != (sizes[-1] > 1):
        raise InputError(f"{path} has {sizes[-1]} outputs, which does not fit the task {task}.")
    first, *rest = [bias is not None for bias in biases.values()]
    if len(set(rest)) > 1 or (any(rest) and not first):
        raise InputError(f"{path} has biases in some layers only; give its nn.Module to `exhume.reconstruct` instead.")
    network = NetworkConfig(
        widths=tuple(sizes[1:-1]),
        activation=activation,
        init_scale=None,
        bias="all" if first and all(rest) else "first" if first else "none",
    )
    numbered = {f"{1 + 2 * i}.weight": weight for i, weight in enumerate(weights.values())}
    numbered |= {f"{1 + 2 * i}.bias": bias for i, bias in enumerate(biases.values()) if bias is not None}
    checkpoint = Checkpoint(
        network=network,
        task=task,
        classes=tuple(str(k) for k in range(sizes[-1] if task == "multiclass" else 2)),
        centre=torch.zeros(shape) if centre is None else centre,
        weights=numbered,
    )
    checkpoint.build()  # refuses a bias of another size
    return checkpoint


WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts save a state dict, beside the epoch and the optimiser's state."""


def unwrapped(content: Any) -> Any:
    """The state dict of a file's content, from under the first of WRAPPERS that holds one; else the content itself."""
    if isinstance(content, Mapping):
        return next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    return content


def _read_state(path: Path) -> Mapping[str, Tensor]:
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"There is no {path}.") from None
    except Exception as error:  # a damaged file makes the unpickler stumble in any way
        if isinstance(error, pickle.UnpicklingError) and "Weights only load failed" in str(error):
            raise InputError(
                f"{path} is no plain state dict of tensors; save `model.state_dict()`, nothing else."
            ) from None
        raise InputError(f"{path} is no plain state dict: {str(error).strip().partition(chr(10))[0]}") from None
    content = unwrapped(content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise InputError(f"{path} is no plain state dict: it must map names to tensors.")
    if not all(tensor.isfinite().all() for tensor in content.values()):
        raise InputError(f"{path} holds weights that are not finite.")
    return {str(k): tensor.float() if tensor.dtype != torch.float64 else tensor for k, tensor in content.items()}
