"""What is attacked: a network, what its candidates have to explain, and what the attacker knows of its data."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.architecture import MLP, Architecture, SplitNetwork, as_mlp, mlp_of, recognise
from exhume.attack.folding import folded
from exhume.attack.known_init import WeightDelta, midpoint_network, weight_delta
from exhume.attack.spectrum import Span
from exhume.checkpoint import Checkpoint, check_alike
from exhume.errors import InputError
from exhume.foreign.modules import read_module, unwrapped
from exhume.layers import BATCH_NORMS, LayeredNetwork, centring_of
from exhume.networks import CentredNetwork, Shape, Task


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network in evaluation mode, the centre of its images [c, h, w], its task and its number of outputs.

    network: where gradients are taken: the trained network or, with a known start, the one halfway to it;
    centre: the mean training image as far as it is known, around which is searched;
    delta: what training did to that start; None: the start is unknown;
    span: that of the images, if the optimiser's momentum tells it (`within_momentum`); None: it is read from what is to
    be explained;
    normalised: whether it was trained with BatchNorm, folded into its dense layers or not.
    """

    network: nn.Module
    centre: Float[Tensor, "c h w"]
    task: Task
    outputs: int
    delta: WeightDelta | None = None
    span: Span | None = None
    normalised: bool = False

    @cached_property
    def architecture(self) -> Architecture:
        """What is recognised of `network`."""
        return recognise(self.network)

    @property
    def explained(self) -> nn.Module:
        """The module whose parameters the candidates must explain: theta, or what training added to the start."""
        return self.network if self.delta is None else self.delta.module

    @cached_property
    def explained_mlp(self) -> MLP | None:
        """The dense layers of `explained`."""
        return mlp_of(self.architecture if self.delta is None else recognise(self.delta.module))

    def changed(self, parameter: Tensor) -> bool:
        """Whether a parameter of `explained` has anything to explain; one that training froze has not."""
        return self.delta is None or bool(parameter.any())

    @property
    def subtracted(self) -> Float[Tensor, "c h w"]:
        """What the network subtracts from an image before its first layer."""
        centring = centring_of(self.network)
        return torch.zeros_like(self.centre) if centring is None else centring.centre

    @property
    def divided(self) -> Float[Tensor, "c h w"] | None:
        """What the network then divides by; None: nothing."""
        centring = centring_of(self.network)
        return None if centring is None else centring.scale

    @cached_property
    def unit(self) -> float:
        """How large in an image is what is 1 among the inputs of the first layer: the root mean square of `divided`."""
        return 1.0 if self.divided is None else float(self.divided.double().pow(2).mean().sqrt())

    def scaled(self, inputs: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
        """Differences of the first layer's inputs as differences of images."""
        return inputs if self.divided is None else inputs * self.divided

    def divided_by_scale(self, differences: Float[Tensor, "*m c h w"]) -> Float[Tensor, "*m c h w"]:
        """Differences of images as differences of the first layer's inputs."""
        return differences if self.divided is None else differences / self.divided

    def as_images(self, inputs: Float[Tensor, "m c h w"]) -> Float[Tensor, "m c h w"]:
        """The images, un-centred, of which the first layer sees these inputs."""
        return self.scaled(inputs) + self.subtracted

    def as_inputs(self, images: Float[Tensor, "*n c h w"]) -> Float[Tensor, "*n c h w"]:
        """What the first layer sees of an image, or of several."""
        return self.divided_by_scale(images - self.subtracted)

    def dense_inputs(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"] | None:
        """What the first dense layer that is recognised sees of un-centred images; None if none is."""
        match self.architecture:
            case MLP():
                return self.as_inputs(images).flatten(1)
            case SplitNetwork(head=head):
                features: Tensor = head(images)
                return features.flatten(1)
            case _:
                return None

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of an image."""
        channels, height, width = self.centre.shape
        return channels, height, width

    @property
    def labels(self) -> int:
        """Number of different labels a candidate can have."""
        return self.outputs if self.task == "multiclass" else 2

    def moved_to(self, device: torch.device, dtype: torch.dtype) -> "Target":
        """The same target on a device, in a precision; its modules are moved in place."""
        delta = self.delta and replace(self.delta, module=self.delta.module.to(device, dtype))
        centre, span = self.centre.to(device, dtype), self.span
        span = span and replace(span, basis=span.basis.to(device, dtype))
        return replace(self, network=self.network.to(device, dtype), centre=centre, delta=delta, span=span)


def make_target(
    attacked: Checkpoint | nn.Module,
    *,
    task: Task | None = None,
    centre: Float[Tensor, "c h w"] | None = None,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None = None,
) -> Target:
    """The target that `reconstruct` is asked for; its arguments are explained there.

    Raises:
        InputError: task or centre of a module is missing or does not fit, or the initial weights do not fit.
    """
    target = _of_checkpoint(attacked) if isinstance(attacked, Checkpoint) else _of_module(attacked, task, centre)
    normalised = any(isinstance(module, BATCH_NORMS) for module in target.network.modules())
    shown = replace(target, network=folded(target.network, target.shape), normalised=normalised)
    if initial is None:
        return shown
    if isinstance(initial, Checkpoint) and isinstance(attacked, Checkpoint):
        check_alike(initial, attacked)
    before = _initial_network(target.network, initial, target.shape, target.task)
    return with_known_init(shown, folded(with_statistics(before, target.network), target.shape))


def _initial_network(
    trained: nn.Module, initial: Checkpoint | nn.Module | Mapping[str, Tensor], shape: Shape, task: Task
) -> nn.Module:
    """The network with its initial weights."""
    if isinstance(initial, Checkpoint):
        return initial.build()
    if isinstance(initial, nn.Module):
        return as_layers(initial, shape, task) if isinstance(trained, CentredNetwork | LayeredNetwork) else initial
    if not isinstance(initial, Mapping):
        raise InputError(f"The initial weights must be a checkpoint or a module, not {type(initial).__name__}.")
    own = dict(trained.named_parameters())
    inner = [name for name in initial if f"layers.{name}" in own]  # a checkpoint names its layers' parameters
    return with_values(trained, {f"layers.{name}" if name in inner else name: v for name, v in initial.items()})


def with_known_init(target: Target, initial: nn.Module) -> Target:
    """The target of an attacker who knows the weights that training began with.

    Raises:
        InputError: as for `weight_delta`.
    """
    delta = weight_delta(target.network, initial)
    return replace(target, network=midpoint_network(target.network, initial), delta=delta)


@torch.no_grad()
def with_values(network: nn.Module, values: Mapping[str, Tensor]) -> nn.Module:
    """The network with other values of some parameters, by name; the others keep theirs, as if training froze them.

    Raises:
        InputError: a name or a shape is not the network's.
    """
    other = copy.deepcopy(network)
    parameters = dict(other.named_parameters())
    for name, value in values.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise InputError(f"The initial weights are those of another network: it has no {name} of this shape.")
        parameters[name].copy_(value)
    return other


@torch.no_grad()
def with_statistics(network: nn.Module, like: nn.Module) -> nn.Module:
    """The network with the statistics of another, those of its BatchNorm for example, where both have them alike."""
    other, found = copy.deepcopy(network), dict(like.named_buffers())
    for name, buffer in other.named_buffers():
        if name in found and found[name].shape == buffer.shape:
            buffer.copy_(found[name])
    return other


def _of_checkpoint(checkpoint: Checkpoint) -> Target:
    known = checkpoint.centre if checkpoint.known_mean is None else checkpoint.known_mean
    return Target(network=checkpoint.build(), centre=known, task=checkpoint.task, outputs=checkpoint.outputs)


def _of_module(module: nn.Module, task: Task | None, centre: Tensor | None) -> Target:
    if not isinstance(module, nn.Module):
        raise InputError(
            f"What is attacked must be a checkpoint or a module, not {type(module).__name__}; "
            "`exhume.read_network` reads a file of weights."
        )
    if task is None or centre is None:
        raise InputError("To attack a module, give its task and the centre [c, h, w] to search around.")
    if not isinstance(centre, Tensor) or centre.ndim != 3:
        raise InputError("The centre to search around must be a tensor [c, h, w].")
    if task not in get_args(Task):
        raise InputError(f"There is no task {task!r}; there are {', '.join(get_args(Task))}.")
    channels, height, width = centre.shape
    network = as_layers(module, (channels, height, width), task)
    with torch.no_grad():
        scores = network(centre[None].to(next(network.parameters())))
    if not isinstance(scores, Tensor):
        raise InputError(f"The network must return its scores, a tensor [n, outputs], not a {type(scores).__name__}.")
    if scores.ndim != 2 or (scores.shape[1] > 1) != (task == "multiclass"):
        raise InputError(f"The network's scores have shape {tuple(scores.shape)}, which does not fit the task {task}.")
    return Target(network=network, centre=centre, task=task, outputs=scores.shape[1])


def as_layers(module: nn.Module, shape: Shape, task: Task) -> nn.Module:
    """The module by its layers, where these are known; else a copy of it, in evaluation mode.

    A chain of layers that its code hides is then recognised. What is recognised as it is stays what it is.
    """
    network = copy.deepcopy(unwrapped(module)).eval()
    if isinstance(network, CentredNetwork | LayeredNetwork) or as_mlp(network) is not None:
        return network
    try:
        built = read_module(network, shape, task).build()
    except InputError:
        return network
    learned = {name: parameter.requires_grad for name, parameter in network.named_parameters()}
    for name, parameter in built.named_parameters():
        parameter.requires_grad_(learned.get(name, True))
    return built
