"""Compiled loops over PyTorch's generator, MT19937: many seeds, many places, and linear algebra over GF(2).

Matsumoto and Nishimura 1998: word k + 624 of the state is word k + 397 xor a linear map of words k and k + 1, and an
output is a word tempered. PyTorch seeds it with the low 32 bits of the seed (init_genrand of the authors' code).
Loops over `lane` or `place` are those that LLVM turns into vector instructions: they go over arrays of 32-bit numbers,
and every intermediate result is cast back to 32 bits. This file imports numba, so it is itself imported where needed.
"""
# ruff: noqa: PLR0912, PLR0917

from typing import no_type_check

import numpy as np
from numba import float32, int32, int64, njit, uint32, uint64

LANES = 256
"""Seeds that a sweep computes side by side; from 128 on the processor's pipelines are full."""
WORDS, MIDDLE = 624, 397
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


@njit(**_exact)
@no_type_check
def _seeded(word, index):
    word = uint32(word ^ uint32(word >> uint32(30)))
    return uint32(uint32(uint32(1812433253) * word) + index)


@njit(**_exact)
@no_type_check
def _twisted(word, following, middle):
    joined = uint32(uint32(word & uint32(0x80000000)) | uint32(following & uint32(0x7FFFFFFF)))
    odd = uint32(-int64(following & uint32(1)))
    return uint32(uint32(middle ^ uint32(joined >> uint32(1))) ^ uint32(odd & uint32(0x9908B0DF)))


@njit(**_exact)
@no_type_check
def _tempered(word):
    word = uint32(word ^ uint32(word >> uint32(11)))
    word = uint32(word ^ uint32(uint32(word << uint32(7)) & uint32(0x9D2C5680)))
    word = uint32(word ^ uint32(uint32(word << uint32(15)) & uint32(0xEFC60000)))
    return uint32(word ^ uint32(word >> uint32(18)))


@njit(**_exact)
@no_type_check
def _seed(seed, words):
    words[0] = seed
    for j in range(1, WORDS):
        words[j] = _seeded(words[j - 1], uint32(j))


@njit(**_exact)
@no_type_check
def _twist(words):
    # In stretches of at most 227, in which no word depends on another of the same stretch: so they vectorise.
    for k in range(227):
        words[k] = _twisted(words[k], words[k + 1], words[k + 397])
    for k in range(227, 454):
        words[k] = _twisted(words[k], words[k + 1], words[k - 227])
    for k in range(454, 623):
        words[k] = _twisted(words[k], words[k + 1], words[k - 227])
    words[623] = _twisted(words[623], words[0], words[396])


@njit(**_exact)
@no_type_check
def outputs(words, count):
    """The next `count` outputs behind a state of 624 words, all of them used up."""
    words, drawn = words.copy(), np.empty(count, np.uint32)
    for start in range(0, count, WORDS):
        _twist(words)
        for k in range(min(WORDS, count - start)):
            drawn[start + k] = _tempered(words[k])
    return drawn


@njit(**_exact)
@no_type_check
def seeded_words(seed):
    """The 624 words of state that a seed gives."""
    words = np.empty(WORDS, np.uint32)
    _seed(uint32(seed), words)
    return words


@njit(**_fast)
@no_type_check
def _parabola(turn):
    # sin(2 pi turn) for turn in [-1/2, 1/2] to within 0.06: its correlation with the sine is 0.9996.
    return float32(8) * turn - float32(16) * turn * abs(turn)


