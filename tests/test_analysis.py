"""What is read from the weights before a search: the regime, the layers to believe, the number of images, priors."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exhume import Checkpoint, Exhume, NetworkConfig
from exhume.architecture import MLP
from exhume.attack.analysis import REGIMES, WeightAnalysis, choose_regime, noisy_layers
from exhume.attack.target import Target, with_known_init
from exhume.candidates import KnownInit
from victims import checkpoint, generator, target_of


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed))


def analysed(target: Target, **settings: Any) -> WeightAnalysis:
    found = Exhume(**settings).analyse(target)
    assert found is not None
    return found


# ---- The regimes: networks made by hand, one for each row

IMAGES, SHAPE, WIDTHS = 12, (1, 6, 6), (60, 50)
MANY = 37  # directions: as many as pixels, and the bias


def random_victim(scale: float | None = None) -> Checkpoint:
    """A network of three layers, without training."""
    network = NetworkConfig(widths=WIDTHS, init_scale=scale, init_layers="first")
    return checkpoint("binary", network, centre=torch.full(SHAPE, 0.5))


def with_weights(victim: Checkpoint, **changed: Tensor) -> Checkpoint:
    return replace(victim, weights={**victim.weights, **{k.replace("_", "."): v for k, v in changed.items()}})


def few_directions(rows: int, columns: int, count: int = IMAGES) -> Tensor:
    return normal(rows, count, seed=rows) @ normal(count, columns, seed=columns + 1) / columns


def small_initialisation() -> Target:
    """The first layer is the data's work, the second its initialisation's."""
    first = few_directions(WIDTHS[0], 37)
    return target_of(with_weights(random_victim(), **{"1_weight": first[:, :36], "1_bias": first[:, 36]}))


def decayed() -> Target:
    """All layers are the data's work, and the norms of consecutive ones balance."""
    first, second, last = few_directions(WIDTHS[0], 37), few_directions(WIDTHS[1], WIDTHS[0]), normal(1, WIDTHS[1])
    first, second, last = (weight / weight.norm() for weight in (first, second, last))
    weights = {"1_weight": first[:, :36], "1_bias": first[:, 36], "3_weight": second, "5_weight": last}
    return target_of(with_weights(random_victim(), **weights))


def default_initialisation() -> Target:
    """What training added to the first layer stands on the noise of PyTorch's initialisation."""
    victim = random_victim()
    neurons, pixels = (torch.linalg.qr(normal(size, IMAGES, seed=size))[0] for size in (WIDTHS[0], 36))
    added = 3 * neurons @ pixels.T  # three times as strong as the edge of the noise
    return target_of(with_weights(victim, **{"1_weight": victim.weights["1.weight"] + added}))


def unequal(change: Tensor) -> Tensor:
    """Neurons that changed as differently as by gradient descent."""
    return change * torch.linspace(0.3, 2, len(change))[:, None]


def many_directions(rows: int, columns: int) -> Tensor:
    """Directions that get weaker and weaker without an end, as those of more images than there are directions."""
    return normal(rows, columns) * 0.85 ** torch.arange(columns)


def equal(change: Tensor) -> Tensor:
    """Neurons that all changed alike, as by Adam."""
    return functional.normalize(change) * change.norm(dim=1).mean()


def known_start(added: Tensor) -> Target:
    victim = random_victim()
    trained = with_weights(victim, **{"1_weight": victim.weights["1.weight"] + added})
    return with_known_init(target_of(trained), victim.build())


PLANTED: dict[str, Callable[[], Target]] = {
    "decayed": decayed,
    "small initialisation": small_initialisation,
    "default initialisation": default_initialisation,
    "known start": lambda: known_start(few_directions(WIDTHS[0], 36)),
    "known start, many images": lambda: known_start(unequal(many_directions(WIDTHS[0], 36))),
    "known start, inexact": lambda: known_start(0.1 * normal(WIDTHS[0], 36)),
}


def test_every_regime_is_chosen_by_something_and_nothing_chooses_another() -> None:
    known = (None, KnownInit(retained=1.0, exact=True), KnownInit(retained=0.9, exact=False))
    shown = itertools.product(known, (None, 0.1), (False, True), (False, True))
    chosen = {choose_regime(start, noise, stationary=at_rest, many=many) for start, noise, at_rest, many in shown}
    assert chosen == set(REGIMES)
    assert set(PLANTED) == set(REGIMES)


