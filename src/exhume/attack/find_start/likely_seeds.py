"""Seeds that people use, at every place of their streams: scripts draw before they build the network."""

import math
import time
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from exhume.attack.find_start.attempt import ALL_SEEDS, Attempt, Context, StartSearch, side_by_side
from exhume.attack.find_start.draws import Distribution, Pattern, pattern
from exhume.attack.find_start.layers import TrainedNetwork
from exhume.attack.find_start.replay import Hypothesis
from exhume.attack.find_start.stream import Stream
from exhume.progress import Progress

SMALL = range(2**16)
"""Seeds so small are all likely."""
FAMOUS = (
    *(0, 1, 2, 3, 4, 5, 7, 10, 11, 13, 17, 21, 22, 23, 24, 27, 33, 37, 42, 43, 44, 47, 55, 66, 69, 73, 77, 88, 99, 100),
    *(101, 111, 123, 124, 200, 222, 233, 256, 300, 314, 321, 333, 365, 404, 420, 444, 500, 512, 555, 567, 618, 666),
    *(777, 789, 888, 911, 999, 1000, 1001, 1024, 1111, 1122, 1212, 1213, 1221, 1222, 1234, 1235, 1313, 1337, 1414),
    *(1492, 1729, 1984, *range(1990, 2031), 2048, 2222, 2345, 2718, 3141, 3142, 3333, 3407, 4096, 4242, 4321, 4444),
    *(5555, 6666, 6789, 7777, 8888, 9001, 9999, 10000, 10086, 11111, 12321, 12345, 13579, 16180, 23333, 27182, 31337),
    *(31415, 31416, 32768, 42424, 54321, 55555, 65535, 65536, 65537, 66666, 77777, 88888, 99999, 100000, 101010),
    *(111111, 114514, 123123, 123321, 123456, 141421, 161803, 222222, 271828, 314159, 333333, 424242, 524287, 543210),
    *(555555, 654321, 666666, 777777, 888888, 999999, 1000000, 1048576, 1234321, 1234567, 2147483, 2718281, 3141592),
    *(3141593, 7654321, 8675309, 9999999, 11111111, 12345678, 20000000, 27182818, 31415926, 31415927, 42424242),
    *(87654321, 99999999, 100000000, 123456789, 141421356, 161803398, 271828182, 271828183, 314159265, 987654321),
    *(1000000000, 1234567890, 1618033988, 2147483646, 2147483647, 2147483648, 3141592653, 4294967295, 4294967294),
    *(0xBAD, 0xBEEF, 0xCAFE, 0xDEAD, 0xF00D, 0xFACE, 0xC0FFEE, 0xABCDEF, 0xBADCAB1E, 0xBADF00D, 0xCAFEBABE, 0xDEADBEEF),
    *(0xFEEDFACE, 0xDEADC0DE, 0xC0DEC0DE, 0x8BADF00D, 0xFFFFFFFF, 0x12345678, 0x1234ABCD, 0xABCD1234),
    67280421310721 % ALL_SEEDS,  # what torch.Generator() begins with
    88172645463325252 % ALL_SEEDS,  # Marsaglia's xorshift
)
"""Seeds from the documentation, examples and jokes of this field; tried anywhere for every layer and distribution."""
NEAR_PLACES = 1984
"""So many places are tried for all likely seeds at once, as many as a scan computes in one piece."""
STEPS_Z = (2.5, 3.0, 3.5, 4.0)
"""z below which a place is dropped after 32, 64, 96, and 128 or more weights; ordinary training leaves 5 at 64."""
SURE_Z = 12.0
"""No false place gets there in 2^50 trials, so that nothing else need be tried."""
MOST_FALSE_PLACES = 100
"""So many false places at most may pass the second test, in all: each costs a replay of the network."""
SMALLEST = 32
"""A layer of fewer weights is not looked for by itself."""
CHUNK_SECONDS = 1.0
OUTPUTS_A_SECOND = 4e8


def dates() -> Iterator[int]:
    """The days of 1980 to 2029 as people write them in eight digits."""
    for year in range(1980, 2030):
        for month in range(1, 13):
            for day in range(1, 32):
                yield year * 10000 + month * 100 + day
                yield day * 1000000 + month * 10000 + year


def likely(extra: Iterable[int] = ()) -> NDArray[np.uint32]:
    """All likely seeds, each once, ascending."""
    return np.unique(np.array([seed % ALL_SEEDS for seed in (*SMALL, *FAMOUS, *dates(), *extra)], np.uint32))


