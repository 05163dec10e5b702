"""Studies: many networks that differ in few settings, each trained, attacked and scored. One network is one cell.

A cell is a run folder. What it holds already for exactly the same settings is not done again, so an interrupted study
goes on by the same call. The version of the program is no setting: remove the folder to measure a new version.

    recipes = {width: Recipe(problem="faces", network=NetworkConfig(widths=(width, width))) for width in (100, 1000)}
    cells = [Cell(setting={"width": width}, work=partial(run_cell, recipe=of)) for width, of in recipes.items()]
    rows = [result.row for result in run_study(Path("runs/widths"), cells, seeds=(0, 1))]
    print(table_markdown(rows))
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from exhume.attack.methods import Exhume
from exhume.attack.search import Method
from exhume.checkpoint import Checkpoint, load_checkpoint
from exhume.defence.losses import resolve_loss
from exhume.defence.training import TrainingConfig
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.problems import Selection, load_problem, locate
from exhume.progress import ProgressCallback, ProgressDisplay, no_display, no_op
from exhume.runs.folders import map_folders
from exhume.runs.pipeline import reconstruct_run, score_run, train_run
from exhume.runs.schema import CandidatesRecord, ScoresRecord, TrainingRecord, read_record
from exhume.runs.store import read_training
from exhume.runs.tables import Row, Value
from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Workers

T = TypeVar("T")
INITIAL = "initial"
"""Folder of the run that a training begins with, within the training's own."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a network is trained.

    network: None: the problem's own, or the initial one's; initial: how the network was trained that this training
    begins with, and that the attacker knows; None: fresh weights, which he does not know.
    """

    problem: str
    selection: Selection = field(default_factory=Selection)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    network: NetworkConfig | None = None
    initial: "Recipe | None" = None

    def seeded(self, seed: int) -> "Recipe":
        """The same with another seed, also of the initial network's training."""
        initial = self.initial and self.initial.seeded(seed)
        return replace(self, training=replace(self.training, seed=seed), initial=initial)


@runtime_checkable
class Work(Protocol):
    """Does what is missing in a cell's folder, and returns its figures; {"status": ...} alone: nothing was measured."""

    def __call__(self, folder: Path, /, *, seed: int, device: str, progress_callback: ProgressCallback) -> Row: ...


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: the columns that say what it is, and how it is measured in a folder of its own."""

    setting: Row
    work: Work

    @property
    def name(self) -> str:
        """The setting's values as the name of a folder; what has no place in one is a dash."""
        words = (f"{value:g}" if isinstance(value, float) else str(value) for value in self.setting.values())
        joined = "-".join(words).replace(", ", "-")
        return "".join(letter if letter.isprintable() and letter not in "/\\ " else "-" for letter in joined)


@dataclass(frozen=True, kw_only=True)
class Result:
    """A row of a study's table: its setting with the seed, its figures, and the folder that holds the run."""

    setting: Row
    figures: Row
    folder: Path

    @property
    def row(self) -> Row:
        """Setting and figures."""
        return {**self.setting, **self.figures}

    @property
    def measured(self) -> bool:
        """Whether there are figures; a training that diverged has a status only."""
        return self.figures.keys() != {"status"}

    def number(self, column: str) -> float:
        """A figure or a part of the setting that is a number."""
        value: Value = self.row[column]
        assert isinstance(value, int | float), column
        return value

    @property
    def ncc(self) -> list[float]:
        """Similarity of each training image and its one-to-one candidate."""
        return [image.ncc for image in read_record(self.folder / "scores.json", ScoresRecord).per_image]


def run_study(
    folder: Path,
    cells: Sequence[Cell],
    *,
    seeds: Sequence[int] = (0,),
    device: str = "auto",
    workers: Workers | None = None,
    count: int = 1,
    progress_display: ProgressDisplay = no_display,
) -> Iterator[Result]:
    """Does what is missing of the cells for each seed, in folders beneath `folder`; yields a result as each ends.

    Args:
        workers: where cells are worked on; None: in processes of this machine.
        count: cells at the same time; with one they end in their order.
        progress_display: opened anew for each cell.
    """
    tasks = [(folder / f"{cell.name}-{seed}", (cell, seed)) for seed in seeds for cell in cells]
    work, workers = partial(_work_on, device=device), workers or Processes()
    for done in map_folders(work, tasks, workers=workers, count=count, device=device, display=progress_display):
        cell, seed = done.task
        yield Result(setting={**cell.setting, "seed": seed}, figures=done.row, folder=done.folder)


