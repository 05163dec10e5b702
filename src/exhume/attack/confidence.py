"""How confident the attacker can be of each candidate when no truth is at hand: independent searches that agree."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from exhume.candidates import Assumptions, Images
from exhume.metrics import measure_of, similarity


class Calibration(NamedTuple):
    """Log-odds `intercept + slope * -log10(1 - agreement)` that a candidate is right; the chance is at most `most`."""

    intercept: float
    slope: float
    most: float = 1.0


CALIBRATION = Calibration(-6.9, 4.3)
"""Intercept and slope of the log-odds against -log10(1 - agreement): a logistic fit (-6.88, 4.46) to the candidates of
b2 of the benchmark that explain enough, rounded towards lower confidence. Least comes out of b2 of all rows."""
INEXACT_CALIBRATION = Calibration(-4.5, 2.5)
"""The same where the change is no exact sum and no momentum tells the span of the images, so that searches agree on
images which the same error has moved: a fit (-4.23, 2.37) to 100 and 200 digits by Adam, four networks, rounded towards
lower confidence."""
MANY_CALIBRATION = Calibration(-6.0, 4.0, most=0.8)
"""The same of more images than neurons, by gradient descent. However well searches agree, an eighth of the candidates
are wrong: 472 of 543 were right beyond 0.975. By bins of 1,000 and 2,000 digits in 512 neurons, seed 11, rounded
towards lower confidence."""

ENOUGH = 0.3
"""Share of the weights that a candidate must explain, relative to the median of its search's, to have a chance at all.
Searches agree on flat pictures that the priors alone make: 9 of 13 confident candidates of b8 were such. A negative
share means an output of the wrong sign: 6 of 82 confident ones of b8-decay, all wrong. Under squared error a right
image whose output exceeds its target is one of these, and gets 0 too."""

FEWEST_DIRECTIONS = 10
"""Directions from which the calibration holds: of two directions 395 of 400 candidates agreed, all of them wrong."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Where the calibration holds.

    discarded: the largest discarded singular value, relative to the largest. Beyond it the weights determine a
    projection of the images at most. unexplained: the relative residual at the end. Beyond it the candidates are not
    what the weights are made of. activations: rows of `networks.ACTIVATIONS`. crowding: directions of each neuron of
    the first layer. In a narrow layer after Adam nothing is left to be discarded, and searches agree on wrong images.
    calibration: what an agreement is worth; None: CALIBRATION.
    """

    discarded: float
    unexplained: float
    activations: tuple[str, ...]
    crowding: float = math.inf
    calibration: Calibration | None = None


TRIED = ("relu", "leaky-relu", "gelu", "silu", "mish", "tanh", "sigmoid")
"""Activations of networks whose confident candidates were right after gradient descent from a known start."""
LIMITS: dict[Literal["start unknown", "exact", "within momentum", "many images", "inexact"], Limits] = {
    "start unknown": Limits(discarded=0.05, unexplained=0.5, activations=("relu",)),
    "exact": Limits(discarded=0.05, unexplained=0.5, activations=TRIED),
    "within momentum": Limits(discarded=0.1, unexplained=0.6, activations=("relu",), crowding=0.35),
    "many images": Limits(
        discarded=0.1, unexplained=0.6, activations=("relu",), crowding=0.35, calibration=MANY_CALIBRATION
    ),
    "inexact": Limits(
        discarded=0.1, unexplained=0.6, activations=("relu",), crowding=0.35, calibration=INEXACT_CALIBRATION
    ),
}
"""By what is known of the start, whether its change has few directions (`KnownInit.exact`), and whether the momentum
told the span of the images.

