"""Whether the method could have found the training images, by what the owner sees."""

from dataclasses import dataclass, replace

import pytest
import torch
from scipy.stats import fisher_exact
from torch import Tensor

from exhume import InputError, fates, readability
from exhume.audit.readability import CHANCE


@dataclass(frozen=True)
class Seen:
    """An examination of images that are all reachable, unless said otherwise."""

    stays: Tensor
    reachable: Tensor
    residual: float = 0.5


def seen(stay: int, count: int = 100, at: float = 0.95, reachable: int | None = None) -> Seen:
    stays = torch.full((count,), 0.3)
    stays[:stay] = at
    reached = torch.full((count,), 0.5)
    reached[: count if reachable is None else reachable] = 1.0
    return Seen(stays, reached)


@pytest.mark.parametrize(
    ("own", "others", "verdict"),
    [
        (seen(99), seen(3), "readable"),
        (seen(22), seen(0), "readable"),
        (seen(17, at=0.85), seen(0), "readable"),
        (seen(10, count=10), seen(0, count=10), "readable"),
        (seen(2), seen(0), "not held"),
        (seen(30), seen(20), "not held"),
        (seen(3), seen(40), "not held"),
        (seen(0), seen(0), "not held"),
        (seen(6, count=6), seen(0, count=6), "too few"),  # one of 924 divisions, at either of two levels
        (seen(0, count=6), seen(0, count=6), "too few"),
        (seen(7, count=7), seen(0, count=7), "readable"),
    ],
)
def test_the_method_applies_where_its_search_keeps_more_training_images_than_others(
    own: Seen, others: Seen, verdict: str
) -> None:
    found = readability(own, others, membership_p=1.0)
    assert found.verdict == verdict
    assert (found.p_value < CHANCE) == (verdict == "readable")
    assert f"{found.stay} of {len(own.stays)} training images" in found.reason


def test_the_chance_is_fishers_of_two_levels() -> None:
    found = readability(seen(12), seen(2), membership_p=1.0)
    assert found.level == 0.9
    assert found.p_value == pytest.approx(2 * fisher_exact([[12, 88], [2, 98]], alternative="greater").pvalue)
    weaker = readability(seen(30, at=0.85), seen(2, at=0.85), membership_p=1.0)
    assert (weaker.level, weaker.stay, weaker.held_out_stay) == (0.8, 30, 2)


@pytest.mark.parametrize(("reachable", "why"), [(100, "does not determine"), (4, "4 of 100 can be reached")])
def test_images_that_are_held_and_not_readable_have_a_reason(reachable: int, why: str) -> None:
    own = seen(0, reachable=reachable)
    held = readability(own, seen(0), membership_p=1e-6)
    assert held.verdict == "held but not readable" and why in held.reason
    assert readability(own, seen(0), membership_p=0.01).verdict == "not held"
    assert readability(seen(90), seen(0), membership_p=1.0).verdict == "readable"


def test_every_image_has_its_fate() -> None:
    examined = Seen(torch.tensor([0.95, 0.95, 0.2, 0.2, 0.2]), torch.tensor([1.0, 1.0, 1.0, 0.6, 0.6]))
    found = torch.tensor([0.92, 0.3, 0.3, 0.3, 0.91])
    assert fates(examined, found) == ["found", "stays but not found", "does not stay", "outside the subspace", "found"]
    assert fates(examined, found, level=0.1) == ["found"] * 5


def test_an_examination_without_a_search_is_refused() -> None:
    nothing = Seen(torch.full((4,), torch.nan), torch.ones(4))
    with pytest.raises(InputError, match="search that begins"):
        readability(nothing, seen(4), membership_p=1.0)


def test_too_few_images_are_not_said_to_be_untold() -> None:
    """Whatever signals of membership say: 0 of 6 stay, and 6 of 6 would have proven nothing."""
    found = readability(seen(0, count=6), seen(0, count=6), membership_p=1e-9)
    assert found.verdict == "too few" and "too few images" in found.reason and "nothing else tells" not in found.reason


@pytest.mark.parametrize(("left", "verdict"), [(0.3, "readable"), (0.5, "readable"), (0.6, "not held")])
def test_images_that_explain_less_than_held_out_ones_were_not_trained_on(left: float, verdict: str) -> None:
    found = readability(replace(seen(90), residual=left), seen(2), membership_p=1.0)
    assert (found.verdict, found.residual, found.held_out_residual) == (verdict, left, 0.5)
    assert verdict == "readable" or "leave 0.6 of the weights unexplained, and the held-out ones 0.5" in found.reason
