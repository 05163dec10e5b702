"""The audit: what does a network give away of its owner's images? All stages, and what only the owner can see."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target
from exhume.attack.search import Method
from exhume.audit.membership import Membership, membership
from exhume.audit.readability import Fate, fates, readability
from exhume.audit.scores import HEADLINE, control_rows, no_control
from exhume.audit.verdict import Applicability, Judgement, judge
from exhume.candidates import Candidates
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.foreign import ForeignNetwork
from exhume.networks import NetworkConfig
from exhume.owner.examine import Examination, examine
from exhume.owner.scaling import ScalingCheck, check_scaling
from exhume.owner.signals import signals
from exhume.problems import Problem, Selection
from exhume.problems.owned import OwnedImages, Split
from exhume.progress import Progress, ProgressCallback, no_op
from exhume.records import encode, provenance, replace_files
from exhume.runs.applicability import read_applicability
from exhume.runs.audit_record import EXPLAINED, AuditedImage, AuditRecord, LayerResidual, OwnersView
from exhume.runs.cells import known_record
from exhume.runs.claim import alone
from exhume.runs.defences import DEFENCES, check_comparable, compare_defences
from exhume.runs.pipeline import reconstruct_run, score_run
from exhume.runs.schema import CandidatesRecord, ScoresRecord, StartRecord
from exhume.runs.start import found_start, is_untrained
from exhume.runs.store import FILES, load_candidates, remove_after

MOST_EXAMINED = 2000
"""Images at which the condition is evaluated: beyond, it would take longer than the attack itself."""
WITHOUT_STATE = "The file holds the optimiser's state beside the weights{}: publish the weights alone."
"""What to do about a momentum, and why: images came out of it, or might."""
DEFEND = "`--defend` trains variants of the network on your images and shows which of them leak less."
ASK_FOR_SCALING = (
    "Was a mean subtracted from the images, or were they scaled? Nobody has said so: give --mean and --std, or "
    "--mean 0 if not."
)
UNTRAINED = "The network was not trained: its weights are those that its initialisation drew."
STEPS_OF_A_LOOK = 4
"""Steps that progress is told of while images are examined once."""
AS_SUBTRACTED = 1e-3
"""Difference of a pixel up to which what the network subtracts is the mean of the training images."""
BELIEVED = "all that is believed"
"""The row of residuals that are weighted as the search weighs them."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where the owner's images are, so that they can be loaded again: the arguments of `load_images`."""

    images: str
    selection: Selection
    held_out: Path | None = None
    split: Split | None = None


