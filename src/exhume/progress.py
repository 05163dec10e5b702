"""How long work tells its caller how far it is. The library never prints: the command line draws the bars."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Progress:
    """`step` of `total` steps of `stage` are done; `values` are the figures of the moment, by name."""

    stage: str
    step: int
    total: int
    values: Mapping[str, float]


ProgressCallback = Callable[[Progress], None]
"""Is told of the progress. What it raises ends the work, and reaches the caller."""

ProgressDisplay = Callable[[], AbstractContextManager[ProgressCallback]]
"""Shows the progress of one piece of work; opened anew for each."""


def no_op(_: object) -> None:
    """Does nothing with what it is told."""


def no_display() -> AbstractContextManager[ProgressCallback]:
    """Shows nothing."""
    return nullcontext(no_op)
