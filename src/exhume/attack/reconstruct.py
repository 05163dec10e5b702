"""The attacker: reconstructs training images from a trained network. It sees the weights, never an image."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.architecture import SplitNetwork, mlp_of
from exhume.attack.closed_neurons.told import told_by_closed_neurons
from exhume.attack.confidence import agreement, confidence, limits, uncalibrated_reason
from exhume.attack.interruption import OtherState, ReconstructionState, restore_search, search_state
from exhume.attack.known_init import UNLIKE
from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target, within_momentum
from exhume.attack.optimisation import Stepper
from exhume.attack.search import Iterate, Method, Search
from exhume.attack.target import Target, make_target
from exhume.candidates import Candidates, HistoryPoint, join
from exhume.checkpoint import Checkpoint
from exhume.devices import check_memory
from exhume.errors import InputError
from exhume.networks import Task
from exhume.progress import Progress, ProgressCallback, no_op

IterateCallback = Callable[[Iterate], None]
"""Is given the candidates of the moment. What it raises ends the reconstruction."""
OBSERVATIONS = 100
"""Times that a search is observed: the history's points, and the calls of the callbacks."""
KEEP_AFTER = 10.0
"""Seconds after which the state is kept also between two observations, which can be minutes apart."""


def reconstruct(
    target: Checkpoint | nn.Module,
    method: Method | None = None,
    *,
    task: Task | None = None,
    centre: Float[Tensor, "c h w"] | None = None,
    initial: Checkpoint | nn.Module | Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    progress_callback: ProgressCallback = no_op,
    iterate_callback: IterateCallback = no_op,
    resume: ReconstructionState | None = None,
    keep: Callable[[ReconstructionState], None] | None = None,
) -> Candidates:
    """Candidate training images of a checkpoint, or of any `nn.Module`.

    These are the candidates of all searches, one search after another; a search that diverged leaves none, unless all
    did. A checkpoint with a momentum is attacked by as many searches again, which explain that. If the start is known
    too, the momentum also tells in which span the other searches look. What was found is followed by what closed
    neurons tell, where the start is known and training was gradient descent, or else where there is a momentum. The
    history is that of the first search that is kept.

        candidates = exhume.reconstruct(exhume.load_checkpoint("runs/demo"), exhume.Exhume(steps=500))

    Args:
        method: the method with its settings; None: `Exhume()`.
        task, centre: needed for a module only: what its outputs mean, and around which image [c, h, w] to search (the
            training mean if the attacker knows it, else grey). The centre is not subtracted: a module takes images in
            [0, 1], and what its training subtracted must be its first layer's work.
        initial: the weights that training began with, if they are known: a public network that was fine-tuned, or
            those that `find_start` found, by parameter; parameters that are not there count as frozen. The candidates
            then have to explain what training added, by whatever training.
        progress_callback: is told of the residual about a hundred times. What it raises ends the reconstruction.
        iterate_callback: is given the candidates of the first search as often.
        resume: goes on from here. On the same machine with as many threads, the numbers are those of a reconstruction
            that was never interrupted.
        keep: is given the state as often, and every ten seconds, to keep it for `resume`.

    Raises:
        InputError: task or centre is missing, the settings do not fit the task, the initial weights do not fit the
            trained ones, or it cannot go on from `resume` (`OtherState`). Divergence is a status.
    """
    method = method or Exhume()
    attacked = within_momentum(make_target(target, task=task, centre=centre, initial=initial), target)
    attacked = attacked.moved_to(torch.device(device), getattr(torch, method.dtype))
    targets, remark = [attacked], _unlike(attacked)
    if isinstance(target, Checkpoint) and target.momentum and isinstance(method, Exhume):
        momentum, told_of_it = _momentum(target)
        remark += told_of_it
        targets += [one.moved_to(attacked.centre.device, attacked.centre.dtype) for one in momentum]
    generator = torch.Generator().manual_seed(method.seed)
    searches, of = [], []
    for one in targets:
        begin = method.prepared(one)
        first = begin(generator)
        _check_memory(first, method.restarts * len(targets), one.centre.device)
        searches += [first, *(begin(generator) for _ in range(method.restarts - 1))]
        of += [one] * method.restarts
    if resume is not None:
        _restore(searches, generator, resume)

    def save(steps: int, iterates: Sequence[Iterate], histories: Sequence[Sequence[HistoryPoint]]) -> None:
        if keep is None:
            return
        state = [search_state(search) for search in searches]
        copies = [list(history) for history in histories]
        drawn = generator.get_state()
        keep(ReconstructionState(steps=steps, searches=state, iterates=[*iterates], generator=drawn, histories=copies))

    found = _search(
        searches,
        of,
        method.steps,
        progress_callback=progress_callback,
        iterate_callback=iterate_callback,
        resume=resume,
        save=save,
    )
    sound = [one for one in found if one.status == "done"] or found[:1]
    reasons = [_uncalibrated_reason(one, attacked) for one in sound]
    judged = [
        one if why else replace(one, confidence=_confidence(one, [other for other in sound if _same_kind(one, other)]))
        for one, why in zip(sound, reasons, strict=True)
    ]
    told = _by_closed_neurons(of, found, method.seed, progress_callback)
    kept, remark = join([*judged, *told]), remark + _told(told)
    return replace(kept, message=kept.message + remark + _lost(found) + _uncalibrated(reasons) + _rounding(target))