@njit(**_fast)
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
                low[lane] = _seeded(low[lane], index)
        for lane in range(LANES):
            high[lane] = low[lane]
            total[lane] = float32(0)
        for j in range(place, place + MIDDLE - 1, 4):  # four steps a pass, so that words stay in registers
            a, b, c, d = uint32(j + 1), uint32(j + 2), uint32(j + 3), uint32(j + 4)
            for lane in range(LANES):
                high[lane] = _seeded(_seeded(_seeded(_seeded(high[lane], a), b), c), d)
        for i in range(len(cosine)):
            after, middle = uint32(place + i + 1), uint32(place + MIDDLE + i)
            along, across = cosine[i] * unit, sine[i]
            if kind == UNIFORM:
                for lane in range(LANES):
                    word, high[lane] = low[lane], _seeded(high[lane], middle)
                    low[lane] = _seeded(word, after)
                    value = int32(uint32(_tempered(_twisted(word, low[lane], high[lane])) & mask)) - half
                    total[lane] += float32(value) * along
            else:
                for lane in range(LANES):
                    word, high[lane] = low[lane], _seeded(high[lane], middle)
                    low[lane] = _seeded(word, after)
                    value = int32(uint32(_tempered(_twisted(word, low[lane], high[lane])) & mask)) - half
                    turn = float32(value) * unit * float32(0.5)
                    total[lane] -= _parabola(float32(0.25) - abs(turn)) * cosine[i] + _parabola(turn) * across
        for lane in range(LANES):
            if total[lane] > least and base + lane < first + count:
                if found < len(seeds):
                    seeds[found], scores[found] = base + lane, total[lane]
                found += 1
    return found


@njit(**_fast)
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
                row[lane] = _seeded(row[lane], index)
        for start in range(0, place + len(cosine), WORDS):
            for k in range(WORDS):
                after, middle = (k + 1) % WORDS, (k + MIDDLE) % WORDS
                for lane in range(LANES):
                    row[lane] = _twisted(words[k, lane], words[after, lane], words[middle, lane])
                for lane in range(LANES):
                    words[k, lane] = row[lane]
            for i in range(max(0, start - place), min(len(cosine), start + WORDS - place)):
                along, across = cosine[i], sine[i]
                for lane in range(LANES):
                    row[lane] = words[place + i - start, lane]
                for lane in range(LANES):
                    value = float32(int32(uint32(_tempered(row[lane]) & mask)) - half) * unit
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


@njit(**_fast)
@no_type_check
def score(seeds, place, kind, bits, cosine, sine):
    """The scores of single seeds against a pattern at a place, see `sweep`."""
    scores, words = np.zeros(len(seeds), np.float32), np.empty(WORDS, np.uint32)
    half = int64(1) << (bits - 1)
    mask, unit = uint32(2 * half - 1), float32(1.0 / half)
    for s in range(len(seeds)):
        _seed(uint32(seeds[s]), words)
        for start in range(0, place + len(cosine), WORDS):
            _twist(words)
            for i in range(max(0, start - place), min(len(cosine), start + WORDS - place)):
                value = float32(int32(uint32(_tempered(words[place + i - start]) & mask)) - int32(half)) * unit
                if kind == UNIFORM:
                    scores[s] += value * cosine[i]
                else:
                    turn = value * float32(0.5)
                    scores[s] -= _parabola(float32(0.25) - abs(turn)) * cosine[i] + _parabola(turn) * sine[i]
    return scores


@njit(**_fast)
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
        _seed(seeds[s], words)
        base = -OVERLAP
        while base < places:
            for t in range(TWISTS):
                _twist(words)
                start = OVERLAP + t * WORDS
                for k in range(WORDS):
                    value = float32(int32(uint32(_tempered(words[k]) & mask)) - half) * unit
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


@njit(**_fast)
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


@njit(**_exact)
@no_type_check
def rewound(words, count):
    """The `count` words before 624 consecutive ones and these; of the very first word only the highest bit is right."""
    line = np.zeros(count + WORDS, np.uint32)
    line[count:] = words
    for k in range(count - 1, -1, -1):
        joined = uint32(line[k + WORDS] ^ line[k + MIDDLE])
        odd = joined >> uint32(31)
        if odd:
            joined = uint32(joined ^ uint32(0x9908B0DF))
        joined = uint32(uint32(joined << uint32(1)) | uint32(odd))
        line[k] = joined & uint32(0x80000000)
        line[k + 1] = uint32(uint32(line[k + 1] & uint32(0x80000000)) | uint32(joined & uint32(0x7FFFFFFF)))
    return line


@njit(**_exact)
@no_type_check
def last_seeding(line):
    """The last index at which 624 words are what a seed gives, or -1."""
    for k in range(len(line) - WORDS, -1, -1):
        # Word 0 of a state counts by its highest bit only, so that the seed's own rule begins with word 1.
        if line[k + 2] != _seeded(line[k + 1], uint32(2)):
            continue
        j = 3
        while j < WORDS and line[k + j] == _seeded(line[k + j - 1], uint32(j)):
            j += 1
        if j == WORDS:
            return k
    return -1


