"""Makes the entries of the zoo: a network, rounded to half precision, and two reconstructions with default settings.

    python -m benchmarks.zoo mnist-multiclass mnist-regression
    EXHUME_DATA=path/to/cifar python -m benchmarks.zoo cifar10-multiclass --size papers --device cuda
    python -m benchmarks.zoo cifar10-multiclass --from FOLDER --data-dir path/to/cifar

Networks are trained here, or with --from imported from NAME.first.safetensors and NAME.rest.safetensors, which a
training by the papers' settings has left. Trainings are kept under runs/zoo, go on where they were interrupted, and are
made again only if their settings change. A network that is trained here is also attacked as it was trained; if the
rounding costs too much, nothing is put into the zoo. Candidates alone are made anew by `exhume zoo --again NAME`.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional, arg

from benchmarks.targets import ANIMALS, DECAY, DEFAULT_INIT, PARITY, TARGETS, preset, recipe
from exhume.attack.methods import Exhume
from exhume.audit.scores import Scores, score
from exhume.candidates import join
from exhume.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from exhume.commands.display import bars
from exhume.defence.training import train
from exhume.devices import Device, choose_device
from exhume.errors import InputError
from exhume.networks import NetworkConfig
from exhume.problems import Problem, load_problem
from exhume.records import provenance, read_tensors, write
from exhume.runs.cells import Recipe, train_once
from exhume.runs.pipeline import reconstruct_run
from exhume.runs.schema import ProblemRecord, TrainingRecord
from exhume.runs.store import FILES, load_candidates, load_truth, read_training
from exhume.runs.zoo import SECOND, reconstruct_entry

Size = Literal["cpu", "papers"]
METHOD = Exhume()
"""Default settings."""
IMPORTED_EPOCHS = 898_025
"""Epochs of the networks that --from imports, of the papers' 1,000,000."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network of the zoo: what a CPU trains in minutes, and the preset of the papers' run, where they have one."""

    cpu: Recipe
    papers: str | None = None

    def recipe(self, size: Size) -> Recipe:
        """How the network is trained at this size, on the same data."""
        if size == "papers" and self.papers:
            return preset(self.papers, self.cpu.selection.data_dir)
        return self.cpu


ODD_EVEN_MSE = replace(TARGETS["b1"].training, stop_gradient=1e-4)
CNN = NetworkConfig(kind="cnn", channels=(32, 64), widths=(100,), init_scale=None)
ROWS = {
    "mnist-multiclass": Row(cpu=preset("demo", "installed")),
    "mnist-regression": Row(cpu=recipe(PARITY, 50, ODD_EVEN_MSE, DEFAULT_INIT, data_dir="installed")),
    # 250 other digits of each class than the papers', so that nobody needs a download to score them
    "mnist-binary": Row(
        cpu=recipe(PARITY, 250, replace(TARGETS["b2"].training, lr_over_loss=3e-4), data_dir="installed"),
        papers="mnist-binary",
    ),
    "cifar10-multiclass": Row(cpu=TARGETS["b7"], papers="cifar10-multiclass"),
    "cifar10-binary": Row(cpu=TARGETS["b8"], papers="cifar10-binary"),
    "cifar10-regression": Row(cpu=TARGETS["b8-decay"], papers="cifar10-regression"),
    "cifar10-cnn": Row(cpu=recipe(ANIMALS, 50, replace(DECAY, loss="mse", lr=0.02), CNN)),
}


def main(
    names: Positional[tuple[str, ...]],
    /,
    size: Size = "cpu",
    source: Annotated[Path | None, arg(name="from")] = None,
    data_dir: str | None = None,
    device: Device = "auto",
) -> None:
    """Makes entries of the zoo.

    Args:
        names: rows of ROWS.
        size: of a training: cpu, or the papers' 1,000,000 epochs in float64.
        source: folder with trained networks to import; without: they are trained here.
        data_dir: with --from: folder (or file) that holds the data; without: EXHUME_DATA.
        device: auto, cpu or cuda.
    """
    papers = size == "papers" or source is not None
    there = [name for name, row in ROWS.items() if row.papers or not papers]
    unknown = [name for name in names if name not in there]
    if unknown:
        raise SystemExit(f"There is no row {unknown[0]} of such a training; there are {', '.join(there)}.")
    print("| entry | candidates from | NCC >= 0.9 [held-out] | SSIM > 0.4 [held-out] |")
    print("|---" * 4 + "|")
    for name in names:
        try:
            if source is None:
                make(name, ROWS[name], size, device)
            else:
                import_network(name, source, data_dir, device)
        except InputError as error:
            raise SystemExit(str(error)) from None


def make(name: str, row: Row, size: Size, device: str) -> None:
    """Trains, reconstructs, compares, and puts the result into the zoo."""
    whole = Path("runs/zoo") / size / name
    half = whole / "float16"
    with bars() as progress_callback:
        train_once(whole, row.recipe(size), device=device, progress_callback=progress_callback)
        reconstruct_run(whole, METHOD, device=device, overwrite=True, progress_callback=progress_callback)
    record, problem = read_training(whole), load_truth(read_training(whole))
    how = "as in the papers" if size == "papers" else "what a CPU trains in minutes, not the papers' 1,000,000 epochs"
    put(half, load_checkpoint(whole), record, f"--size {size}: {how}", device)
    full = scored(problem, [whole])
    print(line(name, f"{record.training.dtype} weights", full))
    first = report(name, problem, half)
    if first.recovered["0.9"] < 0.9 * full.recovered["0.9"] - 3 or first.ssim.good < 0.9 * full.ssim.good - 3:
        raise SystemExit(f"{name}: half precision costs too much; it was not put into the zoo.")
    ship(half, Path("zoo") / name)


def import_network(name: str, source: Path, data_dir: str | None, device: str) -> None:
    """Makes an entry from a network that was trained elsewhere by the papers' settings."""
    half, row = Path("runs/zoo/imported") / name, ROWS[name].recipe("papers")
    problem = load_problem(row.problem, replace(row.selection, data_dir=data_dir or row.selection.data_dir))
    checkpoint = read_network(source, name, problem, row)
    record = measured(checkpoint, problem, row, device)
    put(half, checkpoint, record, "--from: trained elsewhere by the papers' settings, in no known time", device)
    report(name, problem, half)
    ship(half, Path("zoo") / name)