def search_near(network: TrainedNetwork, settings: StartSearch, context: Context) -> Attempt:
    """Tries all likely seeds with few draws before the network, and the famous ones anywhere and for every layer."""
    famous = np.unique(np.array([seed % ALL_SEEDS for seed in (*FAMOUS, *settings.seeds)], np.uint32))
    every, few = likely(settings.seeds), min(NEAR_PLACES, settings.places)
    layers = [i for i, layer in enumerate(network.layers) if layer.weight.numel() >= SMALLEST] or [0]
    plans = [(every, few, layers[0], row) for row in settings.rows]
    plans += [(famous, settings.places, layer, row) for layer in layers[:4] for row in settings.rows]
    said = (
        f"{len(every):,} likely seeds with fewer than {few:,} outputs drawn before the network, "
        f"{len(famous)} famous ones with fewer than {settings.places:,}"
    )
    return _scan_all(network, settings, context, plans, said)


def search_anywhere(network: TrainedNetwork, settings: StartSearch, context: Context) -> Attempt:
    """Tries all small seeds at every place for the first layer: some minutes."""
    every = np.unique(np.array([seed % ALL_SEEDS for seed in (*SMALL, *settings.seeds)], np.uint32))
    layer = next((i for i, one in enumerate(network.layers) if one.weight.numel() >= SMALLEST), 0)
    plans = [(every, settings.places, layer, row) for row in settings.rows]
    said = f"{len(every):,} small seeds with fewer than {settings.places:,} outputs drawn before the network"
    return _scan_all(network, settings, context, plans, said)


Plan = tuple[NDArray[np.uint32], int, int, Distribution]
"""Seeds, places, the layer to look for, and what it was drawn from."""


def _scan_all(
    network: TrainedNetwork, settings: StartSearch, context: Context, plans: list[Plan], said: str
) -> Attempt:
    total = sum(len(seeds) * places for seeds, places, _, _ in plans)
    enough = math.sqrt(2 * math.log(max(total / MOST_FALSE_PLACES, 2.0)))
    hypotheses: list[Hypothesis] = []
    done, began = 0, time.monotonic()
    parts = ((plan, part) for plan in plans for part in _parts(plan))
    for _, (outputs, found) in side_by_side(lambda one: _scan(network, *one, enough), parts, settings.cores):
        hypotheses += found
        done += outputs
        seconds = (time.monotonic() - began) * (total - done) / done
        values = {"seconds_left": seconds, "passed": float(len(hypotheses))}
        context.progress_callback(Progress(stage="likely seeds", step=done, total=total, values=values))
        if any(hypothesis.z > SURE_Z for hypothesis in found):
            break
    return Attempt(trials=done, said=said, hypotheses=tuple(sorted(hypotheses, key=lambda h: -h.z)))


def _parts(plan: Plan) -> list[NDArray[np.uint32]]:
    seeds, places, _, _ = plan
    size = max(1, int(CHUNK_SECONDS * OUTPUTS_A_SECOND / (places + 4096)))
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


def _scan(
    network: TrainedNetwork, plan: Plan, seeds: NDArray[np.uint32], enough: float
) -> tuple[int, list[Hypothesis]]:
    from exhume.attack.find_start import kernels  # noqa: PLC0415

    _, places, layer, row = plan
    wanted = pattern(network.layers[layer].weight, row, kernels.OVERLAP)
    offsets, weights, least = _in_steps(wanted, enough)
    most = 4096
    hits, hit_places, scores = np.empty(most, np.uint32), np.empty(most, np.int64), np.empty(most, np.float32)
    kind = kernels.NORMAL if row.normal else kernels.UNIFORM
    count = kernels.scan(seeds, places, kind, row.bits, offsets, weights, least, hits, hit_places, scores)
    found = zip(hits[:count].tolist(), hit_places[:count].tolist(), scores[:count].tolist(), strict=True)
    return len(seeds) * places, [
        Hypothesis(stream=Stream(seed=seed), layer=layer, place=place, distribution=row, z=z)
        for seed, place, z in found
    ]


def _in_steps(wanted: Pattern, enough: float) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Offsets and weights as a scan wants them, filled up with zeros, and the least score after each step."""
    from exhume.attack.find_start import kernels  # noqa: PLC0415

    more = (0, max(-len(wanted.weights) % kernels.STEP, kernels.STEP - len(wanted.weights)))
    offsets, weights = np.pad(wanted.offsets + kernels.scan_width() * wanted.sines, more), np.pad(wanted.weights, more)
    share = np.sqrt((weights.reshape(-1, kernels.STEP) ** 2).sum(1).cumsum() / max((weights**2).sum(), 1e-30))
    z = np.array([*STEPS_Z, *[STEPS_Z[-1]] * len(share)])[: len(share)]
    z[-1] = enough
    return offsets, weights, (z * share).astype(np.float32)
