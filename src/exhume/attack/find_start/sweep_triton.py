"""The sweep over seeds as a Triton kernel, for CUDA GPUs. It imports triton, so it is itself imported where needed."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from exhume.attack.find_start.draws import Question

BLOCK = 256
"""Seeds of one program: registers hold all that it needs."""
MOST = 1 << 20
"""Seeds of a call that may pass."""


@triton.jit
@no_type_check
def _seeded(word, index):
    return ((word ^ (word >> 30)) * 1812433253 + index).to(tl.uint32)


@triton.jit
@no_type_check
def _output(word, following, middle):
    joined = ((word & 0x80000000) | (following & 0x7FFFFFFF)).to(tl.uint32)
    word = (middle ^ (joined >> 1) ^ ((following & 1) * 0x9908B0DF)).to(tl.uint32)
    word = word ^ (word >> 11)
    word = word ^ ((word << 7) & 0x9D2C5680)
    word = word ^ ((word << 15) & 0xEFC60000)
    return word ^ (word >> 18)


@triton.jit
@no_type_check
def _parabola(turn):
    return 8.0 * turn - 16.0 * turn * tl.abs(turn)


@triton.jit
@no_type_check
def _sweep(  # noqa: PLR0917
    first, end, place, cosine, sine, length, least, seeds, scores, found, most,
    BITS: tl.constexpr, NORMAL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    seed = first + tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    low = seed.to(tl.uint32)
    for j in range(1, place + 1):
        low = _seeded(low, j)
    high = low
    for j in range(place + 1, place + 397):
        high = _seeded(high, j)
    total = tl.zeros((BLOCK,), tl.float32)
    for i in range(length):
        word = low
        low = _seeded(low, place + i + 1)
        high = _seeded(high, place + i + 397)
        drawn = (_output(word, low, high) & ((1 << BITS) - 1)).to(tl.int32)
        value = (drawn - (1 << (BITS - 1))).to(tl.float32) * (1.0 / (1 << (BITS - 1)))
        if NORMAL:
            turn = value * 0.5
            total -= _parabola(0.25 - tl.abs(turn)) * tl.load(cosine + i) + _parabola(turn) * tl.load(sine + i)
        else:
            total += value * tl.load(cosine + i)
    passed = (total > least) & (seed < end)
    slot = tl.atomic_add(found + tl.zeros((BLOCK,), tl.int32), 1, mask=passed)
    kept = passed & (slot < most)
    tl.store(seeds + slot, seed, mask=kept)
    tl.store(scores + slot, total, mask=kept)


def sweep(asked: Question, device: torch.device, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The seeds that pass and their scores; the same as `kernels.sweep`."""
    cosine, sine = torch.from_numpy(asked.cosine).to(device), torch.from_numpy(asked.sine).to(device)
    seeds, scores = torch.empty(MOST, dtype=torch.int64, device=device), torch.empty(MOST, device=device)
    found = torch.zeros(1, dtype=torch.int32, device=device)
    _sweep[(triton.cdiv(count, BLOCK),)](
        first, first + count, asked.place, cosine, sine, len(cosine), asked.least, seeds, scores, found, MOST,
        BITS=asked.bits, NORMAL=asked.normal, BLOCK=BLOCK,
    )  # fmt: skip
    kept = min(int(found), MOST)
    return seeds[:kept], scores[:kept]