def read_network(source: Path, name: str, problem: Problem, row: Recipe) -> Checkpoint:
    """The network in NAME.first.safetensors (its bias is the last column) and NAME.rest.safetensors.

    Raises:
        InputError: a file is missing or damaged, the weights do not fit, or other images were trained on.
    """
    tensors = {
        key: tensor
        for part in ("first", "rest")
        for key, tensor in read_tensors(source / f"{name}.{part}.safetensors").items()
    }
    if tensors.keys() != {"first", "second", "last", "centre"}:
        raise InputError(f"The files of {name} in {source} hold {', '.join(sorted(tensors))}, not a network.")
    if not torch.allclose(tensors["centre"], problem.images.mean(0), atol=1e-5):
        raise InputError(f"{name} was trained on other images than {problem.source}: their mean is another.")
    first: Tensor = tensors["first"]
    weights = {"1.weight": first[:, :-1].clone(), "1.bias": first[:, -1].clone()}
    checkpoint = Checkpoint(
        network=row.network or problem.network,
        task=problem.task,
        classes=problem.classes,
        centre=tensors["centre"],
        weights={**weights, "3.weight": tensors["second"], "5.weight": tensors["last"]},
    )
    checkpoint.build()  # refuses weights of another size
    return checkpoint


def measured(checkpoint: Checkpoint, problem: Problem, row: Recipe, device: str) -> TrainingRecord:
    """The record of an imported training. Its history is the last point alone, measured on the network itself."""
    place, config = choose_device(device), replace(row.training, epochs=IMPORTED_EPOCHS)
    seen = train(problem, replace(config, epochs=0), initial=checkpoint, device=place)
    return TrainingRecord(
        problem=ProblemRecord(
            name=row.problem,
            selection=row.selection,
            source=problem.source,
            images=len(problem.images),
            fingerprint=problem.fingerprint,
        ),
        network=checkpoint.config,
        training=config,
        history=[replace(seen.history[0], epoch=IMPORTED_EPOCHS)],
        margins=seen.margins,
        status="epochs over",
        message=f"{IMPORTED_EPOCHS:,} of the papers' {row.training.epochs:,} epochs are over.",
        provenance=provenance(device=place, seed=config.seed, seconds=0.0),
    )


def put(half: Path, checkpoint: Checkpoint, record: TrainingRecord, how: str, device: str) -> None:
    """Writes the network in half precision, its record, and two reconstructions."""
    rounded = (
        f"Made by benchmarks/zoo.py {how}. History and margins are those before the weights were rounded to float16."
    )
    save_checkpoint(checkpoint.half(), half)
    write(half / "training.json", replace(record, message=f"{record.message} {rounded}"))
    with bars() as progress_callback:
        reconstruct_entry(half, METHOD, device=device, progress_callback=progress_callback)


def report(name: str, problem: Problem, half: Path) -> Scores:
    """Prints what came out of the rounded weights, by one reconstruction and by both; gives the first."""
    first = scored(problem, [half])
    print(line(name, "float16 weights", first))
    print(line(name, "float16 weights, two reconstructions", scored(problem, [half, half / SECOND])), flush=True)
    return first


def scored(problem: Problem, folders: Iterable[Path]) -> Scores:
    """The candidates of all folders together, against the truth; the first folder holds their checkpoint."""
    run, *others = folders
    found = join([load_candidates(run)[0], *(load_candidates(other, of=run)[0] for other in others)])
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
        for below in (".", SECOND):
            if (run / below / name).exists():
                shutil.copyfile(run / below / name, entry / below / name)


if __name__ == "__main__":
    tyro.cli(main)
