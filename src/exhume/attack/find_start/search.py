"""Looks for the start of a training in the trained weights, and says found or not found, with the evidence."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from exhume.attack.find_start import all_seeds, generator_state, likely_seeds
from exhume.attack.find_start.attempt import Attempt, Context, StartSearch, Sweep, Way
from exhume.attack.find_start.evidence import LOG10_FOUND, Evidence, chance
from exhume.attack.find_start.layers import TrainedLayer, TrainedNetwork, trained_network
from exhume.attack.find_start.public_start import PublicNetworks, closest
from exhume.attack.find_start.replay import Replay, replay
from exhume.attack.find_start.stream import Stream
from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.progress import ProgressCallback, no_op

WAYS: dict[str, Way] = {
    "generator-state": generator_state.search,
    "likely-seeds": likely_seeds.search_near,
    "all-seeds": all_seeds.search,
    "likely-seeds-anywhere": likely_seeds.search_anywhere,
}
"""The ways from weights to a stream of PyTorch's generator, cheapest first."""
PUBLIC_START = "public-start"
"""The way that needs no stream, but networks to compare with."""
OUT_OF_REACH = (
    "It may still be within reach of others: weights made on a GPU, or by NumPy, Keras or JAX, were not looked for, "
    "nor were unlikely seeds behind other draws."
)
REPLAYS = 64
"""So many of a way's hypotheses at most are tested by drawing the network anew."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a training began with.

    way: how it was found, a row of WAYS or `public-start`; initial: the values before training by parameter, of those
    that are known; unknown: the other parameters (a replaced last layer, BatchNorm). Of a stream: seed (32 bits; None
    if only the generator's state was found), and how many of its 32-bit outputs come before the first and up to the
    last of the initial values, `place` and `end`; without a seed they count from where the search went back to. Of a
    public start: its name, `candidate`.

        outcome = exhume.find_start(checkpoint)
        if outcome.start is not None:
            candidates = exhume.reconstruct(checkpoint, initial=outcome.start.initial)
    """

    way: str
    initial: dict[str, Tensor]
    unknown: tuple[str, ...]
    seed: int | None = None
    place: int | None = None
    end: int | None = None
    stream: Stream | None = None
    candidate: str | None = None

    def generator(self, place: int) -> torch.Generator:
        """PyTorch's generator after `place` outputs: at `self.end` it is what the training itself began to draw from.

        Raises:
            InputError: the start is a public one, so that no stream is known.
        """
        if self.stream is None:
            raise InputError("A public start has no generator.")
        return self.stream.generator(place)


@dataclass(frozen=True, kw_only=True)
class WayTried:
    """One way that was tried: what it compared, in a sentence, how many trials that were, and how long it took."""

    way: str
    said: str
    trials: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class SearchOutcome:
    """Whether the start was found, with the evidence.

    start: None if it was not found; evidence: of each parameter of the best hypothesis, found or not; log10_p: the
    decimal logarithm of a bound on the chance of such agreement, corrected for everything that was looked at.

        print(exhume.find_start(checkpoint).sentence)
    """

    start: Start | None
    tried: tuple[WayTried, ...]
    evidence: tuple[Evidence, ...]
    log10_p: float

    @property
    def trials(self) -> float:
        """How many streams and places were compared with the weights, by all ways together."""
        return sum(way.trials for way in self.tried)

    @property
    def seconds(self) -> float:
        """How long all ways took together."""
        return sum(way.seconds for way in self.tried)

    @property
    def sentence(self) -> str:
        """The outcome in one sentence."""
        looked = f"{self.trials:,.0f} trial{'' if self.trials == 1 else 's'}, {self.seconds:.1f} s"
        if self.start is None:
            tried = "; ".join(f"{way.way}: {way.said}" for way in self.tried)
            return f"Not found ({looked}): {tried}. {OUT_OF_REACH}"
        if self.start.candidate is not None:
            what = f"it shares its start with {self.start.candidate} (which came first is not told)"
        elif self.start.seed is None:
            what = "the generator's state is known, but no seed within reach"
        else:
            rows = (row.parameter for row in self.evidence if row.place == self.start.place)
            first = next(rows, "the network")
            what = f"seed {self.start.seed}, {self.start.place:,} outputs drawn before {first}"
        left = f"; unknown: {', '.join(self.start.unknown)}" if self.start.unknown else ""
        return f"Found by {self.start.way}: {what}, p {chance(self.log10_p)} ({looked}){left}."


