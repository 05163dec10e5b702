"""Which cells each study consists of, how large they are, and how one is done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch

from cells import Row, Target, attack_once, known_record, outcome, train_once
from exhume.checkpoint import load_checkpoint
from exhume.errors import InputError
from exhume.methods import Reconstruction
from exhume.networks import Network
from exhume.records import write
from exhume.runs import load_truth, read_training
from exhume.stages import choose_device
from exhume.training import Training
from laws import Result, multipliers, rank_correlation
from run import DECAY, LONG, NO_DECAY
from speed import Shape, least, peak, steps_of

T = TypeVar("T")
DIGITS, PARITY = "mnist-digits", "mnist-odd-even"
LABELS = {DIGITS: 10, PARITY: 2}
DIGITS_CLASSES = tuple((DIGITS, count) for count in (2, 3, 4, 5, 7, 10))
PHOTOGRAPHS_CLASSES = tuple(("cifar100-multiclass", count) for count in (2, 5, 10, 20, 50, 100))


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a study is.

    images, width: of a network, where a study does not vary them; counts, widths: where it does; lengths: the epochs
    that are compared; classes: the problems and numbers of classes; stretch: of all other numbers of epochs; steps: of
    the attack, None for its default; ends: of other lists only the first and the last; memory: whether to measure it.
    """

    images: int
    width: int
    counts: tuple[int, ...]
    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    classes: tuple[tuple[str, int], ...] = DIGITS_CLASSES
    seeds: tuple[int, ...] = (0,)
    stretch: float = 1.0
    steps: int | None = None
    ends: bool = False
    memory: bool = True

    def of(self, values: Sequence[T]) -> Sequence[T]:
        return (values[0], values[-1]) if self.ends else values


SIZES = {
    "test": Size(
        images=20,
        width=20,
        counts=(10, 20),
        widths=(10, 20),
        lengths=(2, 20),
        stretch=0.005,
        steps=5,
        ends=True,
        memory=False,
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
        seeds=(0, 1, 2),
        stretch=10.0,
    ),
}
"""test: seconds; cpu: 1 to 12 minutes a study on a core; gpu: as many images and neurons as in the papers."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """How every cell of a study is done."""

    seed: int
    device: str
    steps: int | None


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One thing to measure: the columns that say what it is, and how it is done in a folder of its own."""

    setting: Row
    work: Callable[[Path, Job], Row]

    @property
    def name(self) -> str:
        words = (f"{value:g}" if isinstance(value, float) else str(value) for value in self.setting.values())
        return "-".join(words).replace(", ", "-").replace(" ", "-")


# ---- How a cell is done


def attacked(target: Target, folder: Path, job: Job) -> Row:
    """Trains, attacks with default settings and scores; a training that is not possible is a status."""
    try:
        train_once(folder, target, job.seed, job.device)
    except InputError as error:
        return {"status": str(error)}
    attack_once(folder, Reconstruction(restarts=1, steps=job.steps, seed=job.seed), job.device)
    return outcome(folder)


def correlated(target: Target, folder: Path, job: Job) -> Row:
    """The same, and how the images' NCC goes with what is known of each (Spearman)."""
    row = attacked(target, folder, job)
    if "recovered" not in row:
        return row
    ncc, correlations = Result(row=row, folder=folder).ncc, {}
    for name, values in of_each_image(folder).items():
        correlations[f"rho {name}"], correlations[f"p {name}"] = rank_correlation(values, ncc)
    return {**row, **correlations}


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


def timed(shape: Shape, memory: bool, folder: Path, job: Job) -> Row:
    """Times a step of `exhume`, unless that was done here on such a device with as many threads."""
    path, device, threads = folder / "cost.json", choose_device(job.device).type, torch.get_num_threads()
    cost = known_record(path, Cost)
    measured = cost is not None and (cost.shape, cost.device, cost.threads) == (shape, device, threads)
    if cost is None or not measured or (memory and cost.step_mb is None):
        seconds = least(steps_of("exhume", shape, device), job.steps or 50)
        megabytes = peak("exhume", shape, device) if memory else None
        cost = Cost(shape=shape, device=device, threads=threads, step_s=seconds, step_mb=megabytes)
        write(path, cost)
    return {"step s": cost.step_s, "step MB": cost.step_mb, "threads": threads, "status": "done"}


