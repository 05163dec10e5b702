"""Compiled searches of the generator's outputs for a pattern: many seeds at one place, one seed at many places.

Loops over `lane` or `place` are those that LLVM turns into vector instructions: they go over arrays of 32-bit numbers.
This file imports numba, so it is itself imported where needed.
"""
# ruff: noqa: PLR0912, PLR0917

from typing import no_type_check

import numpy as np
from numba import float32, int32, int64, njit, uint32

from exhume.attack.find_start.mt19937 import FAST, MIDDLE, WORDS, fill_from_seed, seeded, tempered, twist, twisted

LANES = 256
"""Seeds that a sweep computes side by side; from 128 on the processor's pipelines are full."""
STEP = 32
"""Entries of a pattern that a scan adds before it asks whether a place is still worth more."""
GRAIN = 48
"""Places that a scan passes over together, since none of them is worth more."""
OVERLAP = 512
"""Outputs that a scan can look at behind a place."""
TWISTS = 4
"""Blocks of 624 outputs that a scan holds: together with its sums they fit the second-level cache."""
UNIFORM, NORMAL = 0, 1

_fast = {"nogil": True, "cache": True, "error_model": "numpy", "fastmath": True}
_exact = {"nogil": True, "cache": True, "error_model": "numpy"}


@njit(**FAST)
@no_type_check
def _parabola(turn):
    # sin(2 pi turn) for turn in [-1/2, 1/2] to within 0.06: its correlation with the sine is 0.9996.
    return float32(8) * turn - float32(16) * turn * abs(turn)


@njit(**FAST)
@no_type_check
def sweep(first, count, place, kind, bits, cosine, sine, least, seeds, scores):
    """Scores `count` seeds from `first` on against one pattern at one place; keeps those above `least`.

    Output place + i counts cosine[i] times its value (uniform, in [-1, 1)), or cosine[i] times the cosine and sine[i]
    times the sine of its angle (normal); bits: how many low bits of it count. place + len(cosine) must be at most 227:
    then words place.. and place + 397.. of the seeded state are enough. Those words are two walks of one recurrence.
    Returns how many were above; the first len(seeds) of them are in `seeds` and `scores`.
    """
    found = 0
    low, high = np.empty(LANES, np.uint32), np.empty(LANES, np.uint32)
    total = np.empty(LANES, np.float32)
    mask, half = uint32((int64(1) << bits) - 1), int32(int64(1) << (bits - 1))
    unit = float32(1.0 / half)
    for base in range(first, first + count, LANES):
        for lane in range(LANES):
            low[lane] = uint32(base + lane)
        for j in range(place):
            index = uint32(j + 1)
            for lane in range(LANES):
                low[lane] = seeded(low[lane], index)
        for lane in range(LANES):
            high[lane] = low[lane]
            total[lane] = float32(0)
        for j in range(place, place + MIDDLE - 1, 4):  # four steps a pass, so that words stay in registers
            a, b, c, d = uint32(j + 1), uint32(j + 2), uint32(j + 3), uint32(j + 4)
            for lane in range(LANES):
                high[lane] = seeded(seeded(seeded(seeded(high[lane], a), b), c), d)
        for i in range(len(cosine)):
            after, middle = uint32(place + i + 1), uint32(place + MIDDLE + i)
            along, across = cosine[i] * unit, sine[i]
            if kind == UNIFORM:
                for lane in range(LANES):
                    word, high[lane] = low[lane], seeded(high[lane], middle)
                    low[lane] = seeded(word, after)
                    value = int32(uint32(tempered(twisted(word, low[lane], high[lane])) & mask)) - half
                    total[lane] += float32(value) * along
            else:
                for lane in range(LANES):
                    word, high[lane] = low[lane], seeded(high[lane], middle)
                    low[lane] = seeded(word, after)
                    value = int32(uint32(tempered(twisted(word, low[lane], high[lane])) & mask)) - half
                    turn = float32(value) * unit * float32(0.5)
                    total[lane] -= _parabola(float32(0.25) - abs(turn)) * cosine[i] + _parabola(turn) * across
        for lane in range(LANES):
            if total[lane] > least and base + lane < first + count:
                if found < len(seeds):
                    seeds[found], scores[found] = base + lane, total[lane]
                found += 1
    return found


@njit(**FAST)
@no_type_check
def sweep_far(first, count, place, kind, bits, cosine, sine, least, seeds, scores):
    """The same as `sweep` for any place, with whole states: slower by the twists that it takes to get there."""
    found = 0
    words, total = np.empty((WORDS, LANES), np.uint32), np.empty(LANES, np.float32)
    row = np.empty(LANES, np.uint32)  # by itself, since loops that may overlap do not vectorise
    mask, half = uint32((int64(1) << bits) - 1), int32(int64(1) << (bits - 1))
    unit = float32(1.0 / half)
    for base in range(first, first + count, LANES):
        for lane in range(LANES):
            row[lane] = uint32(base + lane)
            total[lane] = float32(0)
        for j in range(WORDS):
            index = uint32(j + 1)
            for lane in range(LANES):
                words[j, lane] = row[lane]
                row[lane] = seeded(row[lane], index)
        for start in range(0, place + len(cosine), WORDS):
            for k in range(WORDS):
                after, middle = (k + 1) % WORDS, (k + MIDDLE) % WORDS
                for lane in range(LANES):
                    row[lane] = twisted(words[k, lane], words[after, lane], words[middle, lane])
                for lane in range(LANES):
                    words[k, lane] = row[lane]
            for i in range(max(0, start - place), min(len(cosine), start + WORDS - place)):
                along, across = cosine[i], sine[i]
                for lane in range(LANES):
                    row[lane] = words[place + i - start, lane]
                for lane in range(LANES):
                    value = float32(int32(uint32(tempered(row[lane]) & mask)) - half) * unit
                    if kind == UNIFORM:
                        total[lane] += value * along
                    else:
                        turn = value * float32(0.5)
                        total[lane] -= _parabola(float32(0.25) - abs(turn)) * along + _parabola(turn) * across
        for lane in range(LANES):
            if total[lane] > least and base + lane < first + count:
                if found < len(seeds):
                    seeds[found], scores[found] = base + lane, total[lane]
                found += 1
    return found


