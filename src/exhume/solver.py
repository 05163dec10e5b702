"""The attacker: reconstructs training images from a trained network. It sees the weights, never an image."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.candidates import Candidates, HistoryPoint, join
from exhume.chains import as_dense
from exhume.checkpoint import Checkpoint, check_alike
from exhume.confidence import agreement, confidence, doubt
from exhume.errors import InputError
from exhume.initialisation import change, halfway
from exhume.methods import METHODS, resolve
from exhume.methods.ground import Found, Reconstruction, Search, Target
from exhume.networks import Task
from exhume.progress import Listener, Progress, silent

Watch = Callable[[Found], None]


def reconstruct(
    target: Checkpoint | nn.Module,
    config: Reconstruction | None = None,
    *,
    task: Task | None = None,
    centre: Float[Tensor, "c h w"] | None = None,
    initial: Checkpoint | nn.Module | None = None,
    device: torch.device | str = "cpu",
    listener: Listener = silent,
    watch: Watch = lambda _: None,
) -> Candidates:
    """Reconstructs candidate training images from a checkpoint, or from any `nn.Module`.

    The candidates of all searches, one after another; a search that diverged leaves none, unless all did. The history
    is that of the first search that is kept.

    Args:
        task, centre: needed for a module only: what its outputs mean, and around which image [c, h, w] to search (the
            training mean if the attacker knows it, else grey). It is not subtracted: a module takes images in [0, 1],
            and what its training subtracted must be its first layer's work.
        initial: the weights that its training began with, if they are known: a public network that was fine-tuned, or
            a seed's. Candidates then have to explain what training added, so it may have been of any kind.
        listener: told of the residual about a hundred times.
        watch: is given the candidates of the moment as often, those of the first search. What it or the listener
            raises ends the reconstruction.

    Raises:
        InputError: task or centre is missing, the settings do not fit the task, or the initial weights do not fit the
            trained ones. Divergence is a status.
    """
    config = config or Reconstruction()
    aim = _target(target, task, centre)
    if initial is not None:
        if isinstance(initial, Checkpoint) and isinstance(target, Checkpoint):
            check_alike(initial, target)
        before = initial.build() if isinstance(initial, Checkpoint) else initial
        if not isinstance(before, nn.Module):
            raise InputError(f"The initial weights must be a checkpoint or a module, not {type(before).__name__}.")
        aim = _since(aim, before)
    config = resolve(config, aim.task)
    aim = _moved(aim, getattr(torch, config.dtype or "float32"), torch.device(device))
    generator = torch.Generator().manual_seed(config.seed)
    start = METHODS[config.method].start
    watches: list[Watch] = [watch, *[lambda _: None] * ((config.restarts or 1) - 1)]
    found = [
        _search(start(aim, config, generator), aim, config.steps or 1, part, seen)
        for part, seen in zip(_parts(listener, len(watches)), watches, strict=True)
    ]
    gone = sum(one.status == "diverged" for one in found)
    lost = f" {gone} of {len(found)} searches diverged and left nothing." if 0 < gone < len(found) else ""
    sound = [one for one in found if one.status == "done"] or found[:1]
    dense = as_dense(aim.network)
    doubts = [_doubt(one, dense.activation if dense else None) for one in sound]
    judged = [
        one if why else replace(one, confidence=_confidence(one, sound)) for one, why in zip(sound, doubts, strict=True)
    ]
    known = [why for why in doubts if why]
    of_which = "" if len(known) == len(doubts) else f" of {len(known)} of {len(doubts)} searches"
    unsure = f" How sure to be{of_which} is unknown: {known[0]}." if known and len(sound) > 1 else ""
    kept = join(judged)
    return replace(kept, message=kept.message + lost + unsure + _rounding(target))


def _search(search: Search, target: Target, steps: int, listener: Listener, watch: Watch) -> Candidates:
    """Follows one search to its end: its candidates, of unknown confidence."""
    history, best = _descend(search, steps, listener, watch)
    diverged = not math.isfinite(history[-1].residual + history[-1].penalty)
    signed = target.task == "regression"
    images = best.images.float().cpu()
    return Candidates(
        images=images,
        labels=((best.multipliers > 0).long() if signed else search.labels).cpu(),
        multipliers=best.multipliers.float().cpu(),
        explained=_explained(target, best).float().cpu(),
        confidence=images.new_full((len(images),), torch.nan),
        history=[point for point in history if math.isfinite(point.residual + point.penalty)],
        reading=search.reading,
        status="diverged" if diverged else "done",
        message=(
            f"The residual was no longer finite at step {history[-1].step}; smaller learning rates may help."
            if diverged
            else f"All {steps} steps are over."
        ),
    )


def _doubt(one: Candidates, activation: str | None) -> str | None:
    """Why agreement with other searches tells nothing of this one's candidates."""
    return doubt(one.reading, one.images, one.history[-1].residual if one.history else math.inf, activation)