def find_start(
    network: Checkpoint | nn.Module | Mapping[str, Tensor] | Sequence[TrainedLayer],
    search: StartSearch | None = None,
    *,
    among: PublicNetworks | None = None,
    resume: Sweep | None = None,
    keep: Callable[[Sweep], None] = lambda _: None,
    progress_callback: ProgressCallback = no_op,
) -> SearchOutcome:
    """Finds what a training began with from the trained weights alone, or says that it did not.

    Args:
        network: the trained checkpoint or module, its state dict, or its layers. Of a checkpoint the initial values
            have the names of its weights.
        search: where to look; None: everywhere, within minutes.
        among: networks of which one may be the start (`read_candidates` reads a folder of them); tried first.
        resume, keep: `keep` is told now and then how far the sweep over all seeds has got; `resume` goes on there.
        progress_callback: is told of the progress, with an estimate of the seconds left; what it raises ends the work.

    Raises:
        InputError: the network has no layer of weights, or a setting or `resume` does not fit.

    Example:
        >>> _ = torch.manual_seed(42)
        >>> outcome = find_start(nn.Linear(784, 10), StartSearch(ways=("likely-seeds",), places=1000))
        >>> outcome.start.seed, outcome.start.place, round(outcome.evidence[0].correlation, 3)
        (42, 0, 1.0)
    """
    search, trained = search or StartSearch(), trained_network(network)
    unknown = [way for way in search.ways if way not in WAYS]
    if unknown:
        raise InputError(f"There is no way {unknown[0]!r} to the start; there are {', '.join(WAYS)}.")
    tried: list[WayTried] = []
    best = SearchOutcome(start=None, tried=(), evidence=(), log10_p=0.0)
    if among is not None:
        best = _public(trained, among)
        tried += best.tried
    for name in search.ways if best.start is None else ():
        began = time.monotonic()
        attempt = WAYS[name](trained, search, Context(progress_callback=progress_callback, resume=resume, keep=keep))
        trials = attempt.trials + sum(way.trials for way in tried)
        found = _best(trained, attempt, trials)
        tried.append(WayTried(way=name, said=attempt.said, trials=attempt.trials, seconds=time.monotonic() - began))
        if found is not None and found.log10_p(trials) <= best.log10_p:
            best = _outcome(trained, found, name, found.log10_p(trials))
        if best.start is not None:
            break
    return SearchOutcome(start=best.start, tried=tuple(tried), evidence=best.evidence, log10_p=best.log10_p)


def _best(network: TrainedNetwork, attempt: Attempt, trials: float) -> Replay | None:
    """The attempt's hypothesis that explains the network best; the first that does so surely ends the search."""
    replays = []
    for hypothesis in attempt.hypotheses[:REPLAYS]:
        replays.append(replay(network, hypothesis, trials=trials))
        if replays[-1].log10_p(trials) < LOG10_FOUND:
            break
    return min(replays, key=lambda one: one.log10_p(trials), default=None)


def _outcome(network: TrainedNetwork, found: Replay, way: str, log10_p: float) -> SearchOutcome:
    start = None
    if log10_p < LOG10_FOUND:
        start = Start(
            way=way,
            seed=found.stream.seed,
            place=found.place,
            end=found.end,
            stream=found.stream,
            initial=found.initial,
            unknown=_unknown(network, found.evidence),
        )
    return SearchOutcome(start=start, tried=(), evidence=found.evidence, log10_p=log10_p)


def _public(network: TrainedNetwork, among: PublicNetworks) -> SearchOutcome:
    began = time.monotonic()
    found = closest(network, among)
    said = f"{len(among)} networks, weight by weight against the same with shuffled neurons"
    start = None
    if found.log10_p < LOG10_FOUND:
        start = Start(
            way=PUBLIC_START,
            candidate=found.name,
            initial=found.initial,
            unknown=_unknown(network, found.evidence),
        )
    way = WayTried(way=PUBLIC_START, said=said, trials=found.trials, seconds=time.monotonic() - began)
    return SearchOutcome(start=start, tried=(way,), evidence=found.evidence, log10_p=found.log10_p)


def _unknown(network: TrainedNetwork, evidence: tuple[Evidence, ...]) -> tuple[str, ...]:
    return (*(row.parameter for row in evidence if row.verdict == "unknown"), *network.others)
