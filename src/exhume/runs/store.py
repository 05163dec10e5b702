"""The run folder: its files, what is in them, and how they are read back.

training.json                        problem, configuration, history, margins: the defender's record
training-state.safetensors           where an interrupted training goes on (gone when it is over)
checkpoint.json, .safetensors        what the owner publishes: all that the attacker reads
start.json, .safetensors             the start of training that was found in the weights, or that it was not
start-sweep.json                     where an interrupted search for it goes on (gone when it is over)
search.json, search.journal          the trials of a search for settings; its memory, by which it goes on
trials/NUMBER/                       candidates.json, .safetensors of the best trials
candidates.json, .safetensors        what the attacker found
reconstruction-state.safetensors     where an interrupted reconstruction goes on (gone when it is over)
scores.json, .safetensors            what the auditor counted, and the pairs
audit.json, leaked.csv               the verdict, and what only the owner of the images can see
report.html                          the page
tracking/                            logs of TensorBoard or Weights & Biases, where asked for; kept
"""

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from exhume.attack.interruption import ReconstructionState
from exhume.attack.search import Iterate, Method
from exhume.candidates import Candidates, HistoryPoint
from exhume.checkpoint import Checkpoint, checkpoint_files, load_checkpoint
from exhume.defence.training import TrainingPoint, TrainingState
from exhume.errors import InputError
from exhume.problems import Problem, load_problem
from exhume.records import (
    encode,
    encode_together,
    parse,
    provenance,
    read_about,
    read_tensors,
    remove,
    replace_files,
    write_tensors,
)
from exhume.runs.schema import (
    CandidatesRecord,
    FoundStart,
    ProblemRecord,
    ReconstructionRequest,
    TrainingRecord,
    read_record,
)

T = TypeVar("T")

