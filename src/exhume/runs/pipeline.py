"""The stages of a run: each reads files of the run folder and writes files there, and can be run again alone."""

import time
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.attack.search import Method
from exhume.audit.matching import Matches
from exhume.audit.scores import Counts, Scores, Seconds, score
from exhume.candidates import Candidates, join
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.defence.losses import resolve_loss
from exhume.defence.training import TrainingConfig, TrainingState, train
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.networks import NetworkConfig, Shape, check
from exhume.problems import Problem, Selection, locate
from exhume.problems.owned import OwnedImages, Split, load_images
from exhume.progress import ProgressCallback, no_op
from exhume.records import provenance, write, write_tensors
from exhume.runs.schema import (
    CandidatesRecord,
    Merged,
    ProblemRecord,
    ScoresRecord,
    TrainingRecord,
    read_record,
)
from exhume.runs.start import start_of
from exhume.runs.store import (
    FILES,
    candidates_record,
    load_candidates,
    load_state,
    load_truth,
    read_training,
    remove_stage,
    save_candidates,
    save_state,
)

SAVE_EVERY = 20.0
"""Seconds between two savings of a training under way."""


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
    resume = _claim_training(folder, record, overwrite)
    saved = time.monotonic()

    def keep(state: TrainingState) -> None:
        nonlocal saved
        if time.monotonic() - saved > SAVE_EVERY:
            save_state(folder, state)
            write(folder / "training.json", record)
            saved = time.monotonic()

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
        remove_stage(folder, "training")
        raise InputError(trained.message)
    record = replace(
        record,
        history=trained.history,
        margins=trained.margins,
        status=trained.status,
        message=trained.message,
        provenance=provenance(device=place, seed=training.seed, seconds=trained.seconds),
    )
    save_checkpoint(trained.checkpoint, folder)
    write(folder / "training.json", record)
    (folder / "training-state.safetensors").unlink(missing_ok=True)
    candidates = folder / "candidates.json"
    if candidates.exists() and read_record(candidates, CandidatesRecord).checkpoint != trained.checkpoint.fingerprint:
        remove_stage(folder, "candidates")  # the same training, repeated on another machine
    return record


def load_centre(path: Path, shape: Shape) -> Tensor:
    """The mean training image in an .npy file, [c, h, w].

    Raises:
        InputError: the file cannot be read, or holds no image of this shape.
    """
    try:
        centre = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{path} is no .npy file with an image: {error}.") from None
    if tuple(centre.shape) != tuple(shape):
        raise InputError(f"{path} holds an array of shape {tuple(centre.shape)}, not of the images' {tuple(shape)}.")
    return centre


def load_numbers(words: Sequence[str]) -> list[float] | Tensor | None:
    """The values of --mean or --std: numbers, or the array of an .npy file; None where there are none.

    Raises:
        InputError: they are neither.
    """
    if not words:
        return None
    try:
        if len(words) == 1 and words[0].endswith(".npy"):
            return torch.from_numpy(np.load(words[0], allow_pickle=False)).double()
        return [float(word) for word in words]
    except (OSError, ValueError, TypeError, EOFError) as error:
        raise InputError(f"{' '.join(words)} is neither numbers nor an .npy file: {error}.") from None


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
        _adopt(folder, foreign)
    found = None
    if find_start and initial is None and isinstance(method, Exhume):
        found = start_of(folder, device=device, progress_callback=progress_callback)
        initial = found[0] if found else None
    path, known = folder / "candidates.json", initial.fingerprint if initial else None
    before = read_record(path, CandidatesRecord) if path.exists() and not overwrite else None
    if before is not None and (before.method, before.initial) != (method, known):
        why = "of other settings" if before.method != method else "for another start of training, or for none"
        raise InputError(f"{folder} already holds candidates {why}; add --overwrite or use another folder.")
    start = time.perf_counter()
    candidates = reconstruct(checkpoint, method, initial=initial, device=place, progress_callback=progress_callback)
    seconds = time.perf_counter() - start
    record = candidates_record(
        replace(candidates, message=" ".join([candidates.message, *notes])),
        method,
        checkpoint=checkpoint.fingerprint,
        initial=known,
        start=found[1] if found else None,
        device=place,
        seconds=seconds,
    )
    remove_stage(folder, "candidates")
    save_candidates(folder, candidates, record)
    return record


def score_run(
    folder: Path,
    origin: tuple[str, Selection] | None = None,
    *,
    held_out: Path | None = None,
    split: Split | None = None,
    others: Sequence[Path] = (),
    data_dir: str | None = None,
) -> ScoresRecord:
    """Scores the folder's candidates against the truth and against held-out images, and writes the counts and pairs.

    Without held-out images there is no control, and the record says so; none are made of training images.

    Args:
        origin: name and selection of the truth for a checkpoint that was trained elsewhere; None: what training.json
            names.
        held_out, split: with `origin`, where the control comes from (`problems.load_images`).
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
        problem = load_images(origin[0], held_out=held_out, split=split, selection=origin[1])
        truth = _problem_record(problem, locate(*origin))
    scores = score(
        candidates,
        problem.images,
        problem.labels,
        problem.held_out,
        problem=problem.name,
        seconds=Seconds(train=train_seconds, reconstruct=sum(record.provenance.seconds for _, record in parts)),
    )
    remove_stage(folder, "scores")
    write_tensors(folder / "scores.safetensors", _pairs(candidates, problem, scores))
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
    write(folder / "scores.json", record)
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
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, but a run is a folder.")
    path = folder / "training.json"
    if overwrite or not path.exists():
        there = [name for names in FILES.values() for name in names if (folder / name).exists()]
        if there and not overwrite:
            which = f"{there[0]}, which no training here has made"
            raise InputError(f"{folder} already holds {which}; choose another folder.")
        remove_stage(folder, "training")
        return None
    before = read_record(path, TrainingRecord)
    if any(getattr(before, part) != getattr(record, part) for part in ("problem", "network", "training", "initial")):
        raise InputError(f"{folder} already holds another training; add --overwrite or choose another folder.")
    state = folder / "training-state.safetensors"
    return load_state(state) if before.status == "running" and state.exists() else None


def _adopt(folder: Path, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint that was trained elsewhere into the folder, unless it holds another one."""
    if (folder / "checkpoint.json").exists() and load_checkpoint(folder).fingerprint != checkpoint.fingerprint:
        raise InputError(f"{folder} already holds another checkpoint; choose another folder.")
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
