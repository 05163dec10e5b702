"""Studies of what makes a training set readable: each trains and attacks networks that differ in one thing.

    python -m benchmarks.study weight-decay
    python -m benchmarks.study width --size gpu --seeds 0 1 2

Each writes table.csv, table.md (with what it says of the papers' findings) and figure.png. A cell that is finished,
with exactly these settings, is not done again: an interrupted study goes on by the same command.
"""

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from tyro.conf import Positional

from benchmarks import charts, designs, findings
from benchmarks.designs import SIZES, Size
from exhume.commands.display import bars
from exhume.devices import Device, choose_device
from exhume.errors import InputError
from exhume.records import Provenance, provenance, replace_file
from exhume.runs.cells import Cell, Result, in_order, run_study
from exhume.runs.tables import short, table_csv, table_markdown
from exhume.tuning.workers import choose_workers


@dataclass(frozen=True, kw_only=True)
class Study:
    """A question, what the papers found, and how it is answered: cells, a figure, and sentences from the numbers."""

    question: str
    papers: str
    cells: Callable[[Size], list[Cell]]
    chart: charts.Chart
    finding: findings.Finding


STUDIES = {
    "weight-decay": Study(
        question="How many images come out, and how well, after training with weight decay?",
        papers="Weight decay raises both the number and the quality of the reconstructions (Buzaglo et al. 2023).",
        cells=designs.weight_decay,
        chart=charts.lines("weight decay", "loss", zero=1e-4),
        finding=findings.weight_decay,
    ),
    "width": Study(
        question="How many images come out of so many neurons, and is it images / width that counts?",
        papers="The more neurons for each training image, the more come out (Buzaglo et al. 2023, binary networks).",
        cells=designs.width,
        chart=charts.widths,
        finding=findings.width,
    ),
    "classes": Study(
        question="Do more classes, with as many images in all, betray more?",
        papers="Of ten classes at least 30 of 500 images came out, of two 17 (SSIM > 0.4; Haim et al. 2022, Buzaglo et "
        "al. 2023): more classes, more images.",
        cells=designs.classes,
        chart=charts.lines("classes", "problem"),
        finding=findings.classes,
    ),
    "losses": Study(
        question="Which losses betray the training set?",
        papers="Every loss does: cross-entropy of ten classes at least 30 of 500, binary cross-entropy 17, mean "
        "squared error with weight decay 4 (SSIM > 0.4; Haim et al. 2022, Buzaglo et al. 2023).",
        cells=designs.losses,
        chart=charts.bars("loss"),
        finding=findings.losses,
    ),
    "epochs": Study(
        question="How early does the training set become readable?",
        papers="Networks that were trained longer, and so meet the condition better, are less susceptible (Refael et "
        "al. 2025, arXiv 2509.21296).",
        cells=designs.epochs,
        chart=charts.lines("epochs", "loss"),
        finding=findings.epochs,
    ),
    "init-scale": Study(
        question="How small must the first layer have been at the start?",
        papers="Without weight decay the papers' first layer starts at 1e-4, with it as PyTorch does (about 0.02): "
        "small scales are needed only without (Haim et al. 2022, Buzaglo et al. 2023).",
        cells=designs.init_scale,
        chart=charts.lines("initial scale", "training"),
        finding=findings.init_scale,
    ),
    "margin": Study(
        question="Which images come out: those on the margin, those of a large multiplier?",
        papers="Images on the margin come out best, and only they have a multiplier (Haim et al. 2022).",
        cells=designs.margin,
        chart=charts.scatters(designs.of_each_image),
        finding=findings.margin,
    ),
    "many": Study(
        question="How many come out of thousands of images, and at what cost?",
        papers="They go up to 500 images for 1,000 neurons: the more images, the fewer come out (Haim et al. 2022).",
        cells=designs.many,
        chart=charts.many,
        finding=findings.many,
    ),
    "cost": Study(
        question="What does a step cost, by candidates, training images, width and depth?",
        papers="They give no cost of a step.",
        cells=designs.cost,
        chart=charts.costs,
        finding=findings.cost,
    ),
}


LEGEND = (
    "Default settings of the attack, one search. *Recovered*: training images with a candidate of their own at "
    "NCC >= 0.9; *null*, and below in brackets: the same count for as many held-out images. A result *agrees* or "
    "*disagrees* with the papers where its probability by chance (p) is below 0.05."
)


def main(
    name: Positional[str],
    /,
    size: Literal["cpu", "gpu", "test"] = "cpu",
    seeds: tuple[int, ...] | None = None,
    device: Device = "auto",
    out: Path = Path("runs/studies"),
    *,
    workers: int = 1,
    ray: str | None = None,
) -> None:
    """Does what is missing of a study, and writes its table and figure.

    Args:
        name: a row of STUDIES.
        size: cpu (1 to 12 minutes on a core), gpu (the papers' sizes) or test (seconds).
        seeds: seeds of training and reconstruction; none: those of the size.
        device: auto, cpu or cuda.
        out: folder of all studies; each has one of its own there, by its name and size.
        workers: cells at the same time.
        ray: address of a Ray cluster to work on (docs/cluster.md).
    """
    if name not in STUDIES:
        raise SystemExit(f"There is no study {name}; there are {', '.join(STUDIES)}.")
    study, scale, folder, start = STUDIES[name], SIZES[size], out / f"{name}-{size}", time.perf_counter()
    try:
        place = choose_device(device)
    except InputError as error:
        raise SystemExit(str(error)) from None
    seeds = seeds or scale.seeds
    results = []
    cells = study.cells(scale)
    for result in run_study(
        folder / "cells",
        cells,
        seeds=seeds,
        device=device,
        workers=choose_workers(ray),
        count=workers,
        progress_display=bars,
    ):
        results.append(result)
        print(", ".join(f"{column}: {short(value)}" for column, value in result.row.items()), flush=True)
    if not any(result.measured for result in results):
        raise SystemExit(f"Nothing could be measured. {results[0].row['status']}")
    command = shlex.join(["python", "-m", "benchmarks.study", name, "--size", size, "--seeds", *map(str, seeds)])
    made = provenance(device=place, seed=seeds[0], seconds=time.perf_counter() - start)
    write_study(folder, name, in_order(results, cells, seeds), command, made)


def write_study(folder: Path, name: str, results: Sequence[Result], command: str, made: Provenance) -> None:
    """Writes table.csv, figure.png and table.md, and prints what the numbers say."""
    study, measured = STUDIES[name], [result for result in results if result.measured]
    rows, finding = [result.row for result in results], study.finding(measured)
    machine = f"{made.device}, {made.threads} threads, PyTorch {made.torch}, {made.date[:10]}."
    page = (
        f"# {name}\n\n{study.question}\n\n    {command}\n\n{machine} {LEGEND}\n\n**The papers.** {study.papers}\n\n"
        f"**Here.** {finding}\n\n![{name}](figure.png)\n\n{table_markdown(rows)}\n"
    )
    replace_file(folder / "table.csv", table_csv(rows).encode())
    replace_file(folder / "figure.png", charts.png(study.chart, measured))
    replace_file(folder / "table.md", page.encode())
    print(f"\n{finding}\n\n{folder / 'table.md'}")


if __name__ == "__main__":
    tyro.cli(main)
