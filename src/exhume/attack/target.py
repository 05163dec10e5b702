"""What is attacked: a network, what its candidates have to explain, and what the attacker knows of its data."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.architecture import MLP, Architecture, SplitNetwork, mlp_of, recognise
from exhume.attack.known_init import WeightDelta, midpoint_network, weight_delta
from exhume.checkpoint import Checkpoint, check_alike
from exhume.errors import InputError
from exhume.networks import CentredNetwork, Shape, Task


@dataclass(frozen=True, kw_only=True)
class Target:
    """A network in evaluation mode, its input's centre [c, h, w], its task and its number of outputs.

    network: where gradients are taken: the trained network or, with a known start, the one halfway to it;
    delta: what training did to that start; None: the start is unknown.
    """

    network: nn.Module
    centre: Float[Tensor, "c h w"]
    task: Task
    outputs: int
    delta: WeightDelta | None = None

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
        return self.network.centre.centre if isinstance(self.network, CentredNetwork) else torch.zeros_like(self.centre)

    def dense_inputs(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"] | None:
        """What the first dense layer that is recognised sees of un-centred images; None if none is."""
        match self.architecture:
            case MLP():
                return (images - self.subtracted).flatten(1)
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
        return replace(self, network=self.network.to(device, dtype), centre=self.centre.to(device, dtype), delta=delta)


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
    if initial is None:
        return target
    if isinstance(initial, Checkpoint) and isinstance(attacked, Checkpoint):
        check_alike(initial, attacked)
    if isinstance(initial, Mapping):
        own = attacked.weights if isinstance(attacked, Checkpoint) else {}  # a checkpoint names its layers' parameters
        values = {f"layers.{name}" if name in own else name: value for name, value in initial.items()}
        return with_known_init(target, with_values(target.network, values))
    before = initial.build() if isinstance(initial, Checkpoint) else initial
    if not isinstance(before, nn.Module):
        raise InputError(f"The initial weights must be a checkpoint or a module, not {type(before).__name__}.")
    return with_known_init(target, before)


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


def _of_checkpoint(checkpoint: Checkpoint) -> Target:
    return Target(
        network=checkpoint.build(), centre=checkpoint.centre, task=checkpoint.task, outputs=checkpoint.outputs
    )


def _of_module(module: nn.Module, task: Task | None, centre: Tensor | None) -> Target:
    if task is None or centre is None:
        raise InputError("To attack a module, give its task and the centre [c, h, w] to search around.")
    if not isinstance(centre, Tensor) or centre.ndim != 3:
        raise InputError("The centre to search around must be a tensor [c, h, w].")
    if task not in get_args(Task):
        raise InputError(f"There is no task {task!r}; there are {', '.join(get_args(Task))}.")
    network = copy.deepcopy(module).eval()
    with torch.no_grad():
        scores = network(centre[None].to(next(network.parameters())))
    if scores.ndim != 2 or (scores.shape[1] > 1) != (task == "multiclass"):
        raise InputError(f"The network's scores have shape {tuple(scores.shape)}, which does not fit the task {task}.")
    return Target(network=network, centre=centre, task=task, outputs=scores.shape[1])