def seed_of(word: int) -> int:
    """The seed whose state has this word 1."""
    mixed = (word - 1) * pow(1812433253, -1, 2**32) % 2**32
    return mixed ^ mixed >> 30


@njit(**_exact)
@no_type_check
def untempered(drawn):
    """The words that outputs were tempered from."""
    inverse, words = _untempering(), np.zeros(len(drawn), np.uint32)
    for k in range(len(drawn)):
        for bit in range(32):
            if drawn[k] >> uint32(bit) & uint32(1):
                words[k] ^= inverse[bit]
    return words


@njit(**_exact)
@no_type_check
def equations(known, values, bits, window, columns, width):
    """Linear equations over GF(2) between the unknown bits of 624 outputs and what is known of later ones.

    known: places behind the window's beginning, ascending, all at least 624; values: their outputs' low `bits` bits.
    window: [624] outputs, of which the bits with a column of -1 are known; columns: [624, 32] the unknown's number or
    -1. An equation is a row of `width` 64-bit words; the last bit of it is its constant.
    Returns the rows, `bits` for each known place.
    """
    rows = np.zeros((bits * len(known), width), np.uint64)
    state = np.zeros((WORDS, 32, width), np.uint64)
    constant = uint64(1) << uint64(63)
    drawn = np.zeros((32, width), np.uint64)
    inverse = _untempering()
    for i in range(WORDS):
        drawn[:] = uint64(0)
        for bit in range(32):
            column = columns[i, bit]
            if column >= 0:
                drawn[bit, column >> 6] = uint64(1) << uint64(column & 63)
            elif window[i] >> uint32(bit) & uint32(1):
                drawn[bit, width - 1] = constant
        for bit in range(32):
            for source in range(32):
                if inverse[source] >> uint32(bit) & uint32(1):
                    state[i, bit] ^= drawn[source]
    count, place = 0, WORDS
    for n in range(len(known)):
        while place <= known[n]:
            _symbolic_twist(state, place % WORDS)
            place += 1
        word = state[known[n] % WORDS]
        for bit in range(bits):
            for source in range(32):
                if _tempered(uint32(1) << uint32(source)) >> uint32(bit) & uint32(1):
                    rows[count] ^= word[source]
            if values[n] >> uint32(bit) & uint32(1):
                rows[count, width - 1] ^= constant
            count += 1
    return rows


@njit(**_exact)
@no_type_check
def _untempering():
    """The word that each single bit of an output stands for."""
    inverse = np.empty(32, np.uint32)
    for bit in range(32):
        word = uint32(1) << uint32(bit)
        word = uint32(word ^ uint32(word >> uint32(18)))
        word = uint32(word ^ uint32(uint32(word << uint32(15)) & uint32(0xEFC60000)))
        low = word
        for _ in range(5):
            low = uint32(word ^ uint32(uint32(low << uint32(7)) & uint32(0x9D2C5680)))
        high = low
        for _ in range(3):
            high = uint32(low ^ uint32(high >> uint32(11)))
        inverse[bit] = high
    return inverse


@njit(**_exact)
@no_type_check
def _symbolic_twist(state, k):
    word, following, middle = state[k], state[(k + 1) % WORDS], state[(k + MIDDLE) % WORDS]
    highest = word[31].copy()
    for bit in range(31):
        source = following[bit + 1] if bit < 30 else highest
        for w in range(len(source)):
            word[bit, w] = middle[bit, w] ^ source[w]
    for w in range(len(highest)):
        word[31, w] = middle[31, w]
    for bit in range(32):
        if uint32(0x9908B0DF) >> uint32(bit) & uint32(1):
            for w in range(len(highest)):
                word[bit, w] ^= following[0, w]