@alone
def audit_run(
    folder: Path,
    network: ForeignNetwork,
    mine: OwnedImages,
    source: Source,
    *,
    method: Exhume | None = None,
    initial: Checkpoint | None = None,
    find_start: bool = True,
    defend: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> AuditRecord:
    """Attacks a network, counts against the owner's images, looks at these with her eyes, and gives the verdict.

    Writes audit.json and leaked.csv beside the files of the stages. By the same call an interrupted audit goes on with
    the stage that was interrupted.

    Args:
        network: what `read_network` gave. The attacker is given the mean of the training images, the worst case.
        source: where `mine` was loaded from.
        initial: the weights before training, if they are public.
        find_start: whether to look for them in the weights otherwise.
        defend: whether to train and attack variants that may leak less (`compare_defences`).

    Raises:
        InputError: as for `reconstruct_run` and `score_run`, or the images do not fit the network.
    """
    method = method or Exhume()
    asked = partial(finished_audit, folder, network, mine, method, initial=initial, find_start=find_start)
    checkpoint, mine = fitted(network.checkpoint, mine)
    problem = _to_train_on(checkpoint, mine) if defend else None
    record = None if overwrite else asked()
    if record is None:
        record = _audit(
            folder,
            replace(network, checkpoint=checkpoint),
            mine,
            source,
            method,
            initial=initial,
            find_start=find_start,
            device=device,
            overwrite=overwrite,
            progress_callback=progress_callback,
        )
    if problem is None:
        return record
    return _with_defences(
        folder,
        record,
        mine,
        checkpoint=checkpoint,
        problem=problem,
        method=method,
        device=device,
        progress_callback=progress_callback,
    )


def _audit(
    folder: Path,
    network: ForeignNetwork,
    mine: OwnedImages,
    source: Source,
    method: Exhume,
    *,
    initial: Checkpoint | None,
    find_start: bool,
    device: str,
    overwrite: bool,
    progress_callback: ProgressCallback,
) -> AuditRecord:
    """All stages but the defences, of a network and images that fit each other."""
    start, place, checkpoint = time.perf_counter(), choose_device(device), network.checkpoint
    found = reconstruct_run(
        folder,
        method,
        foreign=checkpoint,
        notes=network.notes,
        initial=initial,
        find_start=find_start,
        device=device,
        overwrite=overwrite,
        progress_callback=progress_callback,
    )
    scores = score_run(folder, (source.images, source.selection), loaded=mine)
    seen, why = _owner_looks(folder, found, mine, initial, progress_callback)
    refused = no_control(scores) if seen and seen.membership else ""
    if seen and refused:  # what differs in kind is told apart by any network
        seen = replace(seen, membership=[])
    applies, scaling = _applicability(folder, found, seen), scaling_of(network, mine)
    judgement = judge(scores, applies)
    record = AuditRecord(
        truth=scores.truth,
        checkpoint=found.checkpoint,
        notes=list(network.notes),
        judgement=judgement,
        applies=applies,
        next_steps=[
            *about_scaling(network, scaling, plain=judgement.strength == "plainly", untrained=applies.untrained),
            *next_steps(judgement, scores, found, untrained=applies.untrained),
            *([_without_state(judgement, seen)] if checkpoint.momentum else []),
        ],
        scaling=scaling,
        start=_start_sentence(folder, found, given=initial is not None),
        images=_images(folder, mine, scores, seen),
        owner=seen.view if seen else None,
        not_examined=why,
        membership=seen.membership if seen else [],
        no_membership=refused,
        provenance=provenance(device=place, seed=found.provenance.seed, seconds=time.perf_counter() - start),
    )
    _write(folder, record, mine)
    return record


def _with_defences(
    folder: Path,
    record: AuditRecord,
    mine: OwnedImages,
    *,
    checkpoint: Checkpoint,
    problem: Problem,
    method: Exhume,
    device: str,
    progress_callback: ProgressCallback,
) -> AuditRecord:
    """The audit with the defences that it does not have yet; each is kept as soon as it is measured."""
    start, place = time.perf_counter(), choose_device(device)
    record = replace(record, next_steps=[step for step in record.next_steps if step != DEFEND])
    there = {row.name: row for row in record.defences if not row.message}
    missing = [name for name in DEFENCES if name not in there]
    before, seed = record.provenance.seconds, method.seed
    for row in compare_defences(
        checkpoint, problem, method, names=missing, seed=seed, device=place, progress_callback=progress_callback
    ):
        there[row.name] = row
        rows = [there[name] for name in DEFENCES if name in there]
        ran = provenance(device=place, seed=record.provenance.seed, seconds=before + time.perf_counter() - start)
        record = replace(record, defences=rows, provenance=ran)
        _write(folder, record, mine)
    return record


def finished_audit(
    folder: Path,
    network: ForeignNetwork,
    mine: OwnedImages,
    method: Method,
    *,
    initial: Checkpoint | None,
    find_start: bool,
) -> AuditRecord | None:
    """The record of exactly this audit, if it has ended in the folder, with or without defences; None: it has not.

    Raises:
        InputError: as for `fitted`.
    """
    audit = known_record(folder / "audit.json", AuditRecord)
    found = known_record(folder / "candidates.json", CandidatesRecord)
    if audit is None or found is None or known_record(folder / "scores.json", ScoresRecord) is None:
        return None
    checkpoint, mine = fitted(network.checkpoint, mine)
    asked = (checkpoint.fingerprint, checkpoint.knowledge, list(network.notes), mine.fingerprint, mine.names, method)
    names = tuple(image.name for image in audit.images)
    there = (audit.checkpoint, found.known_mean, audit.notes, audit.truth.fingerprint, names, found.method)
    if there != asked or found.checkpoint != audit.checkpoint:
        return None
    if initial is not None:
        return audit if found.initial == initial.fingerprint else None
    looked = (folder / "start.json").exists() if find_start else found.start is None
    return audit if looked and (found.initial is None or found.start is not None) else None


def _write(folder: Path, record: AuditRecord, mine: OwnedImages) -> None:
    table = leaked_csv(record, mine.classes).encode(errors="backslashreplace")
    files = {folder / FILES["audit"][1]: table, folder / FILES["audit"][0]: encode(record)}
    replace_files(files, clear=partial(remove_after, folder, "audit"))


def fitted(checkpoint: Checkpoint, mine: OwnedImages) -> tuple[Checkpoint, OwnedImages]:
    """Network and images as they are audited: of the same classes, with what the attacker is given.

    Raises:
        InputError: as for `with_outputs_as_classes`.
    """
    mine = with_outputs_as_classes(mine, checkpoint)
    return replace(with_known_mean(checkpoint, mine), classes=mine.classes or checkpoint.classes), mine


def with_known_mean(checkpoint: Checkpoint, mine: OwnedImages) -> Checkpoint:
    """The checkpoint of an attacker who knows the mean of the training images too: the worst case for their owner."""
    mean = mine.images.mean(0)
    if checkpoint.shape != tuple(mean.shape) or torch.allclose(checkpoint.centre.to(mean), mean, atol=AS_SUBTRACTED):
        return checkpoint  # what is subtracted tells it
    return replace(checkpoint, known_mean=mean)


def with_outputs_as_classes(mine: OwnedImages, checkpoint: Checkpoint) -> OwnedImages:
    """The images with the network's outputs as their classes, where some classes have no image but all are numbers.

    Raises:
        InputError: the classes cannot be told from each other's outputs.
    """
    mine = with_labels_of(mine, checkpoint)
    if mine.labels is None or checkpoint.task != "multiclass" or len(mine.classes) == checkpoint.outputs:
        return mine
    numbers = [int(name) if name.isdecimal() else -1 for name in mine.classes]
    if not all(0 <= number < checkpoint.outputs for number in numbers):
        raise InputError(
            f"The network tells {checkpoint.outputs} classes apart, and the images are of {len(mine.classes)} "
            f"({', '.join(mine.classes[:5])}). Name them by the number of their output, from 0."
        )
    order = torch.tensor(numbers)
    known = mine.held_out_labels
    return replace(
        mine,
        labels=order[mine.labels],
        held_out_labels=None if known is None else order[known],
        classes=tuple(str(output) for output in range(checkpoint.outputs)),
    )


def with_labels_of(mine: OwnedImages, checkpoint: Checkpoint) -> OwnedImages:
    """The images with labels of the network's kind: real targets for regression, else classes.

    Whole numbers that were stored as real ones become classes; two classes stand for the targets -1 and 1.

    Raises:
        InputError: the labels are real numbers, and the network tells classes apart.
    """
    labels, others = mine.labels, mine.held_out_labels
    if labels is None:
        return mine
    if checkpoint.task == "regression" and not labels.is_floating_point() and len(mine.classes) > 2:
        values = torch.tensor([float(name) for name in mine.classes if _is_number(name)])
        if len(values) != len(mine.classes):
            raise InputError("The network gives real numbers, and the images have classes: give numbers as labels.")
        real = None if others is None else values[others]
        return replace(mine, labels=values[labels], held_out_labels=real, classes=())
    if not labels.is_floating_point() or checkpoint.task == "regression":
        return mine
    both = labels if others is None else torch.cat([labels, others])
    if not torch.equal(both, both.round()):
        raise InputError("The labels are real numbers, and the network tells classes apart: give these as labels.")
    values, indices = torch.unique(both, return_inverse=True)
    return replace(
        mine,
        labels=indices[: len(labels)],
        held_out_labels=None if others is None else indices[len(labels) :],
        classes=tuple(str(int(value)) for value in values),
    )


def _is_number(name: str) -> bool:
    return name.removeprefix("-").replace(".", "", 1).isdecimal()


def leaked_csv(record: AuditRecord, classes: Sequence[str]) -> str:
    """The images that came out, the most alike first, as a table for programs."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("file", "class", "ncc", "confidence", "share", "multiplier", "margin", "reachable", "stays")
    writer.writerow(columns)
    for image in record.leaked if record.judgement.verdict == "leaks" else ():
        named = image.label is not None and float(image.label).is_integer() and 0 <= image.label < len(classes)
        label = classes[int(image.label)] if named and image.label is not None else image.label
        values = (getattr(image, column) for column in columns[2:])
        writer.writerow([image.name, label, *(None if value is None else f"{value:.6g}" for value in values)])
    return text.getvalue()


def scaling_of(network: ForeignNetwork, mine: OwnedImages) -> ScalingCheck | None:
    """Whether the network knows the images better if they are scaled otherwise; None where that cannot be told.

    Not asked where the network itself says how they are scaled.
    """
    if network.scaling == "the network":
        return None
    return check_scaling(network.checkpoint, mine.images, mine.labels)


def scaling_hint(check: ScalingCheck | None) -> str:
    """One sentence where the network was plainly trained on images of another scaling; else ""."""
    return _known(check) if check is not None and check.is_plain else ""


def about_scaling(
    network: ForeignNetwork, check: ScalingCheck | None, *, plain: bool, untrained: bool = False
) -> list[str]:
    """What to ask the owner of the scaling of her images: where nobody said it and no leak is plain, or it is wrong."""
    if untrained:
        return []
    if check is not None and check.is_plain:
        said = " You have said how they are scaled: was it so in training?" if network.scaling == "the user" else ""
        return [_known(check) + said]
    if network.scaling != "nobody" or plain:
        return []
    return [" ".join([ASK_FOR_SCALING, *([_known(check)] if check else [])])]


def _known(check: ScalingCheck) -> str:
    """How many images the network classifies rightly, and what would let it know more."""
    now = f"As it was read, the network classifies {check.right} of {check.images} of your images rightly"
    if check.best is None:
        return f"{now}, and no usual scaling lets it know more."
    return f"{now}, and {check.best.right} if they are taken {check.best.words}: try {check.best.flags}."


def next_steps(
    judgement: Judgement, scores: ScoresRecord, found: CandidatesRecord, *, untrained: bool = False
) -> list[str]:
    """What the owner should do, a sentence each."""
    steps = []
    if judgement.verdict == "leaks":
        steps.append("Treat the weights as you treat the training images: do not publish them, and limit who has them.")
        if scores.recovered[judgement.level]:
            steps.append(_whom_to_tell(judgement, scores))
        if found.start is not None:
            steps.append(
                "The weights before training were found in the trained ones: all seeds of PyTorch on a CPU can be "
                "tried, secret ones too. Before you train anew, draw the first weights from another source; the guide "
                'has the lines for it ("A start that nobody finds").'
            )
        steps.append(DEFEND)
    elif judgement.verdict == "nothing found":
        steps.append("Nothing was found by this method. Another may find more: this is no proof that nothing leaks.")
    elif untrained:
        steps.append("Is this the right file? With model.py:name, `--weights` names the file of the trained weights.")
    elif judgement.strength == "not proven":
        steps.append("Nothing is decided: do not take this for a proof of safety, nor of a leak.")
    else:
        steps.append("Do not take this for a proof of safety: the method cannot read this network.")
    if scores.held_out == 0:
        steps.append("Give images of the same kind that the network never saw (`--held-out`), as a control.")
    return steps


def _start_sentence(folder: Path, found: CandidatesRecord, *, given: bool) -> str:
    """Whether the weights before training were known, in a sentence; "" where nobody looked for them."""
    if given:
        return "The weights before training were given."
    looked = known_record(folder / "start.json", StartRecord)
    if looked is None or looked.checkpoint != found.checkpoint:
        return ""
    return f"The weights before training. {looked.sentence}"


def _whom_to_tell(judgement: Judgement, scores: ScoresRecord) -> str:
    """Which images came out, and how many of these are there by chance, as far as the control tells."""
    count, chance = scores.recovered[judgement.level], scores.null[judgement.level] / scores.held_out * scores.images
    named = f"the {count} images that came out" if count > 1 else "the image that came out"
    by_chance = f"; by chance about {chance:.0f} of them" if chance >= 0.5 else ""
    return f"leaked.csv names {named} (NCC >= {judgement.level}{by_chance}). If private, tell those whom they show."


def _without_state(judgement: Judgement, seen: "_Seen | None") -> str:
    came = judgement.verdict == "leaks" and seen is not None and seen.view.of == "momentum"
    return WITHOUT_STATE.format(", and images come out of it" if came else ", and images can come out of it")


@dataclass(frozen=True, kw_only=True)
class _Seen:
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


def _owner_looks(
    folder: Path,
    found: CandidatesRecord,
    mine: OwnedImages,
    initial: Checkpoint | None,
    progress_callback: ProgressCallback,
) -> tuple[_Seen | None, str]:
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
) -> _Seen:
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
    return _Seen(training=own, held_out=others, view=_view(own, others, theirs), membership=found)


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


def _applicability(folder: Path, found: CandidatesRecord, seen: _Seen | None) -> Applicability:
    applies = read_applicability(found)
    if is_untrained(folder):
        return replace(applies, untrained=True, reason=UNTRAINED)
    if seen is not None and seen.view.of == "momentum" and applies.reason:
        applies = replace(applies, reason=f"As for the weights without the momentum: {applies.reason}")
    if seen is None or seen.held_out is None:
        return applies
    # of several signals the best is taken, so its chance counts as often as there are signals
    chance = min((len(seen.membership) * one.p_value for one in seen.membership), default=1.0)
    explained = EXPLAINED[seen.view.of]
    told = readability(seen.training, seen.held_out, membership_p=min(1.0, chance), explained=explained)
    return replace(applies, readability=told)


def _images(folder: Path, mine: OwnedImages, scores: ScoresRecord, seen: _Seen | None) -> list[AuditedImage]:
    confidence = load_candidates(folder)[0].confidence
    rows, similarity = [], torch.tensor([image.ncc for image in scores.per_image])
    found: list[Fate | None] = ["found" if image.ncc >= float(HEADLINE) else None for image in scores.per_image]
    told = fates(seen.training, similarity) if seen else found
    for image, name, fate in zip(scores.per_image, mine.names, told, strict=True):
        i, sure = image.index, float(confidence[image.candidate]) if image.candidate >= 0 else math.nan
        own = seen.training if seen else None
        reachable, stays = (float(own.reachable[i]), float(own.stays[i])) if own else (None, None)
        rows.append(
            AuditedImage(
                index=i,
                name=name,
                label=image.label,
                fate=fate,
                ncc=image.ncc,
                confidence=None if math.isnan(sure) else sure,
                share=float(own.explained[i]) if own else None,
                multiplier=float(own.multipliers[i]) if own else None,
                margin=float(own.margins[i]) if own else None,
                reachable=reachable,
                stays=stays,
            )
        )
    return rows


def _to_train_on(checkpoint: Checkpoint, mine: OwnedImages) -> Problem:
    """What variants of the network are trained on.

    Raises:
        InputError: as for `check_comparable`.
    """
    check_comparable(checkpoint, mine)
    assert mine.labels is not None and mine.held_out_labels is not None
    return Problem(
        name=mine.name,
        images=mine.images,
        labels=mine.labels,
        held_out=mine.held_out,
        held_out_labels=mine.held_out_labels,
        task=checkpoint.task,
        classes=checkpoint.classes,
        network=checkpoint.network if isinstance(checkpoint.network, NetworkConfig) else NetworkConfig(),
        source=mine.source,
    )