FILES = {
    "training": ("training.json", "training-state.safetensors", "checkpoint.json", "checkpoint.safetensors"),
    "start": ("start.json", "start.safetensors", "start-sweep.json"),
    "search": ("search.json", "search.journal", "search.journal.lock", "trials"),
    "candidates": ("candidates.json", "candidates.safetensors", "reconstruction-state.safetensors"),
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
    if (folder / "training-state.safetensors").exists() and not (folder / "training.json").exists():
        raise InputError(_INTERRUPTED.format(folder))
    if (folder / "checkpoint.json").exists() and not (folder / "training.json").exists():
        raise InputError(f"There is no {folder / 'training.json'}; say with --problem what the network was trained on.")
    record = read_record(folder / "training.json", TrainingRecord)
    if record.status == "running":
        raise InputError(_INTERRUPTED.format(folder))
    return record


_INTERRUPTED = "The training in {} was interrupted; `exhume train` with the same words goes on with it."


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
    """Writes candidates.safetensors and candidates.json, and removes what was made from others there.

    Args:
        small: stores each image in 256 steps between its own least and largest value, a quarter of the size.
    """
    files = candidates_files(folder, candidates, record, small=small)
    replace_files(files, clear=partial(remove_after, folder, "candidates"))


def candidates_files(
    folder: Path, candidates: Candidates, record: CandidatesRecord, *, small: bool = False
) -> dict[Path, bytes]:
    """What `save_candidates` writes."""
    tensors = {name: getattr(candidates, name) for name in CANDIDATE_TENSORS}
    return encode_together(folder / "candidates", record, _in_bytes(tensors) if small else tensors)


def candidates_record(
    candidates: Candidates,
    method: Method,
    *,
    checkpoint: str,
    device: torch.device,
    seconds: float,
    initial: str | None = None,
    start: FoundStart | None = None,
    known_mean: str | None = None,
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
        known_mean=known_mean,
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
    """Removes the files of a stage and of those that follow from it.

    Raises:
        InputError: a file cannot be removed.
    """
    remove_after(folder, stage)
    for name in FILES[stage]:
        _remove(folder / name)


def remove_after(folder: Path, stage: str) -> None:
    """Removes the files of the stages that follow from one, the last stage first.

    Raises:
        InputError: a file cannot be removed.
    """
    stages = list(FILES)
    for later in reversed(stages[stages.index(stage) + 1 :]):
        for name in FILES[later]:
            _remove(folder / name)


def _remove(path: Path) -> None:
    if path.is_dir():
        remove_folder(path)
    else:
        remove(path)


def remove_folder(path: Path) -> None:
    """Removes a folder with all that is in it, if it is there; raises `InputError` if it cannot be removed."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path} cannot be removed: {error.strerror}.") from None


@contextmanager
def saving(save: Callable[[T], None], every: float) -> Iterator[Callable[[T], None]]:
    """A callback that takes a state and saves it: the first at once, then every so many seconds.

    The newest is also saved when the work ends before its time, by Ctrl-C for example.
    """
    newest: T | None = None
    saved = -math.inf

    def keep(state: T) -> None:
        nonlocal newest, saved
        newest = state
        if time.monotonic() - saved > every:
            save(state)
            newest, saved = None, time.monotonic()

    try:
        yield keep
    except BaseException:
        if newest is not None:
            with suppress(InputError):  # the disk may be what ended the work
                save(newest)
        raise


_POINT = tuple(item.name for item in fields(TrainingPoint))


TRAINING_STATE = "training-state.safetensors"
RECONSTRUCTION_STATE = "reconstruction-state.safetensors"


def save_training(folder: Path, trained: Checkpoint, record: TrainingRecord) -> None:
    """Writes the checkpoint and training.json, and removes what was made from another checkpoint there."""
    path = folder / "training.json"
    files = {**checkpoint_files(trained, folder), path: encode(record)}
    replace_files(files, clear=partial(_clear_training, folder, trained, record.problem))
    remove(folder / TRAINING_STATE)


def _clear_training(folder: Path, trained: Checkpoint, problem: ProblemRecord) -> None:
    try:
        before = load_checkpoint(folder).fingerprint, read_training(folder).problem
    except InputError:  # there is none, or not a whole one
        before = None
    if before != (trained.fingerprint, problem):
        remove_after(folder, "training")


def save_state(folder: Path, record: TrainingRecord, state: TrainingState) -> None:
    """Keeps an interrupted training, and which it is."""
    history = [[float(getattr(point, name)) for name in _POINT] for point in state.history]
    tensors = {
        "epoch": torch.tensor(state.epoch),
        "seconds": torch.tensor(state.seconds, dtype=torch.float64),
        "generator": state.generator,
        "history": torch.tensor(history, dtype=torch.float64),
        **{f"weights.{name}": tensor for name, tensor in state.weights.items()},
        **{f"momenta.{name}": tensor for name, tensor in state.momenta.items()},
    }
    write_tensors(folder / TRAINING_STATE, tensors, about=encode(record).decode())


def interrupted_training(folder: Path) -> TrainingRecord | None:
    """The record of the training that was interrupted in the folder; None: there is none.

    Raises:
        InputError: its state is damaged.
    """
    path = folder / TRAINING_STATE
    if not path.exists():
        return None
    about, _ = read_about(path)
    if about:
        return parse(path, about.encode(), TrainingRecord)
    if not (folder / "training.json").exists():
        raise InputError(f"{path} does not say which training it is; add --overwrite to train from the start.")
    record = read_record(folder / "training.json", TrainingRecord)  # where it was said before 2026-11
    return record if record.status == "running" else None


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


def save_reconstruction(
    folder: Path, state: ReconstructionState, request: ReconstructionRequest, seconds: float
) -> None:
    """Keeps an interrupted reconstruction, which it is, and how long it has worked."""
    tensors = {
        "steps": torch.tensor(state.steps),
        "seconds": torch.tensor(seconds, dtype=torch.float64),
        "generator": state.generator,
    }
    for number, (search, iterate, history) in enumerate(
        zip(state.searches, state.iterates, state.histories, strict=True)
    ):
        points = [[point.step, point.residual, point.penalty] for point in history]
        tensors[f"{number} history"] = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
        parts = {item.name: getattr(iterate, item.name) for item in fields(Iterate)}
        tensors |= _laid_out({f"{number} iterate {name}": tensor for name, tensor in parts.items()})
        tensors |= _laid_out({f"{number} search {name}": tensor for name, tensor in search.items()})
    write_tensors(folder / RECONSTRUCTION_STATE, tensors, about=encode(request).decode())


def interrupted_reconstruction(folder: Path) -> ReconstructionRequest | None:
    """Which reconstruction was interrupted in the folder; None: there is none.

    Raises:
        InputError: its state is damaged.
    """
    path = folder / RECONSTRUCTION_STATE
    return parse(path, read_about(path)[0].encode(), ReconstructionRequest) if path.exists() else None


def load_reconstruction(folder: Path) -> tuple[ReconstructionState, float]:
    """Takes up a kept reconstruction; and the seconds that it has worked.

    Raises:
        InputError: the file is damaged or holds something else.
    """
    path = folder / RECONSTRUCTION_STATE
    tensors = read_tensors(path)
    try:
        count = len([name for name in tensors if name.endswith(" history")])
        histories = [tensors[f"{number} history"].tolist() for number in range(count)]
        state = ReconstructionState(
            steps=int(tensors["steps"]),
            searches=[_as_laid_out(tensors, f"{number} search ") for number in range(count)],
            iterates=[Iterate(**_as_laid_out(tensors, f"{number} iterate ")) for number in range(count)],
            generator=tensors["generator"],
            histories=[[HistoryPoint(step=int(s), residual=r, penalty=p) for s, r, p in rows] for rows in histories],
        )
        return state, float(tensors["seconds"])
    except (KeyError, TypeError, ValueError, RuntimeError):
        raise InputError(f"{path} does not hold the state of a reconstruction.") from None


def _laid_out(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by names that tell the order of the axes in memory, which a file of tensors does not keep.

    The last bits of a product depend on that order.
    """
    named = {}
    for name, tensor in tensors.items():
        order = sorted(range(tensor.ndim), key=lambda axis, tensor=tensor: (-tensor.stride(axis), axis))  # type: ignore[misc]
        named[f"{name}|{' '.join(map(str, order))}"] = tensor.permute(order)
    return named


def _as_laid_out(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Those whose names begin so, without it, in the order in memory that they had."""
    found = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix):
            plain, _, order = name.removeprefix(prefix).rpartition("|")
            axes = [int(axis) for axis in order.split()]
            found[plain] = tensor.permute([axes.index(axis) for axis in range(tensor.ndim)])
    return found
