"""The commands on many runs: a study of cells, and runs side by side."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from tyro.conf import Positional

from exhume.commands.display import bars, console
from exhume.devices import Device
from exhume.errors import InputError
from exhume.records import replace_file
from exhume.report.comparison import comparison_page
from exhume.runs.cells import Cell, in_order, run_study
from exhume.runs.cells_file import load_cells
from exhume.runs.claim import claim
from exhume.runs.compare import compare_runs
from exhume.runs.tables import short, side_by_side, table_csv, table_markdown
from exhume.tuning.workers import choose_workers


@dataclass(frozen=True, kw_only=True)
class Study:
    """Train, attack and score the cells of a study, and write their table; what is finished is not done again.

    The exit code is 2 if nothing could be measured.
    """

    cells: Positional[Path]
    """A .py file with a function cells(), which returns the cells."""
    out: Path | None = None
    """Folder of the study; without: runs/studies/NAME, by the file's name."""
    seeds: tuple[int, ...] = (0,)
    """Each cell is done with each seed."""
    workers: int = 1
    """Cells at the same time: processes, of one thread each if there are several, or with --ray tasks of the
    cluster."""
    ray: str | None = None
    """Work on the Ray cluster at this address; auto: the one that this machine belongs to; local: start one here."""
    device: Device = "auto"
    """Where to compute."""
    threads: int | None = None
    """Threads of the CPU for one worker; None: one for each core. Several workers have one each, and so has Ray's."""

    def __call__(self) -> None:
        use_threads(self.threads)
        cells, out = load_cells(self.cells), self.out or Path("runs") / "studies" / self.cells.stem
        check_workers(self.workers)
        if not self.seeds:
            raise InputError("Give at least one seed.")
        with claim(out):  # so that it can be written is known before any work
            self._work(cells, out)

    def _work(self, cells: Sequence[Cell], out: Path) -> None:
        results = []
        for result in run_study(
            out / "cells",
            cells,
            seeds=self.seeds,
            device=self.device,
            workers=choose_workers(self.ray),
            count=self.workers,
            progress_display=bars,
        ):
            results.append(result)
            console.print(
                ", ".join(f"{column}: {short(value)}" for column, value in result.row.items()), soft_wrap=True
            )
        rows = [result.row for result in in_order(results, cells, self.seeds)]
        replace_file(out / "table.csv", table_csv(rows).encode())
        replace_file(out / "table.md", f"{table_markdown(rows)}\n".encode())
        console.print(str(out / "table.md"), soft_wrap=True)
        if not any(result.measured for result in results):
            sys.exit(2)


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Put runs side by side: their settings, counts and times."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs."""
    csv: Path | None = None
    """Write the table to this file, a line for each run, with all digits."""
    page: Path | None = None
    """Write it as a page to this file."""

    def __call__(self) -> None:
        if not self.runs:
            raise InputError("Give the folders of the runs.")
        rows = compare_runs(self.runs)
        console.print(side_by_side(rows), soft_wrap=True)
        if self.csv is not None:
            replace_file(self.csv, table_csv(rows).encode())
        if self.page is not None:
            replace_file(self.page, comparison_page(rows).encode())


def use_threads(count: int | None) -> None:
    """Computes with so many threads of the CPU from now on; None: as before."""
    if count is not None and count < 1:
        raise InputError(f"threads must be at least 1, not {count}.")
    if count is not None:
        torch.set_num_threads(count)


def check_workers(count: int) -> None:
    """Raises `InputError` unless there is at least one worker."""
    if count < 1:
        raise InputError(f"workers must be at least 1, not {count}.")
