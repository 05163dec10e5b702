"""Measures the same search and the same study with workers of each kind, what travels, and what the driver can do.

    OMP_NUM_THREADS=1 python -m benchmarks.cluster runs/cluster

A network is trained once, 784-200-200-10 on 100 of the installed digits. Every search works in a copy of its folder.
"""

import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import tyro
from tyro.conf import Positional

from exhume.attack.methods import Exhume
from exhume.defence.training import TrainingConfig
from exhume.networks import NetworkConfig
from exhume.problems import INSTALLED, Selection
from exhume.progress import ProgressCallback, ProgressDisplay, no_display, no_op
from exhume.runs.cells import Cell, Recipe, run_cell, run_study, train_once
from exhume.runs.schema import SearchRecord
from exhume.runs.tables import Row
from exhume.runs.tune import search_run
from exhume.tuning.study import SweepConfig, Trial
from exhume.tuning.workers.processes import Processes
from exhume.tuning.workers.protocol import Done, Workers
from exhume.tuning.workers.ray_cluster import RayCluster

WIDTHS = (100, 150, 200, 300, 400, 500)
"""Neurons in the hidden layer of each cell of the study."""
PHOTOGRAPHS = 6_000_000
"""Bytes of the candidates of 500 photographs, for tasks that do nothing else."""


def main(
    folder: Positional[Path],
    *,
    trials: int = 40,
    steps: int = 50,
    neurons: int = 200,
    counts: tuple[int, ...] = (1, 2),
    driver: int = 1000,
    tasks: int = 500,
) -> None:
    """Prints a line for each measurement.

    Args:
        folder: of the runs; searches and studies in it are replaced.
        steps: of a trial.
        neurons: in each of the two hidden layers of the network that is searched.
        counts: numbers of workers.
        driver: trials that take no time, to measure the driver alone.
        tasks: tasks that do nothing, to measure Ray alone.
    """
    trained = folder / "trained"
    train_once(trained, recipe((neurons, neurons)), device="cpu")
    found = {}
    for count in counts:
        for workers in (Processes(), Counted()):
            record, seconds = search(folder, trained, SweepConfig(trials=trials, workers=count), steps, workers)
            found[workers.name, count] = record
            print(f"search, {workers.name}, {count} at a time: {told(trials, seconds)}")
            print_bytes(workers)
            rows, seconds = study(folder / f"study-{workers.name}-{count}", steps, count, workers)
            print(f"study, {workers.name}, {count} at a time: {told(len(rows), seconds)}")
            print_bytes(workers)
        if count == 1:  # of several, the order in which they end decides what is tried next
            here, there = (timeless(found[kind.name, count].trials) for kind in (Processes, Counted))
            print(f"search, one at a time: settings, residuals and states of all trials equal: {here == there}")
    for sampler in ("random", "tpe"):
        print_driver(folder, trained, driver, sampler)
    print_tasks(tasks)


def recipe(widths: Sequence[int]) -> Recipe:
    """100 of the installed digits, the demo's training."""
    return Recipe(
        problem="mnist-digits",
        selection=Selection(per_class=10, data_dir=INSTALLED),
        training=TrainingConfig(epochs=1000),
        network=NetworkConfig(widths=tuple(widths)),
    )


def search(
    folder: Path, trained: Path, config: SweepConfig, steps: int, workers: Workers
) -> tuple[SearchRecord, float]:
    """A search in a copy of the trained folder, and its seconds."""
    place = folder / f"search-{workers.name}-{config.workers}"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place)
    start = time.perf_counter()
    record = search_run(place, config, Exhume(steps=steps, restarts=1), device="cpu", workers=workers)
    return record, time.perf_counter() - start


def study(folder: Path, steps: int, count: int, workers: Workers) -> tuple[list[Row], float]:
    """A study of one cell for each of WIDTHS, and its seconds."""
    shutil.rmtree(folder, ignore_errors=True)
    method = Exhume(steps=steps)
    cells = [
        Cell(setting={"width": width}, work=partial(run_cell, recipe=recipe((width,)), method=method))
        for width in WIDTHS
    ]
    start = time.perf_counter()
    results = list(run_study(folder, cells, device="cpu", workers=workers, count=count))
    return [result.row for result in results], time.perf_counter() - start


