"""Membership: whether signals of the network tell training images from others. It is no reconstruction: no image is
seen, and an attacker must already hold the image that he asks about."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.audit.significance import SIGNIFICANT, Interval, mann_whitney, share_interval
from exhume.errors import InputError

FALSE_POSITIVES = 0.01
"""Share of held-out images that may be taken for training images."""
NEARLY_CERTAIN = 1e-12
"""Distance from 0 and 1, where the standard error vanishes, at which the interval of such an area is begun."""
NORMAL_QUANTILE = 1.959964
"""Of a normal distribution, for two-sided intervals of 95 %."""


@dataclass(frozen=True, kw_only=True)
class Membership:
    """How well one signal tells the training images (members) from held-out ones (others).

    auc: the chance that a member has the larger value (0.5: the signal tells nothing; ties count half), with its 95 %
    interval (Newcombe 2006, method 5); true_positives: share of members above all but `false_positives` of the others,
    at most 1 %, with its interval (Clopper-Pearson); smallest: the smallest share of false positives above 0 that so
    many held-out images can show; p_value: the chance of such ranks if both were alike (`mann_whitney`).

        for found in exhume.membership({"loss": (-losses, -losses_of_held_out)}):
            print(found.signal, found.auc, found.auc_interval.low, found.true_positives)
    """

    signal: str
    members: int
    others: int
    auc: float
    auc_interval: Interval
    true_positives: float
    true_positives_interval: Interval
    false_positives: float
    smallest: float
    p_value: float


def membership(signals: Mapping[str, tuple[Float[Tensor, " n"], Float[Tensor, " k"]]]) -> list[Membership]:
    """Tells for each signal how well it separates training from held-out images, the best first.

    This is membership, not reconstruction: it says whether an image that is at hand was trained on.

        >>> found = membership({"loss": (torch.tensor([3.0, 4.0, 5.0]), torch.tensor([1.0, 2.0, 3.5]))})
        >>> round(found[0].auc, 2), found[0].true_positives
        (0.89, 0.6666666666666666)

    Args:
        signals: by name, the values of the training and of the held-out images; larger is more like a training image.

    Raises:
        InputError: a signal has no values for either, or one that is not finite.
    """
    found = [_membership(name, *values) for name, values in signals.items()]
    return sorted(found, key=lambda one: -one.auc)


def tells_apart(found: Sequence[Membership]) -> bool:
    """Whether the best of the signals tells training images from others, corrected for how many were tried."""
    return bool(found) and len(found) * found[0].p_value < SIGNIFICANT


def membership_sentence(found: Membership, tried: int = 1) -> str:
    """Says in one sentence what a signal tells, as membership and not as reconstruction.

        print(exhume.membership_sentence(exhume.membership(signals)[0], tried=len(signals)))

    Args:
        tried: of how many signals this is the best; the p-value is multiplied by it.
    """
    p_value, at = min(1.0, tried * found.p_value), f"{found.auc_interval.low:.2f} to {found.auc_interval.high:.2f}"
    power = f"{found.true_positives:.0%} of the training images at {found.false_positives:.2g} false positives"
    told, best = "Membership (no image is reconstructed)", "" if tried == 1 else f", the best of {tried} signals,"
    if p_value >= SIGNIFICANT:
        return (
            f"{told}: training and held-out images are not told apart. {found.signal.capitalize()}{best} has AUC "
            f"{found.auc:.2f} ({at}; 0.5 is guessing), and chance gives as much: p = {p_value:.2g}."
        )
    told += f": {found.signal} tells training from held-out images with AUC {found.auc:.2f} ({at}), {power}"
    if found.smallest > FALSE_POSITIVES:
        told += f" (with {found.others} held-out images no share between 0 and {found.smallest:.2g} can be seen)"
    return f"{told}; p = {p_value:.1g}."


def _membership(name: str, members: Float[Tensor, " n"], others: Float[Tensor, " k"]) -> Membership:
    if members.numel() == 0 or others.numel() == 0:
        raise InputError(f"The signal {name} has {members.numel()} training and {others.numel()} held-out values.")
    one, other = members.double().flatten(), others.double().flatten()
    if not (one.isfinite().all() and other.isfinite().all()):
        raise InputError(f"The signal {name} has values that are not finite.")
    allowed = math.floor(FALSE_POSITIVES * len(other))
    threshold = torch.sort(other, descending=True).values[allowed]
    above = int((one > threshold).sum())
    auc = _auc(one, other)
    return Membership(
        signal=name,
        members=len(one),
        others=len(other),
        auc=auc,
        auc_interval=auc_interval(auc, len(one), len(other)),
        true_positives=above / len(one),
        true_positives_interval=share_interval(above, len(one)),
        false_positives=float((other > threshold).double().mean()),
        smallest=1 / len(other),
        p_value=mann_whitney(one, other),
    )


def _auc(one: Float[Tensor, " n"], other: Float[Tensor, " k"]) -> float:
    from scipy.stats import rankdata  # noqa: PLC0415

    ranks = rankdata([*one.tolist(), *other.tolist()])[: len(one)]
    return float(ranks.sum() / len(one) - (len(one) + 1) / 2) / len(other)


def auc_interval(auc: float, members: int, others: int) -> Interval:
    """The 95 % interval of an area under the curve (Newcombe 2006, method 5).

    The areas from which the one seen is less than 1.96 standard errors away, with the standard error of Hanley and
    McNeil (1982) at that area. It has a width also where the two are separated completely.

    >>> auc_interval(1.0, 20, 20)
    Interval(low=0.8659949384193398, high=1.0)
    """
    from scipy.optimize import brentq  # noqa: PLC0415

    size = (members + others) / 2 - 1

    def away(area: float) -> float:
        spread = 1 + size * (1 - area) / (2 - area) + size * area / (1 + area)
        return abs(auc - area) - NORMAL_QUANTILE * math.sqrt(area * (1 - area) * spread / (members * others))

    return Interval(
        low=0.0 if auc == 0 else float(brentq(away, 0.0, min(auc, 1 - NEARLY_CERTAIN))),
        high=1.0 if auc == 1 else float(brentq(away, max(auc, NEARLY_CERTAIN), 1.0)),
    )