def test_few_directions_are_told_beneath_rounding_to_half_precision() -> None:
    """By gradient descent alone: neurons that changed alike may be the work of Adam, whose directions are many."""
    added = few_directions(WIDTHS[0], 36)
    weights = random_victim().weights["1.weight"]
    noise = 2.0**-9 * weights.pow(2).mean().sqrt() * normal(WIDTHS[0], 36, seed=9)
    for change, regime in (
        (unequal(added) + noise, "known start"),
        (equal(added) + noise, "known start, inexact"),
        (unequal(added) + 30 * noise, "known start, many images"),  # no rounding is so strong
    ):
        found = analysed(known_start(change)).assumptions
        assert found.regime == regime
        assert found.rank == IMAGES or regime != "known start"


def test_other_initial_weights_and_batch_norm_are_never_many_images_nor_few_directions() -> None:
    target = known_start(unequal(many_directions(WIDTHS[0], 36)))
    assert target.delta is not None and analysed(target).assumptions.regime == "known start, many images"
    for doubtful in (replace(target, normalised=True), replace(target, delta=replace(target.delta, resembles=False))):
        assert analysed(doubtful).assumptions.regime == "known start, inexact"


def test_momentum_is_never_taken_for_many_images() -> None:
    """Its neurons differ whatever the optimiser, for it is a sum of gradients."""
    target = known_start(unequal(many_directions(WIDTHS[0], 36)))
    assert target.delta is not None
    of_momentum = replace(target, delta=replace(target.delta, of="momentum"))
    assert analysed(of_momentum).assumptions.regime == "known start, inexact"


@pytest.mark.parametrize("name", REGIMES)
def test_a_planted_network_of_each_regime_is_told_as_that(name: str) -> None:
    """And what is read follows the row: the layers believed, the number of images, the errors."""
    target, row = PLANTED[name](), REGIMES[name]
    found = analysed(target)
    assert (found.assumptions.regime, found.regime) == (name, row)
    images = IMAGES if row.energy is None else MANY
    told = (images, "weights") if row.counts_images else (100, "nothing")
    assert (found.assumptions.images, found.assumptions.images_from) == told
    if row.energy is not None:
        assert found.assumptions.rank == len(found.subspace.singular) < MANY
        change = 0.5 * (unequal(many_directions(WIDTHS[0], 36)))  # a grey mean: every pixel varies by a half
        energies, inside = torch.linalg.svdvals(change).pow(2), found.subspace.singular.pow(2)
        assert inside.sum() >= row.energy * energies.sum() > inside[:-1].sum()
    names = [parameter for parameter, _ in target.network.named_parameters()]
    hidden = [] if row.every_layer or found.assumptions.known_init else ["layers.3.weight"]
    changed = ["layers.1.weight"] if found.assumptions.known_init else ["layers.1.weight", "layers.1.bias"]
    assert found.assumptions.layers == (names if row.every_layer else [*changed, *hidden])
    assert found.rescaled == row.rescaled
    assert (found.floor > row.floor) == (name == "default initialisation")  # whose noise is more than the row's floor
    assert (found.assumptions.known_init is not None) == name.startswith("known start")


def test_settings_replace_what_would_be_read() -> None:
    target = small_initialisation()
    found = analysed(target, images=7, smoothness=0.5, binary_prior=2.0)
    assert (found.assumptions.images, found.assumptions.images_from) == (7, "settings")
    assert (found.assumptions.smoothness, found.assumptions.binary_prior) == (0.5, 2.0)
    assert found.assumptions.rank == IMAGES and found.assumptions.discarded < 1e-5  # of all 12 directions
    assert analysed(target, per_class=4).assumptions.images == 4  # half the candidates


def test_columns_are_rescaled_for_images_and_not_for_features() -> None:
    """Where pixels hardly vary the first layer counts less; the mean tells how much they can."""
    target = default_initialisation()
    dark = replace(target, centre=torch.cat([torch.full((1, 3, 6), 0.5), torch.full((1, 3, 6), 0.01)], 1))
    basis = analysed(dark).subspace.basis[:36].reshape(6, 6, -1).square().sum((1, 2))
    assert basis[:3].sum() > 2 * basis[3:].sum()
    even = analysed(target).subspace.basis[:36].reshape(6, 6, -1).square().sum((1, 2))
    assert even[:3].sum() < 1.5 * even[3:].sum()