# ---- The studies

DECAY_MSE = replace(DECAY, loss="mse", lr=0.02, epochs=20_000)
LONG_BCE = replace(LONG, lr=0.1)
SMALL = 1e-4
"""Initial scale of the first layer; None is PyTorch's default, the papers' choice for regression."""


def target(
    size: Size,
    problem: str,
    training: Training,
    *,
    images: int | None = None,
    width: int | None = None,
    classes: int | None = None,
    init_scale: float | None = SMALL,
) -> Target:
    """So many images, evenly of all classes, and two equal hidden layers."""
    per_class = (images or size.images) // (classes or LABELS[problem])
    network = Network(widths=(width or size.width,) * 2, init_scale=init_scale)
    return Target(problem, per_class, training, network, classes)


def stretched(size: Size, training: Training) -> Training:
    return replace(training, epochs=round(size.stretch * training.epochs))


def weight_decay(size: Size) -> list[Cell]:
    kinds = (("ce", DIGITS, DECAY, SMALL), ("mse", PARITY, DECAY_MSE, None))
    return [
        _cell(
            {"loss": loss, "weight decay": decay},
            target(size, problem, stretched(size, replace(training, weight_decay=decay)), init_scale=scale),
        )
        for loss, problem, training, scale in kinds
        for decay in size.of((0.0, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2))
    ]


def width(size: Size) -> list[Cell]:
    return [
        _cell(
            {"problem": problem, "width": neurons, "images": count, "n / width": count / neurons},
            target(size, problem, stretched(size, training), images=count, width=neurons),
        )
        for problem, training in ((DIGITS, LONG), (PARITY, LONG_BCE))
        for neurons in size.widths
        for count in size.counts
    ]


def classes(size: Size) -> list[Cell]:
    return [
        _cell({"problem": problem, "classes": count}, target(size, problem, stretched(size, LONG), classes=count))
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
        _cell({"loss": name}, target(size, problem, stretched(size, training), init_scale=scale))
        for name, problem, training, scale in rows
    ]


def epochs(size: Size) -> list[Cell]:
    return [
        _cell({"loss": loss, "epochs": length}, target(size, problem, replace(training, epochs=length)))
        for loss, problem, training in (("ce", DIGITS, NO_DECAY), ("bce", PARITY, replace(NO_DECAY, lr=0.1)))
        for length in size.lengths
    ]


def init_scale(size: Size) -> list[Cell]:
    return [
        _cell(
            {"training": name, "initial scale": scale},
            target(size, DIGITS, stretched(size, training), init_scale=scale),
        )
        for name, training in (("no decay", LONG), ("decay", DECAY))
        for scale in size.of((1e-5, 1e-4, 1e-3, 0.02, 0.1))
    ]


def margin(size: Size) -> list[Cell]:
    rows = (("ce", DIGITS, LONG), ("ce, decay", DIGITS, DECAY), ("bce", PARITY, LONG_BCE))
    return [
        Cell(setting={"network": name}, work=partial(correlated, target(size, problem, stretched(size, training))))
        for name, problem, training in rows
    ]


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
            point = middle | {varied: value}
            shape = Shape(
                (1, 28, 28), 10, point["samples"], "multiclass", (point["neurons"],) * point["hidden layers"],
                point["candidates"] // 10,
            )  # fmt: skip
            cells.append(Cell(setting={"varied": varied, **point}, work=partial(timed, shape, size.memory)))
    return cells


def _cell(setting: Row, of: Target) -> Cell:
    return Cell(setting=setting, work=partial(attacked, of))
