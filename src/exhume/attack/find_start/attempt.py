"""What every way to the start takes and gives: the settings of a search, and what one way came back with."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from exhume.attack.find_start.draws import DISTRIBUTIONS, Distribution
from exhume.attack.find_start.layers import TrainedNetwork
from exhume.attack.find_start.replay import Hypothesis
from exhume.errors import InputError
from exhume.progress import ProgressCallback

Part = TypeVar("Part")
Result = TypeVar("Result")

ALL_SEEDS = 2**32
"""Seeds that PyTorch's CPU generator tells apart: it uses the low 32 bits of what `manual_seed` is given."""


@dataclass(frozen=True, kw_only=True)
class StartSearch:
    """Where to look for the start of a training.

    Example:
        exhume.find_start(network, exhume.StartSearch(ways=("all-seeds",)))
    """

    ways: tuple[str, ...] = ("generator-state", "likely-seeds", "all-seeds", "likely-seeds-anywhere")
    """Rows of WAYS, tried in this order until one finds the start. generator-state: the generator's state, solved from
    weights that training never moved. likely-seeds: seeds that people use, with few outputs drawn before the network;
    the famous ones with up to `places`. all-seeds: all of PyTorch's 2^32 seeds, with `offset` outputs drawn before.
    likely-seeds-anywhere: the seeds below 65,536, with up to `places` outputs drawn before."""
    seeds: tuple[int, ...] = ()
    """Seeds to try beside those that people use; only their low 32 bits count."""
    places: int = 2**22
    """likely-seeds (its famous seeds) and likely-seeds-anywhere: fewer 32-bit outputs than this were drawn before the
    network."""
    first_seed: int = 0
    """all-seeds begins here."""
    last_seed: int = ALL_SEEDS - 1
    """all-seeds ends here."""
    offset: int = 0
    """all-seeds: 32-bit outputs that were drawn before the network."""
    distributions: tuple[str, ...] = ("uniform", "normal")
    """What the initial weights may have been drawn from: uniform or normal (float32), uniform-float64 or normal-float64
    (drawn in double precision). all-seeds tries the first alone; generator-state always looks for uniform."""
    device: str = "cpu"
    """all-seeds computes here: cpu or cuda; on the command line also auto, a GPU where there is one."""
    threads: int | None = None
    """Processor cores to use; None: all that this process may use."""

    def __post_init__(self) -> None:
        if not self.ways:
            raise InputError("ways must name one way at least.")
        unknown = [row for row in self.distributions if row not in DISTRIBUTIONS]
        if unknown or not self.distributions:
            raise InputError(f"distributions must be of {', '.join(DISTRIBUTIONS)}, not {self.distributions}.")
        if not 0 <= self.first_seed <= self.last_seed < ALL_SEEDS:
            raise InputError("first_seed and last_seed must be at least 0 and below 2^32, in this order.")
        if self.offset < 0 or not 0 < self.places <= 2**31:
            raise InputError("offset must be at least 0, and places at least 1 and at most 2^31.")
        if self.threads is not None and self.threads < 1:
            raise InputError(f"threads must be at least 1, not {self.threads}.")
        if any(seed < 0 for seed in self.seeds):
            raise InputError("A seed must be at least 0.")

    @property
    def cores(self) -> int:
        """How many threads to start."""
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return self.threads or usable or 1

    @property
    def rows(self) -> tuple[Distribution, ...]:
        """The distributions, cheapest first."""
        return tuple(DISTRIBUTIONS[name] for name in self.distributions)


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """What one way found: hypotheses to be tested, best first, and how many it chose them from.

    trials: (seed, place, layer, distribution) that were compared; said: what was tried, in a sentence.
    """

    trials: float
    said: str
    hypotheses: tuple[Hypothesis, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """How far a sweep over all seeds has got, so that it can go on later.

    done: seeds below it are done; survivors: (seed, z) of those that passed the first test; digest: of the question.
    """

    digest: str
    done: int
    survivors: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """Who follows a search: its progress, where it goes on, and who is told how far a sweep has got."""

    progress_callback: ProgressCallback
    resume: Sweep | None = None
    keep: Callable[[Sweep], None] = field(default=lambda _: None)


Way = Callable[[TrainedNetwork, StartSearch, Context], Attempt]
"""One way to hypotheses about the start."""


def side_by_side(
    function: Callable[[Part], Result], parts: Iterable[Part], workers: int
) -> Iterator[tuple[Part, Result]]:
    """(part, function(part)) in the order of the parts, computed on so many threads, a few ahead of the one asked for.

    Whoever stops asking waits for no more than those that are being computed.
    """
    waiting: deque[tuple[Part, Future[Result]]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for part in parts:
                waiting.append((part, pool.submit(function, part)))
                if len(waiting) > 2 * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
