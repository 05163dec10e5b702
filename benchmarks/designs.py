"""Which cells each study consists of, how large they are, and how one is measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from benchmarks.laws import multipliers, rank_correlation
from benchmarks.speed import DIGIT, Shape, exhume_method, high_water, least, peak, reset_high_water, steps_of
from benchmarks.targets import DECAY, DIGITS, LONG, MANY, NO_DECAY, PARITY, SLOWER, known, recipe
from exhume.attack.methods import Exhume
from exhume.attack.search import Method
from exhume.checkpoint import load_checkpoint
from exhume.defence.training import TrainingConfig
from exhume.devices import choose_device
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.progress import ProgressCallback
from exhume.records import write
from exhume.runs.cells import Cell, Recipe, Result, known_record, run_cell, train_once
from exhume.runs.schema import CandidatesRecord, read_record
from exhume.runs.store import load_truth, read_training
from exhume.runs.tables import Row, Value

T = TypeVar("T")
LABELS = {DIGITS: 10, PARITY: 2, MANY: 10}
DIGITS_CLASSES = tuple((DIGITS, count) for count in (2, 3, 4, 5, 7, 10))
DIGITS_MANY = ((DIGITS, 20), (DIGITS, 40))
PHOTOGRAPHS_MANY = tuple((MANY, count) for count in (500, 1000, 2000, 5000))
PHOTOGRAPHS_CLASSES = tuple(("cifar100-multiclass", count) for count in (2, 5, 10, 20, 50, 100))


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a study is.

    images, width: of a network, where a study does not vary them; counts, widths: where it does; lengths: the epochs
    that are compared; classes: the problems and numbers of classes; many: the same with images, of a study in the
    thousands; many_width, many_widest: its networks' width, and the largest where it grows with the images;
    many_steps, many_rate: steps of its attack, and the rate of multipliers, which few steps want larger; many_small:
    images up to which it trains from a small initialisation; stretch: of all other numbers of epochs; method: the
    attack; ends: of other lists only the first and the last; memory: whether to measure it; timed_steps: in one timing.
    """

    images: int
    width: int
    counts: tuple[int, ...]
    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    classes: tuple[tuple[str, int], ...] = DIGITS_CLASSES
    many: tuple[tuple[str, int], ...] = PHOTOGRAPHS_MANY
    many_width: int = 1000
    many_widest: int = 2000
    many_steps: int = 200
    many_rate: float = 0.1
    many_small: int = 2000
    seeds: tuple[int, ...] = (0,)
    stretch: float = 1.0
    method: Exhume = field(default_factory=lambda: Exhume(restarts=1))
    ends: bool = False
    memory: bool = True
    timed_steps: int = 50

    def of(self, values: Sequence[T]) -> Sequence[T]:
        """The values, or their ends only."""
        return (values[0], values[-1]) if self.ends else values

    def stretched(self, training: TrainingConfig) -> TrainingConfig:
        """The training with its number of epochs at this size."""
        return replace(training, epochs=round(self.stretch * training.epochs))


SIZES = {
    "test": Size(
        images=20,
        width=20,
        counts=(10, 20),
        widths=(10, 20),
        lengths=(2, 20),
        many=DIGITS_MANY,
        many_width=20,
        many_widest=80,
        many_steps=5,
        stretch=0.005,
        method=Exhume(restarts=1, steps=5),
        ends=True,
        memory=False,
        timed_steps=5,
    ),
    "cpu": Size(
        images=100,
        width=500,
        counts=(10, 50, 100, 200, 500),
        widths=(5, 20, 100, 300, 1000),
        lengths=(10, 30, 100, 300, 1000, 3000, 10_000),
    ),
    "gpu": Size(
        images=500,
        width=1000,
        counts=(10, 50, 100, 300, 500),
        widths=(5, 10, 50, 100, 500, 1000),
        lengths=(10, 30, 100, 300, 1000, 3000, 10_000, 100_000, 1_000_000),
        classes=DIGITS_CLASSES + PHOTOGRAPHS_CLASSES,
        many_steps=1000,
        many_widest=10_000,
        many_small=5000,
        seeds=(0, 1, 2),
        stretch=10.0,
    ),
}
"""test: seconds; cpu: 1 to 12 minutes a study on a core; gpu: as many images and neurons as in the papers."""
DECAY_MSE = replace(DECAY, loss="mse", lr=0.02, epochs=20_000)
LONG_BCE = replace(LONG, lr=0.1)
THIRTY_EPOCHS = replace(SLOWER, epochs=30, patience=None)
THOUSAND_EPOCHS = replace(LONG, epochs=1000)
MOST_AT_HALF = 1000
"""Photographs on which full batches at a rate of 0.5 do not diverge; 2,000 do."""
SMALL = 1e-4
"""Initial scale of the first layer; None is PyTorch's default, the papers' choice for regression."""


