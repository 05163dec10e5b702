"""The assignment of many images: the same as over all pairs at once, and scores by parts the same as in one."""

from dataclasses import fields

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from exhume import metrics
from exhume.audit import assignment, scores, significance
from exhume.audit.assignment import by_column_generation, largest_total
from exhume.audit.counts import Counts
from exhume.audit.matching import assign
from exhume.audit.scores import Scores, score
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
    assert values[torch.arange(90), exact].sum() > values[torch.arange(90), hasty].sum() + 0.01


@pytest.mark.usefixtures("in_rounds")
def test_candidates_that_are_all_alike_are_assigned_at_once() -> None:
    values = torch.linspace(0, 1, 30)[:, None].expand(30, 30).contiguous()
    assert by_column_generation(values) is None
    assert sorted(assign(values, torch.ones(30, dtype=torch.bool)).tolist()) == list(range(30))


@pytest.mark.usefixtures("in_rounds")
def test_what_is_not_finite_serves_no_image_in_rounds_either() -> None:
    values, usable = similarities(40, 40), torch.arange(40) % 4 > 0
    assigned = assign(torch.where(usable, values, -1.0), usable)
    assert (assigned == -1).sum() == 10 and usable[assigned[assigned >= 0]].all()


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
    for module in (metrics, scores, significance):
        monkeypatch.setattr(module, "AT_ONCE", 17)
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
