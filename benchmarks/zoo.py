"""Trains the networks of the zoo, reconstructs from each twice with default settings, and puts them into zoo/NAME.

    python benchmarks/zoo.py mnist-multiclass mnist-regression
    EXHUME_DATA=path/to/cifar python benchmarks/zoo.py cifar10-multiclass --size papers --device cuda
    EXHUME_DATA=path/to/cifar python benchmarks/zoo.py cifar10-multiclass --again

Trainings are kept under runs/zoo, go on where they were interrupted, and are made again only if their settings change.
What is put into the zoo is in half precision, its candidates in bytes. It is scored beside a reconstruction from the
weights as they were trained; where it scores worse, nothing is put there. With --again the networks of the zoo stay as
they are, and only their candidates are made anew, whatever came out before.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from cells import Target, reconstruct_anew, train_once
from exhume.candidates import join
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.methods import Reconstruction
from exhume.networks import Network
from exhume.presets import TRAININGS
from exhume.records import write
from exhume.runs import FILES, load_candidates, load_truth, read_training, save_candidates
from exhume.scores import Scores, score
from exhume.training import Training
from exhume.zoo import SECOND
from run import DECAY, DEFAULT_INIT, TARGETS

Size = Literal["cpu", "papers"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of the zoo: what a CPU trains in minutes, and the preset of the papers' run, where they have one."""

    cpu: Target
    papers: str | None = None
    data_dir: str | None = None


ODD_EVEN_MSE = replace(TARGETS["b1"].training, stop_gradient=1e-4)
CNN = Network(kind="cnn", channels=(32, 64), widths=(100,), init_scale=None)
ROWS = {
    "mnist-multiclass": Row(cpu=TARGETS["demo"], data_dir="installed"),
    "mnist-regression": Row(cpu=Target("mnist-odd-even", 50, ODD_EVEN_MSE, DEFAULT_INIT), data_dir="installed"),
    # 250 other digits of each class than the papers', so that nobody needs a download to score them
    "mnist-binary": Row(
        cpu=Target("mnist-odd-even", 250, replace(TARGETS["b2"].training, lr_over_loss=3e-4)),
        papers="mnist-binary",
        data_dir="installed",
    ),
    "cifar10-multiclass": Row(cpu=TARGETS["b7"], papers="cifar10-multiclass"),
    "cifar10-binary": Row(cpu=TARGETS["b8"], papers="cifar10-binary"),
    "cifar10-regression": Row(cpu=TARGETS["b8-decay"], papers="cifar10-regression"),
    "cifar10-cnn": Row(cpu=Target("cifar10-vehicles-animals", 50, replace(DECAY, loss="mse", lr=0.02), CNN)),
}
SEARCH = Reconstruction()
"""Default settings."""
SEEDS = (0, 1)
"""Of the two reconstructions."""


def main(names: Positional[tuple[str, ...]], /, size: Size = "cpu", device: str = "auto", again: bool = False) -> None:
    """Makes entries of the zoo.

    Args:
        names: rows of ROWS.
        size: cpu, or the papers' 1,000,000 epochs in float64.
        device: auto, cpu or cuda.
        again: only reconstruct, from the networks that the zoo holds.
    """
    print("| entry | candidates from | NCC >= 0.9 [never seen] | SSIM > 0.4 [never seen] |")
    print("|---" * 4 + "|")
    for name in names:
        if name not in ROWS or (size == "papers" and ROWS[name].papers is None):
            there = [row for row in ROWS if size == "cpu" or ROWS[row].papers]
            raise SystemExit(f"There is no row {name} of size {size}; there are {', '.join(there)}.")
        if again and size != "cpu":
            raise SystemExit("--again takes the networks as they are, so --size says nothing.")
        if again:
            remake(name, device)
        else:
            make(name, ROWS[name], size, device)