def told(number: int, seconds: float) -> str:
    """So many pieces of work in so many seconds."""
    return f"{seconds:.0f} s, {3600 * number / seconds:.0f} an hour (load {os.getloadavg()[0]:.1f})"


def timeless(trials: Sequence[Trial]) -> list[Trial]:
    """Trials by their numbers, without their seconds."""
    return sorted((replace(trial, seconds=0.0) for trial in trials), key=lambda trial: trial.number)


# ---- What travels


@dataclass(frozen=True, kw_only=True)
class Counted:
    """A Ray cluster of this machine, where the bytes of what passes the interface are noted, pickled."""

    bytes: dict[str, list[int]] = field(default_factory=dict)
    name: ClassVar[str] = "ray"
    same_disk: ClassVar[bool] = False

    def check(self, device: str) -> None:
        """As RayCluster."""
        RayCluster().check(device)

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,
        display: ProgressDisplay,
    ) -> Iterator[Done[Any, Any, Any]]:
        """As RayCluster."""
        self.bytes.clear()
        self._note("work", work)
        for done in RayCluster().map(work, items, count=count, device=device, display=display):
            self._note("item", done.item)
            self._note("result", done.result)
            yield replace(done, fetch=partial(self._fetched, done.fetch))

    def _fetched(self, fetch: Callable[[], Any]) -> Any:
        return self._note("fetched", fetch())

    def _note(self, name: str, value: Any) -> Any:
        self.bytes.setdefault(name, []).append(len(pickle.dumps(value)))
        return value


def print_bytes(workers: Workers) -> None:
    """What has travelled, if it was counted."""
    for name, sizes in getattr(workers, "bytes", {}).items():
        print(f"    {name}: {len(sizes)} times, {np.mean(sizes):,.0f} bytes on average, {max(sizes):,} at most")


# ---- What the driver and Ray can do


@dataclass(frozen=True, kw_only=True)
class Instant:
    """Workers whose trials take no time: each but the first ends as the first did, and a little worse."""

    name: ClassVar[str] = "instant"
    same_disk: ClassVar[bool] = True

    def check(self, device: str) -> None:
        """They have any device."""

    def map(
        self,
        work: Callable[[Any, ProgressCallback], tuple[Any, Any]],
        items: Iterable[Any],
        *,
        count: int,
        device: str,
        display: ProgressDisplay,
    ) -> Iterator[Done[Any, Any, Any]]:
        """The first item's result for all of them."""
        items = iter(items)
        first = next(items)
        result, bulk = work(first, no_op)
        yield Done(item=first, result=result, fetch=lambda: bulk)
        for worse, item in enumerate(items, start=1):
            yield Done(item=item, result=replace(result, value=result.value + worse), fetch=lambda: bulk)


def print_driver(folder: Path, trained: Path, trials: int, sampler: Any) -> None:
    """Milliseconds of the driver for a trial, after so many others."""
    ends: list[tuple[float, float]] = []
    place = folder / "search-instant"
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(trained, place)
    search_run(
        place,
        SweepConfig(trials=trials, sampler=sampler),
        Exhume(steps=100, restarts=1),
        device="cpu",
        workers=Instant(),
        progress_callback=lambda event: (
            ends.append((time.perf_counter(), time.process_time())) if event.stage == "search" else None
        ),
    )
    for number in (50, 100, 200, 500, 1000, 2000, 5000):
        if number <= trials:
            wall, processor = 1e3 * np.median(np.diff(ends[number - 25 : number], axis=0), axis=0)
            print(f"driver, {sampler}, after {number} trials: {wall:.1f} ms each, {processor:.1f} of the processor")
    print(f"    the journal has {(place / 'search.journal').stat().st_size / trials:,.0f} bytes a trial")


def print_tasks(tasks: int) -> None:
    """Tasks a second of Ray on this machine, two at a time, which leave what a trial leaves."""
    done = RayCluster().map(_leave, range(tasks), count=2, device="cpu", display=no_display)
    next(done)  # the workers are there
    start = time.perf_counter()
    number = sum(1 for _ in done)
    print(f"ray alone: {number / (time.perf_counter() - start):.0f} tasks a second (load {os.getloadavg()[0]:.1f})")


def _leave(item: int, _: object) -> tuple[list[float], bytes]:
    return [float(item)] * 100, bytes(PHOTOGRAPHS)


if __name__ == "__main__":
    tyro.cli(main)
