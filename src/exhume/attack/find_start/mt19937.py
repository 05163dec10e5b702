"""PyTorch's generator, MT19937, as compiled functions: forwards, backwards, and from its state to its seed.

Matsumoto and Nishimura 1998: word k + 624 of the state is word k + 397 xor a linear map of words k and k + 1, and an
output is a word tempered. PyTorch seeds it with the low 32 bits of the seed (init_genrand of the authors' code).
Every intermediate result is cast back to 32 bits, so that loops over these functions vectorise. This file imports
numba, so it is itself imported where needed.
"""

from typing import no_type_check

import numpy as np
from numba import int64, njit, uint32

WORDS, MIDDLE = 624, 397
EXACT = {"nogil": True, "cache": True, "error_model": "numpy"}
FAST = {**EXACT, "fastmath": True}
"""How functions are compiled: with integers only, or with sums of floats in any order."""


@njit(**EXACT)
@no_type_check
def seeded(word, index):
    """Word `index` of a seed's state, from the word before."""
    word = uint32(word ^ uint32(word >> uint32(30)))
    return uint32(uint32(uint32(1812433253) * word) + index)


@njit(**EXACT)
@no_type_check
def twisted(word, following, middle):
    """A word of the next state."""
    joined = uint32(uint32(word & uint32(0x80000000)) | uint32(following & uint32(0x7FFFFFFF)))
    odd = uint32(-int64(following & uint32(1)))
    return uint32(uint32(middle ^ uint32(joined >> uint32(1))) ^ uint32(odd & uint32(0x9908B0DF)))


@njit(**EXACT)
@no_type_check
def tempered(word):
    """The output of a word."""
    word = uint32(word ^ uint32(word >> uint32(11)))
    word = uint32(word ^ uint32(uint32(word << uint32(7)) & uint32(0x9D2C5680)))
    word = uint32(word ^ uint32(uint32(word << uint32(15)) & uint32(0xEFC60000)))
    return uint32(word ^ uint32(word >> uint32(18)))


@njit(**EXACT)
@no_type_check
def fill_from_seed(seed, words):
    """Writes a seed's state."""
    words[0] = seed
    for j in range(1, WORDS):
        words[j] = seeded(words[j - 1], uint32(j))


@njit(**EXACT)
@no_type_check
def twist(words):
    """Writes the next state over a state."""
    # In stretches of at most 227, in which no word depends on another of the same stretch: so they vectorise.
    for k in range(227):
        words[k] = twisted(words[k], words[k + 1], words[k + 397])
    for k in range(227, 454):
        words[k] = twisted(words[k], words[k + 1], words[k - 227])
    for k in range(454, 623):
        words[k] = twisted(words[k], words[k + 1], words[k - 227])
    words[623] = twisted(words[623], words[0], words[396])


@njit(**EXACT)
@no_type_check
def outputs(words, count):
    """The next `count` outputs behind a state of 624 words, all of them used up."""
    words, drawn = words.copy(), np.empty(count, np.uint32)
    for start in range(0, count, WORDS):
        twist(words)
        for k in range(min(WORDS, count - start)):
            drawn[start + k] = tempered(words[k])
    return drawn


@njit(**EXACT)
@no_type_check
def seeded_words(seed):
    """The 624 words of state that a seed gives."""
    words = np.empty(WORDS, np.uint32)
    fill_from_seed(uint32(seed), words)
    return words


@njit(**EXACT)
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


@njit(**EXACT)
@no_type_check
def last_seeding(line):
    """The last index at which 624 words are what a seed gives, or -1."""
    for k in range(len(line) - WORDS, -1, -1):
        # Word 0 of a state counts by its highest bit only, so that the seed's own rule begins with word 1.
        if line[k + 2] != seeded(line[k + 1], uint32(2)):
            continue
        j = 3
        while j < WORDS and line[k + j] == seeded(line[k + j - 1], uint32(j)):
            j += 1
        if j == WORDS:
            return k
    return -1


def seed_of(word: int) -> int:
    """The seed whose state has this word 1."""
    mixed = (word - 1) * pow(1812433253, -1, 2**32) % 2**32
    return mixed ^ mixed >> 30