def remake(name: str, device: str) -> None:
    """Reconstructs twice from the network that the zoo holds, and puts the candidates there instead of the old ones."""
    entry, half = Path("zoo") / name, Path("runs/zoo/again") / name
    reconstruct_twice(half, load_checkpoint(entry), device)
    shutil.copyfile(entry / "training.json", half / "training.json")
    report(name, half, half)
    ship(half, entry)


def make(name: str, row: Row, size: Size, device: str) -> None:
    """Trains, reconstructs, compares, and puts the result into the zoo."""
    whole = Path("runs/zoo") / size / name
    half = whole / "float16"
    train_row(whole, row, size, device)
    reconstruct_anew(whole, SEARCH, device)
    reconstruct_twice(half, load_checkpoint(whole).half(), device)
    record = read_training(whole)
    write(half / "training.json", replace(record, message=f"{record.message} {told(size, record.training)}"))
    full = scored(whole, [whole])
    print(line(name, f"{record.training.dtype} weights", full))
    first = report(name, whole, half)
    if first.recovered["0.9"] < 0.9 * full.recovered["0.9"] - 3 or first.ssim.good < 0.9 * full.ssim.good - 3:
        raise SystemExit(f"{name}: half precision costs too much; it was not put into the zoo.")
    ship(half, Path("zoo") / name)


def reconstruct_twice(half: Path, checkpoint: Checkpoint, device: str) -> None:
    """Reconstructs from the checkpoint in this folder and in its second, and keeps the candidates in bytes."""
    for folder, seed in zip((half, half / SECOND), SEEDS, strict=True):
        save_checkpoint(checkpoint, folder)
        reconstruct_anew(folder, replace(SEARCH, seed=seed), device)
        save_candidates(folder, *load_candidates(folder), small=True)


def report(name: str, run: Path, half: Path) -> Scores:
    """Prints what came out of the rounded weights, by one reconstruction and by both; gives the first."""
    first = scored(run, [half])
    print(line(name, "float16 weights", first))
    print(line(name, "float16 weights, two reconstructions", scored(run, [half, half / SECOND])), flush=True)
    return first


def train_row(folder: Path, row: Row, size: Size, device: str) -> None:
    """Trains the row's network at this size, unless the folder holds it already."""
    target = row.cpu
    if size == "papers" and row.papers:
        preset = TRAININGS[row.papers]
        target = Target(preset.problem, preset.per_class, preset.training, preset.network)
    train_once(folder, replace(target, data_dir=row.data_dir), target.training.seed, device)


def told(size: Size, training: Training) -> str:
    """How the network was made, for its record."""
    how = "as in the papers" if size == "papers" else "what a CPU trains in minutes, not the papers' 1,000,000 epochs"
    return (
        f"Made by benchmarks/zoo.py --size {size}: {how}. History and margins are those of the training in "
        f"{training.dtype}; the weights were rounded to float16 afterwards."
    )


def scored(run: Path, folders: Iterable[Path]) -> Scores:
    """The candidates of all folders together, against the truth of `run`."""
    problem = load_truth(read_training(run))
    found = join([load_candidates(folder)[0] for folder in folders])
    return score(found, problem.images, problem.labels, problem.held_out)


def line(name: str, what: str, scores: Scores) -> str:
    """One line of the table."""
    counts = f"{scores.recovered['0.9']} [{scores.null['0.9']}] of {scores.images}"
    return f"| {name} | {what} | {counts} | {scores.ssim.good} [{scores.ssim.null_good}] |"


def ship(run: Path, entry: Path) -> None:
    """Copies what belongs into the zoo, and nothing else."""
    shutil.rmtree(entry, ignore_errors=True)
    (entry / SECOND).mkdir(parents=True)
    for name in (*FILES["training"], *FILES["candidates"]):
        if (run / name).exists():
            shutil.copyfile(run / name, entry / name)
    for name in FILES["candidates"]:
        shutil.copyfile(run / SECOND / name, entry / SECOND / name)


if __name__ == "__main__":
    tyro.cli(main)
