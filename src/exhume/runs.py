"""The run folder: each stage reads files and writes files there, and can be run again alone.

training.json                        problem, configuration, history, margins: the defender's record
training-state.safetensors           where an interrupted training goes on (gone when it is over)
checkpoint.json, .safetensors        what the owner publishes: all that the attacker reads
candidates.json, .safetensors        what the attacker found
scores.json, .safetensors            what the auditor counted, and the pairs
report.html                          the page
"""

import time
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from exhume.candidates import Candidates, HistoryPoint, Reading
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.errors import InputError
from exhume.matching import match
from exhume.methods import Reconstruction, resolve
from exhume.networks import Network, Shape, check
from exhume.problems import Problem, Selection, load_problem, locate
from exhume.progress import Listener, silent
from exhume.records import Provenance, provenance, read, read_tensors, write, write_tensors
from exhume.scores import Scores, Seconds, never_seen, score
from exhume.solver import reconstruct
from exhume.training import Training, TrainingPoint, TrainingState, resolve_loss, train

SAVE_EVERY = 20.0
"""Seconds between two savings of a training under way."""
FILES = {
    "training": ("training.json", "training-state.safetensors", "checkpoint.json", "checkpoint.safetensors"),
    "candidates": ("candidates.json", "candidates.safetensors"),
    "scores": ("scores.json", "scores.safetensors"),
    "report": ("report.html",),
}
"""The files of each stage, in the order of the stages."""


@dataclass(frozen=True, kw_only=True)
class ProblemRecord:
    """Which problem was trained on, enough to load it again and to notice that its data have changed."""

    name: str
    selection: Selection
    source: str
    images: int
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """training.json. While the training is under way, status is "running" and the margins are empty."""

    problem: ProblemRecord
    network: Network
    training: Training
    history: list[TrainingPoint]
    margins: list[float]
    status: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class CandidatesRecord:
    """candidates.json, beside the tensors images, labels, multipliers and explained."""

    checkpoint: str
    reconstruction: Reconstruction
    reading: Reading
    history: list[HistoryPoint]
    status: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class ScoresRecord(Scores):
    """scores.json: the scores, against which images (`truth`), and of which checkpoint."""

    truth: ProblemRecord
    checkpoint: str
    provenance: Provenance


# ---- The stages