# ---- How a cell is measured


def attacked(
    size: Size,
    setting: dict[str, Value],
    problem: str,
    training: TrainingConfig,
    *,
    images: int | None = None,
    width: int | None = None,
    classes: int | None = None,
    init_scale: float | None = SMALL,
    run: Callable[..., Row] = run_cell,
) -> Cell:
    """A network of two equal hidden layers, trained on so many images, evenly of all classes, and attacked."""
    per_class = (images or size.images) // (classes or LABELS[problem])
    network = NetworkConfig(widths=(width or size.width,) * 2, init_scale=init_scale)
    trained = recipe(problem, per_class, training, network, classes=classes)
    return Cell(setting=setting, work=partial(run, recipe=trained, method=size.method))


def run_correlated(
    folder: Path, /, recipe: Recipe, method: Exhume, *, seed: int, device: str, progress_callback: ProgressCallback
) -> Row:
    """As `run_cell`, and how the images' NCC goes with what is known of each (Spearman)."""
    figures = run_cell(folder, recipe, method, seed=seed, device=device, progress_callback=progress_callback)
    result, correlations = Result(setting={}, figures=figures, folder=folder), dict[str, Value]()
    if result.measured:
        for name, values in of_each_image(folder).items():
            correlations[f"rho {name}"], correlations[f"p {name}"] = rank_correlation(values, result.ncc)
    return {**figures, **correlations}


def of_each_image(folder: Path) -> dict[str, list[float]]:
    """The margin of each training image, and its multiplier."""
    training = read_training(folder)
    return {"margin": training.margins, "multiplier": multipliers(load_checkpoint(folder), load_truth(training))}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """cost.json: what a step takes, in seconds and in megabytes beyond the libraries (None: not measured)."""

    shape: Shape
    device: str
    threads: int
    step_s: float
    step_mb: float | None


def timed(
    folder: Path, /, shape: Shape, size: Size, *, seed: int, device: str, progress_callback: ProgressCallback
) -> Row:
    """Times a step of `exhume`, unless that was done here on such a device with as many threads."""
    path, place, threads = folder / "cost.json", choose_device(device).type, torch.get_num_threads()
    cost, method = known_record(path, Cost), exhume_method(shape)
    measured = cost is not None and (cost.shape, cost.device, cost.threads) == (shape, place, threads)
    if cost is None or not measured or (size.memory and cost.step_mb is None):
        seconds = least(steps_of(method, shape, place), size.timed_steps)
        megabytes = peak(method, shape, place) if size.memory else None
        cost = Cost(shape=shape, device=place, threads=threads, step_s=seconds, step_mb=megabytes)
        write(path, cost)
    return {"step s": cost.step_s, "step MB": cost.step_mb, "threads": threads, "status": "done"}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """spent.json: processor seconds of an attack with its scoring, and megabytes in all at most, libraries included."""

    checkpoint: str
    method: Method
    seconds: float
    peak_mb: float


def run_spending(
    folder: Path, /, recipe: Recipe, method: Exhume, *, seed: int, device: str, progress_callback: ProgressCallback
) -> Row:
    """As `run_cell`, with what the attack took; None where it was not done in one go, so that it is not known."""
    try:
        train_once(folder, recipe.seeded(seed), device=device, progress_callback=progress_callback)
    except InputError as error:
        return {"status": str(error)}
    path, fresh, start = folder / "spent.json", not (folder / "candidates.json").exists(), time.process_time()
    reset_high_water()
    figures = run_cell(folder, recipe, method, seed=seed, device=device, progress_callback=progress_callback)
    found = read_record(folder / "candidates.json", CandidatesRecord)
    if fresh:
        seconds, megabytes = time.process_time() - start, high_water()
        write(path, Spent(checkpoint=found.checkpoint, method=found.method, seconds=seconds, peak_mb=megabytes))
    spent = known_record(path, Spent)
    if spent is None or (spent.checkpoint, spent.method) != (found.checkpoint, found.method):
        return {**figures, "attack cpu s": None, "peak MB": None}
    return {**figures, "attack cpu s": spent.seconds, "peak MB": spent.peak_mb}


# ---- The studies


