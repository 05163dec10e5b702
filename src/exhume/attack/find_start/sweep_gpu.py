"""The sweep over seeds on a GPU: a Triton kernel where Triton can be used, PyTorch's own operations otherwise."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exhume.attack.find_start.draws import Question
from exhume.devices import has_triton
from exhume.errors import InputError

TILE = 1 << 22
"""Seeds that PyTorch's operations take at once."""

Sweep = Callable[[Question, torch.device, int, int], tuple[Tensor, Tensor]]
"""(question, device, first seed, count) to the seeds that pass, and their scores."""


def scanner(device: str, asked: Question) -> Callable[[int, int], NDArray[np.int64]]:
    """(first seed, count) to the seeds that pass; the same as `kernels.sweep`.

    Raises:
        InputError: there is no such device.
    """
    try:
        where = torch.empty(1, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"There is no device {device!r}: {str(error).partition(chr(10))[0]}") from None
    sweep: Sweep = sweep_torch
    if where.type == "cuda" and has_triton():
        from exhume.attack.find_start import sweep_triton  # noqa: PLC0415

        sweep = sweep_triton.sweep

    def scan(first: int, count: int) -> NDArray[np.int64]:
        seeds: NDArray[np.int64] = sweep(asked, where, first, count)[0].cpu().numpy()
        return seeds

    return scan


def sweep_torch(asked: Question, device: torch.device, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The seeds that pass and their scores, by operations on int32 tensors, which wrap around as 32-bit words do."""
    kept = [
        _sweep_tile(asked, torch.arange(start, min(start + TILE, first + count), device=device))
        for start in range(first, first + count, TILE)
    ]
    seeds, scores = (torch.cat(parts) for parts in zip(*kept, strict=True))
    return seeds, scores


def _sweep_tile(asked: Question, seeds: Tensor) -> tuple[Tensor, Tensor]:
    low, place, half = seeds.to(torch.int32), asked.place, 1 << (asked.bits - 1)
    for j in range(1, place + 1):
        low = _seeded(low, j)
    high = low
    for j in range(place + 1, place + 397):
        high = _seeded(high, j)
    total = torch.zeros(len(seeds), device=seeds.device)
    for i, (along, across) in enumerate(zip(asked.cosine.tolist(), asked.sine.tolist(), strict=True)):
        word, low, high = low, _seeded(low, place + i + 1), _seeded(high, place + i + 397)
        value = ((_output(word, low, high) & (2 * half - 1)) - half).float() / half
        if asked.normal:
            turn = value / 2
            total -= _parabola(0.25 - turn.abs()) * along + _parabola(turn) * across
        else:
            total += value * along
    passed = total > asked.least
    return seeds[passed], total[passed]


def _signed(word: int) -> int:
    return word - (word >> 31 << 32)


def _right(word: Tensor, shift: int) -> Tensor:
    return (word >> shift) & ((1 << (32 - shift)) - 1)


def _seeded(word: Tensor, index: int) -> Tensor:
    return (word ^ _right(word, 30)) * 1812433253 + index


def _output(word: Tensor, following: Tensor, middle: Tensor) -> Tensor:
    joined = (word & _signed(0x80000000)) | (following & 0x7FFFFFFF)
    word = middle ^ _right(joined, 1) ^ ((following & 1) * _signed(0x9908B0DF))
    word = word ^ _right(word, 11)
    word = word ^ ((word << 7) & _signed(0x9D2C5680))
    word = word ^ ((word << 15) & _signed(0xEFC60000))
    return word ^ _right(word, 18)


def _parabola(turn: Tensor) -> Tensor:
    return 8 * turn - 16 * turn * turn.abs()
