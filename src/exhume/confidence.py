"""How sure the attacker is of each candidate when no truth is at hand: independent searches that agree."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exhume.candidates import Images, Reading
from exhume.metrics import measure_of, similarity

CALIBRATION = (-6.9, 4.3)
"""Intercept and slope of the log-odds by -log10(1 - agreement): a logistic fit (-6.34, 4.29) to the candidates of
network b2 of the benchmark, from which least comes out, that explain enough, rounded to the modest side."""

ENOUGH = 0.3
"""Share of the weights that a candidate must explain, of the median of its search's, to be told by them at all. What
explains next to nothing is what the priors alone say, a flat picture, and searches agree on that (of b8 9 of 13 sure
candidates were such). What explains less than nothing has its output on the wrong side: of b8-decay 6 of 82 sure ones,
all wrong. Under squared error an image whose output overshoots its target is one of these, and is called unsure."""

SHOWN = 0.05
"""Strongest direction that the first layer hides, of the strongest of all, up to which the calibration holds. Beyond,
the weights determine no more than a projection of the images (measured: at most 0.005 where many came out, 0.017 where
two of 500 did, 0.36 where searches agreed on wrong ones, nearly 1 without training)."""

FEW = 10
"""Directions below which the calibration does not hold: among so few, searches agree by chance (of 400 candidates
within two directions 395 agreed, all of them wrong)."""

UNEXPLAINED = 0.5
"""Relative residual above which what was found is not what the weights are made of: a search cut short, a centre that
is not the network's (0.88, and 24 of 28 sure candidates wrong). It is at most 0.32 where the calibration was tried."""


ACTIVATION = "relu"
"""The one that the calibration was made with (of 229 sure candidates of a tanh network 14 were right)."""


def doubt(reading: Reading, images: Images, residual: float, activation: str | None) -> str | None:
    """Why agreement says nothing; None: it does, of pictures within the whole of a subspace that is not too small.

    Args:
        residual: of the search at its end.
        activation: of a dense network; None of others.
    """
    hidden = math.inf if reading.left_out is None else reading.left_out
    doubts = [
        (measure_of(images) != "ncc", "points have no contrast to compare"),
        (
            activation is None or math.isinf(hidden),
            "it was calibrated for searches within a dense network's first layer",
        ),
        (activation != ACTIVATION, f"it was calibrated for {ACTIVATION}, and this network has {activation}"),
        (
            reading.start is not None and not reading.start.exact,
            "it was calibrated for gradient descent, which leaves few directions, and here are more: training was "
            "another (Adam's, say), or began with other weights",
        ),
        (reading.rank < FEW, f"only {reading.rank} directions stand out, among which searches agree by chance"),
        (hidden > SHOWN, "the first layer hides part of the images, and searches agree on a projection"),
        (not residual <= UNEXPLAINED, f"the candidates leave too much of the weights (residual {residual:.2f})"),
    ]
    return next((why for holds, why in doubts if holds), None)


def agreement(
    images: Images,
    labels: Int[Tensor, " m"],
    others: Sequence[tuple[Images, Int[Tensor, " k"]]],
) -> Float[Tensor, " m"]:
    """Similarity (NCC) of each candidate with its nearest of the same label in each other search, averaged.

    A search from another start ends in another minimum, unless the weights determine the image (Oz et al. 2024).

    Returns:
        [m] in [-1, 1]; NaN where there is no other search, or the candidate is not finite.
    """
    nearest = []
    for found, of in others:
        alike = similarity(images, found)
        alike = alike.where(labels[:, None] == of[None], -1.0).masked_fill(~_finite(found), -1.0)
        nearest.append(alike.amax(1))
    averaged = torch.stack(nearest).mean(0) if nearest else images.new_full((len(images),), torch.nan)
    return averaged.masked_fill(~_finite(images), torch.nan)


def confidence(agreed: Float[Tensor, " m"], explained: Float[Tensor, " m"]) -> Float[Tensor, " m"]:
    """The chance, [m] in [0, 1], that a candidate shows a training image at NCC >= 0.9; NaN stays.

    By its agreement with other searches; 0 for a candidate that explains next to nothing of the weights.
    """
    intercept, slope = CALIBRATION
    chance = torch.sigmoid(intercept - slope * (1 - agreed).clamp(1e-6, 1).log10())
    enough = (explained > 0) & (explained >= ENOUGH * explained.nanmedian())
    return chance.masked_fill(~enough & ~agreed.isnan(), 0.0)


def _finite(images: Images) -> Shaped[Tensor, " m"]:
    return images.isfinite().flatten(1).all(1)
