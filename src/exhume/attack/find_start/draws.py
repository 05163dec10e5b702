"""How PyTorch draws initial weights from its generator: one table of distributions, one of initialisations."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

NORMAL_BLOCK = 16
"""Values that `normal_` makes from one another: 8 radii, then 8 angles (Box and Muller 1958)."""


@dataclass(frozen=True, kw_only=True)
class Distribution:
    """One way from outputs to values of mean 0, whose scale does not matter to a search.

    draw: the standard values, [count], as PyTorch makes them; variance: theirs; outputs: how many a count takes;
    normal: whether they come in blocks of 16; stride: outputs per value, 2 for float64.
    """

    name: str
    draw: Callable[[int, torch.Generator], Tensor]
    variance: float
    normal: bool
    stride: int

    @property
    def bits(self) -> int:
        """Low bits of an output that make the value: 24 for float32; the first 21 of 53 for float64."""
        return 24 if self.stride == 1 else 21

    def outputs(self, count: int) -> int:
        """How many outputs of the generator `count` values take."""
        if self.normal and count < NORMAL_BLOCK:
            return 4 * ((count + 1) // 2)  # pairs of float64 draws
        tail = NORMAL_BLOCK if self.normal and count % NORMAL_BLOCK else 0
        return self.stride * (count + tail)


def _uniform(dtype: torch.dtype) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, generator: torch.empty(count, dtype=dtype).uniform_(-1, 1, generator=generator)


def _normal(dtype: torch.dtype) -> Callable[[int, torch.Generator], Tensor]:
    return lambda count, generator: torch.empty(count, dtype=dtype).normal_(generator=generator)


DISTRIBUTIONS = {
    row.name: row
    for row in (
        Distribution(name="uniform", draw=_uniform(torch.float32), variance=1 / 3, normal=False, stride=1),
        Distribution(name="normal", draw=_normal(torch.float32), variance=1.0, normal=True, stride=1),
        Distribution(name="uniform-float64", draw=_uniform(torch.float64), variance=1 / 3, normal=False, stride=2),
        Distribution(name="normal-float64", draw=_normal(torch.float64), variance=1.0, normal=True, stride=2),
    )
}
"""What can be told from weights: float64 means drawn as such (`torch.set_default_dtype`), not converted later."""


@dataclass(frozen=True, kw_only=True)
class Initialisation:
    """A rule for initial weights: a distribution, and its scale (bound or standard deviation) by fan_in and fan_out."""

    name: str
    normal: bool
    scale: Callable[[int, int], float]


def _constant(scale: float) -> Callable[[int, int], float]:
    return lambda fan_in, fan_out: scale


INITIALISATIONS = {
    row.name: row
    for row in (
        Initialisation(name="pytorch-default", normal=False, scale=lambda i, o: 1 / math.sqrt(i)),
        Initialisation(name="xavier-uniform", normal=False, scale=lambda i, o: math.sqrt(6 / (i + o))),
        Initialisation(name="kaiming-uniform", normal=False, scale=lambda i, o: math.sqrt(6 / i)),
        Initialisation(name="kaiming-uniform-fan-out", normal=False, scale=lambda i, o: math.sqrt(6 / o)),
        Initialisation(name="xavier-normal", normal=True, scale=lambda i, o: math.sqrt(2 / (i + o))),
        Initialisation(name="kaiming-normal", normal=True, scale=lambda i, o: math.sqrt(2 / i)),
        Initialisation(name="kaiming-normal-fan-out", normal=True, scale=lambda i, o: math.sqrt(2 / o)),
        Initialisation(name="lecun-normal", normal=True, scale=lambda i, o: math.sqrt(1 / i)),
        *(
            Initialisation(name=f"normal-{std:g}", normal=True, scale=_constant(std))
            for std in (1.0, 0.1, 0.05, 0.02, 0.01, 0.001, 1e-4)
        ),
    )
}
"""The scales that are told apart; a search does not need them, the initial values do."""


def fans(weight: Tensor) -> tuple[int, int]:
    """(fan_in, fan_out) of a weight, [out, in, ...], by PyTorch's rule."""
    field = math.prod(weight.shape[2:])
    return weight.shape[1] * field, weight.shape[0] * field


