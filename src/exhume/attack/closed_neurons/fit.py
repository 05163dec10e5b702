"""Images by their gates: the likeliest ones, among those that are plausible."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from exhume.attack.closed_neurons.contributions import Contributions
from exhume.attack.closed_neurons.zeros import relative_sizes

OPEN, CLOSED = 0.3, 0.02
"""Size of delta_ij, relative to the 90th percentile of image i, from and up to which neuron j counts as open or closed.
Between them it was open in some steps only."""
FIT_STEPS, FIT_RATE = 100, 0.3
"""Steps of Adam that fit an image to its gates, and their rate in coordinates of images in [0, 1]."""
CONSISTENT = 0.8
"""Share of the neurons with delta_ij = 0 that an image must close. Right images closed 0.89 or more."""
OPEN_ERROR, CLOSED_ERROR = 0.3, 0.02
"""Chance that a neuron which counts as open, or as closed, is not so for the weights of the end."""
SLOPE = 10.0
"""Of the gates' logistic function, by the pre-activations' root mean square: that of the search."""
SMOOTHNESS = 0.1
"""Weight of the total variation, of an image of usual contrast, beside the log-likelihood of its gates."""
SIZE_WEIGHT, BIAS_WEIGHT = 5.0, 10.0
"""Of the squared logarithm of that distance over the typical one; of (b - 1)^2, b the coordinate of the bias."""


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Neurons that count as open and as closed for each candidate, [m, N] each; the others tell nothing."""

    opened: Bool[Tensor, "m N"]
    closed: Bool[Tensor, "m N"]


def gates_of(span: Contributions, combinations: Float[Tensor, "m n"]) -> Gates:
    size = relative_sizes(span, combinations)
    return Gates(opened=size > OPEN, closed=size < CLOSED)


def consistent(span: Contributions, gates: Gates, coordinates: Float[Tensor, "m n"]) -> Bool[Tensor, " m"]:
    """Whether images close the neurons that their zeros say: a sparse vector that is no image's has other zeros."""
    closed = (coordinates @ span.gates.T < 0) & gates.closed
    return closed.sum(1) >= CONSISTENT * gates.closed.sum(1)


def fitted(
    span: Contributions,
    gates: Gates,
    base: Float[Tensor, "m n"],
    start: Float[Tensor, "m r"],
    rest: Float[Tensor, "r n"],
) -> tuple[Float[Tensor, "m n"], Float[Tensor, " m"]]:
    """Coordinates s base + y rest, s > 0, that are likeliest by their gates and plausible images; what they cost."""
    within, scale = start.clone().requires_grad_(), base.new_zeros(len(base), 1).requires_grad_()
    rate = FIT_RATE * span.length / span.typical
    optimiser = torch.optim.Adam([{"params": [within], "lr": rate}, {"params": [scale], "lr": FIT_RATE / 3}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, FIT_STEPS)
    by_base, by_rest = base @ span.gates.T, span.gates @ rest.T

    def cost() -> Float[Tensor, " m"]:
        before = scale.exp() * by_base + within @ by_rest.T
        return unlikeliness(before, gates) + implausibility(span, scale.exp() * base + within @ rest)

    for _ in range(FIT_STEPS):
        optimiser.zero_grad()
        cost().sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return scale.exp() * base + within @ rest, cost()


def fitted_of_either_sign(
    span: Contributions, gates: Gates, base: Float[Tensor, "m n"], rest: Float[Tensor, "r n"]
) -> Float[Tensor, "m n"]:
    """The same for a base whose sign is unknown: of both fits that of the lower cost."""
    none = base.new_zeros(len(base), len(rest))
    (positive, cost), (negative, other) = (fitted(span, gates, sign * base, none, rest) for sign in (1, -1))
    return torch.where((cost < other)[:, None], positive, negative)


def unlikeliness(before: Float[Tensor, "m N"], gates: Gates) -> Float[Tensor, " m"]:
    """The negative log-likelihood of gates that pre-activations have, where some gates are told wrongly."""
    size = before.detach().pow(2).mean(1, keepdim=True).sqrt().clamp_min(1e-30)
    chance = torch.sigmoid(SLOPE * before / size)
    opened = (OPEN_ERROR + (1 - OPEN_ERROR) * chance).log() * gates.opened
    closed = (CLOSED_ERROR + (1 - CLOSED_ERROR) * (1 - chance)).log() * gates.closed
    return -(opened + closed).sum(1)


def implausibility(span: Contributions, coordinates: Float[Tensor, "m n"]) -> Float[Tensor, " m"]:
    """What makes coordinates no image: pixels outside of [0, 1], an odd size, b other than 1, a rough photograph.

    The total variation is that of the image at the typical size: it must not make images faint.
    """
    images = span.differences(coordinates)
    size = images.flatten(1).norm(dim=1).clamp_min(1e-30)
    pixels = images + span.subtracted
    cost: Tensor = (pixels - pixels.detach().clamp(0, 1)).pow(2).sum((1, 2, 3))
    cost = cost + SIZE_WEIGHT * (size / span.typical).log().pow(2)
    if span.biased:
        cost = cost + BIAS_WEIGHT * (coordinates @ span.basis[-1] - 1).pow(2)
    if span.smooth:
        slopes = images.diff(dim=-1).abs().sum((1, 2, 3)) + images.diff(dim=-2).abs().sum((1, 2, 3))
        cost = cost + SMOOTHNESS * slopes / size * span.typical
    return cost
