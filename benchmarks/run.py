"""Trains the benchmark's networks once, attacks them with default settings, and prints a row of results for each.

    python benchmarks/run.py demo b3 --seeds 0 1 2
    EXHUME_DATA=path/to/cifar python benchmarks/run.py b5

Networks are kept under runs/benchmarks and are trained again only if their settings change.
"""

from dataclasses import replace
from pathlib import Path

import tyro
from tyro.conf import Positional

from cells import Target, attack, start_of, train_once
from exhume.matching import match
from exhume.methods import Reconstruction
from exhume.networks import Network
from exhume.presets import TRAININGS
from exhume.runs import load_candidates, load_truth, read_training
from exhume.scores import never_seen
from exhume.training import Training

# as far in 10,000 epochs as plain descent at a rate of 0.5
DECAY = Training(lr=0.05, momentum=0.9, epochs=10_000, weight_decay=2e-3)
NO_DECAY = Training(lr=0.5, epochs=1000)
LONG = Training(lr=0.5, lr_over_loss=1e-3, epochs=20_000, stop_loss=1e-12, evaluate_every=50)
ORDINARY = Training(optimiser="adam", lr=1e-3, batch_size=32, epochs=500, evaluate_every=1, patience=10)
BATCHES = Training(lr=0.1, batch_size=32, epochs=500, evaluate_every=1, patience=10)
DEFAULT_INIT = Network(init_scale=None)
CNN = Network(kind="cnn", channels=(32, 64), widths=(1000,), init_scale=None)
PUBLIC = str(Path(__file__).with_name("public_photographs.py"))
EVERYDAY = Network(init_scale=None, bias="all")


PUBLIC_NETWORK = Target(PUBLIC, 200, replace(BATCHES, lr=0.03), EVERYDAY)


def known(problem: str, per_class: int, training: Training, network: Network = EVERYDAY) -> Target:
    """An everyday training whose fresh weights the attacker knows: those of its seed."""
    fresh = Target(problem, per_class, replace(training, epochs=0), network)
    return Target(problem, per_class, training, start=fresh)


SMALL_CNN = Network(kind="cnn", channels=(32, 64), widths=(100,), init_scale=None, bias="all")
TARGETS = {
    "demo": Target("mnist-digits", 10, TRAININGS["demo"].training, TRAININGS["demo"].network),
    "b1": Target("mnist-odd-even", 50, replace(DECAY, loss="mse", lr=0.02, epochs=50_000), DEFAULT_INIT),
    "b2": Target("mnist-odd-even", 50, replace(LONG, lr=0.1)),
    "b3": Target("mnist-digits", 10, NO_DECAY),
    "b4": Target("mnist-digits", 10, DECAY),
    "b5": Target("cifar10-multiclass", 10, replace(NO_DECAY, epochs=2000)),
    "b6": Target("mnist-digits", 50, LONG),
    "b6-decay": Target("mnist-digits", 50, DECAY),
    "b7": Target("cifar10-multiclass", 50, LONG),
    "b8": Target("cifar10-vehicles-animals", 250, replace(LONG, lr=0.1, lr_over_loss=3e-4)),
    "b8-decay": Target(
        "cifar10-vehicles-animals-regression",
        250,
        replace(DECAY, lr=0.02, weight_decay=7.5e-4, epochs=50_000),
        DEFAULT_INIT,
    ),
    "b9": Target("faces", 50, replace(DECAY, lr=0.02, epochs=20_000)),
    "b10": Target("mnist-digits", 10, ORDINARY, EVERYDAY),
    "cnn": Target("mnist-digits", 10, DECAY, CNN),
    "cnn-photographs": Target("cifar10-multiclass", 10, DECAY, CNN),
    "b10-known": known("mnist-digits", 10, ORDINARY),
    "known": known("mnist-digits", 10, BATCHES),
    "known-500": known("mnist-digits", 50, BATCHES),
    "known-photographs": known("cifar10-multiclass", 50, replace(BATCHES, lr=0.03)),
    "known-binary": known("cifar10-vehicles-animals", 250, replace(BATCHES, lr=0.03)),
    "known-cnn": known("mnist-digits", 10, BATCHES, replace(CNN, bias="all")),
    "known-cnn-photographs": known("cifar10-multiclass", 10, replace(BATCHES, lr=0.03), replace(CNN, bias="all")),
    "known-faces": known("faces", 50, replace(BATCHES, lr=0.03), SMALL_CNN),
    "tuned": Target("cifar10-multiclass", 10, replace(BATCHES, lr=0.03), start=PUBLIC_NETWORK),
    "tuned-adam": Target("cifar10-multiclass", 10, ORDINARY, start=PUBLIC_NETWORK),
}
"""Sized for a CPU. Named as in RESULTS.md."""
SURE = 0.9
"""Confidence from which a candidate is called sure."""


def main(
    targets: Positional[tuple[str, ...]],
    /,
    seeds: tuple[int, ...] = (0,),
    device: str = "auto",
    restarts: int | None = None,
) -> None:
    """Trains, attacks and scores each target for each seed.

    Args:
        targets: rows of TARGETS.
        seeds: seeds of training and reconstruction.
        device: auto, cpu or cuda.
        restarts: searches, whose candidates count together; 1 leaves the confidence unknown.
    """
    columns: tuple[str, ...] = ("target", "seed", "NCC >= 0.9", "never seen", ">= 0.7", "never seen")
    columns += ("SSIM > 0.4", "never seen", "never seen if perfect")
    columns += ("sure", "of them right", "never seen", "images read", "train s", "reconstruct s")
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for name in targets:
        if name not in TARGETS:
            raise SystemExit(f"There is no target {name}; there are {', '.join(TARGETS)}.")
        for seed in seeds:
            print(row(name, TARGETS[name], seed, device, restarts), flush=True)


def row(name: str, target: Target, seed: int, device: str, restarts: int | None) -> str:
    """One line of the table."""
    folder = Path("runs/benchmarks") / f"{name}-{seed}"
    train_once(folder, target, seed, device)
    scores = attack(folder, Reconstruction(seed=seed, restarts=restarts), device, start_of(folder, target))
    candidates, found = load_candidates(folder)
    problem = load_truth(read_training(folder))
    sure, told = candidates.confidence >= SURE, bool(candidates.confidence.isfinite().any())
    right, null = (
        int((match(candidates, images).similarity.amax(0)[sure] >= 0.9).sum())
        for images in (problem.images, never_seen(problem.held_out, len(problem.images)))
    )
    cells = (
        name,
        seed,
        f"{scores.recovered['0.9']} / {scores.images}",
        f"{scores.null['0.9']} / {scores.never_seen}",
        scores.recovered["0.7"],
        scores.null["0.7"],
        scores.ssim.good,
        scores.ssim.null_good,
        scores.ssim.null_perfect,
        int(sure.sum()) if told else "-",
        right if told else "-",
        null if told else "-",
        found.reading.images,
        f"{scores.seconds.train:.0f}",
        f"{scores.seconds.reconstruct:.0f}",
    )
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    tyro.cli(main)
