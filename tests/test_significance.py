"""The tests of a difference: exact where they say so, and never fooled by the mean that an attacker knows."""

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom, norm
from torch import Tensor

from exhume.audit.matching import match
from exhume.audit.significance import (
    EXACT_PAIRS,
    count_tests,
    difference_interval,
    fisher,
    least_chance,
    mann_whitney,
    rank_test,
    share_interval,
    shuffled,
    stratified_fisher,
    van_elteren,
)
from exhume.problems import Selection, load_problem
from victims import generator


def pictures(count: int, seed: int, size: int = 10) -> Tensor:
    """Pictures of one kind: two bright blobs each, [count, 1, size, size]."""
    axis = torch.arange(float(size))
    centres = size * torch.rand(count, 2, 2, generator=generator(seed))
    widths = 1 + 1.5 * torch.rand(count, 2, 1, 1, generator=generator(seed + 1))
    rows, columns = (axis - centres[:, :, i, None] for i in (0, 1))
    squared = rows[:, :, :, None] ** 2 + columns[:, :, None, :] ** 2
    return (-squared / (2 * widths**2)).exp().sum(1, keepdim=True).clamp(0, 1)


def noise(count: int, seed: int, size: int = 10) -> Tensor:
    return torch.randn(count, 1, size, size, generator=generator(seed))


# ---- Ranks


def by_all_orders(larger: list[float], smaller: list[float]) -> float:
    """Of all ways to call values the larger ones, the share whose sum of ranks is as high."""
    values = np.array([*larger, *smaller])
    ranks = (values[:, None] > values).sum(1) + ((values[:, None] == values).sum(1) + 1) / 2
    sums = [ranks[list(rows)].sum() for rows in combinations(range(len(values)), len(larger))]
    return float(np.mean(np.array(sums) >= ranks[: len(larger)].sum() - 1e-9))


@pytest.mark.parametrize(
    ("larger", "smaller"),
    [
        ([5.0, 3.0, 8.0, 1.0], [4.0, 2.0, 7.0]),
        ([5.0, 5.0, 8.0, 1.0], [5.0, 2.0, -1.0, -1.0]),
        ([1.0], [0.0]),
        ([0.5, 0.4, -1.0, -1.0], [-1.0, -1.0, -1.0]),
    ],
)
def test_few_values_are_ranked_in_all_orders(larger: list[float], smaller: list[float]) -> None:
    assert mann_whitney(torch.tensor(larger), torch.tensor(smaller)) == pytest.approx(by_all_orders(larger, smaller))


def test_values_that_are_all_equal_tell_nothing() -> None:
    assert mann_whitney(torch.full((30,), -1.0), torch.full((9,), -1.0)) == 1
    assert mann_whitney(torch.zeros(0), torch.ones(3)) == 1