@njit(**FAST)
@no_type_check
def score(seeds, place, kind, bits, cosine, sine):
    """The scores of single seeds against a pattern at a place, see `sweep`."""
    scores, words = np.zeros(len(seeds), np.float32), np.empty(WORDS, np.uint32)
    half = int64(1) << (bits - 1)
    mask, unit = uint32(2 * half - 1), float32(1.0 / half)
    for s in range(len(seeds)):
        fill_from_seed(uint32(seeds[s]), words)
        for start in range(0, place + len(cosine), WORDS):
            twist(words)
            for i in range(max(0, start - place), min(len(cosine), start + WORDS - place)):
                value = float32(int32(uint32(tempered(words[place + i - start]) & mask)) - int32(half)) * unit
                if kind == UNIFORM:
                    scores[s] += value * cosine[i]
                else:
                    turn = value * float32(0.5)
                    scores[s] -= _parabola(float32(0.25) - abs(turn)) * cosine[i] + _parabola(turn) * sine[i]
    return scores


@njit(**FAST)
@no_type_check
def scan(seeds, places, kind, bits, offsets, weights, least, hits, hit_places, scores):
    """Scores every place below `places` in the streams of `seeds` against one sparse pattern; keeps those that fit.

    A place scores the sum of weights[i] times the value of output place + offsets[i]; an offset of `width` more means
    the sine (see `sweep`), where `width` is `scan_width()`. Entries are added STEP at a time, of which there must be a
    multiple, and a place is dropped as soon as its first STEP (j + 1) entries score no more than least[j].
    Returns how many were kept; the first len(scores) of them are in `hits`, `hit_places` and `scores`.
    """
    size = TWISTS * WORDS
    width = size + OVERLAP
    words = np.empty(WORDS, np.uint32)
    values, sums = np.zeros((kind + 1) * width, np.float32), np.empty(size, np.float32)
    mask, half = uint32((int64(1) << bits) - 1), int32(int64(1) << (bits - 1))
    unit = float32(1.0 / half)
    found = 0
    for s in range(len(seeds)):
        fill_from_seed(seeds[s], words)
        base = -OVERLAP
        while base < places:
            for t in range(TWISTS):
                twist(words)
                start = OVERLAP + t * WORDS
                for k in range(WORDS):
                    value = float32(int32(uint32(tempered(words[k]) & mask)) - half) * unit
                    values[start + k] = value
                if kind == NORMAL:
                    for k in range(start, start + WORDS):
                        turn = values[k] * float32(0.5)
                        values[k] = -_parabola(float32(0.25) - abs(turn))
                        values[width + k] = -_parabola(turn)
            for place in range(size):
                sums[place] = float32(0)
            for i in range(0, STEP, 8):
                _add_eight(values, offsets[i : i + 8], weights[i : i + 8], sums)
            for start in range(0, size, GRAIN):
                passed = 0  # counted first, since this loop vectorises and the next does not
                for place in range(start, start + GRAIN):
                    passed += sums[place] > least[0]
                if passed == 0:
                    continue
                for place in range(start, start + GRAIN):
                    score, step = sums[place], 0
                    while step < len(least) and score > least[step]:
                        step += 1
                        for i in range(step * STEP, min((step + 1) * STEP, len(weights))):
                            score += weights[i] * values[place + offsets[i]]
                    if step == len(least) and 0 <= base + place < places:
                        if found < len(scores):
                            hits[found], hit_places[found], scores[found] = seeds[s], base + place, score
                        found += 1
            for part in range(kind + 1):
                for k in range(part * width, part * width + OVERLAP):
                    values[k] = values[k + size]
            base += size
    return found


@njit(**FAST)
@no_type_check
def _add_eight(values, offsets, weights, sums):
    a, b, c, d = values[offsets[0] :], values[offsets[1] :], values[offsets[2] :], values[offsets[3] :]
    e, f, g, h = values[offsets[4] :], values[offsets[5] :], values[offsets[6] :], values[offsets[7] :]
    p, q, r, s, t, u, v, w = weights
    for place in range(len(sums)):
        first = (p * a[place] + q * b[place]) + (r * c[place] + s * d[place])
        sums[place] += first + ((t * e[place] + u * f[place]) + (v * g[place] + w * h[place]))


def scan_width() -> int:
    """What a scan adds to an offset to mean an output's sine."""
    return TWISTS * WORDS + OVERLAP
