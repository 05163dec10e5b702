"""What the commands show: progress bars, and what came of a stage."""

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
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
from exhume.audit.counts import HEADLINE, Counts, Picked
from exhume.audit.doubts import about_control
from exhume.audit.sentence import sentence
from exhume.audit.significance import Interval
from exhume.audit.verdict import Judgement
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
EVERY = 60.0
"""Seconds between two lines of progress in a file."""


def print_scores(scores: Counts) -> None:
    """Two lines: the sentence, and the counts by threshold with those of the held-out images in brackets.

    A third one says which held-out images are the control, where not all are.
    """
    beside = scores.held_out > 0
    counts = "  ".join(
        f"{level}: {count}" + (f" ({scores.null[level]})" if beside else "")
        for level, count in scores.recovered.items()
    )
    papers = f"SSIM > 0.4: {scores.ssim.good}" + (f" ({scores.ssim.null_good})" if beside else "")
    what = "held-out images" if beside else "no control"
    console.print(f"result        {sentence(scores)}", soft_wrap=True)
    console.print(f"counts        {scores.measure.upper()} {counts}  {papers}  ({what})", soft_wrap=True)
    if about_control(scores):
        console.print(f"control       {about_control(scores)}", soft_wrap=True)


def print_evidence(scores: Counts) -> None:
    """Two lines: the recovered share and its lead over held-out images, with intervals; the p-value of every test."""
    if scores.share is not None:
        share = scores.recovered[HEADLINE] / scores.images
        told = f"{share:.0%} of the training images ({_between(scores.share)})"
        if scores.difference is not None:
            lead = share - scores.null[HEADLINE] / scores.held_out
            told += f", {100 * lead:+.0f} points against held-out ones ({_between(scores.difference)})"
        told += f"; {scores.distinct} of those recovered do not resemble each other"
        console.print(f"share         {told}", markup=False, soft_wrap=True)
    if scores.p_rank is not None:
        levels = "  ".join(f"{level}: {p_value:.1g}" for level, p_value in scores.p_values.items())
        console.print(f"p-values      {levels}  all similarities: {scores.p_rank:.1g}", soft_wrap=True)


def _between(interval: Interval) -> str:
    return f"95 % interval {interval.low:.0%} to {interval.high:.0%}"


def print_picked(picked: Picked, *, held_out: int) -> None:
    """One line: what an attacker without the data would have picked."""
    console.print(
        f"confident     {picked.candidates} candidates of a confidence of 0.5 or more: {picked.right} right "
        f"({picked.expected:.0f} expected), they show {picked.distinct} training images"
        + (f"; {picked.null_right} resemble held-out images as much" if held_out else ""),
        soft_wrap=True,
    )


def print_verdict(judgement: Judgement) -> None:
    """The verdict, its sentence, and the reasons, one a line."""
    told = judgement.sentence.removeprefix("Not decided: ")
    console.print(f"verdict       {judgement.name}: {told}", markup=False, soft_wrap=True)
    for reason in judgement.reasons:
        console.print(f"              {reason}", markup=False, soft_wrap=True)


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
    """A progress bar for each stage, on standard error; a few lines where that is no terminal but a file."""
    with _drawn() if bars_console.is_terminal else _lines() as hear:
        yield hear


@contextmanager
def _lines() -> Iterator[ProgressCallback]:
    """A line as a stage begins, after that one a minute at most; how far each came at the end."""
    stages, told = dict[str, _Stage](), time.monotonic()

    def hear(event: Event) -> None:
        nonlocal told
        now, name = time.monotonic(), event.stage.partition("-")[0]
        new = name not in stages
        before = _Stage(first=event, began=now, last=event, at=now) if new else stages[name]
        stage = stages[name] = replace(before, last=event, at=now)
        if new or now - told >= EVERY:
            line = f"{name:14}begins{stage.estimate}" if new else stage.sentence
            bars_console.print(line, soft_wrap=True)
            told = now

    try:
        yield hear
    finally:
        for stage in stages.values():
            bars_console.print(stage.sentence, soft_wrap=True)


@dataclass(frozen=True, kw_only=True)
class _Stage:
    """A stage under way: what was first told of it, and last, with the times."""

    first: Event
    began: float
    last: Event
    at: float

    @property
    def estimate(self) -> str:
        """How long it will still take, where that is known and not over."""
        seconds, done = self.last.values.get("seconds_left"), self.last.step - self.first.step
        if seconds is None and done > 0:
            seconds = (self.at - self.began) * (self.last.total - self.last.step) / done
        return f", about {seconds:.0f} s left" if seconds else ""

    @property
    def sentence(self) -> str:
        share = self.last.step / self.last.total if self.last.total else 1.0
        values = "".join(f"  {told}" for told in _told(self.last))
        return f"{self.last.stage:14}{share:.0%}, {self.at - self.began:.0f} s{self.estimate}{values}"


def _told(event: Event) -> list[str]:
    """The figures of the moment with their names, without the time that is left, which is told otherwise."""
    figures = {name: value for name, value in event.values.items() if name != "seconds_left"}
    whole = {name: float(value).is_integer() for name, value in figures.items()}
    return [f"{name} {value:,.0f}" if whole[name] else f"{name} {value:.2e}" for name, value in figures.items()]


@contextmanager
def _drawn() -> Iterator[ProgressCallback]:
    """A progress bar for each stage."""
    name = TextColumn("{task.description:12}", markup=False)
    columns = (name, BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    left, values_column = TimeRemainingColumn(), TextColumn("{task.fields[values]}", markup=False)
    with Progress(*columns, left, values_column, console=bars_console) as display:
        tasks: dict[str, Any] = {}

        def hear(event: Event) -> None:
            values = "  ".join(_told(event))
            stage = event.stage.partition("-")[0]  # trial-1, trial-2, ... share a bar
            if stage not in tasks:
                tasks[stage] = display.add_task(event.stage, total=event.total, values=values)
            display.update(
                tasks[stage], description=event.stage, completed=event.step, total=event.total, values=values
            )

        yield hear