def draw(distribution: Distribution, scale: float, shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Initial values of a shape, to the last bit those of `torch.nn.init` at this state of the generator."""
    dtype = torch.float32 if distribution.stride == 1 else torch.float64
    values = torch.empty(shape, dtype=dtype)
    if distribution.normal:
        return nn.init.normal_(values, 0.0, scale, generator=generator)
    return nn.init.uniform_(values, -scale, scale, generator=generator)


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """What a place in the stream must look like, if a layer's weights were drawn there.

    A place's score is sum(weights * values), where entry i is output `offsets[i]` behind the place: its value in
    [-1, 1) of a uniform draw; the cosine of its angle of a normal one, or the sine where `sines[i]`. It has mean 0 and
    variance 1 in a stream that has nothing to do with the weights.
    """

    distribution: Distribution
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32]
    sines: NDArray[np.bool_]

    def first(self, count: int) -> "Pattern":
        """The pattern of its first `count` entries alone."""
        weights = self.weights[:count]
        return Pattern(
            distribution=self.distribution,
            offsets=self.offsets[:count],
            weights=weights / np.float32(_deviation(weights, self.distribution)),
            sines=self.sines[:count],
        )


def pattern(weights: Tensor, distribution: Distribution, outputs: int) -> Pattern:
    """The pattern of the first of a layer's weights, as many as `outputs` outputs hold.

    Of a normal draw only the angle is used: value i of a block of 16 is r_i cos a_i, value i + 8 is r_i sin a_i, and
    a_i is output i + 8 of the block; so the sum of w_i cos a_i + w_{i+8} sin a_i keeps 0.89 of the evidence.
    """
    flat = weights.detach().flatten()[: outputs // distribution.stride].double().numpy()
    if distribution.normal:
        blocks = flat[: len(flat) // NORMAL_BLOCK * NORMAL_BLOCK].reshape(-1, 2, 8)
        places = (np.arange(len(blocks))[:, None] * NORMAL_BLOCK + 8 + np.arange(8))[:, None].repeat(2, 1)
        flat, offsets = blocks.reshape(-1), places.reshape(-1)
        sines = np.broadcast_to(np.array([False, True])[None, :, None], blocks.shape).reshape(-1)
    else:
        offsets, sines = np.arange(len(flat)), np.zeros(len(flat), bool)
    return Pattern(
        distribution=distribution,
        offsets=(offsets * distribution.stride).astype(np.int64),
        weights=(flat / _deviation(flat, distribution)).astype(np.float32),
        sines=sines.copy(),
    )


def _deviation(weights: NDArray[np.floating], distribution: Distribution) -> float:
    variance = 8 / 15 if distribution.normal else 1 / 3  # 8 / 15: of the parabola that stands for the sine
    return math.sqrt(variance * float((weights.astype(np.float64) ** 2).sum()) + 1e-300)


@dataclass(frozen=True, kw_only=True)
class Question:
    """The first test of a sweep: a pattern at one place, by output; a seed passes if its score is above `least`.

    cosine: [n] what counts an output's value, or the cosine of its angle; sine: [n] what counts its sine.
    """

    place: int
    normal: bool
    bits: int
    cosine: NDArray[np.float32]
    sine: NDArray[np.float32]
    least: float


def question(wanted: Pattern, *, place: int, least: float) -> Question:
    """The test of a pattern, one entry for each output from the first to the last that counts."""
    size = int(wanted.offsets.max(initial=0)) + 1
    cosine, sine = np.zeros(size, np.float32), np.zeros(size, np.float32)
    cosine[wanted.offsets[~wanted.sines]] = wanted.weights[~wanted.sines]
    sine[wanted.offsets[wanted.sines]] = wanted.weights[wanted.sines]
    row = wanted.distribution
    return Question(place=place, normal=row.normal, bits=row.bits, cosine=cosine, sine=sine, least=least)