def _check_memory(search: Search, count: int, device: torch.device) -> None:
    """Raises `InputError` for more searches like this one than fit into memory: variables and gradients of each."""
    groups = [group for optimiser in search.optimisers for group in optimiser.param_groups]
    size = 2 * sum(variable.nbytes for group in groups for variable in group["params"])
    check_memory(count * size, device, f"{count:,} searches", "fewer --restarts")


def _unlike(target: Target) -> str:
    """A sentence for the record where the initial weights are hardly those that training began with."""
    return "" if target.delta is None or target.delta.resembles else f" {UNLIKE}"


def _momentum(checkpoint: Checkpoint) -> tuple[list[Target], str]:
    """The target of a checkpoint's momentum, [] if it cannot be attacked, and a sentence for the record."""
    try:
        return [momentum_target(checkpoint)], " Half of the searches explain the optimiser's momentum."
    except InputError as error:
        return [], f" {error}"


def _search(
    searches: Sequence[Search],
    targets: Sequence[Target],
    steps: int,
    *,
    progress_callback: ProgressCallback,
    iterate_callback: IterateCallback,
    resume: ReconstructionState | None,
    save: Callable[[int, Sequence[Iterate], Sequence[Sequence[HistoryPoint]]], None],
) -> list[Candidates]:
    """Follows the searches, each of its target, to their end; returns the candidates of each, of unknown confidence.

    A search ends before the others if it diverges. Its last candidates that were finite remain.
    """
    histories = [list(history) for history in resume.histories] if resume else [[] for _ in searches]
    like = targets[0].centre
    stepper, every = Stepper(searches, like.device), max(1, steps // OBSERVATIONS)
    iterates = [one.moved_to(like) for one in resume.iterates] if resume else [s.iterate() for s in searches]
    kept = time.monotonic()
    for step in range(resume.steps if resume else 0, steps + 1):
        observed = step % every == 0 or step == steps
        now = [search.iterate() for search in searches] if observed else []
        stepper.take(step) if step < steps else stepper.evaluate(step)
        if not observed:
            if time.monotonic() - kept > KEEP_AFTER:
                save(step + 1, iterates, histories)
                kept = time.monotonic()
            continue
        pairs = zip(stepper.residuals.tolist(), stepper.penalties.tolist(), strict=True)
        for which, (residual, penalty) in enumerate(pairs):
            if not _diverged(histories[which]):
                histories[which].append(HistoryPoint(step=step, residual=residual, penalty=penalty))
                iterates[which] = iterates[which] if _diverged(histories[which]) else now[which]
        if all(map(_diverged, histories)):
            break
        if not _diverged(histories[0]):
            iterate_callback(iterates[0])
        last = next(history[-1] for history in histories if not _diverged(history))
        values = {"residual": last.residual, "penalty": last.penalty}
        if step < steps:
            save(step + 1, iterates, histories)
            kept = time.monotonic()
        progress_callback(Progress(stage="reconstruct", step=step, total=steps, values=values))
    return [
        _candidates(search, target, iterate, history, steps)
        for search, target, iterate, history in zip(searches, targets, iterates, histories, strict=True)
    ]


def _restore(searches: Sequence[Search], generator: torch.Generator, state: ReconstructionState) -> None:
    """Takes searches that have just begun to where they were interrupted."""
    counts = {len(searches), len(state.searches), len(state.iterates), len(state.histories)}
    if len(counts) > 1:
        raise OtherState(f"The state is that of {len(state.searches)} searches, and there are {len(searches)}.")
    for search, one in zip(searches, state.searches, strict=True):
        restore_search(search, one)
    generator.set_state(state.generator)


def _diverged(history: Sequence[HistoryPoint]) -> bool:
    return bool(history) and not math.isfinite(history[-1].residual + history[-1].penalty)


def _candidates(
    search: Search, target: Target, last: Iterate, history: Sequence[HistoryPoint], steps: int
) -> Candidates:
    images, by_sign = last.images.float().cpu(), target.task == "regression"
    return Candidates(
        images=images,
        labels=((last.multipliers > 0).long() if by_sign else search.labels).cpu(),
        multipliers=last.multipliers.float().cpu(),
        explained=explained_shares(target, last.images, last.cotangents).float().cpu(),
        confidence=images.new_full((len(images),), torch.nan),
        history=[point for point in history if math.isfinite(point.residual + point.penalty)],
        assumptions=search.assumptions,
        status="diverged" if _diverged(history) else "done",
        message=(
            f"The residual was no longer finite at step {history[-1].step}; smaller learning rates may help."
            if _diverged(history)
            else f"All {steps} steps are done."
        ),
    )


def explained_shares(
    target: Target, images: Float[Tensor, "m c h w"], cotangents: Float[Tensor, "m k"]
) -> Float[Tensor, " m"]:
    """Share of the squared norm of what is to be explained, v, that each image accounts for: <v, J_i^T d_i>."""
    theta, along = (
        {name: parameter.detach() for name, parameter in module.named_parameters()}
        for module in (target.network, target.explained)
    )

    def scores(*values: Tensor) -> Tensor:
        named = dict(zip(theta, values, strict=True))
        result: Tensor = torch.func.functional_call(target.network, named, (images,))
        return result

    directions = tuple(along.values())
    slope: Tensor = torch.autograd.functional.jvp(scores, tuple(theta.values()), directions)[1]  # type: ignore[no-untyped-call]
    norm = torch.stack([direction.pow(2).sum() for direction in directions]).sum()
    share: Tensor = (cotangents * slope).sum(1) / norm
    return share


def _uncalibrated_reason(one: Candidates, target: Target) -> str | None:
    """Why agreement with other searches tells nothing of this one's candidates."""
    residual = one.history[-1].residual if one.history else math.inf
    mlp = mlp_of(target.architecture)
    told = (mlp.activation, len(mlp.weights[0])) if mlp else (None, None)
    behind_head = isinstance(target.architecture, SplitNetwork)
    return uncalibrated_reason(one.assumptions, one.images, residual, *told, behind_head=behind_head)


def _by_closed_neurons(
    targets: Sequence[Target], found: Sequence[Candidates], seed: int, progress_callback: ProgressCallback
) -> list[Candidates]:
    """What closed neurons tell of the change since a start, where that is exact, else of a momentum; [] if nothing."""
    done = [pair for pair in zip(targets, found, strict=True) if pair[1].status == "done"]
    searches = [(target, one, known) for target, one in done if (known := one.assumptions.known_init)]
    exact = [search for search in searches if search[2].of == "change" and search[2].exact]
    best = exact or [search for search in searches if search[2].of == "momentum"]
    return told_by_closed_neurons(*best[-1][:2], seed, progress_callback) if best else []


def _told(told: Sequence[Candidates]) -> str:
    """A sentence for the record where closed neurons told images."""
    count = sum(len(one.images) for one in told)
    return f" {count} more candidates are told by the neurons that were closed for them." if count else ""


def _same_kind(one: Candidates, other: Candidates) -> bool:
    """Whether two searches explain the same: the weights, or the momentum."""
    kinds = [candidates.assumptions.known_init for candidates in (one, other)]
    return len({known.of if known else "change" for known in kinds}) == 1


def _confidence(one: Candidates, found: Sequence[Candidates]) -> Float[Tensor, " m"]:
    """The confidence of one search's candidates by the other searches'."""
    others = [(other.images, other.labels) for other in found if other is not one]
    calibration = limits(one.assumptions).calibration
    return confidence(agreement(one.images, one.labels, others), one.explained, calibration).float()


def _lost(found: Sequence[Candidates]) -> str:
    """A sentence for the record where some searches diverged."""
    diverged = sum(one.status == "diverged" for one in found)
    return f" {diverged} of {len(found)} searches diverged and left nothing." if 0 < diverged < len(found) else ""


def _uncalibrated(reasons: Sequence[str | None]) -> str:
    """A sentence for the record where several searches do not give a confidence."""
    known = [why for why in reasons if why]
    if not known or len(reasons) == 1:
        return ""
    of_which = "" if len(known) == len(reasons) else f" for {len(known)} of {len(reasons)} searches"
    return f" Confidence is not available{of_which}: {known[0]}."


def _rounding(target: Checkpoint | nn.Module) -> str:
    """A sentence for the record where the weights were rounded before they were attacked."""
    weights = target.weights.values() if isinstance(target, Checkpoint) else target.parameters()
    coarsest = min((weight.dtype for weight in weights), key=lambda dtype: dtype.itemsize)
    return f" The weights were given in {str(coarsest).removeprefix('torch.')}." if coarsest.itemsize < 4 else ""
