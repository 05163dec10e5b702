"""The stages of a run: each reads files of the run folder and writes files there, and can be run again alone."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from exhume.attack.interruption import OtherState, ReconstructionState
from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.attack.search import Method
from exhume.audit.counts import Counts, Seconds
from exhume.audit.matching import Matches
from exhume.audit.scores import Scores, score
from exhume.candidates import Candidates, join
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.defence.losses import resolve_loss
from exhume.defence.training import TrainingConfig, TrainingState, train
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.networks import NetworkConfig, check
from exhume.problems import Problem, Selection, locate
from exhume.problems.owned import OwnedImages, Split, load_images
from exhume.progress import ProgressCallback, no_op
from exhume.records import encode_together, provenance, remove, replace_files
from exhume.runs.claim import alone
from exhume.runs.schema import (
    CandidatesRecord,
    Merged,
    ProblemRecord,
    ReconstructionRequest,
    ScoresRecord,
    TrainingRecord,
    read_record,
)
from exhume.runs.start import start_of
from exhume.runs.store import (
    FILES,
    RECONSTRUCTION_STATE,
    TRAINING_STATE,
    candidates_record,
    interrupted_reconstruction,
    interrupted_training,
    load_candidates,
    load_reconstruction,
    load_state,
    load_truth,
    read_training,
    remove_after,
    save_candidates,
    save_reconstruction,
    save_state,
    save_training,
    saving,
)

SAVE_EVERY = 20.0
"""Seconds between two savings of a training or a reconstruction under way."""


@alone
def train_run(
    folder: Path,
    problem: Problem,
    origin: tuple[str, Selection],
    network: NetworkConfig,
    training: TrainingConfig,
    *,
    initial: Checkpoint | None = None,
    device: str = "auto",
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> TrainingRecord:
    """Trains and writes the checkpoint; goes on where the same training was interrupted.

    A training that is finished is not done again, unless it is to be overwritten. What it replaces stays until it ends.

    Args:
        origin: the name and selection by which later stages load the problem again (`problems.locate`).
        initial: the network to begin with; None: fresh weights.

    Raises:
        InputError: the folder holds another training (unless `overwrite`), the loss or the initial network does not
            fit, or the loss diverges.
    """
    place = choose_device(device)
    record = TrainingRecord(
        problem=_problem_record(problem, origin),
        network=network,
        training=replace(training, loss=resolve_loss(problem.task, training.loss)),
        initial=initial.fingerprint if initial else None,
        history=[],
        margins=[],
        status="running",
        message="",
        provenance=provenance(device=place, seed=training.seed, seconds=0.0),
    )
    check(network)
    finished = _finished_training(folder, record) if not overwrite else None
    if finished is not None:
        remove(folder / TRAINING_STATE)
        return finished
    resume = _claim_training(folder, record, overwrite)
    with saving(partial(save_state, folder, record), SAVE_EVERY) as keep:
        trained = train(
            problem,
            training,
            network=network,
            initial=initial,
            device=place,
            progress_callback=progress_callback,
            resume=resume,
            keep=keep,
        )
    if trained.status == "diverged":
        remove(folder / TRAINING_STATE)
        raise InputError(trained.message)
    record = replace(
        record,
        history=trained.history,
        margins=trained.margins,
        status=trained.status,
        message=trained.message,
        provenance=provenance(device=place, seed=training.seed, seconds=trained.seconds),
    )
    save_training(folder, trained.checkpoint, record)
    return record


@alone
def reconstruct_run(
    folder: Path,
    method: Method,
    *,
    foreign: Checkpoint | None = None,
    notes: Sequence[str] = (),
    initial: Checkpoint | None = None,
    find_start: bool = False,
    device: str = "auto",
    overwrite: bool = False,
    progress_callback: ProgressCallback = no_op,
) -> CandidatesRecord:
    """Reconstructs from the folder's checkpoint alone and writes the candidates.

    It goes on where the same reconstruction was interrupted; one that is finished is not done again, unless it is to be
    overwritten. What it replaces stays until it ends.

    Args:
        foreign: a checkpoint that was trained elsewhere; it is put into the folder.
        notes: what was assumed when it was read, for the record's message.
        initial: the weights that training began with, if they are known.
        find_start: whether to look for them in the weights first, where they are not known; our method only.

    Raises:
        InputError: no checkpoint or another than `foreign`, settings that do not fit its task, initial weights of
            another network, or candidates of other settings are there already (unless `overwrite`).
    """
    checkpoint, place = foreign or load_checkpoint(folder), choose_device(device)
    method.check_task(checkpoint.task)
    if foreign is not None:
        _adopt(folder, foreign, overwrite)
    found = None
    if find_start and initial is None and isinstance(method, Exhume):
        found = start_of(folder, device=device, progress_callback=progress_callback)
        initial = found[0] if found else None
    known = initial.fingerprint if initial else None
    request = ReconstructionRequest(
        checkpoint=checkpoint.fingerprint, initial=known, method=method, known_mean=checkpoint.knowledge
    )
    finished = None if overwrite else _finished(folder, request)
    if finished is not None:
        remove(folder / RECONSTRUCTION_STATE)  # if it was killed between the two
        return finished
    resume, before = _claim_reconstruction(folder, request, overwrite)
    start = time.perf_counter() - before

    def save(state: ReconstructionState) -> None:
        save_reconstruction(folder, state, request, time.perf_counter() - start)

    with saving(save, SAVE_EVERY) as keep:
        attack = partial(
            reconstruct,
            checkpoint,
            method,
            initial=initial,
            device=place,
            progress_callback=progress_callback,
            keep=keep,
        )
        try:
            candidates = attack(resume=resume)
        except OtherState as error:
            if not overwrite:
                raise InputError(f"{folder}: {error} Go on with it there, or add --overwrite to begin anew.") from None
            candidates = attack()
    seconds = time.perf_counter() - start
    record = candidates_record(
        replace(candidates, message=" ".join([candidates.message, *notes])),
        method,
        checkpoint=checkpoint.fingerprint,
        initial=known,
        start=found[1] if found else None,
        known_mean=checkpoint.knowledge,
        device=place,
        seconds=seconds,
    )
    save_candidates(folder, candidates, record)
    remove(folder / RECONSTRUCTION_STATE)
    return record


@alone
def score_run(
    folder: Path,
    origin: tuple[str, Selection] | None = None,
    *,
    held_out: Path | None = None,
    split: Split | None = None,
    loaded: OwnedImages | None = None,
    others: Sequence[Path] = (),
    data_dir: str | None = None,
) -> ScoresRecord:
    """Scores the folder's candidates against the truth and against held-out images, and writes the counts and pairs.

    Without held-out images there is no control, and the record says so; none are made of training images.

    Args:
        origin: name and selection of the truth for a checkpoint that was trained elsewhere; None: what training.json
            names.
        held_out, split: with `origin`, where the control comes from (`problems.load_images`).
        loaded: with `origin`, what it has given already; None: it is loaded here.
        others: folders with other reconstructions of the same checkpoint, whose candidates are scored with the run's.
        data_dir: where the data that training.json names are on this machine, if not where they were.

    Raises:
        InputError: something is missing, candidates belong to another checkpoint, a folder is given twice, or a truth
            is given to a run that has its own.
    """
    start = time.perf_counter()
    if len({path.resolve() for path in (folder, *others)}) <= len(others):
        raise InputError("Each reconstruction counts once: the folders to merge must differ from each other.")
    parts = [load_candidates(folder), *(load_candidates(other, of=folder) for other in others)]
    candidates, found = join([part for part, _ in parts]), parts[0][1]
    problem: Problem | OwnedImages
    train_seconds = None
    if origin is None:
        if held_out is not None or split is not None:
            raise InputError("Held-out images go with the images of a checkpoint from elsewhere (--problem).")
        training = read_training(folder)
        problem, truth, train_seconds = load_truth(training, data_dir), training.problem, training.provenance.seconds
    elif (folder / "training.json").exists():
        raise InputError(f"{folder} was trained on a problem of its own; it is scored without --problem.")
    else:
        problem = loaded or load_images(origin[0], held_out=held_out, split=split, selection=origin[1])
        truth = _problem_record(problem, locate(*origin))
    scores = score(
        candidates,
        problem.images,
        problem.labels,
        problem.held_out,
        held_out_labels=problem.held_out_labels,
        problem=problem.name,
        seconds=Seconds(train=train_seconds, reconstruct=sum(record.provenance.seconds for _, record in parts)),
    )
    seconds, seed = time.perf_counter() - start, found.provenance.seed
    record = ScoresRecord(
        **{item.name: getattr(scores, item.name) for item in fields(Counts)},
        truth=truth,
        checkpoint=found.checkpoint,
        chosen=found.chosen,
        merged=[
            Merged(folder=str(other), candidates=len(part.images), chosen=of.chosen)
            for other, (part, of) in zip(others, parts[1:], strict=True)
        ],
        provenance=provenance(device=torch.device("cpu"), seed=seed, seconds=seconds),
    )
    files = encode_together(folder / "scores", record, _pairs(candidates, problem, scores))
    replace_files(files, clear=partial(remove_after, folder, "scores"))
    return record


def _problem_record(problem: Problem | OwnedImages, origin: tuple[str, Selection]) -> ProblemRecord:
    return ProblemRecord(
        name=origin[0],
        selection=origin[1],
        source=problem.source,
        images=len(problem.images),
        fingerprint=problem.fingerprint,
    )


def _claim_training(folder: Path, record: TrainingRecord, overwrite: bool) -> TrainingState | None:
    """Makes sure that the folder is free for this training; returns where it was interrupted, if it was."""
    try:
        before = interrupted_training(folder)
        if before is not None and _same_training(before, record):
            return load_state(folder / TRAINING_STATE)
    except InputError:
        if not overwrite:
            raise
    if overwrite:
        return None
    if (folder / "training.json").exists():
        before = before or read_record(folder / "training.json", TrainingRecord)
    elif before is None:
        there = [name for names in FILES.values() for name in names if (folder / name).exists()]
        if there:
            which = f"{there[0]}, which no training here has made"
            raise InputError(f"{folder} already holds {which}; choose another folder.")
    if before is not None and not _same_training(before, record):
        raise InputError(f"{folder} already holds another training; add --overwrite or choose another folder.")
    return None


def _finished_training(folder: Path, wanted: TrainingRecord) -> TrainingRecord | None:
    """The record of the same training, if it is finished and its checkpoint is there."""
    try:
        before, _ = read_training(folder), load_checkpoint(folder)
    except InputError:
        return None
    return before if _same_training(before, wanted) else None


def _same_training(one: TrainingRecord, other: TrainingRecord) -> bool:
    return all(getattr(one, part) == getattr(other, part) for part in ("problem", "network", "training", "initial"))


def _finished(folder: Path, request: ReconstructionRequest) -> CandidatesRecord | None:
    """The record of this very reconstruction, if it has ended here; None: it has not."""
    if not (folder / "candidates.json").exists():
        return None
    record = load_candidates(folder)[1]
    same = (record.checkpoint, record.initial, record.method, record.known_mean, record.chosen)
    wanted = (request.checkpoint, request.initial, request.method, request.known_mean, None)
    return record if same == wanted else None


def _claim_reconstruction(
    folder: Path, request: ReconstructionRequest, overwrite: bool
) -> tuple[ReconstructionState | None, float]:
    """Makes sure that the folder is free for this reconstruction; returns where it was interrupted, and its seconds."""
    under_way = None
    try:
        under_way = interrupted_reconstruction(folder)
        if under_way == request:
            return load_reconstruction(folder)
    except InputError as error:
        if not overwrite:
            raise InputError(f"{error} Add --overwrite to reconstruct from the start.") from None
    path = folder / "candidates.json"
    if path.exists() and not overwrite:
        before = read_record(path, CandidatesRecord)
        if (before.method, before.initial, before.known_mean) != (request.method, request.initial, request.known_mean):
            start = "for another start of training, or for none"
            other = "for other images, or for another mean image or none"
            why = start if before.initial != request.initial else other
            why = why if before.method == request.method else "of other settings"
            raise InputError(f"{folder} already holds candidates {why}; add --overwrite or use another folder.")
    if under_way is not None and under_way.checkpoint == request.checkpoint and not overwrite:
        raise InputError(
            f"In {folder} a reconstruction of other settings was interrupted; go on with it by its own command, or add "
            "--overwrite."
        )
    return None, 0.0


def _adopt(folder: Path, checkpoint: Checkpoint, overwrite: bool) -> None:
    """Puts a checkpoint that was trained elsewhere into the folder, unless it holds another one that is to stay."""
    other = (folder / "checkpoint.json").exists() and load_checkpoint(folder).fingerprint != checkpoint.fingerprint
    if other and (folder / "training.json").exists():
        raise InputError(f"{folder} already holds a network that was trained there; choose another folder.")
    if other and not overwrite:
        raise InputError(
            f"{folder} already holds another checkpoint, or this one read otherwise (--mean, --std, --layout); add "
            "--overwrite or choose another folder."
        )
    if other:
        remove_after(folder, "training")
    save_checkpoint(checkpoint, folder)


def _pairs(candidates: Candidates, problem: Problem | OwnedImages, scores: Scores) -> dict[str, Tensor]:
    """Training and held-out images, each with its one-to-one candidate (zeros where there is none)."""
    return {
        **_paired("", candidates, problem.images, scores.matches),
        **_paired("null_", candidates, scores.control, scores.control_matches),
    }


def _paired(prefix: str, candidates: Candidates, images: Tensor, matches: Matches) -> dict[str, Tensor]:
    taken = (matches.assigned >= 0)[:, None, None, None]
    return {
        f"{prefix}images": images,
        f"{prefix}candidates": torch.where(taken, candidates.images[matches.assigned], 0.0),
        f"{prefix}similarity": matches.assigned_similarity,
    }
