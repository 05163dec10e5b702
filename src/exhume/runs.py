"""The run folder: its files, what is in them, and how they are read back.

training.json                        problem, configuration, history, margins: the defender's record
training-state.safetensors           where an interrupted training goes on (gone when it is over)
checkpoint.json, .safetensors        what the owner publishes: all that the attacker reads
search.json, search.journal          the trials of a search for settings; its memory, by which it goes on
trials/NUMBER/                       candidates.json, .safetensors of the best trials
candidates.json, .safetensors        what the attacker found
scores.json, .safetensors            what the auditor counted, and the pairs
report.html                          the page
tracking/                            logs of TensorBoard or Weights & Biases, where asked for; kept
"""

import shutil
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from exhume.candidates import Candidates, HistoryPoint, Reading
from exhume.checkpoint import load_checkpoint
from exhume.errors import InputError
from exhume.methods import Reconstruction
from exhume.networks import Network
from exhume.problems import Problem, Selection, load_problem
from exhume.records import Provenance, provenance, read, read_tensors, write, write_tensors
from exhume.scores import Scores
from exhume.search import Sweep, Trial
from exhume.training import Training, TrainingPoint, TrainingState

FILES = {
    "training": ("training.json", "training-state.safetensors", "checkpoint.json", "checkpoint.safetensors"),
    "search": ("search.json", "search.journal", "search.journal.lock", "trials"),
    "candidates": ("candidates.json", "candidates.safetensors"),
    "scores": ("scores.json", "scores.safetensors"),
    "report": ("report.html",),
}
"""The files and folders of each stage, in the order of the stages."""


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
    """training.json. While the training is under way, status is "running" and the margins are empty.

    initial: fingerprint of the network that the training began with; None: it began with fresh weights.
    """

    problem: ProblemRecord
    network: Network
    training: Training
    initial: str | None = None
    history: list[TrainingPoint]
    margins: list[float]
    status: str
    message: str
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class CandidatesRecord:
    """candidates.json, beside the tensors images, labels, multipliers, explained and confidence.

    initial: fingerprint of the weights that the attacker knew the training to have begun with; None: he knew none;
    chosen: by what a search chooses among such candidates, in words; None: they are not from a search.
    """

    checkpoint: str
    initial: str | None = None
    reconstruction: Reconstruction
    reading: Reading
    history: list[HistoryPoint]
    status: str
    message: str
    chosen: str | None = None
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class SearchRecord:
    """search.json.

    reconstruction: the settings that were not searched; chosen: by what the best was chosen, in words; trials: all that
    have ended; best: the number of the best, None if none is complete; kept: those whose candidates are in trials/.
    """

    checkpoint: str
    sweep: Sweep
    reconstruction: Reconstruction
    judge: Literal["residual", "truth"]
    chosen: str
    trials: list[Trial]
    best: int | None
    kept: list[int]
    provenance: Provenance


@dataclass(frozen=True, kw_only=True)
class Merged:
    """Candidates from elsewhere: the folder, by the path that was given, how many, by what they were chosen."""

    folder: str
    candidates: int
    chosen: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScoresRecord(Scores):
    """scores.json: the scores, against which images (`truth`), and of which checkpoint.

    chosen: by what a search chose the run's own candidates, in words, if one did; merged: other reconstructions of that
    checkpoint whose candidates were scored together with the run's own, which are the first of all; seconds.reconstruct
    is the time of all.
    """

    truth: ProblemRecord
    checkpoint: str
    chosen: str | None = None
    merged: list[Merged] = field(default_factory=list)
    provenance: Provenance


def read_training(folder: Path) -> TrainingRecord:
    """The record of a finished training.

    Raises:
        InputError: there is none, or it is still under way.
    """
    if (folder / "checkpoint.json").exists() and not (folder / "training.json").exists():
        raise InputError(f"There is no {folder / 'training.json'}; say with --problem what the network was trained on.")
    record = read(folder / "training.json", TrainingRecord)
    if record.status == "running":
        raise InputError(
            f"The training in {folder} was interrupted; `exhume train` with the same words goes on with it."
        )
    return record


def load_truth(record: TrainingRecord, data_dir: str | None = None) -> Problem:
    """The problem a run was trained on, loaded again.

    Args:
        data_dir: where its data are now; None: where they were.

    Raises:
        InputError: its data are not there, or have changed since.
    """
    selection = record.problem.selection
    problem = load_problem(record.problem.name, replace(selection, data_dir=data_dir or selection.data_dir))
    if problem.fingerprint != record.problem.fingerprint:
        raise InputError(
            f"The problem {record.problem.name} now loads other images ({problem.source}) than it was trained on "
            f"({record.problem.source}). Say with --data-dir where those are; `installed`: as they came along."
        )
    return problem


CANDIDATE_TENSORS = ("images", "labels", "multipliers", "explained", "confidence")
"""What candidates.safetensors holds, by the names of `Candidates`; beside images stored as bytes, least and range."""


