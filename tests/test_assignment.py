"""The assignment of many images: the same as over all pairs at once, and scores by parts the same as in one."""

from dataclasses import fields

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from exhume import metrics
from exhume.audit import assignment, significance
from exhume.audit.assignment import by_column_generation, largest_total
from exhume.audit.counts import Counts
from exhume.audit.matching import assign, finite, halved_similarity, masked, match, nearest_halved
from exhume.audit.scores import Scores, score
from exhume.audit.significance import count_tests, mann_whitney, moved_similarity, rank_test
from exhume.owner import examine
from victims import generator


def similarities(n: int, m: int, seed: int = 0) -> Tensor:
    """Of images of which a few stand out, and candidates of which a few resemble everything, as smooth ones do."""
    draw = generator(seed)
    popular = torch.randn(m, generator=draw) * 0.2
    values = 0.3 * torch.randn(n, m, generator=draw) + popular
    values[: min(n, m) // 3, : min(n, m) // 3] += torch.eye(min(n, m) // 3)
    return values.tanh()


@pytest.fixture
def in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every matrix is large, and few pairs are enough to begin with."""
    monkeypatch.setattr(assignment, "LARGE", 0)
    monkeypatch.setattr(assignment, "BEST", 3)
    monkeypatch.setattr(assignment, "ROWS", 7)


@pytest.mark.usefixtures("in_rounds")
@pytest.mark.parametrize("size", [(90, 90), (60, 100), (100, 60), (1, 5), (5, 1)])
def test_column_generation_finds_what_all_pairs_give(size: tuple[int, int]) -> None:
    for seed in range(5):
        values = similarities(*size, seed=seed)
        rows, columns = largest_total(values)
        best = linear_sum_assignment(values.numpy(), maximize=True)
        assert [rows.tolist(), columns.tolist()] == [part.tolist() for part in best]


@pytest.mark.usefixtures("in_rounds")
@pytest.mark.parametrize("size", [(90, 90), (60, 100), (100, 60)])
@pytest.mark.parametrize("cuts", [(45, 45), (1, 99), (20, 30, 50)])
def test_a_matrix_in_parts_is_assigned_as_a_whole(size: tuple[int, int], cuts: tuple[int, ...]) -> None:
    for seed in range(3):
        values = similarities(*size, seed=seed)
        ends = torch.tensor(cuts).cumsum(0).clamp_max(size[0])
        parts = [part for part in torch.tensor_split(values, ends[:-1]) if len(part) > 0]
        best = linear_sum_assignment(values.numpy(), maximize=True)
        found = by_column_generation(*parts)
        assert found is not None and len(parts) > 1
        assert [part.tolist() for part in found] == [part.tolist() for part in best]


@pytest.mark.usefixtures("in_rounds")
@pytest.mark.parametrize("size", [(80, 90), (90, 80)])
def test_prices_prove_that_no_assignment_is_better(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Duality: no pair costs less than its row and its column together, and the chosen ones cost just that."""
    values, seen = similarities(*size).double(), []
    look = assignment._worth_adding

    def looked(parts: tuple[Tensor, ...], of_rows: object, of_columns: object) -> object:
        seen.append((torch.as_tensor(of_rows), torch.as_tensor(of_columns)))
        return look(parts, of_rows, of_columns)  # type: ignore[arg-type]

    monkeypatch.setattr(assignment, "_worth_adding", looked)
    found = by_column_generation(values)
    assert found is not None and len(seen) > 1
    spare = 2 - values - seen[-1][0][:, None] - seen[-1][1]
    assert float(spare.min()) >= -2 * assignment.TOLERANCE
    assert float(spare[found].abs().max()) < 1e-9
    longer = seen[-1][size[0] < size[1]]
    free = torch.ones(max(size), dtype=torch.bool)
    free[found[size[0] < size[1]]] = False
    assert bool((longer <= 0).all()) and bool((longer[free] == 0).all())
    # in the first round some pair is below
    assert float((2 - values - seen[0][0][:, None] - seen[0][1]).min()) < -assignment.TOLERANCE


@pytest.mark.usefixtures("in_rounds")
def test_pairs_are_added_until_none_would_raise_the_total(monkeypatch: pytest.MonkeyPatch) -> None:
    values, rounds = similarities(90, 90), []
    solve = assignment._solve

    def counted(pairs: object, *rest: object) -> object:
        rounds.append(len(pairs))  # type: ignore[arg-type]
        return solve(pairs, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(assignment, "_solve", counted)
    exact = by_column_generation(values)
    assert len(rounds) > 1 and rounds == sorted(rounds) and rounds[-1] < values.numel() / 2
    # without the prices' test the first round's answer would stand, and is worse
    monkeypatch.setattr(assignment, "_worth_adding", lambda *_: torch.empty(0, dtype=torch.long).numpy())
    hasty = by_column_generation(values)
    assert exact is not None and hasty is not None
    assert values[exact].sum() > values[hasty].sum() + 0.01


@pytest.mark.usefixtures("in_rounds")
def test_candidates_that_are_all_alike_are_assigned_at_once() -> None:
    values = torch.linspace(0, 1, 30)[:, None].expand(30, 30).contiguous()
    assert by_column_generation(values) is None
    assert sorted(assign(values, usable=torch.ones(30, dtype=torch.bool)).tolist()) == list(range(30))


@pytest.mark.usefixtures("in_rounds")
def test_what_is_not_finite_serves_no_image_in_rounds_either() -> None:
    values, usable = similarities(40, 40), torch.arange(40) % 4 > 0
    assigned = assign(torch.where(usable, values, -1.0), usable=usable)
    assert (assigned == -1).sum() == 10 and usable[assigned[assigned >= 0]].all()


@pytest.mark.usefixtures("in_rounds")
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_the_assignment_is_that_with_the_unusable_below_all_others(
    share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is written out over all pairs, where an image takes what is not usable only if nothing else is left."""
    monkeypatch.setattr("exhume.audit.assignment.BEST", 8)
    values, usable = similarities(80, 90), torch.rand(90, generator=generator(1)) < share
    columns = torch.from_numpy(linear_sum_assignment(torch.where(usable, values, -2.0).numpy(), maximize=True)[1])
    written_out = torch.where(usable[columns], columns, -1)
    assert torch.equal(assign(values, usable=usable), written_out)
    assert torch.equal(assign(values[:33], values[33:], usable=usable), written_out)


def test_matrices_of_the_usual_sizes_are_solved_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "by_column_generation", None)
    assert len(largest_total(similarities(1000, 2000))[0]) == 1000


def photographs(count: int, seed: int) -> Tensor:
    """Smooth colour pictures."""
    coarse = torch.rand(count, 3, 3, 3, generator=generator(seed))
    return torch.nn.functional.interpolate(coarse, size=(12, 12), mode="bilinear", align_corners=True)


def scored(noise: float) -> Scores:
    images, held_out, labels = photographs(120, 1), photographs(150, 2), torch.arange(120) % 3
    found = images.repeat(2, 1, 1, 1) + noise * torch.randn(240, 3, 12, 12, generator=generator(3))
    found[7] = torch.nan
    return score(found, images, labels, held_out, held_out_labels=torch.arange(150) % 3)


@pytest.mark.parametrize("noise", [0.05, 0.3])
def test_scores_in_parts_are_those_in_one(noise: float, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scored(noise)
    monkeypatch.setattr(assignment, "LARGE", 0)
    monkeypatch.setattr(assignment, "BEST", 4)
    monkeypatch.setattr(metrics, "AT_ONCE", 17)
    monkeypatch.setattr(metrics, "BLOCK", 17)
    monkeypatch.setattr(metrics, "NUMBERS", 3000)
    monkeypatch.setattr(significance, "AT_ONCE", 17)
    monkeypatch.setattr(significance, "FEW_IMAGES", 17)
    parts = scored(noise)
    assert torch.equal(whole.matches.assigned, parts.matches.assigned)
    assert torch.equal(whole.control_matches.assigned, parts.control_matches.assigned)
    for item in fields(Counts):
        one, other = (getattr(of, item.name) for of in (whole, parts))
        if item.name in {"per_image", "ssim"}:
            continue
        assert one == (pytest.approx(other) if isinstance(one, float) else other), item.name
    assert (whole.ssim.good, whole.ssim.null_good) == (parts.ssim.good, parts.ssim.null_good)
    for one, other in zip(whole.per_image, parts.per_image, strict=True):
        assert (one.candidate, one.nearest) == (other.candidate, other.nearest)
        assert one.ssim3 == pytest.approx(other.ssim3, abs=1e-5)


def spoilt() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Candidates of which two are not finite, images, labels and held-out images."""
    images, held_out = photographs(60, 1), photographs(70, 2)
    found = torch.cat([images[:30], photographs(40, 8)]) + 0.1 * torch.randn(70, 3, 12, 12, generator=generator(3))
    found[3], found[40] = torch.nan, torch.inf
    return found, images, torch.arange(60) % 3, held_out


def test_the_rank_test_is_that_of_all_images_in_one_matrix() -> None:
    """Written out: four matrices of all images, each made as a whole from its images."""
    found, images, labels, held_out = spoilt()
    mean, whole = images.mean(0, keepdim=True), torch.cat([images, held_out])
    moved = torch.cat([images, held_out - held_out.mean(0) + mean])
    of_classes = torch.cat([mean, *(images[labels == label].mean(0, keepdim=True) for label in range(3))])
    views = [(whole, found), (moved, found)]
    views += [tuple(significance._without(of, means, len(of)) for of in (whole, found)) for means in (mean, of_classes)]
    p_values = []
    for pool, candidates in views:
        usable = finite(candidates)
        values = torch.where(usable, metrics.similarity(pool, candidates), -2.0)
        rows, columns = (torch.from_numpy(part) for part in linear_sum_assignment(values.numpy(), maximize=True))
        similar = torch.full((len(pool),), -1.0, dtype=values.dtype)
        similar[rows] = values[rows, columns].clamp_min(-1)
        p_values.append(mann_whitney(similar[:60], similar[60:]))
    known = (
        match(found, images).similarity,
        match(found, held_out).similarity,
        moved_similarity(found, images, held_out),
    )
    assert 1e-9 < max(p_values) < 0.01 and len(set(p_values)) == 4
    assert rank_test(found, images, held_out, labels) == pytest.approx(max(p_values), rel=1e-9)
    assert rank_test(found, images, held_out, labels, similarities=known) == pytest.approx(max(p_values), rel=1e-9)


def test_the_moved_control_is_the_same_where_it_is_known() -> None:
    found, images, _, held_out = spoilt()
    parts = match(found, images).assigned_similarity, match(found, held_out).assigned_similarity
    known = moved_similarity(found, images, held_out)
    assert bool((known[:, [3, 40]] == -1).all()) and bool((known[:, :3] > -1).all())
    plain = count_tests(found, images, held_out, parts, ["0.7", "0.9"])
    assert plain == count_tests(found, images, held_out, parts, ["0.7", "0.9"], moved=known)
    assert plain != count_tests(found, images, held_out, parts, ["0.7", "0.9"], moved=known + 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_the_nearest_of_many_are_found_in_blocks(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    found, images, _, _ = (part[:, :channels] if part.ndim == 4 else part for part in spoilt())
    found = found[finite(found)]
    monkeypatch.setattr(metrics, "BLOCK", 17)
    monkeypatch.setattr(metrics, "NUMBERS", 1000)
    assert torch.equal(nearest_halved(found, images), halved_similarity(found, images).argmax(1))


def test_columns_that_are_not_usable_are_masked_in_place() -> None:
    values = torch.full((2, 3), torch.nan)
    kept = masked(values, torch.tensor([False, False, False]), -1.0)
    assert kept.data_ptr() == values.data_ptr() and bool((values == -1).all())


def test_partners_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    images, others = photographs(60, 1), photographs(60, 2)
    whole = examine.paired_similarity(images, others)
    monkeypatch.setattr(examine, "AT_ONCE", 7)
    torch.testing.assert_close(examine.paired_similarity(images, others), whole)


def test_a_middle_size_takes_no_more_than_its_similarities(monkeypatch: pytest.MonkeyPatch) -> None:
    """2,100 candidates and images, in rounds, of which a third are right."""
    images, held_out = photographs(2100, 4), photographs(2100, 5)
    found = photographs(2100, 6)
    found[:700] = images[:700] + 0.02 * torch.randn(700, 3, 12, 12, generator=generator(7))
    monkeypatch.setattr("scipy.optimize.linear_sum_assignment", None)
    result = score(found, images, None, held_out)
    own = result.matches.assigned[:700]
    assert (own == torch.arange(700)).float().mean() > 0.9
    assert result.recovered["0.9"] >= 630 and result.p_value is not None and result.p_value < 1e-20
