"""The generator's state itself, from weights that training never moved: any seed, any place.

Where an input was 0 in every image (a constant pixel), where a neuron was dead, or where a layer was frozen, a weight
is still what PyTorch drew: u 2k - k in float32, u of 24 bits. So it gives away 24 bits of one output of MT19937, and
all outputs are linear over GF(2) in its 19,937 bits of state. Many equations say the same, so that 1,250 to 1,700 such
weights of one layer are needed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from exhume.attack.find_start.attempt import Attempt, Context, StartSearch
from exhume.attack.find_start.draws import DISTRIBUTIONS, INITIALISATIONS, fans
from exhume.attack.find_start.layers import TrainedNetwork
from exhume.attack.find_start.replay import Hypothesis
from exhume.attack.find_start.stream import WORDS, Stream
from exhume.progress import Progress

BITS = 24
"""Of an output's 32 bits, those that `uniform_` takes in float32."""
SHORTEST = 24
"""A row or column of so many weights, all of them on the grid, did not get there by chance: 0.4^24 is 3e-10."""
SPARE = 192
"""Equations beyond the unknowns that must hold too: chance would grant that once in 2^192."""
FEWEST, ENOUGH = 1250, 2000
"""Weights that determine the state if they are consecutive; and those that do wherever they are."""
UNDETERMINED = 7
"""Bits of the state that no known output depends on: the lower ones of the first word."""
REWIND = 1 << 24
"""Outputs that are gone back in search of a seeding."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """The weights of a layer that training never moved: their place in it, ascending, and their 24 bits."""

    layer: int
    places: NDArray[np.int64]
    bits: NDArray[np.uint32]


def search(network: TrainedNetwork, settings: StartSearch, context: Context) -> Attempt:
    """Solves for the state wherever enough weights never moved, and goes back to the seeding if it is within reach."""
    del settings
    best: Known | None = None
    tried = 0
    for known in unmoved(network):
        tried += 1
        best = known if best is None or len(known.places) > len(best.places) else best
        context.progress_callback(Progress(stage="state", step=tried, total=tried + 1, values={}))
        solution = solve(known)
        context.progress_callback(Progress(stage="state", step=tried + 1, total=tried + 1, values={}))
        if solution is not None:
            words, place = solution
            stream, start = _origin(words, place)
            row = DISTRIBUTIONS["uniform"]
            found = Hypothesis(stream=stream, layer=known.layer, place=start, distribution=row, z=math.inf)
            return Attempt(trials=tried, said=_said(known), hypotheses=(found,))
    return Attempt(trials=max(tried, 1), said=_said(best))


def _said(known: Known | None) -> str:
    count = 0 if known is None else len(known.places)
    return f"the equations of {count:,} weights of one layer that training never moved (1,250 to 1,700 are needed)"


def unmoved(network: TrainedNetwork) -> Iterator[Known]:
    """The layers of which whole rows or columns lie on the grid of a uniform initialisation, most weights first."""
    candidates = []
    for index, layer in enumerate(network.layers):
        for rule in INITIALISATIONS.values():
            if rule.normal:
                continue
            bits, fits = grid(layer.weight, rule.scale(*fans(layer.weight)))
            chosen = _whole_lines(fits).reshape(-1)
            places = chosen.nonzero()[0]
            if len(places):
                candidates.append(Known(layer=index, places=places, bits=bits.reshape(-1)[places]))
    return iter(sorted(candidates, key=lambda known: -len(known.places)))


def grid(weight: Tensor, bound: float) -> tuple[NDArray[np.uint32], NDArray[np.bool_]]:
    """The 24 bits that each weight would be drawn from between -bound and bound, and whether it is on that grid.

    weight: any shape; the results have the shape [out, in], with a convolution's window flattened.
    """
    values = weight.detach().double().flatten(1).numpy()
    low = np.float32(-bound)
    width = np.float32(np.float32(bound) - low)
    nearest = np.rint((values - float(low)) / float(width) * 2**BITS)
    bits, fits = np.zeros(values.shape, np.uint32), np.zeros(values.shape, bool)
    for step in (0, -1, 1):
        tried = np.clip(nearest + step, 0, 2**BITS - 1)
        share = tried * 2.0**-BITS
        fused = (share * float(width) + float(low)).astype(np.float32)  # one rounding, as processors with FMA do
        twice = share.astype(np.float32) * width + low
        equal = ((fused == values) | (twice == values)) & ~fits
        bits[equal], fits = tried[equal].astype(np.uint32), fits | equal
    return bits, fits


def _whole_lines(fits: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Those entries of [out, in] whose whole row or column fits."""
    rows = fits.all(axis=1, keepdims=True) & (fits.shape[1] >= SHORTEST)
    columns = fits.all(axis=0, keepdims=True) & (fits.shape[0] >= SHORTEST)
    return np.asarray(rows | columns)