def load_candidates(folder: Path, of: Path | None = None) -> tuple[Candidates, CandidatesRecord]:
    """The candidates in a folder and their record.

    Args:
        of: the run whose checkpoint they must have been found in, where the folder holds candidates alone; None: the
            folder is that run.

    Raises:
        InputError: there are none, or they were found in another checkpoint.
    """
    if not (folder / "candidates.json").exists():
        raise InputError(f"There is no {folder / 'candidates.json'}; run `exhume reconstruct` first.")
    record = read(folder / "candidates.json", CandidatesRecord)
    tensors = read_candidate_tensors(folder)
    if load_checkpoint(of or folder).fingerprint != record.checkpoint:
        than = f" than the one in {of}." if of else "; run `exhume reconstruct` again."
        raise InputError(f"The candidates in {folder} come from another checkpoint{than}")
    candidates = Candidates(
        **tensors, history=record.history, reading=record.reading, status=record.status, message=record.message
    )
    return candidates, record


def read_candidate_tensors(folder: Path) -> dict[str, Tensor]:
    """What candidates.safetensors holds, by the names of `Candidates`, in float32 however it is stored.

    Raises:
        InputError: the file is missing or damaged, or holds something else.
    """
    path = folder / "candidates.safetensors"
    tensors = read_tensors(path)
    if "images" in tensors and tensors["images"].dtype == torch.uint8:
        tensors = _from_bytes(tensors)
    if set(tensors) != set(CANDIDATE_TENSORS):
        absent = [name for name in CANDIDATE_TENSORS if name not in tensors]
        missing = f": it holds no {absent[0]}" if absent else ""
        raise InputError(f"{path} does not hold candidates{missing}.")
    if tensors["images"].ndim != 4 or {len(tensor) for tensor in tensors.values()} != {len(tensors["images"])}:
        raise InputError(f"{path} does not hold candidates: its tensors do not fit each other.")
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}


def save_candidates(folder: Path, candidates: Candidates, record: CandidatesRecord, *, small: bool = False) -> None:
    """Writes candidates.safetensors and candidates.json.

    Args:
        small: stores each image in 256 steps between its own least and largest value, a quarter of the size.
    """
    tensors = {name: getattr(candidates, name) for name in CANDIDATE_TENSORS}
    write_tensors(folder / "candidates.safetensors", _in_bytes(tensors) if small else tensors)
    write(folder / "candidates.json", record)


def candidates_record(
    candidates: Candidates,
    config: Reconstruction,
    *,
    checkpoint: str,
    device: torch.device,
    seconds: float,
    initial: str | None = None,
    chosen: str | None = None,
) -> CandidatesRecord:
    """What to write of a reconstruction that has just ended.

    Args:
        config: its settings, with no value left open.
        checkpoint: fingerprint of what was attacked.
    """
    return CandidatesRecord(
        checkpoint=checkpoint,
        initial=initial,
        reconstruction=config,
        reading=candidates.reading,
        history=candidates.history,
        status=candidates.status,
        message=candidates.message,
        chosen=chosen,
        provenance=provenance(device=device, seed=config.seed, seconds=seconds),
    )


def _in_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Images as bytes; `least` and `range`, [m], turn them back (NaN where an image is not finite)."""
    flat = tensors["images"].flatten(1)
    least, extent = flat.amin(1), flat.amax(1) - flat.amin(1)
    steps = (255 * (flat - least[:, None]) / extent[:, None]).nan_to_num(0.0).round().to(torch.uint8)
    return tensors | {"images": steps.reshape(tensors["images"].shape), "least": least, "range": extent}


def _from_bytes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    others = {name: tensor for name, tensor in tensors.items() if name not in ("images", "least", "range")}
    if not {"least", "range"} <= set(tensors):
        return others
    least, extent = (tensors[name].float()[:, None, None, None] for name in ("least", "range"))
    return others | {"images": least + extent * (tensors["images"].float() / 255)}


def from_search(folder: Path) -> bool:
    """Whether the folder's candidates are those of a trial of its search."""
    return any(same_candidates(folder, trial) for trial in (folder / "trials").glob("*"))


def same_candidates(folder: Path, other: Path) -> bool:
    """Whether two folders hold the candidates of one reconstruction."""
    records = [path / "candidates.json" for path in (folder, other)]
    return all(path.exists() for path in records) and records[0].read_bytes() == records[1].read_bytes()


def remove_stage(folder: Path, stage: str) -> None:
    """Removes the files of a stage and of those that follow from it."""
    stages = list(FILES)
    for later in stages[stages.index(stage) :]:
        for name in FILES[later]:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)


_POINT = tuple(item.name for item in fields(TrainingPoint))


def save_state(folder: Path, state: TrainingState) -> None:
    """Keeps an interrupted training."""
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


def load_state(path: Path) -> TrainingState:
    """Takes up a kept training.

    Raises:
        InputError: the file is damaged or holds something else.
    """
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