# ---- Hidden layers

NOISE, MADE = 0.3 * normal(80, 100), few_directions(80, 100, 5)


@pytest.mark.parametrize(
    ("hidden", "noisy"), [([], 0), ([NOISE], 1), ([MADE], 0), ([NOISE + MADE, NOISE.T], 2), ([NOISE, MADE.T], 0)]
)
def test_hidden_layers_count_where_all_show_their_initialisation(hidden: list[Tensor], noisy: int) -> None:
    weights = [normal(100, 30), *hidden, normal(1, 100)]
    rows = noisy_layers(MLP(weights, [None] * len(weights), "relu"))
    assert len(rows) == noisy
    for row, weight in zip(rows, hidden, strict=False):
        assert row.noise == pytest.approx(0.3, rel=0.05)
        assert row.added == pytest.approx((weight.square().sum() / row.noise**2 - weight.numel()).item(), rel=1e-3)


# ---- Photographs

SMOOTHNESS = 4e-6 * 3072 / 432  # these are of 3 x 12 x 12
"""For each layer that is believed, as `Exhume` documents it."""


def photographs(count: int) -> Tensor:
    coarse = torch.rand(count, 3, 4, 4, generator=generator()) - 0.5
    return functional.interpolate(coarse, size=(12, 12), mode="bicubic")


def rough(count: int) -> Tensor:
    """Noise of pairs of pixels: with it pictures are rougher than photographs and smoother than noise."""
    return torch.rand(count, 3, 12, 6, generator=generator()).repeat_interleave(2, -1) - 0.5


def victim_of(pixels: Tensor, *, balanced: bool = True) -> Checkpoint:
    """Three layers with biases, of which the first holds sums of the images [n, c, h, w].

    balanced: the norms of consecutive layers balance, so that decay seems to have made all of them.
    """
    victim = checkpoint("binary", NetworkConfig(widths=(200, 40), bias="all"), centre=torch.full_like(pixels[0], 0.5))
    data = normal(200, len(pixels), seed=1) @ pixels.flatten(1)
    weights = {**victim.weights, "1.weight": data, "1.bias": data.sum(1)}
    for before, layer in (("1", "3"), ("3", "5")) if balanced else ():
        norm = torch.cat([weights[f"{before}.weight"].flatten(), weights[f"{before}.bias"]]).norm()
        weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * norm / weights[f"{layer}.weight"].norm()
    return replace(victim, weights=weights)


@pytest.mark.parametrize(("balanced", "layers"), [(False, 1), (True, 3)])
def test_the_smoothness_of_photographs_is_as_strong_against_each_layer_that_is_believed(
    balanced: bool, layers: int
) -> None:
    found = analysed(target_of(victim_of(photographs(60), balanced=balanced)), images=60)
    assert found.regime.every_layer == balanced
    assert found.assumptions.smoothness == pytest.approx(layers * SMOOTHNESS)


@pytest.mark.parametrize(
    ("images", "asked", "weight"),
    [
        (photographs(60), None, 3 * SMOOTHNESS),
        (photographs(60), 1e-4, 1e-4),
        (photographs(60), 0.0, 0.0),
        (torch.rand(60, 3, 12, 12, generator=generator()) - 0.5, None, 0.0),
        (photographs(40), None, 3 * SMOOTHNESS),
        (photographs(40) + 0.35 * rough(40), None, 3 * SMOOTHNESS),
        (photographs(60) + 0.35 * rough(60), None, 3 * SMOOTHNESS),
        (photographs(9), None, 0.0),
        (photographs(60).reshape(60, 3, 72, 2), None, 0.0),
    ],
    ids=[
        "photographs",
        "asked for",
        "none asked for",
        "noise",
        "few directions",
        "few and rough",
        "rough",
        "too few directions",
        "no pictures",
    ],
)
def test_pictures_are_smoothed_as_they_look_unless_it_is_asked_for(
    images: Tensor, asked: float | None, weight: float
) -> None:
    found = analysed(target_of(victim_of(images)), images=len(images), smoothness=asked)
    assert found.assumptions.smoothness == pytest.approx(weight)
