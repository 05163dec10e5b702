"""The run folder: its files, what is in them, and how they are read back.

training.json                        problem, configuration, history, margins: the defender's record
training-state.safetensors           where an interrupted training goes on (gone when it is over)
checkpoint.json, .safetensors        what the owner publishes: all that the attacker reads
start.json, .safetensors             the start of training that was found in the weights, or that it was not
start-sweep.json                     where an interrupted search for it goes on (gone when it is over)
search.json, search.journal          the trials of a search for settings; its memory, by which it goes on
trials/NUMBER/                       candidates.json, .safetensors of the best trials
candidates.json, .safetensors        what the attacker found
scores.json, .safetensors            what the auditor counted, and the pairs
audit.json, leaked.csv               the verdict, and what only the owner of the images can see
report.html                          the page
tracking/                            logs of TensorBoard or Weights & Biases, where asked for; kept
"""

import shutil
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import torch
from torch import Tensor

from exhume.attack.search import Method
from exhume.candidates import Candidates
from exhume.checkpoint import load_checkpoint
from exhume.defence.training import TrainingPoint, TrainingState
from exhume.errors import InputError
from exhume.problems import Problem, load_problem
from exhume.records import provenance, read_tensors, write, write_tensors
from exhume.runs.schema import CandidatesRecord, FoundStart, TrainingRecord, read_record

FILES = {
    "training": ("training.json", "training-state.safetensors", "checkpoint.json", "checkpoint.safetensors"),
    "start": ("start.json", "start.safetensors", "start-sweep.json"),
    "search": ("search.json", "search.journal", "search.journal.lock", "trials"),
    "candidates": ("candidates.json", "candidates.safetensors"),
    "scores": ("scores.json", "scores.safetensors"),
    "audit": ("audit.json", "leaked.csv"),
    "report": ("report.html",),
}
"""The files and folders of each stage, in the order of the stages."""


def read_training(folder: Path) -> TrainingRecord:
    """The record of a finished training.

        loss = exhume.read_training(Path("runs/demo")).history[-1].loss

    Raises:
        InputError: there is none, or it is still under way.
    """
    if (folder / "checkpoint.json").exists() and not (folder / "training.json").exists():
        raise InputError(f"There is no {folder / 'training.json'}; say with --problem what the network was trained on.")
    record = read_record(folder / "training.json", TrainingRecord)
    if record.status == "running":
        raise InputError(
            f"The training in {folder} was interrupted; `exhume train` with the same words goes on with it."
        )
    return record


def load_truth(record: TrainingRecord, data_dir: str | None = None) -> Problem:
    """The problem a run was trained on, loaded again.

        problem = exhume.load_truth(exhume.read_training(Path("runs/demo")))

    Args:
        data_dir: where its data are now; None: where they were.

    Raises:
        InputError: its data are not there, or have changed since.
    """
    selection = replace(record.problem.selection, data_dir=data_dir or record.problem.selection.data_dir)
    problem = load_problem(record.problem.name, selection)
    if problem.fingerprint != record.problem.fingerprint and selection.per_class is None:
        even = record.problem.images // len(
            problem.classes
        )  # until format 4 classes were made as large as the smallest
        with suppress(InputError):
            problem = load_problem(record.problem.name, replace(selection, per_class=max(1, even)))
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

        candidates, record = exhume.load_candidates(Path("runs/demo"))

    Args:
        of: the run whose checkpoint they must have been found in, where the folder holds candidates alone; None: the
            folder is that run.

    Raises:
        InputError: there are none, or they were found in another checkpoint.
    """
    if not (folder / "candidates.json").exists():
        raise InputError(f"There is no {folder / 'candidates.json'}; run `exhume reconstruct` first.")
    record = read_record(folder / "candidates.json", CandidatesRecord)
    tensors = read_candidate_tensors(folder)
    if load_checkpoint(of or folder).fingerprint != record.checkpoint:
        than = f" than the one in {of}." if of else "; run `exhume reconstruct` again."
        raise InputError(f"The candidates in {folder} come from another checkpoint{than}")
    candidates = Candidates(
        **tensors, history=record.history, assumptions=record.assumptions, status=record.status, message=record.message
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
    method: Method,
    *,
    checkpoint: str,
    device: torch.device,
    seconds: float,
    initial: str | None = None,
    start: FoundStart | None = None,
    chosen: str | None = None,
) -> CandidatesRecord:
    """What to write of a reconstruction that has just ended.

    Args:
        method: the method, with its settings.
        checkpoint: fingerprint of what was attacked.
    """
    return CandidatesRecord(
        checkpoint=checkpoint,
        initial=initial,
        start=start,
        method=method,
        assumptions=candidates.assumptions,
        history=candidates.history,
        status=candidates.status,
        message=candidates.message,
        chosen=chosen,
        provenance=provenance(device=device, seed=method.seed, seconds=seconds),
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