Start unknown: discarded was at most 0.005 where many came out, 0.36 where searches agreed on wrong ones; a wrong centre
left 0.88 unexplained, and 24 of 28 confident candidates were wrong; of 229 of a tanh network 14 were right. Inexact:
0.05 and 0.51 where the confident were right; with a wrong start 0.17 and 0.83 or more, and none of 15 was right. Layers
of three neurons a direction and more were tried; with one neuron for each, 28 of 49 were right. By Adam with smooth
activations 15 of 61 were (docs/log.md, "Confidence where the start is known"). Within the momentum's span all of 1,449
were right that the exact calibration is confident of; without it 895 of 1,013 (docs/log.md, "Features first"). Many
images: as inexact; little is discarded there by construction, and other initial weights are never taken for many."""


CLOSEST = 1e-6
"""1 - agreement is at least this, so that equal candidates have finite log-odds."""


def uncalibrated_reason(
    assumptions: Assumptions,
    images: Images,
    residual: float,
    activation: str | None,
    neurons: int | None = None,
    *,
    behind_head: bool = False,
) -> str | None:
    """Why agreement says nothing about the candidates; None: it does.

    Args:
        residual: of the search at its end.
        activation: of an MLP, or of one behind a head; None of any other network.
        neurons: of its first layer; None: not known.
        behind_head: whether the MLP is one behind a head.
    """
    discarded = math.inf if assumptions.discarded is None else assumptions.discarded
    known, within, where = assumptions.known_init, limits(assumptions), _where(assumptions)
    reasons = [
        (measure_of(images) != "ncc", "points have no contrast to compare"),
        (
            activation is None or math.isinf(discarded),
            "it was calibrated for searches within the directions of a dense layer",
        ),
        (
            behind_head and known is None,
            "behind other layers it was calibrated where the start is known",
        ),
        (
            known is not None and known.of == "momentum",
            "it was calibrated for weights, and not for an optimiser's momentum",
        ),
        (
            activation not in within.activations,
            f"it was calibrated for {', '.join(within.activations)} {where}, and this network has {activation}",
        ),
        (
            assumptions.rank < FEWEST_DIRECTIONS,
            f"only {assumptions.rank} directions stand out, and searches agree among so few by chance",
        ),
        (
            discarded > within.discarded,
            "the first layer hides part of the images, and searches agree on a projection"
            + (" (training may have begun with other weights)" if known else ""),
        ),
        (
            neurons is not None and assumptions.rank > within.crowding * neurons,
            f"{where} it was calibrated for three neurons a direction and more, and here {neurons} neurons show "
            f"{assumptions.rank} directions",
        ),
        (
            residual > within.unexplained,
            f"the candidates leave too much of the weights unexplained (residual {residual:.2f})",
        ),
    ]
    return next((why for holds, why in reasons if holds), None)


def limits(assumptions: Assumptions) -> Limits:
    """The row of `LIMITS` for a search.

    Where the settings give the number of images, what told their span is not recorded: that counts as no momentum.
    """
    known = assumptions.known_init
    if known is None or known.of == "momentum":
        return LIMITS["start unknown"]
    if known.exact:
        return LIMITS["exact"]
    if assumptions.images_from == "momentum":
        return LIMITS["within momentum"]
    return LIMITS["many images" if assumptions.many_images else "inexact"]


def _where(assumptions: Assumptions) -> str:
    known = assumptions.known_init
    if known is None:
        return "where the start is unknown"
    if known.exact:
        return "after gradient descent"
    if assumptions.many_images:
        return "after gradient descent on many images"
    return (
        "after steps element by element (Adam, for example), where layers before the dense ones were trained, or if "
        "training began with other weights"
    )


def agreement(
    images: Images,
    labels: Int[Tensor, " m"],
    others: Sequence[tuple[Images, Int[Tensor, " k"]]],
) -> Float[Tensor, " m"]:
    """NCC of each candidate with its nearest of the same label in each other search, averaged.

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


def confidence(
    agreed: Float[Tensor, " m"], explained: Float[Tensor, " m"], calibration: Calibration | None = None
) -> Float[Tensor, " m"]:
    """The chance, [m] in [0, 1], that a candidate shows a training image at NCC >= 0.9; NaN stays.

    It follows from the agreement with other searches, by the calibration (None: CALIBRATION). It is 0 for a candidate
    that explains almost none of the weights.
    """
    worth = calibration or CALIBRATION
    odds = worth.intercept - worth.slope * (1 - agreed).clamp(CLOSEST, 1).log10()
    chance = torch.sigmoid(odds).clamp_max(worth.most)
    enough = (explained > 0) & (explained >= ENOUGH * explained.nanmedian())
    return chance.masked_fill(~enough & ~agreed.isnan(), 0.0)


def _finite(images: Images) -> Shaped[Tensor, " m"]:
    return images.isfinite().flatten(1).all(1)