def in_order(results: Sequence[Result], cells: Sequence[Cell], seeds: Sequence[int]) -> list[Result]:
    """The results in the order of the seeds and cells, whichever ended first."""
    order = [{**cell.setting, "seed": seed} for seed in seeds for cell in cells]
    return sorted(results, key=lambda result: order.index({**result.setting}))


def _work_on(folder: Path, task: tuple[Cell, int], progress_callback: ProgressCallback, *, device: str) -> Row:
    cell, seed = task
    return cell.work(folder, seed=seed, device=device, progress_callback=progress_callback)


def run_cell(
    folder: Path,
    /,
    recipe: Recipe,
    method: Method | None = None,
    *,
    seed: int = 0,
    device: str = "auto",
    progress_callback: ProgressCallback = no_op,
) -> Row:
    """The figures of a network that is trained, attacked and scored in the folder; what is finished is not done again.

    A training that is not possible has a status only.

    Args:
        method: None: `Exhume()`.
        seed: of the training and of the attack.
    """
    recipe, method = recipe.seeded(seed), replace(method or Exhume(), seed=seed)
    try:
        train_once(folder, recipe, device=device, progress_callback=progress_callback)
    except InputError as error:
        return {"status": str(error)}
    initial = initial_of(folder, recipe)
    attack_once(folder, method, initial=initial, device=device, progress_callback=progress_callback)
    return figures_of(folder)


def train_once(
    folder: Path, recipe: Recipe, *, device: str = "auto", progress_callback: ProgressCallback = no_op
) -> None:
    """Trains unless the folder holds exactly this training; one that was interrupted goes on.

    Raises:
        InputError: the data are not at hand, or the training diverged.
    """
    if recipe.initial is not None:
        train_once(folder / INITIAL, recipe.initial, device=device, progress_callback=progress_callback)
    initial = initial_of(folder, recipe)
    origin = locate(recipe.problem, recipe.selection)
    problem = load_problem(*origin)
    network = recipe.network or (initial.config if initial else problem.network)
    training = replace(recipe.training, loss=resolve_loss(problem.task, recipe.training.loss))
    before = known_record(folder / "training.json", TrainingRecord)
    wanted = (problem.fingerprint, network, training, _fingerprint(initial))
    there = before and (before.problem.fingerprint, before.network, before.training, before.initial)
    if there == wanted and _finished(folder):
        return
    place = before and (before.problem.name, before.problem.selection, before.problem.source)
    train_run(
        folder,
        problem,
        origin,
        network,
        training,
        initial=initial,
        device=device,
        overwrite=(there, place) != (wanted, (*origin, problem.source)),
        progress_callback=progress_callback,
    )


def attack_once(
    folder: Path,
    method: Method,
    *,
    initial: Checkpoint | None = None,
    device: str = "auto",
    progress_callback: ProgressCallback = no_op,
) -> ScoresRecord:
    """Reconstructs and scores, unless the folder holds what exactly this attack on its checkpoint gave."""
    checkpoint = load_checkpoint(folder).fingerprint
    found = known_record(folder / "candidates.json", CandidatesRecord)
    wanted = (checkpoint, method, _fingerprint(initial))
    if found is None or (found.checkpoint, found.method, found.initial) != wanted:
        reconstruct_run(
            folder, method, initial=initial, device=device, overwrite=True, progress_callback=progress_callback
        )
    scores = known_record(folder / "scores.json", ScoresRecord)
    return scores if scores and scores.checkpoint == checkpoint and not scores.merged else score_run(folder)


def initial_of(folder: Path, recipe: Recipe) -> Checkpoint | None:
    """The network that the training in the folder began with; None: fresh weights."""
    return load_checkpoint(folder / INITIAL) if recipe.initial else None


def figures_of(folder: Path) -> Row:
    """The figures of a finished cell; null: the same figure for held-out images."""
    training, scores = read_training(folder), read_record(folder / "scores.json", ScoresRecord)
    found, last = read_record(folder / "candidates.json", CandidatesRecord), training.history[-1]
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
        return read_record(path, kind)
    except InputError:  # missing, damaged, or of another version
        return None


def _fingerprint(checkpoint: Checkpoint | None) -> str | None:
    return checkpoint.fingerprint if checkpoint else None


def _finished(folder: Path) -> bool:
    try:
        read_training(folder)
        load_checkpoint(folder)
    except InputError:
        return False
    return True