def train_run(
    folder: Path,
    problem: Problem,
    origin: tuple[str, Selection],
    network: Network,
    training: Training,
    *,
    device: str = "auto",
    overwrite: bool = False,
    listener: Listener = silent,
) -> TrainingRecord:
    """Trains and writes the checkpoint; goes on where the same training was interrupted.

    Args:
        origin: the name and selection by which later stages load the problem again (`problems.locate`).

    Raises:
        InputError: the folder holds another training (unless `overwrite`), the loss does not fit or diverges.
    """
    place = choose_device(device)
    record = TrainingRecord(
        problem=_problem_record(problem, origin),
        network=network,
        training=replace(training, loss=resolve_loss(problem.task, training.loss)),
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
            _save_state(folder, state)
            write(folder / "training.json", record)
            saved = time.monotonic()

    trained = train(problem, training, network=network, device=place, listener=listener, resume=resume, keep=keep)
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
    if candidates.exists() and read(candidates, CandidatesRecord).checkpoint != trained.checkpoint.fingerprint:
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


def reconstruct_run(
    folder: Path,
    config: Reconstruction,
    *,
    foreign: Checkpoint | None = None,
    device: str = "auto",
    overwrite: bool = False,
    listener: Listener = silent,
) -> CandidatesRecord:
    """Reconstructs from the folder's checkpoint alone and writes the candidates.

    Args:
        foreign: a checkpoint that was trained elsewhere; it is put into the folder.

    Raises:
        InputError: no checkpoint or another than `foreign`, or candidates of other settings are there already (unless
            `overwrite`).
    """
    checkpoint, place = foreign or load_checkpoint(folder), choose_device(device)
    config = resolve(config, checkpoint.task)
    path = folder / "candidates.json"
    if path.exists() and not overwrite and read(path, CandidatesRecord).reconstruction != config:
        raise InputError(f"{folder} already holds candidates of other settings; add --overwrite or use another folder.")
    if foreign is not None:
        _adopt(folder, foreign)
    start = time.perf_counter()
    candidates = reconstruct(checkpoint, config, device=place, listener=listener)
    record = CandidatesRecord(
        checkpoint=checkpoint.fingerprint,
        reconstruction=config,
        reading=candidates.reading,
        history=candidates.history,
        status=candidates.status,
        message=candidates.message,
        provenance=provenance(device=place, seed=config.seed, seconds=time.perf_counter() - start),
    )
    remove_stage(folder, "candidates")
    tensors = {name: getattr(candidates, name) for name in ("images", "labels", "multipliers", "explained")}
    write_tensors(folder / "candidates.safetensors", tensors)
    write(path, record)
    return record


def score_run(folder: Path, origin: tuple[str, Selection] | None = None) -> ScoresRecord:
    """Scores the folder's candidates against the truth and against never-seen images, and writes the counts and pairs.

    Args:
        origin: name and selection of the truth for a checkpoint that was trained elsewhere; None: what training.json
            names.

    Raises:
        InputError: something is missing, the candidates belong to another checkpoint, or a truth is given to a run that
            has its own.
    """
    start = time.perf_counter()
    candidates, found = load_candidates(folder)
    train_seconds = None
    if origin is None:
        training = read_training(folder)
        problem, truth, train_seconds = load_truth(training), training.problem, training.provenance.seconds
    elif (folder / "training.json").exists():
        raise InputError(f"{folder} was trained on a problem of its own; it is scored without --problem.")
    else:
        problem = load_problem(*origin)
        truth = _problem_record(problem, locate(*origin))
    scores = score(
        candidates,
        problem.images,
        problem.labels,
        problem.held_out,
        problem=problem.name,
        seconds=Seconds(train=train_seconds, reconstruct=found.provenance.seconds),
    )
    remove_stage(folder, "scores")
    write_tensors(folder / "scores.safetensors", _pairs(candidates, problem))
    seconds, seed = time.perf_counter() - start, found.provenance.seed
    record = ScoresRecord(
        **{item.name: getattr(scores, item.name) for item in fields(scores)},
        truth=truth,
        checkpoint=found.checkpoint,
        provenance=provenance(device=torch.device("cpu"), seed=seed, seconds=seconds),
    )
    write(folder / "scores.json", record)
    return record


# ---- Reading back


def read_training(folder: Path) -> TrainingRecord:
    """The record of a finished training.

    Raises:
        InputError: there is none, or it is still under way.
    """
    record = read(folder / "training.json", TrainingRecord)
    if record.status == "running":
        raise InputError(
            f"The training in {folder} was interrupted; `exhume train` with the same words goes on with it."
        )
    return record


def load_truth(record: TrainingRecord) -> Problem:
    """The problem a run was trained on, loaded again.

    Raises:
        InputError: its data have changed since.
    """
    problem = load_problem(record.problem.name, record.problem.selection)
    if problem.fingerprint != record.problem.fingerprint:
        raise InputError(
            f"The problem {record.problem.name} now loads other images ({problem.source}) than it was trained on "
            f"({record.problem.source})."
        )
    return problem


def load_candidates(folder: Path) -> tuple[Candidates, CandidatesRecord]:
    """The candidates of a run and their record.

    Raises:
        InputError: there are none, or they were found in another checkpoint than the folder's.
    """
    record = read(folder / "candidates.json", CandidatesRecord)
    tensors = read_tensors(folder / "candidates.safetensors")
    if set(tensors) != {"images", "labels", "multipliers", "explained"}:
        raise InputError(f"{folder / 'candidates.safetensors'} does not hold candidates.")
    if load_checkpoint(folder).fingerprint != record.checkpoint:
        raise InputError(f"The candidates in {folder} come from another checkpoint; run `exhume reconstruct` again.")
    candidates = Candidates(
        **tensors, history=record.history, reading=record.reading, status=record.status, message=record.message
    )
    return candidates, record


def choose_device(name: str) -> torch.device:
    """auto: a GPU where there is one.

    Raises:
        InputError: a GPU is asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise InputError("There is no usable GPU here; use --device cpu.")
    return torch.device(name)


def remove_stage(folder: Path, stage: str) -> None:
    """Removes the files of a stage and of those that follow from it."""
    stages = list(FILES)
    for later in stages[stages.index(stage) :]:
        for name in FILES[later]:
            (folder / name).unlink(missing_ok=True)


def _problem_record(problem: Problem, origin: tuple[str, Selection]) -> ProblemRecord:
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
    before = read(path, TrainingRecord)
    if (before.problem, before.network, before.training) != (record.problem, record.network, record.training):
        raise InputError(f"{folder} already holds another training; add --overwrite or choose another folder.")
    state = folder / "training-state.safetensors"
    return _load_state(state) if before.status == "running" and state.exists() else None


def _adopt(folder: Path, checkpoint: Checkpoint) -> None:
    """Puts a checkpoint that was trained elsewhere into the folder, unless it holds another one."""
    if (folder / "checkpoint.json").exists() and load_checkpoint(folder).fingerprint != checkpoint.fingerprint:
        raise InputError(f"{folder} already holds another checkpoint; choose another folder.")
    save_checkpoint(checkpoint, folder)


_POINT = ("epoch", "loss", "gradient", "accuracy", "held_out_accuracy")


def _save_state(folder: Path, state: TrainingState) -> None:
    history = [[float(getattr(point, name)) for name in _POINT] for point in state.history]
    tensors = {
        "epoch": torch.tensor(state.epoch),
        "seconds": torch.tensor(state.seconds, dtype=torch.float64),
        "generator": state.generator,
        "history": torch.tensor(history, dtype=torch.float64),
        **{f"weights.{name}": tensor for name, tensor in state.weights.items()},
        **{f"momenta.{name}": tensor for name, tensor in state.momenta.items()},
    }
    write_tensors(folder / "training-state.safetensors", tensors)


def _load_state(path: Path) -> TrainingState:
    tensors = read_tensors(path)
    if not {"epoch", "seconds", "generator", "history"} <= set(tensors):
        raise InputError(f"{path} does not hold the state of a training; add --overwrite to train from the start.")
    points = [dict(zip(_POINT, row, strict=True)) for row in tensors["history"].tolist()]
    return TrainingState(
        epoch=int(tensors["epoch"]),
        weights={k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")},
        momenta={k.removeprefix("momenta."): v for k, v in tensors.items() if k.startswith("momenta.")},
        generator=tensors["generator"],
        history=[TrainingPoint(**{**point, "epoch": int(point["epoch"])}) for point in points],
        seconds=float(tensors["seconds"]),
    )


def _pairs(candidates: Candidates, problem: Problem) -> dict[str, Tensor]:
    """Training and never-seen images, each with its one-to-one candidate (zeros where there is none)."""
    held_out = never_seen(problem.held_out, len(problem.images))
    pairs = {}
    for prefix, images in (("", problem.images), ("null_", held_out)):
        matches = match(candidates, images)
        taken = (matches.assigned >= 0)[:, None, None, None]
        pairs[f"{prefix}images"] = images
        pairs[f"{prefix}candidates"] = torch.where(taken, candidates.images[matches.assigned], 0.0)
        pairs[f"{prefix}similarity"] = matches.assigned_similarity
    return pairs
