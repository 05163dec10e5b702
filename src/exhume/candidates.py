"""What the attacker found: the only thing that passes from the attacker to the auditor."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from exhume.errors import InputError

Images = Float[Tensor, "m channels height width"]


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """The objective after `step` steps: the stationarity residual and the penalty beside it.

    The residual may be below 0 where hidden layers are explained beyond the noise of their initialisation.
    """

    step: int
    residual: float
    penalty: float


@dataclass(frozen=True, kw_only=True)
class KnownInit:
    """What is read of a training whose initial weights are known.

    of: what is explained, the weights' change since then or, in its place, the optimiser's momentum (the start is then
    unknown); retained: share of the start that weight decay has left in the trained weights; exact: whether the change
    of the first dense layer has few directions, as gradient descent on few images gives it. It has many where steps
    were taken element by element (Adam), where convolutions before it changed, or where there are more images than
    directions.
    """

    retained: float
    exact: bool
    of: Literal["change", "momentum"] = "change"


MANY_IMAGES = "known start, many images"
"""The row of REGIMES for which more is said and other confidence given than for other known starts."""


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """What the attacker took for granted, or read from the weights, before searching.

    regime: the row of REGIMES (attack/analysis.py) that the weights chose; None: all parameters are believed;
    images: number of training images assumed; images_from: "weights" (read from the spectrum), "momentum" (from that of
    the optimiser's momentum), "settings" (given) or "nothing" (a guess, where the first layer tells nothing); rank:
    dimension of the subspace that is searched in the first layer (0: not used); discarded: largest discarded singular
    value, relative to the largest, of what the subspace was read from (None: not used); layers: parameters whose
    stationarity is asked for; smoothness: weight of the total variation; binary_prior: weight of grey pixels;
    known_init: what is read of a known start; None: the start is unknown.
    """

    regime: str | None
    images: int
    images_from: Literal["weights", "momentum", "settings", "nothing"]
    rank: int
    discarded: float | None
    layers: list[str]
    smoothness: float
    binary_prior: float
    known_init: KnownInit | None = None

    @property
    def many_images(self) -> bool:
        """Whether gradient descent saw about as many images as the first layer has directions, or more."""
        return self.regime == MANY_IMAGES


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidate training images, [m, c, h, w] in the network's input range (un-centred, not clamped).

    labels: [m] class indices (binary: 0 or 1; regression: the sign of the multiplier, 0 or 1);
    multipliers: [m], the sample's weight lambda; explained: [m], the share of the weights' squared norm that the
    candidate accounts for; confidence: [m], the chance that the candidate shows a training image, judged by another
    search that found it too, or by how much closed neurons tell (largest first is the order to look at them in when no
    truth is at hand; NaN: unknown); status: "done" or "diverged", with `message` as a sentence.

        candidates = exhume.reconstruct(exhume.load_checkpoint("runs/demo"))
        likeliest = candidates.images[candidates.confidence.nan_to_num().argsort(descending=True)[:10]]
    """

    images: Images
    labels: Int[Tensor, " m"]
    multipliers: Float[Tensor, " m"]
    explained: Float[Tensor, " m"]
    confidence: Float[Tensor, " m"]
    history: list[HistoryPoint]
    assumptions: Assumptions
    status: str
    message: str


def join(several: Sequence[Candidates]) -> Candidates:
    """All candidates of several reconstructions of one network, in the order given.

    History, assumptions, status and message are the first's; near-duplicates are kept (`matching.merge` finds them).

        both = exhume.join([exhume.reconstruct(checkpoint, exhume.Exhume(seed=seed)) for seed in (0, 1)])

    Raises:
        InputError: there are none to join, or their images differ in shape.
    """
    if not several:
        raise InputError("There are no candidates to join.")
    shapes = {tuple(candidates.images.shape[1:]) for candidates in several}
    if len(shapes) > 1:
        raise InputError(f"Candidates of different shapes cannot be joined: {', '.join(map(str, sorted(shapes)))}.")

    return replace(
        several[0],
        images=torch.cat([candidates.images for candidates in several]),
        labels=torch.cat([candidates.labels for candidates in several]),
        multipliers=torch.cat([candidates.multipliers for candidates in several]),
        explained=torch.cat([candidates.explained for candidates in several]),
        confidence=torch.cat([candidates.confidence for candidates in several]),
    )
