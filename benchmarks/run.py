"""Trains the benchmark's networks once, attacks them with default settings, and prints a row of results for each.

    python -m benchmarks.run demo b3 --seeds 0 1 2
    EXHUME_DATA=path/to/cifar python -m benchmarks.run b5

Networks are kept under runs/benchmarks and are trained again only if their settings change. They are attacked anew by
every command.
"""

from dataclasses import replace
from pathlib import Path

import torch
import tyro
from torch import Tensor
from tyro.conf import Positional

from benchmarks.targets import TARGETS
from exhume.attack.methods import Exhume
from exhume.audit.control import control_images
from exhume.audit.matching import match
from exhume.commands.display import bars
from exhume.devices import Device
from exhume.runs.cells import attack_once, initial_of, train_once
from exhume.runs.store import load_candidates, load_truth, read_training, remove_stage
from exhume.runs.tables import Row, table_markdown

CONFIDENT = 0.9
"""Confidence from which a candidate counts as confident."""


def main(
    targets: Positional[tuple[str, ...]],
    /,
    seeds: tuple[int, ...] = (0,),
    device: Device = "auto",
    restarts: int = Exhume.restarts,
) -> None:
    """Trains, attacks and scores each target for each seed.

    Args:
        targets: rows of TARGETS.
        seeds: seeds of training and reconstruction.
        device: auto, cpu or cuda.
        restarts: searches, whose candidates count together; with 1 confidence is not available.
    """
    unknown = [name for name in targets if name not in TARGETS]
    if unknown:
        raise SystemExit(f"There is no target {unknown[0]}; there are {', '.join(TARGETS)}.")
    for number, (name, seed) in enumerate((name, seed) for name in targets for seed in seeds):
        table = table_markdown([row(name, seed, Exhume(restarts=restarts), device)])
        print(*table.splitlines()[2 if number else 0 :], sep="\n", flush=True)


def row(name: str, seed: int, method: Exhume, device: str) -> Row:
    """One line of the table; (held-out): the same count for as many held-out images.

    confident: candidates with a confidence of at least CONFIDENT; right: those of them that match a training image;
    distinct: training images that these show.
    """
    folder, recipe = Path("runs/benchmarks") / f"{name}-{seed}", TARGETS[name].seeded(seed)
    with bars() as progress_callback:
        train_once(folder, recipe, device=device, progress_callback=progress_callback)
        remove_stage(folder, "candidates")
        scores = attack_once(
            folder,
            replace(method, seed=seed),
            initial=initial_of(folder, recipe),
            device=device,
            progress_callback=progress_callback,
        )
    return {
        "target": name,
        "seed": seed,
        "NCC >= 0.9": f"{scores.recovered['0.9']} / {scores.images}",
        "(held-out)": f"{scores.null['0.9']} / {scores.held_out}",
        ">= 0.7": scores.recovered["0.7"],
        ">= 0.7 (held-out)": scores.null["0.7"],
        "SSIM > 0.4": scores.ssim.good,
        "SSIM > 0.4 (held-out)": scores.ssim.null_good,
        "(held-out, if perfect)": scores.ssim.null_perfect,
        **confident_counts(folder),
        "images assumed": load_candidates(folder)[1].assumptions.images,
        "train s": f"{scores.seconds.train:.0f}",
        "reconstruct s": f"{scores.seconds.reconstruct:.0f}",
    }


def confident_counts(folder: Path) -> Row:
    """How many candidates are confident, how many of these are right, and how many different images they show."""
    candidates, _ = load_candidates(folder)
    columns = ("confident", "right", "distinct", "right (held-out)", "distinct (held-out)")
    if not candidates.confidence.isfinite().any():
        return dict.fromkeys(columns)
    problem, confident = load_truth(read_training(folder)), candidates.confidence >= CONFIDENT
    control = control_images(problem.held_out, len(problem.images))
    counts = [shown(match(candidates, images).similarity[:, confident]) for images in (problem.images, control)]
    return dict(zip(columns, (int(confident.sum()), *counts[0], *counts[1]), strict=True))


def shown(similarity: Tensor) -> tuple[int, int]:
    """How many candidates match an image at NCC >= 0.9, and how many different images are their nearest; of [n, m]."""
    right = similarity[:, similarity.amax(0) >= 0.9]
    return right.shape[1], len(torch.unique(right.argmax(0)))


if __name__ == "__main__":
    tyro.cli(main)
