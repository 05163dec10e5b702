"""Agreement of independent searches, and what it is worth."""

import math
from dataclasses import replace

import pytest
import torch

from exhume.attack.confidence import agreement, confidence, limits, uncalibrated_reason
from exhume.candidates import Assumptions, KnownInit


def noise(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


LABELS = torch.tensor([0, 0, 1, 1])
EXACT, INEXACT = (KnownInit(retained=1.0, exact=exact) for exact in (True, False))
MOMENTUM = replace(EXACT, of="momentum")


def test_only_a_twin_of_the_same_label_in_the_other_search_agrees() -> None:
    mine, theirs = noise(4, 0), noise(4, 1)
    theirs[1], theirs[3] = 0.3 + 0.5 * mine[0], mine[1]  # a twin of the first; of the second, but in another class
    agreed = agreement(mine, LABELS, [(theirs, LABELS)])
    assert agreed[0].item() == pytest.approx(1, abs=1e-6)
    assert (agreed[1:] < 0.5).all()
    order = torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(agreement(mine, LABELS, [(theirs[order], LABELS[order])]), agreed)


def test_several_searches_are_averaged_and_none_tells_nothing() -> None:
    mine = noise(4, 0)
    one, two = [(mine, LABELS)], [(noise(4, 1), LABELS)]
    both = agreement(mine, LABELS, one + two)
    torch.testing.assert_close(both, (agreement(mine, LABELS, one) + agreement(mine, LABELS, two)) / 2)
    assert agreement(mine, LABELS, []).isnan().all()
    assert confidence(agreement(mine, LABELS, []), torch.ones(4)).isnan().all()


def test_what_is_not_finite_agrees_with_nothing() -> None:
    mine, theirs = noise(4, 0), noise(4, 0)
    mine[0, 0, 0, 0], theirs[1] = torch.nan, torch.inf
    agreed = agreement(mine, LABELS, [(theirs, LABELS)])
    assert agreed[0].isnan() and agreed[1] < 0.5
    torch.testing.assert_close(agreed[2:], torch.ones(2), atol=1e-6, rtol=0)


def test_confidence_rises_with_agreement_from_never_to_certain() -> None:
    values = confidence(torch.tensor([-1.0, 0.0, 0.5, 0.9, 0.95, 0.99, 0.999, 1.0]), torch.ones(8))
    assert (values.diff() >= 0).all() and values[0] < 0.2 and values[-1] > 0.99


@pytest.mark.parametrize(
    ("explained", "told"),
    [
        ([0.2, 0.1, 0.04, 0.1, 0.02], [1, 1, 1, 1, 0]),  # of the median, a fifth is not enough
        ([0.2, 0.1, 0.0, -0.1, 0.2], [1, 1, 0, 0, 1]),
        ([-0.2, -0.1, 0.0, -0.1, 0.01], [0, 0, 0, 0, 1]),
        ([0.1, 0.1, 0.1, math.nan, 0.01], [1, 1, 1, 0, 0]),
    ],
)
def test_what_explains_next_to_nothing_is_not_told_by_the_weights(explained: list[float], told: list[int]) -> None:
    """However well searches agree on it: they do on what no weight speaks against."""
    found = confidence(torch.ones(5), torch.tensor(explained))
    torch.testing.assert_close(found, torch.tensor(told, dtype=torch.float32), atol=1e-6, rtol=0)
    assert confidence(torch.full((5,), torch.nan), torch.tensor(explained)).isnan().all()


@pytest.mark.parametrize(
    ("known", "rank", "discarded", "shape", "residual", "activation", "word"),
    [
        (None, 10, 0.05, (1, 5, 5), 0.5, "relu", None),
        (None, 10, 0.05, (1, 5, 5), 0.51, "relu", "0.51"),  # the weights are made of something else
        (None, 9, 0.0, (1, 5, 5), 0.0, "relu", "only 9 directions"),  # among few directions searches agree by chance
        (None, 100, 0.06, (1, 5, 5), 0.0, "relu", "hides part"),  # the weights hide the rest
        (None, 20, None, (1, 5, 5), 0.0, "relu", "dense"),  # no subspace
        (None, 10, 0.0, (1, 1, 2), 0.0, "relu", "points"),  # points
        (None, 10, 0.0, (1, 5, 5), 0.0, "tanh", "tanh"),  # not calibrated
        (None, 10, 0.0, (1, 5, 5), 0.0, None, "dense"),  # no MLP
        (EXACT, 10, 0.05, (1, 5, 5), 0.5, "tanh", None),
        (EXACT, 10, 0.0, (1, 5, 5), 0.51, "gelu", "0.51"),
        (EXACT, 9, 0.0, (1, 5, 5), 0.0, "relu", "only 9 directions"),
        (INEXACT, 10, 0.1, (1, 5, 5), 0.6, "relu", None),
        (INEXACT, 10, 0.11, (1, 5, 5), 0.6, "relu", "begun with other weights"),
        (INEXACT, 10, 0.1, (1, 5, 5), 0.61, "relu", "0.61"),
        (INEXACT, 10, 0.0, (1, 5, 5), 0.0, "tanh", "tanh"),  # searches agree, and are wrong
        (EXACT, 10, 0.0, (1, 5, 5), 0.0, "softplus", "softplus"),  # not tried
        (INEXACT, 10, None, (1, 5, 5), 0.0, "relu", "dense"),
        (MOMENTUM, 10, 0.0, (1, 5, 5), 0.0, "relu", "momentum"),
    ],
)
def test_why_agreement_says_nothing(  # noqa: PLR0917
    known: KnownInit | None,
    rank: int,
    discarded: float | None,
    shape: tuple[int, int, int],
    residual: float,
    activation: str | None,
    word: str | None,
) -> None:
    assumptions = Assumptions(
        regime="small initialisation",
        images=10,
        images_from="weights",
        rank=rank,
        discarded=discarded,
        layers=[],
        smoothness=0.0,
        binary_prior=0.0,
        known_init=known,
    )
    why = uncalibrated_reason(assumptions, torch.rand(4, *shape), residual, activation)
    assert (why is None) if word is None else (why is not None and word in why)


def found_with(known: KnownInit | None) -> Assumptions:
    return Assumptions(
        regime="known start",
        images=30,
        images_from="weights",
        rank=30,
        discarded=0.0,
        layers=[],
        smoothness=0.0,
        binary_prior=0.0,
        known_init=known,
    )


@pytest.mark.parametrize(("known", "told"), [(None, False), (EXACT, True), (INEXACT, True)])
def test_behind_a_head_a_confidence_needs_a_known_start(known: KnownInit | None, told: bool) -> None:
    found = found_with(known)
    why = uncalibrated_reason(found, torch.rand(4, 1, 5, 5), 0.4, "relu", 90, behind_head=True)
    assert (why is None) == told


@pytest.mark.parametrize("images_from", ["nothing", "settings", "momentum"])
def test_what_an_inexact_start_moves_is_believed_less_unless_a_momentum_tells_the_span(images_from: str) -> None:
    """An agreement of 0.995 is 9 of 10 where the images are exact, and even odds where an error moves them all."""
    found = replace(found_with(INEXACT), images_from=images_from)
    agreed, explained = torch.tensor([0.995]), torch.ones(1)
    chance = float(confidence(agreed, explained, limits(found).calibration))
    assert chance == pytest.approx(0.953 if images_from == "momentum" else 0.778, abs=1e-3)
    exact = float(confidence(agreed, explained, limits(found_with(EXACT)).calibration))
    assert exact == float(confidence(agreed, explained)) == pytest.approx(0.953, abs=1e-3)


def test_of_many_images_no_agreement_makes_sure() -> None:
    """An eighth of the candidates is wrong there however well searches agree; little agreement is worth nothing."""
    found = replace(found_with(INEXACT), regime="known start, many images")
    chances = confidence(torch.tensor([0.9, 0.97, 0.99, 1 - 1e-6]), torch.ones(4), limits(found).calibration)
    assert chances.tolist() == pytest.approx([0.119, 0.523, 0.8, 0.8], abs=1e-3)
    why = uncalibrated_reason(found, torch.rand(4, 1, 5, 5), 0.4, "relu", 30)
    assert why is not None and why.startswith("after gradient descent on many images")


@pytest.mark.parametrize(("known", "told"), [(None, True), (EXACT, True), (INEXACT, False)])
def test_after_adam_a_narrow_layer_has_no_confidence(known: KnownInit | None, told: bool) -> None:
    """Nothing is left there to be discarded, and of 49 confident candidates 28 were right."""
    found = found_with(known)
    images = torch.rand(4, 1, 5, 5)
    assert (uncalibrated_reason(found, images, 0.4, "relu", 30) is None) == told
    assert uncalibrated_reason(found, images, 0.4, "relu", 90) is None
