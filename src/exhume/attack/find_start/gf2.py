"""Linear algebra over GF(2), compiled: the equations that outputs are of a state, and their solution.

This file imports numba, so it is itself imported where needed.
"""
# ruff: noqa: PLR0912, PLR0917

from typing import no_type_check

import numpy as np
from numba import njit, uint32, uint64

from exhume.attack.find_start.mt19937 import EXACT, MIDDLE, WORDS, tempered


@njit(**EXACT)
@no_type_check
def untempered(drawn):
    """The words that outputs were tempered from."""
    inverse, words = _untempering(), np.zeros(len(drawn), np.uint32)
    for k in range(len(drawn)):
        for bit in range(32):
            if drawn[k] >> uint32(bit) & uint32(1):
                words[k] ^= inverse[bit]
    return words


@njit(**EXACT)
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
                if tempered(uint32(1) << uint32(source)) >> uint32(bit) & uint32(1):
                    rows[count] ^= word[source]
            if values[n] >> uint32(bit) & uint32(1):
                rows[count, width - 1] ^= constant
            count += 1
    return rows


@njit(**EXACT)
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


@njit(**EXACT)
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


@njit(**EXACT)
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


@njit(**EXACT)
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


@njit(**EXACT)
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


@njit(**EXACT)
@no_type_check
def _bytes(bits):
    low = uint64(255)
    return bits & low, bits >> uint64(8) & low, bits >> uint64(16) & low, bits >> uint64(24) & low


@njit(**EXACT)
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


@njit(**EXACT)
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
