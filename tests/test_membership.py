"""Membership: the area under the curve, its interval, and what so few held-out images can show."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from scipy.stats import mannwhitneyu, norm

from exhume.audit.membership import auc_interval, membership, membership_sentence
from exhume.audit.verdict import Judgement
from exhume.errors import InputError
from exhume.runs.advice import MEMBERSHIP, about_membership
from victims import generator


def test_the_area_is_the_share_of_pairs_in_order() -> None:
    members, others = torch.tensor([0.0, 1.0, 2.0, 5.0]), torch.tensor([1.0, 1.5, -3.0])
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(members.tolist(), others.tolist())]
    found = membership({"margin": (members, others)})[0]
    assert found.auc == pytest.approx(sum(pairs) / 12)
    assert (found.members, found.others, found.smallest) == (4, 3, pytest.approx(1 / 3))


def test_signals_come_best_first_and_their_p_values_are_exact() -> None:
    members, others = (torch.randn(40, generator=generator(seed)) for seed in (0, 1))
    found = membership({"weak": (members + 0.2, others), "strong": (members + 2, others), "wrong": (-others, members)})
    assert found[0].signal == "strong" and found[0].auc > found[1].auc > found[2].auc
    exact = mannwhitneyu((members + 2).numpy(), others.numpy(), alternative="greater", method="exact").pvalue
    assert found[0].p_value == pytest.approx(exact)


def test_true_positives_are_counted_above_all_but_one_in_a_hundred() -> None:
    others = torch.arange(250.0)
    members = torch.tensor([100.0, 246.0, 247.0, 247.5, 248.0, 300.0])
    found = membership({"loss": (members, others)})[0]
    assert found.false_positives == 2 / 250  # of 2.5 that are allowed
    assert found.true_positives == 3 / 6  # those above 247, which are one more than its equals
    few = membership({"loss": (members, others[-40:])})[0]
    assert (few.false_positives, few.true_positives, few.smallest) == (0, 1 / 6, 1 / 40)
    assert "with 40 held-out images no share between 0 and 0.025 can be seen" in membership_sentence(few)


def test_the_interval_covers_the_area() -> None:
    """At least 93 % of intervals of level 95 % that come from normal values."""
    for shift, count in ((0.0, 20), (1.0, 20), (2.0, 30)):
        true, covered = norm.cdf(shift / 2**0.5), 0
        for seed in range(200):
            values = torch.randn(2, count, generator=generator(seed))
            auc = membership({"x": (values[0] + shift, values[1])})[0].auc_interval
            covered += auc.low <= true <= auc.high
        assert covered >= 186


@pytest.mark.parametrize("auc", [0.0, 1e-3, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("counts", [(1, 1), (5, 50), (100, 100)])
def test_the_interval_holds_the_area_and_has_a_width(auc: float, counts: tuple[int, int]) -> None:
    interval, other = auc_interval(auc, *counts), auc_interval(1 - auc, *counts)
    assert 0 <= interval.low <= auc <= interval.high <= 1
    assert interval.high - interval.low > 0.01
    assert (interval.low, interval.high) == pytest.approx((1 - other.high, 1 - other.low), abs=1e-9)


def test_the_sentence_says_that_it_is_no_reconstruction() -> None:
    members, others = (torch.randn(200, generator=generator(seed)) for seed in (0, 1))
    told = membership_sentence(membership({"loss": (members + 1, others)})[0])
    assert told.startswith("Membership (no image is reconstructed): loss tells training from held-out images with AUC")
    chance = membership_sentence(membership({"loss": (members, others)})[0], tried=5)
    assert "training and held-out images are not told apart" in chance and "chance gives as much: p = 1." in chance
    assert " tells " not in chance


def test_signals_without_values_are_refused() -> None:
    with pytest.raises(InputError, match="The signal loss has 0 training and 2 held-out values"):
        membership({"loss": (torch.zeros(0), torch.zeros(2))})
    with pytest.raises(InputError, match="not finite"):
        membership({"loss": (torch.tensor([1.0, torch.nan]), torch.zeros(2))})


def test_an_owner_is_told_where_the_weights_tell_who_was_trained_on() -> None:
    unread = Judgement(verdict="does not apply", strength="none", sentence="", reasons=())
    members, others = (torch.randn(40, generator=generator(seed)) for seed in (0, 1))
    for shift, said in ((2.0, True), (0.0, False)):
        found = membership({"loss": (members + shift, others), "margin": (members + shift, others)})
        assert about_membership(unread, found) == ([MEMBERSHIP] if said else [])
        assert about_membership(replace(unread, verdict="leaks"), found) == []
    assert about_membership(unread, []) == []
