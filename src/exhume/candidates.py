"""What the attacker found: the only thing that passes from the attacker to the auditor."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

Images = Float[Tensor, "m channels height width"]


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """The objective after `step` steps: the stationarity residual and the penalty beside it."""

    step: int
    residual: float
    penalty: float


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What the attacker took for granted or read from the weights before searching.

    images: number of training images assumed; images_from: "weights" (read from the spectrum), "settings" (given) or
    "nothing" (a guess, where the first layer tells nothing); rank: dimension of the data's subspace in the first layer
    (0: not used); left_out: the strongest direction outside of it, as a share of the strongest of all (None: not used);
    layers: parameters whose stationarity was asked for; weighted: first layer's residual weighted by
    the error that training leaves behind;
    smoothness: weight of the smoothness prior.
    """

    images: int
    images_from: Literal["weights", "settings", "nothing"]
    rank: int
    left_out: float | None
    layers: list[str]
    weighted: bool
    smoothness: float


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Candidate training images, [m, c, h, w] in the network's input range (un-centred, not clamped).

    labels: [m] class indices (binary: 0 or 1; regression: the sign of the multiplier, 0 or 1);
    multipliers: [m], the sample's weight lambda; explained: [m], the share of the weights' squared norm that the
    candidate accounts for; confidence: [m], the chance that the candidate shows a training image, judged by another
    search that found it too (largest first is the order to look at them in when no truth is at hand; NaN: unknown);
    status: "done" or "diverged", with `message` as a sentence.
    """

    images: Images
    labels: Int[Tensor, " m"]
    multipliers: Float[Tensor, " m"]
    explained: Float[Tensor, " m"]
    confidence: Float[Tensor, " m"]
    history: list[HistoryPoint]
    reading: Reading
    status: str
    message: str
