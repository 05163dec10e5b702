"""The audit: what does a network give away of its owner's images? All stages, and the record of what they say."""

import csv
import io
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from exhume.attack.known_init import UNLIKE, resembles
from exhume.attack.methods import Exhume
from exhume.attack.search import Method
from exhume.audit.counts import HEADLINE
from exhume.audit.doubts import no_control
from exhume.audit.readability import Fate, fates, readability
from exhume.audit.verdict import Applicability, judge
from exhume.checkpoint import Checkpoint
from exhume.devices import choose_device
from exhume.foreign import ForeignNetwork
from exhume.problems import Problem, Selection
from exhume.problems.owned import OwnedImages, Split
from exhume.progress import ProgressCallback, no_op
from exhume.records import encode, provenance, replace_files
from exhume.runs.advice import DEFEND, about_membership, about_scaling, next_steps, scaling_of, without_state
from exhume.runs.applicability import read_applicability
from exhume.runs.audit_record import EXPLAINED, AuditedImage, AuditRecord
from exhume.runs.cells import known_record
from exhume.runs.claim import alone
from exhume.runs.defences import DEFENCES, compare_defences
from exhume.runs.fitted import fitted, to_train_on
from exhume.runs.owners_look import Seen, owner_looks
from exhume.runs.pipeline import reconstruct_run, score_run
from exhume.runs.schema import CandidatesRecord, ScoresRecord, StartRecord
from exhume.runs.start import is_untrained
from exhume.runs.store import FILES, load_candidates, remove_after

UNTRAINED = "The network was not trained: its weights are those that its initialisation drew."


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
    problem = to_train_on(checkpoint, mine) if defend else None
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
    seen, why = owner_looks(folder, found, mine, initial, progress_callback)
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
            *about_membership(judgement, seen.membership if seen else []),
            *([without_state(judgement, seen.view if seen else None)] if checkpoint.momentum else []),
        ],
        scaling=scaling,
        start=_given_sentence(checkpoint, initial) if initial is not None else _found_sentence(folder, found),
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


def _given_sentence(checkpoint: Checkpoint, initial: Checkpoint) -> str:
    """That the weights before training were given, and whether they look like those."""
    given = "The weights before training were given."
    return given if resembles(checkpoint.weights, initial.weights) else f"{given} {UNLIKE}"


def _found_sentence(folder: Path, found: CandidatesRecord) -> str:
    """How the weights before training were found, or that they were not; "" where nobody looked for them."""
    looked = known_record(folder / "start.json", StartRecord)
    if looked is None or looked.checkpoint != found.checkpoint:
        return ""
    return f"The weights before training. {looked.sentence}"


def _applicability(folder: Path, found: CandidatesRecord, seen: Seen | None) -> Applicability:
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


def _images(folder: Path, mine: OwnedImages, scores: ScoresRecord, seen: Seen | None) -> list[AuditedImage]:
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