def weight_decay(size: Size) -> list[Cell]:
    kinds = (("ce", DIGITS, DECAY, SMALL), ("mse", PARITY, DECAY_MSE, None))
    return [
        attacked(
            size,
            {"loss": loss, "weight decay": decay},
            problem,
            size.stretched(replace(training, weight_decay=decay)),
            init_scale=scale,
        )
        for loss, problem, training, scale in kinds
        for decay in size.of((0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
    ]


def width(size: Size) -> list[Cell]:
    return [
        attacked(
            size,
            {"problem": problem, "width": neurons, "images": count, "n / width": count / neurons},
            problem,
            size.stretched(training),
            images=count,
            width=neurons,
        )
        for problem, training in ((DIGITS, LONG), (PARITY, LONG_BCE))
        for neurons in size.widths
        for count in size.counts
    ]


def classes(size: Size) -> list[Cell]:
    return [
        attacked(size, {"problem": problem, "classes": count}, problem, size.stretched(LONG), classes=count)
        for problem, count in size.of(size.classes)
    ]


def losses(size: Size) -> list[Cell]:
    binary = replace(DECAY_MSE, loss=None)
    rows = (
        ("bce", PARITY, LONG_BCE, SMALL),
        ("ce", DIGITS, LONG, SMALL),
        ("bce, decay", PARITY, binary, SMALL),
        ("ce, decay", DIGITS, DECAY, SMALL),
        *((f"{loss}, decay", PARITY, replace(binary, loss=loss), None) for loss in ("mse", "huber", "l2.5")),
    )
    return [
        attacked(size, {"loss": name}, problem, size.stretched(training), init_scale=scale)
        for name, problem, training, scale in rows
    ]


def epochs(size: Size) -> list[Cell]:
    return [
        attacked(size, {"loss": loss, "epochs": length}, problem, replace(training, epochs=length))
        for loss, problem, training in (("ce", DIGITS, NO_DECAY), ("bce", PARITY, replace(NO_DECAY, lr=0.1)))
        for length in size.lengths
    ]


def init_scale(size: Size) -> list[Cell]:
    return [
        attacked(size, {"training": name, "initial scale": scale}, DIGITS, size.stretched(training), init_scale=scale)
        for name, training in (("no decay", LONG), ("decay", DECAY))
        for scale in size.of((1e-5, 1e-4, 1e-3, 0.02, 0.1))
    ]


def margin(size: Size) -> list[Cell]:
    rows = (("ce", DIGITS, LONG), ("ce, decay", DIGITS, DECAY), ("bce", PARITY, LONG_BCE))
    return [
        attacked(size, {"network": name}, problem, size.stretched(training), run=run_correlated)
        for name, problem, training in rows
    ]


def many(size: Size) -> list[Cell]:
    """Images in the thousands: with a known start, from a small one, and where the weights do not tell the number."""
    cells = []
    for start in ("known", "small", "known, number told", "known, width 2 n"):
        for problem, count in size.many:
            wide, told = start.endswith("2 n"), start.endswith("told")
            neurons = 2 * count if wide else size.many_width
            if (
                (start == "small" and count > size.many_small)
                or (told and count < neurons)
                or (wide and not size.many_width < neurons <= size.many_widest)
            ):
                continue
            per_class, network = count // LABELS[problem], NetworkConfig(widths=(neurons,) * 2)
            ordinary = known(problem, per_class, THIRTY_EPOCHS, replace(network, init_scale=None, bias="all"))
            training = THOUSAND_EPOCHS if count <= MOST_AT_HALF else replace(THOUSAND_EPOCHS, lr=0.1, lr_over_loss=3e-4)
            small = recipe(problem, per_class, size.stretched(training), network)
            method = replace(
                size.method,
                steps=size.many_steps,
                lr_multipliers=size.many_rate,
                images=count if told else None,
            )
            work = partial(run_spending, recipe=small if start == "small" else ordinary, method=method)
            cells.append(Cell(setting={"start": start, "images": count}, work=work))
    return cells


def cost(size: Size) -> list[Cell]:
    middle = {"candidates": 2 * size.images, "samples": size.images, "neurons": size.width, "hidden layers": 2}
    values = {
        "candidates": [size.images * k // 2 for k in (1, 2, 4, 8)],
        "samples": [size.images * k // 4 for k in (1, 2, 4)],
        "neurons": [size.width * k // 4 for k in (1, 2, 4, 8)],
        "hidden layers": [1, 2, 3, 4],
    }
    cells = []
    for varied, of in values.items():
        for value in size.of(of):
            point = {**middle, varied: value}
            shape = Shape(
                image=DIGIT,
                outputs=10,
                images=point["samples"],
                task="multiclass",
                widths=(point["neurons"],) * point["hidden layers"],
                per_class=point["candidates"] // 10,
            )
            cells.append(Cell(setting={"varied": varied, **point}, work=partial(timed, shape=shape, size=size)))
    return cells