def test_beyond_what_is_counted_exactly_the_p_value_is_near_and_not_smaller() -> None:
    count = int(EXACT_PAIRS**0.5)
    values = torch.arange(2.0 * count)
    apart = torch.cat([values[count // 2 : count], values[count + count // 2 :]]), values
    exact = mann_whitney(apart[0], torch.cat([values[: count // 2], values[count : count + count // 2]]))
    one_more = torch.cat([torch.tensor([-1.0]), values[: count // 2], values[count : count + count // 2]])
    normal = mann_whitney(apart[0], one_more)
    assert 0 < exact < 1e-10
    assert exact / 10 < normal < exact * 10
    separate = mann_whitney(values[count:] + 0.5, values[: count + 0])
    assert separate < mann_whitney(torch.cat([values[count:] + 0.5]), torch.cat([values[:count], values[:1]])) < 1e-50


# ---- The test over all similarities


def test_true_images_are_told_and_the_order_changes_nothing() -> None:
    images, held_out = pictures(25, 0), pictures(25, 100)
    candidates = images + 0.1 * noise(25, 3)
    p_value = rank_test(candidates, images, held_out)
    assert p_value < 1e-6
    order = torch.randperm(25, generator=generator(1))
    assert rank_test(candidates[order], images.flip(0), held_out[order]) == pytest.approx(p_value)


def test_blurred_images_are_told_although_none_reaches_the_headline() -> None:
    images, held_out = pictures(50, 0), pictures(50, 100)
    candidates = images + 0.5 * noise(50, 3)
    assert rank_test(candidates, images, held_out) < 1e-10
    assert not (match(candidates, images).assigned_similarity >= 0.9).any()


KNOWING_NOTHING: dict[str, Callable[[Tensor, int], Tensor]] = {
    "noise": lambda images, seed: noise(40, seed),
    "the mean": lambda images, seed: images.mean(0) + 1e-6 * noise(40, seed),
    "the mean and noise": lambda images, seed: images.mean(0) + 0.1 * noise(40, seed),
    "powers of the mean": lambda images, seed: (
        images.mean(0) ** torch.linspace(0.3, 3, 40)[:, None, None, None] + 0.02 * noise(40, seed)
    ),
    "others": lambda images, seed: pictures(40, seed),
    "others at the mean": lambda images, seed: pictures(40, seed) - pictures(40, seed).mean(0) + images.mean(0),
}


@pytest.mark.parametrize("kind", KNOWING_NOTHING)
def test_candidates_that_know_the_mean_at_most_are_rarely_called_a_leak(kind: str) -> None:
    """60 sets of 20: 8 of p < 0.05 would come once in 130 tests of level 0.05."""
    p_values = []
    for seed in range(60):
        images, held_out = pictures(20, 1000 * seed), pictures(20, 1000 * seed + 500)
        p_values.append(rank_test(KNOWING_NOTHING[kind](images, 1000 * seed + 700), images, held_out))
    assert sum(p_value < 0.05 for p_value in p_values) <= 7
    assert sum(p_value < 0.001 for p_value in p_values) <= 1


def test_class_means_are_no_leak_of_images_where_the_classes_are_known() -> None:
    """Of ten digits a class: the means lie so near to these that nearly all sets would be called leaks."""
    digits = load_problem("mnist-digits", Selection(per_class=250, data_dir="installed"))
    by_class = torch.cat([digits.images.reshape(10, 250, 1, 28, 28), digits.held_out.reshape(10, 250, 1, 28, 28)], 1)
    labels, known, unknown = torch.arange(10).repeat_interleave(10), [], []
    for seed in range(12):
        both = by_class[:, torch.randperm(500, generator=generator(seed))[:20]]
        images, held_out = both[:, :10].flatten(0, 1), both[:, 10:].flatten(0, 1)
        means = both[:, :10].mean(1).repeat_interleave(20, 0) + 0.05 * noise(200, seed, 28)
        known.append(rank_test(means, images, held_out, labels))
        unknown.append(rank_test(means, images, held_out))
    assert sum(p_value < 0.05 for p_value in unknown) >= 9
    assert sum(p_value < 0.05 for p_value in known) <= 3
    assert min(known) > 0.001


def test_images_are_told_beside_their_class_means() -> None:
    images, held_out = pictures(20, 0), pictures(20, 100)
    for each in (1, 2, 5):  # the mean of one image is the image, and is not taken out
        labels = torch.arange(20 // each).repeat_interleave(each)
        assert rank_test(images + 0.1 * noise(20, 3), images, held_out, labels) < 1e-6


def test_the_mean_alone_would_pass_for_a_leak_by_the_similarities_as_they_are() -> None:
    """What the test is for: without it 40 % of sets that leak nothing but their mean are called leaks."""
    fooled = 0
    for seed in range(60):
        images, held_out = pictures(20, 1000 * seed), pictures(20, 1000 * seed + 500)
        candidates = KNOWING_NOTHING["the mean"](images, seed)
        parts = (match(candidates, part).assigned_similarity for part in (images, held_out))
        fooled += mann_whitney(*parts) < 0.05
    assert fooled >= 15


def test_candidates_that_are_not_finite_tell_nothing() -> None:
    images, held_out = pictures(10, 0), pictures(10, 100)
    assert rank_test(torch.full_like(images, torch.nan), images, held_out) == 1
    spoilt = torch.cat([images, torch.full_like(images, torch.inf)])
    assert rank_test(spoilt, images, held_out) < 1e-4


def test_points_are_ranked_by_agreement() -> None:
    angles = torch.linspace(0, 6, 24)
    points = (0.5 + 0.4 * torch.stack([angles.cos(), angles.sin()], 1)).reshape(24, 1, 1, 2)
    assert rank_test(points[::2], points[::2], points[1::2]) < 1e-4
    assert rank_test(points[1::2], points[::2], points[1::2]) > 0.9


# ---- Counts


def test_the_counts_are_tested_by_the_hypergeometric_tail() -> None:
    assert fisher(9, 20, 2, 15) == pytest.approx(hypergeom.sf(8, 35, 11, 20))
    assert fisher(0, 5, 0, 5) == 1


def test_counts_of_the_mean_are_no_leak_where_all_images_resemble_it() -> None:
    """Each image correlates with the mean at about 0.9: training images lie above that more often."""
    base = torch.rand(1, 1, 12, 12, generator=generator(7))
    plain, guarded = [], []
    for seed in range(60):
        both = (0.2 + 0.6 * base + 0.1 * noise(40, seed, 12)).clamp(0, 1)
        images, held_out = both[:20], both[20:]
        candidates = images.mean(0) + 1e-6 * noise(20, seed, 12)
        parts = tuple(match(candidates, part).assigned_similarity for part in (images, held_out))
        reached = [int((part >= 0.87).sum()) for part in parts]
        plain.append(fisher(reached[0], 20, reached[1], 20))
        guarded.append(count_tests(candidates, images, held_out, (parts[0], parts[1]), ["0.87"])["0.87"])
    assert sum(p_value < 0.05 for p_value in guarded) <= 7
    assert sum(p_value < 0.05 for p_value in guarded) < sum(p_value < 0.05 for p_value in plain)


def test_intervals_of_shares() -> None:
    """Oracles: the beta quantiles, and the example of Newcombe 1998, table II (56/70 against 48/80)."""
    interval = share_interval(81, 263)
    assert (interval.low, interval.high) == pytest.approx((0.2527, 0.3676), abs=1e-4)
    assert share_interval(5, 5).high == 1
    difference = difference_interval(56, 70, 48, 80)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    none = difference_interval(0, 10, 0, 10)
    z = float(norm.ppf(0.975)) ** 2
    assert (none.low, none.high) == pytest.approx((-z / (10 + z), z / (10 + z)))


# ---- Within classes


def test_counts_within_classes_are_tested_by_all_divisions_of_each() -> None:
    """Three classes, one of which has no control: by hand, over all ways to choose the training images of each."""
    classes = torch.tensor([0, 0, 0, 1, 1, 2, 2]), torch.tensor([0, 0, 1, 1, 1])
    reached, null = torch.tensor([1, 1, 0, 1, 1, 1, 1]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    pools = [(torch.tensor([1, 1, 0, 1, 0]), 3), (torch.tensor([1, 1, 0, 1, 0]), 2)]
    counts = [[int(pool[list(rows)].sum()) for rows in combinations(range(5), size)] for pool, size in pools]
    chance = np.mean([one + other >= 4 for one in counts[0] for other in counts[1]])
    assert stratified_fisher(reached, null, classes) == pytest.approx(chance)
    whole = torch.zeros(7, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    assert stratified_fisher(reached, null, whole) == pytest.approx(fisher(6, 7, 2, 5))
    assert least_chance(classes) == pytest.approx(1 / 100)


def test_far_out_the_test_within_classes_keeps_its_precision() -> None:
    classes = torch.arange(10).repeat_interleave(10)
    yes = torch.ones(100, dtype=torch.bool)
    assert stratified_fisher(yes, ~yes, (classes, classes)) == pytest.approx(184756.0**-10)


def test_ranks_within_classes_see_no_difference_of_classes() -> None:
    """Ones lie nearer to what came out, and nearly all training images are ones: no leak."""
    classes = (torch.arange(100) >= 80).long(), (torch.arange(100) >= 20).long()
    p_values = []
    for seed in range(400):
        one, other = (torch.randn(100, generator=generator(2 * seed + i)) - 3 * classes[i] for i in (0, 1))
        p_values.append(van_elteren(one, other, classes))
        assert mann_whitney(one, other) < 1e-6
    assert 8 <= sum(p_value < 0.05 for p_value in p_values) <= 34  # 20 expected
    assert van_elteren(one + 1, other, classes) < 1e-3
    assert van_elteren(torch.zeros(100), torch.zeros(100), classes) == 1
    assert van_elteren(one, other, (0 * classes[0], 0 * classes[0] + 1)) == 1  # no class is on both sides


@pytest.mark.parametrize(("images", "low", "high"), [(4, 2, 10), (12, 8, 34)])
def test_few_values_of_many_classes_are_ranked_without_false_alarm(images: int, low: int, high: int) -> None:
    """Of 400, and of classes of two and two: of eight values the chances are permuted, and never too small."""
    classes = torch.arange(images // 2).repeat_interleave(2)
    p_values = []
    for seed in range(400):
        both = torch.randn(2, images, generator=generator(seed))
        p_values.append(van_elteren(both[0], both[1], (classes, classes)))
    assert low <= sum(p_value < 0.05 for p_value in p_values) <= high


def test_shuffles_stay_within_classes() -> None:
    classes = torch.tensor([0, 1, 0, 2, 1, 0])
    orders = shuffled(classes, 200, generator(0))
    assert torch.equal(classes[orders], classes.expand(200, 6))
    assert len(torch.unique(orders, dim=0)) == 12


@pytest.mark.parametrize(
    ("one", "others", "chance"),
    [
        ([2.0], [0.0, 0.0], 1 / 3),
        ([0.0], [0.0, 1.0, 1.0], 1.0),
        ([1.0, 1.0, 0.0], [0.0], 0.5),
        ([3.0, 3.0], [4.0], 1.0),
    ],
)
def test_a_single_value_beside_tied_ones_has_a_chance(one: list[float], others: list[float], chance: float) -> None:
    assert mann_whitney(torch.tensor(one), torch.tensor(others)) == pytest.approx(chance)
