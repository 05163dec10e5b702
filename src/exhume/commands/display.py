"""What the commands show: progress bars, and what came of a stage."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from exhume.attack.find_start import Evidence
from exhume.audit.scores import Counts, sentence
from exhume.commands.tracking import TRACKERS
from exhume.errors import known
from exhume.progress import Progress as Event
from exhume.progress import ProgressCallback
from exhume.runs.schema import SearchRecord


class _Plain(Console):
    """Prints what it is given, paths too, letter by letter. Where nobody reads any more, it prints no more."""

    def __init__(self, *, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        """The work goes on: only its words are lost."""
        self.quiet = True
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.file.fileno())


console, bars_console = _Plain(), _Plain(stderr=True)


def print_scores(scores: Counts) -> None:
    """Two lines: the sentence, and the counts by threshold with those of the held-out images in brackets."""
    counts = "  ".join(f"{level}: {count} ({scores.null[level]})" for level, count in scores.recovered.items())
    papers = f"SSIM > 0.4: {scores.ssim.good} ({scores.ssim.null_good})"
    console.print(f"result        {sentence(scores)}", soft_wrap=True)
    console.print(f"counts        {scores.measure.upper()} {counts}  {papers}  (held-out images)", soft_wrap=True)


def print_search(record: SearchRecord) -> None:
    """Three lines: how the trials ended, the best one, and by what it was chosen."""
    counts = Counter(trial.state for trial in record.trials)
    ends = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"trials        {len(record.trials)}: {ends}", soft_wrap=True)
    for trial in record.trials:
        if trial.number == record.best:
            found = ", ".join(f"{name} {_short(value)}" for name, value in trial.settings.items())
            console.print(
                f"best          trial {trial.number}, {record.judge} {trial.value:.4g}: {found}", soft_wrap=True
            )
    console.print(f"candidates    {record.chosen if record.best is not None else 'none'}", soft_wrap=True)


def print_start(sentence: str, evidence: Sequence[Evidence]) -> None:
    """The outcome of a search for the start, and for each parameter how well it agrees with the best hypothesis."""
    console.print(sentence, soft_wrap=True)
    if evidence:
        console.print(f"{'parameter':28}{'verdict':10}{'correlation':>12}{'z':>12}{'place':>14}")
    for row in evidence:
        place = "" if row.place is None else f"{row.place:,}"
        line = f"{row.parameter:28}{row.verdict:10}{row.correlation:12.3f}{row.z:12.1f}{place:>14}"
        console.print(line.rstrip(), soft_wrap=True)


def _short(value: float | None) -> str:
    return "by the weights" if value is None else f"{value:.3g}"


@contextmanager
def progress_display(run: Path, tracker: str | None) -> Iterator[ProgressCallback]:
    """Progress bars, and a log in the run's folder where a tracker is asked for."""
    if tracker is None:
        with bars() as show:
            yield show
        return
    with TRACKERS[known(tracker, TRACKERS, "tracker")](run / "tracking") as log, bars() as show:

        def hear(event: Event) -> None:
            log(event)
            show(event)

        yield hear


@contextmanager
def bars() -> Iterator[ProgressCallback]:
    """A progress bar for each stage, on standard error."""
    name = TextColumn("{task.description:12}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left, values_column = TimeRemainingColumn(), TextColumn("{task.fields[values]}", markup=False)
    with Progress(*columns, left, values_column, console=bars_console) as display:
        tasks: dict[str, Any] = {}

        def hear(event: Event) -> None:
            told = {name: value for name, value in event.values.items() if name != "seconds_left"}  # the bar shows it
            values = "  ".join(f"{name} {value:.2e}" for name, value in told.items())
            stage = event.stage.partition("-")[0]  # trial-1, trial-2, ... share a bar
            if stage not in tasks:
                tasks[stage] = display.add_task(event.stage, total=event.total, values=values)
            display.update(
                tasks[stage], description=event.stage, completed=event.step, total=event.total, values=values
            )

        yield hear
