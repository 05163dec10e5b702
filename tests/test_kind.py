"""Whether a control is of the kind of the training images: seldom doubted where it is, and told where it is not."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exhume.attack.methods import Exhume
from exhume.attack.reconstruct import reconstruct
from exhume.audit.control import control_rows, shared_classes
from exhume.audit.kind import ANOTHER_KIND, MOST_GAP, compare_kinds
from exhume.audit.scores import Scores, score
from exhume.audit.sentence import sentence
from exhume.audit.verdict import PLAINLY, Applicability, Judgement, judge
from exhume.defence.training import TrainingConfig, train
from exhume.networks import NetworkConfig
from exhume.problems import Selection, load_problem
from victims import generator

READS = Applicability(method_reads=True, regime="small initialisation")


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Five thousand digits, and what they are."""
    problem = load_problem("mnist-digits", Selection(per_class=250, data_dir="installed"))
    return torch.cat([problem.images, problem.held_out]), torch.cat([problem.labels, problem.held_out_labels])


def drawn(labels: Tensor, seed: int) -> list[Tensor]:
    """The places of each digit, in a random order."""
    order = torch.randperm(len(labels), generator=generator(seed))
    return [order[labels[order] == digit] for digit in range(10)]


def test_images_that_were_drawn_alike_are_seldom_told_apart(digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    p_values = []
    for seed in range(60):
        rows = torch.randperm(len(images), generator=generator(seed))[:60]
        p_values.append(compare_kinds(images[rows[:30]], images[rows[30:]]).p_value)
    assert sum(p_value < 0.05 for p_value in p_values) <= 8
    assert min(p_values) > ANOTHER_KIND
    assert max(p_values) > 0.5


def test_another_mix_inverse_or_darker_images_are_told(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    rows = drawn(labels, 0)
    ones, others = images[rows[1][:50]], images[torch.cat([rows[digit][:6] for digit in (0, 2, 3, 4, 5, 6, 7, 8, 9)])]
    assert compare_kinds(ones, others).p_value <= ANOTHER_KIND
    half = torch.cat([others[:25], ones[:25]]), torch.cat([others[25:], images[rows[1][50:55]]])
    assert compare_kinds(*half).p_value < 0.05
    mixed = others[torch.randperm(54, generator=generator(1))]
    assert compare_kinds(mixed[:27], 1 - mixed[27:]).p_value <= ANOTHER_KIND
    assert compare_kinds(mixed[:27], mixed[27:] / 3).p_value <= ANOTHER_KIND
    assert compare_kinds(mixed[:27], mixed[27:]).p_value > 0.01


def test_equal_images_prefer_no_side() -> None:
    """All neighbours are as near as any: the first in memory must not be taken."""
    p_values = [
        compare_kinds(torch.full((n, 1, 4, 4), 0.5), torch.full((20, 1, 4, 4), 0.5)).p_value for n in (15, 20, 40)
    ]
    assert min(p_values) > 0.01
    assert compare_kinds(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4)).p_value == 1


def test_within_classes_their_mix_makes_no_difference(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    rows = drawn(labels, 3)
    training, control = torch.cat([rows[1][:40], rows[7][:10]]), torch.cat([rows[1][40:50], rows[7][10:50]])
    assert compare_kinds(images[training], images[control]).p_value <= ANOTHER_KIND
    assert compare_kinds(images[training], images[control], (labels[training], labels[control])).p_value > 0.01


def test_the_control_has_the_classes_of_the_training_set() -> None:
    labels, held_out = torch.tensor([5] * 6 + [7] * 2), torch.arange(10).repeat_interleave(4)
    rows = control_rows(40, 8, labels, held_out)
    assert held_out[rows].tolist() == [5] * 4 + [7] * 2  # there are no more of class 5
    assert torch.equal(control_rows(40, 8, labels, None), control_rows(40, 8))
    assert shared_classes(labels, held_out + 6) is None  # of these classes it has too few: nothing to compare within
    assert shared_classes(labels / 10 + 0.01, held_out / 10) is None  # measurements
    balanced = torch.arange(10).repeat_interleave(4)
    assert torch.equal(control_rows(40, 40, balanced, balanced), torch.arange(40))


# ---- The verdict on images that the network never saw


def verdicts(images: Tensor, labels: Tensor, known: bool, mix: tuple[int, int], seeds: int) -> Iterator[
    tuple[Scores, Judgement]
]:  # fmt: skip
    """What is judged of candidates that show ones of another set.

    mix: how many ones of 50 there are among the audited images and in the control; the rest are other digits.
    """
    for seed in range(seeds):
        rows = drawn(labels, seed)
        others = torch.cat(rows[:1] + rows[2:])[torch.randperm(4500, generator=generator(seed))]
        training = torch.cat([rows[1][: mix[0]], others[: 50 - mix[0]]])
        control = torch.cat([rows[1][50 : 50 + mix[1]], others[50 : 100 - mix[1]]])
        candidates = images[rows[1][100:200]] + 0.05 * torch.randn(100, 1, 28, 28, generator=generator(seed))
        scores = score(
            candidates,
            images[training],
            labels[training] if known else None,
            images[control],
            held_out_labels=labels[control] if known else None,
        )
        yield scores, judge(scores, READS)


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("mix", [(50, 0), (40, 5), (50, 10)])
def test_images_that_were_never_seen_are_no_leak_whatever_the_control(
    digits: tuple[Tensor, Tensor], known: bool, mix: tuple[int, int]
) -> None:
    """Ones resemble each other: many come out of candidates that show other ones, and no other digit does."""
    judged = list(verdicts(*digits, known, mix, 4))
    assert all(scores.recovered["0.8"] > scores.null["0.8"] + 10 for scores, _ in judged)
    if mix == (50, 0) and not known:  # counts alone would prove a leak
        assert min(min(scores.p_values.values()) for scores, _ in judged) < PLAINLY / 4
    for scores, judgement in judged:
        assert judgement.verdict != "leaks", judgement
        assert "chance alone" not in sentence(scores)
        if not known:
            assert "of another kind" in judgement.sentence


def test_true_images_are_told_within_classes_of_an_uneven_mix(digits: tuple[Tensor, Tensor]) -> None:
    images, labels = digits
    rows = drawn(labels, 0)
    training = torch.cat([rows[1][:40], rows[0][:10]])
    control = torch.cat([rows[1][40:50], *(part[50:70] for part in rows[:1] + rows[2:])])
    candidates = images[training] + 0.1 * torch.randn(50, 1, 28, 28, generator=generator(0))
    scores = score(candidates, images[training], labels[training], images[control], held_out_labels=labels[control])
    assert scores.held_out == 20 and scores.p_kind is not None and scores.p_kind > 0.01
    assert scores.recovered["0.9"] > 40 and judge(scores, READS).strength == "plainly"


def test_from_training_to_verdict_with_an_uneven_mix(digits: tuple[Tensor, Tensor]) -> None:
    """A network of many ones leaks its own digits; ones that it never saw it does not, whatever the control."""
    images, labels = digits
    rows = drawn(labels, 1)
    training = torch.cat([part[: 30 if digit == 1 else 4] for digit, part in enumerate(rows)])
    control = torch.cat([part[100 : 150 if digit == 1 else 110] for digit, part in enumerate(rows)])
    unseen, others = rows[1][200:250], torch.cat([part[300:306] for part in rows[:1] + rows[2:]])
    problem = replace(
        load_problem("mnist-digits", Selection(data_dir="installed")),
        images=images[training],
        labels=labels[training],
        held_out=images[control],
        held_out_labels=labels[control],
    )
    trained = train(problem, TrainingConfig(epochs=600), network=NetworkConfig(widths=(200,)))
    candidates = reconstruct(trained.checkpoint, Exhume(steps=300, restarts=1))

    def judged(own: Tensor, other: Tensor, known: bool) -> tuple[Scores, Judgement]:
        of = (labels[own], labels[other]) if known else (None, None)
        scores = score(candidates, images[own], of[0], images[other], held_out_labels=of[1])
        return scores, judge(scores, READS)

    scores, judgement = judged(training, control, known=True)
    assert judgement.strength == "plainly" and scores.held_out == len(training)
    for known in (True, False):
        scores, judgement = judged(unseen, others, known)
        assert scores.recovered["0.8"] > scores.null["0.8"] + 5
        assert "of another kind" in judgement.sentence and "chance alone" not in sentence(scores)
        assert judged(unseen, torch.cat([others[:40], rows[1][150:160]]), known)[1].verdict != "leaks"


def test_the_gap_is_small_of_one_kind_and_large_of_others() -> None:
    """Blurred images lie near to everything: more of their own kind and of the other are near to them."""
    problem = load_problem("mnist-digits", Selection(per_class=20, data_dir="installed"))
    images, labels = problem.images, problem.labels
    odd = torch.arange(len(images)) % 2 == 1
    blurred = functional.avg_pool2d(images, 5, 1, 2)
    assert compare_kinds(images[odd], images[~odd], (labels[odd], labels[~odd])).gap < 0.1
    nearer = compare_kinds(blurred[odd], images[~odd], (labels[odd], labels[~odd]))
    assert nearer.gap > 2 * MOST_GAP and nearer.p_value <= ANOTHER_KIND
    assert compare_kinds(images[odd], 0.7 * images[~odd], (labels[odd], labels[~odd])).gap > MOST_GAP
    assert compare_kinds(images[labels < 3], images[labels > 6]).gap > 2 * MOST_GAP


def moved(images: Tensor) -> Tensor:
    """A kind that is near: a pixel to the right."""
    return images.roll(1, 3)


@pytest.mark.parametrize("own", [True, False], ids=["images trained on", "others of their kind"])
def test_a_near_kind_is_a_control_where_single_images_came_out(digits: tuple[Tensor, Tensor], own: bool) -> None:
    """Neighbours tell: of images that came out for their kind, held-out ones near to them come out too."""
    images, labels = digits
    rows = drawn(labels, 5)
    training, control, third = (torch.cat([part[k : k + 30] for part in rows]) for k in (0, 30, 60))
    truth = moved(images[training])
    shown = truth[::3] if own else moved(images[third])
    candidates = shown + 0.05 * torch.randn(shown.shape, generator=generator(0))
    scores = score(candidates, truth, labels[training], images[control], held_out_labels=labels[control])
    assert scores.p_kind is not None and scores.p_kind <= ANOTHER_KIND
    assert scores.kind_gap is not None and scores.kind_gap < MOST_GAP
    assert scores.near["0.9"] > 0.2
    assert judge(scores, READS).name == ("leaks" if own else "not decided")


def test_what_would_come_out_for_its_kind_is_counted_by_all_held_out_images(digits: tuple[Tensor, Tensor]) -> None:
    """Of one side more images than are compared, of the other fewer: each then stands for more of its own."""
    images, _ = digits
    order = torch.randperm(len(images), generator=generator(2))
    for n, k in ((100, 100), (1000, 200), (200, 1000), (900, 600)):
        out = {"all": torch.ones(n, dtype=torch.bool), "none": torch.zeros(n, dtype=torch.bool)}
        kinds = compare_kinds(images[order[:n]], images[order[n : n + k]], came_out=out)
        assert kinds.near == {"all": pytest.approx(k / (n + k), abs=0.06)}


def blobs(count: int, seed: int) -> Tensor:
    """Pictures of a blob at a random place."""
    places = 4 + 16 * torch.rand(count, 2, 1, 1, generator=generator(seed))
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    return 0.1 + 0.8 * torch.exp(-((rows - places[:, 0]) ** 2 + (columns - places[:, 1]) ** 2) / 18)[:, None]


@pytest.mark.parametrize("noise", [0.07, 0.2])
def test_noisier_held_out_images_are_of_another_kind(noise: float) -> None:
    """The nearest to all are the clean ones: one side has as many more neighbours of its own as the other has less."""
    held_out = (blobs(100, 1) + noise * torch.randn(100, 1, 24, 24, generator=generator(2))).clamp(0, 1)
    scores = score(blobs(300, 3), blobs(100, 0), None, held_out)
    assert scores.recovered["0.95"] > 90 and scores.null["0.95"] < 5
    assert scores.p_kind is not None and scores.p_kind <= ANOTHER_KIND
    assert judge(scores, READS).name == "not decided"


def test_images_that_resemble_others_less_are_told(digits: tuple[Tensor, Tensor]) -> None:
    """Ones with a little noise are still neighbours of ones, only less near."""
    images, labels = digits
    ones = images[drawn(labels, 0)[1]]
    noisy = (ones[100:200] + 0.06 * torch.randn(100, 1, 28, 28, generator=generator(5))).clamp(0, 1)
    scores = score(ones[200:500], ones[:100], None, noisy)
    assert scores.p_kind is not None and scores.p_kind < 0.05
    assert judge(scores, READS).name == "not decided"


@pytest.mark.parametrize("seed", range(4))
def test_a_part_without_held_out_images_is_no_leak(digits: tuple[Tensor, Tensor], seed: int) -> None:
    """Too few ones for the test of all images: those that came out have few held-out images near them."""
    images, labels = digits
    rows = drawn(labels, seed)
    others = torch.cat(rows[:1] + rows[2:])[torch.randperm(4500, generator=generator(seed))]
    training, control = torch.cat([rows[1][:12], others[:88]]), others[88:188]
    scores = score(images[rows[1][100:400]], images[training], None, images[control])
    assert min(scores.near.values()) < 0.3
    assert judge(scores, READS).verdict != "leaks"
    if min(scores.p_values.values()) < PLAINLY / 4:
        assert judge(scores, READS).name == "not decided"


def test_images_that_came_out_need_not_be_among_those_compared(digits: tuple[Tensor, Tensor]) -> None:
    images, _ = digits
    order = torch.randperm(len(images), generator=generator(4))
    training, control = images[order[:1500]], images[order[1500:2500]]
    out = torch.zeros(1500, dtype=torch.bool)
    out[torch.arange(20) * 3 + 1] = True
    assert 0.25 < compare_kinds(training, control, came_out={"few": out}).near["few"] < 0.55


def test_pictures_that_all_look_alike_have_no_traces() -> None:
    """A kind that neighbours do not see, as a slightly larger picture of the same, shows in the similarities."""
    larger = functional.interpolate(blobs(100, 10)[..., 1:-1, 1:-1], size=(24, 24), mode="bilinear")
    scores = score(blobs(300, 20), blobs(100, 0), None, larger)
    assert scores.p_rank is not None and scores.p_rank < PLAINLY
    assert scores.p_kind is not None and scores.p_kind > 0.05
    assert judge(scores, READS).name == "not decided"


@pytest.mark.parametrize("count", [7, 100])
def test_a_tiny_set_that_came_out_whole_is_mostly_a_leak(digits: tuple[Tensor, Tensor], count: int) -> None:
    """Neighbours of seven images say little of their kind: unless it is doubted, they do not excuse a count."""
    images, _ = digits
    verdicts = []
    for seed in range(5):
        order = torch.randperm(len(images), generator=generator(seed))
        training, control = images[order[:7]], images[order[7 : 7 + count]]
        noise = 0.05 * torch.randn(7, 1, 28, 28, generator=generator(seed))
        scores = score(training + noise, training, None, control)
        verdicts.append(judge(scores, READS).verdict)
        assert verdicts[-1] == "leaks" or (scores.p_kind is not None and scores.p_kind < 0.05)
    assert verdicts.count("leaks") >= 3
