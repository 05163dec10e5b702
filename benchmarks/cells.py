"""Trains a network once and attacks it once: what run.py, study.py and zoo.py share.

A cell is a run folder. What it holds already, for exactly the same settings, is not done again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.commands.screen import bars
from exhume.errors import InputError
from exhume.losses import resolve_loss
from exhume.methods import Reconstruction, resolve
from exhume.networks import Network
from exhume.problems import Selection, load_problem, locate
from exhume.records import read
from exhume.runs import CandidatesRecord, ScoresRecord, TrainingRecord, read_training
from exhume.stages import reconstruct_run, score_run, train_run
from exhume.training import Training

T = TypeVar("T")
Value = str | float | None
Row = Mapping[str, Value]
"""One line of a table, by column; None where there is nothing to tell."""


@dataclass(frozen=True)
class Target:
    """A network to train and attack; classes: only the first so many; data_dir: where the data are, as for a run.

    start: the network that the training begins with, and the attacker knows; None: fresh weights, which he does not.
    """

    problem: str
    per_class: int
    training: Training
    network: Network | None = None
    classes: int | None = None
    data_dir: str | None = None
    start: "Target | None" = None


def start_of(folder: Path, target: Target) -> Checkpoint | None:
    """The network that a target's training began with, from its run within the target's; None: fresh weights."""
    return load_checkpoint(folder / "start") if target.start else None


def train_once(folder: Path, target: Target, seed: int, device: str) -> None:
    """Trains unless the folder holds exactly this training; one that was interrupted goes on.

    Raises:
        InputError: the data are not at hand, or the training diverged.
    """
    if target.start is not None:
        train_once(folder / "start", target.start, seed, device)
    initial = start_of(folder, target)
    selection = Selection(per_class=target.per_class, classes=target.classes, data_dir=target.data_dir)
    origin = locate(target.problem, selection)
    problem = load_problem(*origin)
    network = target.network or (initial.network if initial else problem.network)
    training = replace(target.training, seed=seed, loss=resolve_loss(problem.task, target.training.loss))
    before = known_record(folder / "training.json", TrainingRecord)
    same = (
        before is not None
        and before.problem.fingerprint == problem.fingerprint
        and (before.network, before.training) == (network, training)
        and before.initial == (initial.fingerprint if initial else None)
    )
    if not (same and _finished(folder)):
        overwrite = not (same and before.problem.source == problem.source)
        with bars() as listener:
            train_run(
                folder,
                problem,
                origin,
                network,
                training,
                initial=initial,
                device=device,
                overwrite=overwrite,
                listener=listener,
            )


def reconstruct_anew(folder: Path, config: Reconstruction, device: str, initial: Checkpoint | None = None) -> None:
    """Reconstructs from the folder's checkpoint, whatever was there before, with a progress bar."""
    with bars() as listener:
        reconstruct_run(folder, config, initial=initial, device=device, overwrite=True, listener=listener)


def attack(folder: Path, config: Reconstruction, device: str, initial: Checkpoint | None = None) -> ScoresRecord:
    """The same, and scores."""
    reconstruct_anew(folder, config, device, initial)
    return score_run(folder)


def attack_once(folder: Path, config: Reconstruction, device: str) -> None:
    """Reconstructs and scores unless the folder holds the scores of exactly this attack on its checkpoint."""
    found = known_record(folder / "candidates.json", CandidatesRecord)
    scores = known_record(folder / "scores.json", ScoresRecord)
    checkpoint = load_checkpoint(folder)
    if not (
        found is not None
        and scores is not None
        and found.checkpoint == scores.checkpoint == checkpoint.fingerprint
        and found.reconstruction == resolve(config, checkpoint.task)
    ):
        attack(folder, config, device)


def outcome(folder: Path) -> Row:
    """What came of a cell that has been trained, attacked and scored; null: the same count for never-seen images."""
    training, scores = read_training(folder), read(folder / "scores.json", ScoresRecord)
    found, last = read(folder / "candidates.json", CandidatesRecord), training.history[-1]
    return {
        "images": scores.images,
        "width": max(training.network.widths, default=0),
        "recovered": scores.recovered["0.9"],
        "null": scores.null["0.9"],
        "recovered at 0.7": scores.recovered["0.7"],
        "null at 0.7": scores.null["0.7"],
        "SSIM > 0.4": scores.ssim.good,
        "null SSIM > 0.4": scores.ssim.null_good,
        "median NCC": scores.median_ncc,
        "null median NCC": scores.null_median_ncc,
        "train s": scores.seconds.train,
        "reconstruct s": scores.seconds.reconstruct,
        "accuracy": last.accuracy,
        "final loss": last.loss,
        "final gradient": last.gradient,
        "status": f"{training.status}, {found.status}",
    }


def known_record(path: Path, kind: type[T]) -> T | None:
    """The record in a file; None where there is none that can be read."""
    try:
        return read(path, kind)
    except InputError:  # missing, damaged, or of another version
        return None


def _finished(folder: Path) -> bool:
    try:
        read_training(folder)
        load_checkpoint(folder)
    except InputError:
        return False
    return True
