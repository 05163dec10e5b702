"""What only the owner can see: how well her images, and images never trained on, explain the weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target
from exhume.audit.control import control_rows
from exhume.audit.counts import HEADLINE
from exhume.audit.membership import Membership, membership
from exhume.audit.readability import readability
from exhume.candidates import Candidates
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.errors import InputError
from exhume.owner.examine import Examination, examine
from exhume.owner.signals import signals
from exhume.problems.owned import OwnedImages
from exhume.progress import Progress, ProgressCallback
from exhume.runs.audit_record import LayerResidual, OwnersView
from exhume.runs.schema import CandidatesRecord
from exhume.runs.start import found_start
from exhume.runs.store import load_candidates

MOST_EXAMINED = 2000
"""Images at which the condition is evaluated: beyond, it would take longer than the attack itself."""
STEPS_OF_A_LOOK = 4
"""Steps that progress is told of while images are examined once."""
BELIEVED = "all that is believed"
"""The row of residuals that are weighted as the search weighs them."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the owner sees: of the training and of the held-out images, the view of both, and membership."""

    training: Examination
    held_out: Examination | None
    view: OwnersView
    membership: list[Membership]

    @property
    def lead(self) -> float:
        """How plainly more training images than held-out ones stay: larger, the plainer."""
        if self.held_out is None:
            return float(self.view.stay)
        return -readability(self.training, self.held_out, membership_p=1.0).p_value


def owner_looks(
    folder: Path,
    found: CandidatesRecord,
    mine: OwnedImages,
    initial: Checkpoint | None,
    progress_callback: ProgressCallback,
) -> tuple[Seen | None, str]:
    """Evaluates the condition at the images; None, and why, where that is not possible.

    Where an optimiser's momentum was attacked beside the weights, at both: what is told is of that where they
    stay the more plainly.
    """
    if len(mine.images) > MOST_EXAMINED:
        return None, f"The condition is evaluated at {MOST_EXAMINED} images at most, and there are {len(mine.images)}."
    checkpoint = load_checkpoint(folder)
    start = initial or (found_start(folder) if found.start else None)
    method = found.method if isinstance(found.method, Exhume) else Exhume()
    candidates, both = load_candidates(folder)[0], (False, True) if _momentum_attacked(checkpoint) else (False,)

    def told(step: int, total: int = STEPS_OF_A_LOOK * len(both)) -> None:
        progress_callback(Progress(stage="examine", step=step, total=total, values={}))

    told(0)
    try:
        looks = [
            _look(
                checkpoint,
                mine,
                candidates,
                method,
                initial=start,
                of_momentum=of_momentum,
                told=lambda step, before=STEPS_OF_A_LOOK * place: told(before + step),  # type: ignore[misc]
            )
            for place, of_momentum in enumerate(both)
        ]
    except InputError as error:
        return None, str(error)
    return max(looks, key=lambda seen: seen.lead), ""


def _momentum_attacked(checkpoint: Checkpoint) -> bool:
    """Whether there is a momentum, and searches explained it."""
    try:
        return bool(checkpoint.momentum) and momentum_target(checkpoint) is not None
    except InputError:
        return False


def _look(
    checkpoint: Checkpoint,
    mine: OwnedImages,
    candidates: Candidates,
    method: Exhume,
    *,
    initial: Checkpoint | None,
    of_momentum: bool,
    told: Callable[[int], None],
) -> Seen:
    """Looks at the training images, the control and the candidates, as explanations of one thing."""
    labels, control_labels = mine.labels, mine.held_out_labels
    rows = control_rows(len(mine.held_out), len(mine.images), labels, control_labels)
    control, control_labels = mine.held_out[rows], None if control_labels is None else control_labels[rows]
    at = partial(examine, checkpoint, method=method, initial=initial, of_momentum=of_momentum)
    own = at(mine.images, labels)
    told(1)
    others = at(control, control_labels) if len(control) else None
    told(2)
    sound = candidates.images.isfinite().flatten(1).all(1)
    theirs = at(candidates.images[sound], candidates.labels[sound], steps=0) if sound.any() else None
    told(3)
    known = labels is not None and control_labels is not None
    both = None if not known else torch.cat([labels, control_labels])  # type: ignore[list-item]
    images = torch.cat([mine.images, control])
    told_apart = signals(checkpoint, images, both, method, initial=initial, of_momentum=of_momentum)
    told(STEPS_OF_A_LOOK)
    found = _membership(told_apart, len(mine.images))
    return Seen(training=own, held_out=others, view=_view(own, others, theirs), membership=found)


def _membership(values: Mapping[str, Tensor], members: int) -> list[Membership]:
    parted = {name: (both[:members], both[members:]) for name, both in values.items()}
    return membership({name: pair for name, pair in parted.items() if len(pair[1])}) if parted else []


def _view(own: Examination, others: Examination | None, theirs: Examination | None) -> OwnersView:
    def stay(one: Examination | None) -> int:
        return 0 if one is None else int((one.stays >= float(HEADLINE)).sum())

    def row(name: str, of: Mapping[str, float], *rest: Mapping[str, float] | None) -> LayerResidual:
        held_out, candidates = (None if one is None else one.get(name) for one in rest)
        return LayerResidual(layer=name, training=of[name], held_out=held_out, candidates=candidates)

    whole = LayerResidual(
        layer=BELIEVED,
        training=own.residual,
        held_out=others.residual if others else None,
        candidates=theirs.residual if theirs else None,
    )
    rest = [None if one is None else one.layers for one in (others, theirs)]
    rows = [row(name, own.layers, *rest) for name in own.layers]
    return OwnersView(
        of=own.of,
        residuals=[whole, *rows],
        training=len(own.stays),
        stay=stay(own),
        held_out=0 if others is None else len(others.stays),
        held_out_stay=stay(others),
    )