def solve(known: Known) -> tuple[NDArray[np.uint32], int] | None:
    """The 624 words behind outputs place .. place + 624 of a layer, and that place; None if there is no such state.

    The unknowns are the bits of those outputs that are not known: 8 of an output whose weight is.
    """
    from exhume.attack.find_start import gf2  # noqa: PLC0415

    if len(known.places) < FEWEST:
        return None
    begin = _window(known.places)
    place = int(known.places[begin])
    offsets = known.places[begin:] - place
    inside = int((offsets < WORDS).sum())
    window = np.zeros(WORDS, np.uint32)
    window[offsets[:inside]] = known.bits[begin : begin + inside]
    columns = _columns(offsets[:inside])
    unknowns = int(columns.max()) + 1
    width = unknowns // 64 + 1
    later, bits = offsets[inside:], known.bits[begin + inside :]
    rows, leads, used = np.zeros((0, width), np.uint64), np.zeros(0, np.int64), 0
    for count in _growing(FEWEST - inside, len(later)):
        fresh = gf2.equations(later[:count], bits[:count], BITS, window, columns, width)[used:]
        rows, used = np.concatenate([rows[: len(leads)], fresh]), BITS * count
        leads = gf2.eliminate(rows, unknowns)
        if (rows[len(leads) :, -1] >> np.uint64(63)).any():
            return None  # a contradiction: these were not the outputs of one stream
        if len(leads) >= unknowns - UNDETERMINED and used - len(leads) >= SPARE:
            break
    else:
        return None
    solution = gf2.back_substitute(rows, leads, width)
    unknown = np.unpackbits(solution.view(np.uint8), bitorder="little")[:unknowns].astype(np.uint32)
    for bit in range(32):
        free = columns[:, bit] >= 0
        window[free] |= unknown[columns[free, bit]] << np.uint32(bit)
    return gf2.untempered(window), place


def _window(places: NDArray[np.int64]) -> int:
    """The known weight to begin with, so that enough follow within the shortest stretch."""
    count = min(ENOUGH, len(places))
    return int((places[count - 1 :] - places[: len(places) - count + 1]).argmin())


def _growing(first: int, last: int) -> Iterator[int]:
    """Numbers of weights to take, more each time, until there are no more."""
    count = min(first, last)
    while count < last:
        yield count
        count = min(last, count + (FEWEST // 4))
    yield last


def _columns(inside: NDArray[np.int64]) -> NDArray[np.int64]:
    """[624, 32] numbers of the unknown bits of the window's outputs, -1 for those that are known."""
    unknown = np.ones((WORDS, 32), bool)
    unknown[inside, :BITS] = False
    return np.where(unknown, unknown.cumsum().reshape(unknown.shape) - 1, -1)


def _origin(words: NDArray[np.uint32], place: int) -> tuple[Stream, int]:
    """The stream from its seeding on, or from as far back as was looked, and the layer's place in it."""
    from exhume.attack.find_start import mt19937  # noqa: PLC0415

    line = mt19937.rewound(words, REWIND + place)  # the layer's first output is made of line[REWIND]
    seeding = mt19937.last_seeding(line)
    if seeding >= 0:
        return Stream(seed=mt19937.seed_of(int(line[seeding + 1]))), REWIND - seeding - WORDS
    return Stream(words=line[1 : WORDS + 1]), REWIND - WORDS - 1
