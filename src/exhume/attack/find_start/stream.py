"""The stream of PyTorch's generator: the outputs that follow a seed or a state, counted from there.

A place is a number of 32-bit outputs. One output is one float32 draw of `uniform_`; a float64 takes two, `randperm(n)`
n - 1, `normal_` one for each of 16 or more values and 16 more where their number is no multiple of 16.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

WORDS = 624
"""32-bit words of MT19937's state."""
_FIRST, _LEFT, _NEXT = 24, 8, 16
"""Bytes of `torch.Generator.get_state()` at which the words (8 bytes each), `left` and `next` stand."""
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Stream:
    """All outputs behind a seed, or behind a state that is known by its words alone.

    seed: 32 bits, since PyTorch's CPU generator uses no more of a seed; words: [624] of 32 bits, all used up.
    """

    seed: int | None = None
    words: NDArray[np.uint32] | None = None

    def generator(self, place: int = 0) -> torch.Generator:
        """PyTorch's generator as it stood after `place` outputs."""
        generator = torch.Generator()
        if self.words is None:
            generator.manual_seed(self.seed or 0)
        else:
            generator.set_state(_state(self.words))
        while place > 0:
            torch.empty(min(place, _CHUNK)).uniform_(generator=generator)
            place -= _CHUNK
        return generator

    def uniform(self, place: int, count: int) -> NDArray[np.float32]:
        """Outputs place .. place + count as float32 draws, uniform in [-1, 1)."""
        drawn: NDArray[np.float32] = torch.empty(count).uniform_(-1, 1, generator=self.generator(place)).numpy()
        return drawn


def _state(words: NDArray[np.uint32]) -> Tensor:
    """PyTorch's record of a generator whose 624 words are used up, so that the next output makes new ones."""
    state = torch.Generator().manual_seed(0).get_state()
    record = state.numpy()
    record[_FIRST : _FIRST + 8 * WORDS] = words.astype("<u8").view(np.uint8)
    return state