@njit(**_exact)
@no_type_check
def eliminate(rows, unknowns):
    """Brings equations over GF(2) into echelon form, in place; returns the leading column of each row that has one.

    rows: [m, width] 64-bit words, the last bit the constant. 64 columns at a time: their pivots are found first, then
    all rows below take the combination of them that they need from 8 tables of 256 (the method of four Russians).
    """
    count, width = rows.shape
    leads = np.empty(min(count, unknowns), np.int64)
    rank = 0
    tile = 32  # words of a row, so that the 8 tables fit the second-level cache
    tables = np.empty((8, 256, tile), np.uint64)
    needed = np.empty(count, np.uint64)
    for w in range((unknowns + 63) // 64):
        mask = ~uint64(0)
        if (w + 1) * 64 > unknowns:
            mask = (uint64(1) << uint64(unknowns - w * 64)) - uint64(1)
        before = rank
        rank = _pivots(rows, w, mask, rank, leads)
        found = rank - before
        if found == 0:
            continue
        for i in range(rank, count):
            word, combination = rows[i, w], uint64(0)
            for j in range(found):
                combination |= (word >> uint64(leads[before + j] & 63) & uint64(1)) << uint64(j)
            needed[i] = combination
        for start in range(w, width, tile):
            stop = min(start + tile, width)
            _fill_tables(tables, rows[before:rank, start:stop])
            _add_combinations(rows[rank:, start:stop], tables, needed[rank:])
    return leads[:rank]


@njit(**_exact)
@no_type_check
def _pivots(rows, w, mask, rank, leads):
    """Moves up to 64 rows with a leading bit in word w to rows[rank:], none of them with another's leading bit."""
    first = rank
    for i in range(first, len(rows)):
        word = rows[i, w]
        for j in range(first, rank):  # a trial on one word, since most rows of a poor block are found empty
            if word >> uint64(leads[j] & 63) & uint64(1):
                word ^= rows[j, w]
        if word & mask == uint64(0):
            continue
        for j in range(first, rank):
            if rows[i, w] >> uint64(leads[j] & 63) & uint64(1):
                rows[i, w:] ^= rows[j, w:]
        bit = 0
        while not (word & mask) >> uint64(bit) & uint64(1):
            bit += 1
        if i != rank:
            swapped = rows[i, w:].copy()
            rows[i, w:] = rows[rank, w:]
            rows[rank, w:] = swapped
        for j in range(first, rank):
            if rows[j, w] >> uint64(bit) & uint64(1):
                rows[j, w:] ^= rows[rank, w:]
        leads[rank] = w * 64 + bit
        rank += 1
        if rank - first == 64:
            break
    return rank


@njit(**_exact)
@no_type_check
def _fill_tables(tables, pivots):
    found, width = pivots.shape
    for t in range(8):
        tables[t, 0, :width] = uint64(0)
        for bit in range(8):
            size = 1 << bit
            for k in range(size):
                for v in range(width):
                    extra = pivots[t * 8 + bit, v] if t * 8 + bit < found else uint64(0)
                    tables[t, size + k, v] = tables[t, k, v] ^ extra


@njit(**_exact)
@no_type_check
def _bytes(bits):
    low = uint64(255)
    return bits & low, bits >> uint64(8) & low, bits >> uint64(16) & low, bits >> uint64(24) & low


@njit(**_exact)
@no_type_check
def _add_combinations(rows, tables, needed):
    for i in range(len(rows)):
        bits = needed[i]
        if bits == uint64(0):
            continue
        a, b, c, d = _bytes(uint64(bits & uint64(0xFFFFFFFF)))
        e, f, g, h = _bytes(uint64(bits >> uint64(32)))
        for v in range(rows.shape[1]):
            first = (tables[0, a, v] ^ tables[1, b, v]) ^ (tables[2, c, v] ^ tables[3, d, v])
            rows[i, v] ^= first ^ ((tables[4, e, v] ^ tables[5, f, v]) ^ (tables[6, g, v] ^ tables[7, h, v]))


@njit(**_exact)
@no_type_check
def back_substitute(rows, leads, width):
    """The unknowns that solve equations in echelon form, packed as rows are; those that nothing determines are 0."""
    solution = np.zeros(width, np.uint64)
    for i in range(len(leads) - 1, -1, -1):
        total = uint64(0)
        for w in range(width):
            total ^= rows[i, w] & solution[w]
        for shift in (32, 16, 8, 4, 2, 1):
            total ^= total >> uint64(shift)
        if (total ^ rows[i, width - 1] >> uint64(63)) & uint64(1):
            solution[leads[i] >> 6] |= uint64(1) << uint64(leads[i] & 63)
    return solution
