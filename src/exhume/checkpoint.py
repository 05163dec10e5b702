"""What is published of a trained network: specification, weights and training mean. All that the attacker sees."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.errors import InputError
from exhume.layers import LayerGraph, build_layers
from exhume.networks import CentredNetwork, NetworkConfig, Shape, Task, build
from exhume.records import decode, encode_together, read, read_tensors, register, replace_files, unstructured

Description = NetworkConfig | LayerGraph
"""A network that `train` makes, or the layers of one that was built elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained network as its owner would publish it.

    weights: tensors by the names of the network's layers; centre: what the network subtracts from an image before its
    first layer, [c, h, w], mostly the training mean, or zero; scale: what it then divides by, [c, h, w], None: nothing;
    known_mean: the mean training image as far as it is known, None: the centre is it; momentum: what the optimiser kept
    of the last gradients, by the weights' names, if that was published too (`read_momentum`);
    classes: the names of the classes, in the order of the outputs (binary: of labels 0 and 1).

        checkpoint = exhume.load_checkpoint("runs/demo")
        outputs = checkpoint.build()(images)  # [n, outputs], of images in [0, 1]
    """

    network: Description
    task: Task
    classes: tuple[str, ...]
    centre: Float[Tensor, "c h w"]
    weights: dict[str, Tensor]
    scale: Float[Tensor, "c h w"] | None = None
    known_mean: Float[Tensor, "c h w"] | None = None
    momentum: dict[str, Tensor] = field(default_factory=dict)

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of an image."""
        channels, height, width = self.centre.shape
        return channels, height, width

    @property
    def config(self) -> NetworkConfig:
        """The network as `train` makes it.

        Raises:
            InputError: it was built elsewhere, so that there is no such description.
        """
        if not isinstance(self.network, NetworkConfig):
            raise InputError("A run cannot train a network that was built elsewhere; `exhume.train` in Python can.")
        return self.network

    @property
    def outputs(self) -> int:
        """Number of scores the network gives an image."""
        return len(self.classes) if self.task == "multiclass" else 1

    @property
    def fingerprint(self) -> str:
        """A digest of the network, by which later stages know what they were computed from.

        Not of what is known besides it, the mean of its images.
        """
        # the words of records that are older than the name NetworkConfig
        network = ", ".join(f"{item.name}={getattr(self.network, item.name)!r}" for item in fields(self.network))
        digest = hashlib.sha256(f"(Network({network}), {self.task!r}, {self.classes!r}, {self.shape!r})".encode())
        own = {name: image for name, image in self.images_seen.items() if name != "known_mean"}
        for name, weight in sorted({**self.weights, **own, **self._named_momentum}.items()):
            digest.update(name.encode() + weight.contiguous().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def images_seen(self) -> dict[str, Tensor]:
        """What is known of the images before the first layer, by field: centre, scale and known mean, as they are."""
        known = {"centre": self.centre, "scale": self.scale, "known_mean": self.known_mean}
        return {name: image for name, image in known.items() if image is not None}

    @property
    def knowledge(self) -> str | None:
        """A digest of the known mean; None: nothing is known but the network."""
        if self.known_mean is None:
            return None
        return hashlib.sha256(self.known_mean.contiguous().cpu().numpy().tobytes()).hexdigest()[:16]

    @property
    def _named_momentum(self) -> dict[str, Tensor]:
        return {f"momentum.{name}": tensor for name, tensor in self.momentum.items()}

    @property
    def parameters(self) -> dict[str, Tensor]:
        """What training learned, by name, in the order in which the network was built."""
        if isinstance(self.network, LayerGraph):
            learned = [name for name in self.network.parameters if name not in self.network.statistics]
            return {name: self.weights[name] for name in learned}
        return {name: parameter.detach() for name, parameter in self.build().layers.named_parameters()}

    def half(self) -> "Checkpoint":
        """The same with weights and centre rounded to float16, a checkpoint of its own; `reconstruct` says so.

        Raises:
            InputError: a weight is beyond float16's range, 65504.
        """
        weights = {name: weight.half() for name, weight in self.weights.items()}
        if not all(weight.isfinite().all() for weight in weights.values()):
            raise InputError("A weight is too large for float16, whose range ends at 65504.")
        images = {name: image.half() for name, image in self.images_seen.items()}
        return replace(
            self,
            weights=weights,
            momentum={name: tensor.half() for name, tensor in self.momentum.items()},
            centre=images["centre"],
            scale=images.get("scale"),
            known_mean=images.get("known_mean"),
        )

    def build(self) -> CentredNetwork:
        """The trained network as a module, in the weights' precision.

        Raises:
            InputError: the weights do not fit the specification.
        """
        dtype = next(iter(self.weights.values())).dtype
        centre, scale = self.centre.to(dtype), None if self.scale is None else self.scale.to(dtype)
        if isinstance(self.network, LayerGraph):
            return CentredNetwork(centre, build_layers(self.network, self.weights), scale).eval()
        module = build(self.network, centre, self.outputs, torch.Generator())
        module.centre.scale = scale
        try:
            module.layers.load_state_dict(self.weights)
        except RuntimeError as error:
            raise InputError(f"The weights do not fit the network: {' '.join(str(error).split())}") from None
        return module.eval()


def check_alike(initial: Checkpoint, trained: Checkpoint) -> None:
    """Raises `InputError` if one network cannot have become the other, as far as weights do not tell."""
    if type(initial.network) is not type(trained.network):
        raise InputError("The initial weights are those of another network, or are read in another way.")
    for name in ("kind", "activation"):
        before, after = getattr(initial.network, name, None), getattr(trained.network, name, None)
        if before != after:
            raise InputError(f"The initial weights are those of another network: {name} {before}, not {after}.")


def check_fits(initial: Checkpoint, network: NetworkConfig | None, problem: tuple[Task, int, tuple[int, ...]]) -> None:
    """Raises `InputError` unless training can begin with it.

    Args:
        network: what is asked for; None: the initial one, whatever it is.
        problem: its task, outputs and images' shape.
    """
    if network is not None and initial.network != network:
        raise InputError("The network to begin with is another than the one that is asked for.")
    if (initial.task, initial.outputs, initial.shape) != problem:
        raise InputError(
            f"The network to begin with ({initial.task}, {initial.outputs} outputs, images {initial.shape}) does not "
            f"fit the problem ({problem[0]}, {problem[1]}, {problem[2]})."
        )


@dataclass(frozen=True, kw_only=True)
class _Description:
    """What checkpoint.json holds beside checkpoint.safetensors."""

    network: Description
    task: Task
    classes: tuple[str, ...]
    fingerprint: str


def _decode_network(content: Mapping[str, Any]) -> Description:
    graph = isinstance(content, Mapping) and "layers" in content
    return decode(content, LayerGraph) if graph else decode(content, NetworkConfig)


register(Description, unstructured, _decode_network)


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Writes checkpoint.safetensors and checkpoint.json into `folder`, which is made if it is not there.

        exhume.save_checkpoint(exhume.train(problem).checkpoint, Path("runs/mine"))

    Raises:
        InputError: a file cannot be written.
    """
    replace_files(checkpoint_files(checkpoint, folder))


def checkpoint_files(checkpoint: Checkpoint, folder: Path) -> dict[Path, bytes]:
    """What `save_checkpoint` writes: the files' contents, the record last."""
    weights = {f"layers.{name}": tensor for name, tensor in checkpoint.weights.items()}
    tensors = checkpoint.images_seen | weights | checkpoint._named_momentum
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
    images = {name: tensors.pop(name) for name in ("centre", "scale", "known_mean") if name in tensors}
    momentum = {name: tensors.pop(name) for name in list(tensors) if name.startswith("momentum.")}
    shapes = {image.shape for image in images.values()}
    if "centre" not in images or images["centre"].ndim != 3 or len(shapes) > 1 or not tensors:
        raise InputError(f"{folder / 'checkpoint.safetensors'} holds no checkpoint.")
    checkpoint = Checkpoint(
        network=description.network,
        task=description.task,
        classes=description.classes,
        weights={name.removeprefix("layers."): tensor for name, tensor in tensors.items()},
        momentum={name.removeprefix("momentum."): tensor for name, tensor in momentum.items()},
        **images,
    )
    if checkpoint.fingerprint != description.fingerprint:
        raise InputError(f"checkpoint.json and checkpoint.safetensors in {folder} do not belong together.")
    return checkpoint