def _confidence(one: Candidates, found: Sequence[Candidates]) -> Float[Tensor, " m"]:
    """How sure one search's candidates are by the other searches'."""
    others = [(other.images, other.labels) for other in found if other is not one]
    return confidence(agreement(one.images, one.labels, others), one.explained).float()


def _rounding(target: Checkpoint | nn.Module) -> str:
    """A sentence for the record where the weights were rounded before they were attacked."""
    weights = target.weights.values() if isinstance(target, Checkpoint) else target.parameters()
    coarsest = min((weight.dtype for weight in weights), key=lambda dtype: dtype.itemsize)
    return f" The weights were given in {str(coarsest).removeprefix('torch.')}." if coarsest.itemsize < 4 else ""


def _parts(listener: Listener, count: int) -> list[Listener]:
    """One listener for each search, which together tell of one progress."""

    def part(which: int) -> Listener:
        def told(progress: Progress) -> None:
            step, total = progress.step + which * progress.total, count * progress.total
            listener(replace(progress, step=step, total=total))

        return told

    return [part(which) for which in range(count)]


def _descend(search: Search, steps: int, listener: Listener, watch: Watch) -> tuple[list[HistoryPoint], Found]:
    """Follows the gradient; returns the history and the last candidates that were finite."""
    history: list[HistoryPoint] = []
    found, every = search.found(), max(1, steps // 100)
    for step in range(steps + 1):
        residual, penalty = search.objective()
        if step % every == 0 or step == steps:
            history.append(HistoryPoint(step=step, residual=residual.item(), penalty=penalty.item()))
            if not math.isfinite(history[-1].residual + history[-1].penalty):
                break
            found = search.found()
            watch(found)
            values = {"residual": history[-1].residual, "penalty": history[-1].penalty}
            listener(Progress(stage="reconstruct", step=step, total=steps, values=values))
        if step < steps:
            take_step(search, residual + penalty)
    return history, found


def take_step(search: Search, objective: Tensor) -> None:
    """One step of the search's optimisers against the gradient of its objective, and of their rates."""
    groups = [group for optimiser in search.optimisers for group in optimiser.param_groups]
    variables = [variable for group in groups for variable in group["params"]]
    for variable in variables:
        variable.grad = None
    objective.backward(inputs=variables)  # type: ignore[no-untyped-call]
    for optimiser in search.optimisers:
        optimiser.step()
    for schedule in search.schedules:
        schedule.step()


def _target(target: Checkpoint | nn.Module, task: Task | None, centre: Tensor | None) -> Target:
    if isinstance(target, Checkpoint):
        return Target(network=target.build(), centre=target.centre, task=target.task, outputs=target.outputs)
    if task is None or centre is None:
        raise InputError("To attack a module, give its task and the centre [c, h, w] to search around.")
    if not isinstance(centre, Tensor) or centre.ndim != 3:
        raise InputError("The centre to search around must be a tensor [c, h, w].")
    if task not in get_args(Task):
        raise InputError(f"There is no task {task!r}; there are {', '.join(get_args(Task))}.")
    network = copy.deepcopy(target).eval()
    with torch.no_grad():
        scores = network(centre[None].to(next(network.parameters())))
    if scores.ndim != 2 or (scores.shape[1] > 1) != (task == "multiclass"):
        raise InputError(f"The network's scores have shape {tuple(scores.shape)}, which does not fit the task {task}.")
    return Target(network=network, centre=centre, task=task, outputs=scores.shape[1])


def _since(target: Target, initial: nn.Module) -> Target:
    """The target of an attacker who knows what its training began with."""
    added = change(target.network, initial)
    return replace(target, network=halfway(target.network, initial), change=added)


def _moved(target: Target, dtype: torch.dtype, device: torch.device) -> Target:
    if target.change is not None:
        target.change.added.to(device, dtype)
    return replace(target, network=target.network.to(device, dtype), centre=target.centre.to(device, dtype))


def _explained(target: Target, found: Found) -> Tensor:
    """Share of the squared norm of what is to be explained, v, that each candidate accounts for: <v, J_i^T d_i>."""
    theta, along = (
        {name: parameter.detach() for name, parameter in module.named_parameters()}
        for module in (target.network, target.explained)
    )

    def scores(*values: Tensor) -> Tensor:
        named = dict(zip(theta, values, strict=True))
        result: Tensor = torch.func.functional_call(target.network, named, (found.images,))
        return result

    directions = tuple(along.values())
    slope: Tensor = torch.autograd.functional.jvp(scores, tuple(theta.values()), directions)[1]  # type: ignore[no-untyped-call]
    norm = torch.stack([direction.pow(2).sum() for direction in directions]).sum()
    share: Tensor = (found.cotangents * slope).sum(1) / norm
    return share
