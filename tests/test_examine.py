"""What the weights say of given images: planted stationary points, laws, and networks that were trained."""

from functools import cache
from typing import Any, Literal

import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor, nn

from exhume import (
    OBJECTIVES,
    Checkpoint,
    Examination,
    Exhume,
    InputError,
    NetworkConfig,
    Problem,
    Reference,
    Selection,
    TrainingConfig,
    examine,
    load_problem,
    signals,
    train,
)
from exhume.attack.activations import ScaleFree
from exhume.attack.methods.feature_space import FeatureSpaceSearch
from exhume.attack.methods.input_subspace import InputSubspaceSearch
from exhume.attack.methods.pixel_space import PixelSpaceSearch
from exhume.attack.search import Guess
from exhume.attack.stationarity import gradients_in_chunks, network_gradients
from exhume.attack.target import Target
from exhume.owner.fit import Pairs
from test_stationarity import NETWORKS, OwnClass, Sample, outputs_of, random_network, sample, with_mixed_gates
from victims import checkpoint, generator, target_of

SHARP = Exhume(sharpness=1e4, images=4)
"""The planted networks are stationary with the hinges as they are."""
KINDS: dict[str, Any] = {
    "dense": InputSubspaceSearch,
    "behind a head": FeatureSpaceSearch,
    "any network": PixelSpaceSearch,
}


def planted(kind: str, objective: str, bias: Literal["first", "none"] = "first") -> tuple[nn.Module, Sample]:
    """A stationary network, as each kind of search sees one: its head is the identity, or it is of an own class."""
    network, s = with_mixed_gates(objective, "relu", bias)
    if kind == "behind a head":
        head = nn.Conv2d(1, 1, 1, bias=False).double()
        nn.init.ones_(head.weight)
        network.layers = nn.Sequential(head, *network.layers)
    return (OwnClass(network) if kind == "any network" else network), s


def examined(kind: str, objective: str, images: Tensor, labels: Tensor, **settings: Any) -> Examination:
    module, _ = planted(kind, objective)
    centre = with_mixed_gates(objective, "relu", "first")[0].centre.centre
    task = OBJECTIVES[objective].task
    method = Exhume(sharpness=1e4, images=4, objective=objective)
    return examine(module, images, labels, method, task=task, centre=centre, **{"steps": 0, **settings})


def targets_of(objective: str, s: Sample) -> Tensor:
    """The labels as the owner has them: in regression a target beyond the output, on the side of the multiplier."""
    return s.multipliers.sign() * 1e6 if OBJECTIVES[objective].signed else s.labels


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("kind", KINDS)
def test_planted_images_leave_nothing_and_are_given_their_multipliers(kind: str, objective: str) -> None:
    module, s = planted(kind, objective)
    found = examined(kind, objective, s.images, targets_of(objective, s))
    assert found.residual < 1e-5
    assert max(found.believed.values()) < 1e-5
    dense = {name: value for name, value in found.layers.items() if value < 1e-5}
    assert len(dense) == len(list(module.parameters())) - (kind == "behind a head")
    torch.testing.assert_close(found.multipliers, 4 * s.multipliers.float(), rtol=1e-2, atol=0)
    # of a head nothing is asked, and so its share is its own
    assert kind == "behind a head" or found.explained.sum().item() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("kind", KINDS)
def test_other_images_leave_what_planted_ones_do_not(kind: str) -> None:
    _, s = planted(kind, "multiclass")
    others = torch.rand(4, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    assert examined(kind, "multiclass", others, s.labels).residual > 0.2
    assert examined(kind, "multiclass", s.images, 1 - s.labels).residual > 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_of_each_kind_is_asked(kind: str) -> None:
    module, s = planted(kind, "multiclass")
    centre = with_mixed_gates("multiclass", "relu", "first")[0].centre.centre
    search = SHARP.start(Target(network=module, centre=centre, task="multiclass", outputs=2), generator())
    assert type(search) is KINDS[kind]
    found = examined(kind, "multiclass", s.images, s.labels)
    assert found.inside.isnan().all() == (kind == "any network")
    assert kind == "any network" or found.inside.sub(1).abs().max() < 1e-6
    torch.testing.assert_close(found.reachable, torch.ones(4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_the_images_changes_nothing(kind: str) -> None:
    images = torch.rand(9, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    labels, order = torch.arange(9) % 2, torch.randperm(9, generator=generator())
    one = examined(kind, "multiclass", images, labels, steps=5)
    other = examined(kind, "multiclass", images[order], labels[order], steps=5)
    assert other.residual == pytest.approx(one.residual, rel=1e-4)
    for name in ("margins", "inside", "reachable"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name)[order], equal_nan=True)
    for name in ("multipliers", "explained", "stays"):
        torch.testing.assert_close(getattr(other, name), getattr(one, name)[order], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_change_nothing(kind: str) -> None:
    images = torch.rand(9, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    labels = torch.arange(9) % 2
    whole, *parts = (examined(kind, "multiclass", images, labels, chunk=chunk) for chunk in (100, 9, 4, 1))
    for part in parts:
        assert part.residual == pytest.approx(whole.residual, rel=1e-6)
        assert part.layers == pytest.approx(whole.layers, rel=1e-4)
        torch.testing.assert_close(part.explained, whole.explained, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
@pytest.mark.parametrize("network", ["all", "cnn"])
def test_the_sum_in_chunks_is_the_whole_sum_and_so_is_its_slope(network: str, chunk: int) -> None:
    module, s = random_network(NETWORKS[network], "relu", 3), sample("multiclass")
    d = torch.randn(7, 3, generator=generator(), dtype=torch.float64).requires_grad_()
    whole = network_gradients(module, s.images, lambda _: d, ScaleFree(10.0))
    parts = gradients_in_chunks(module, s.images, d, ScaleFree(10.0), chunk)
    along = [torch.randn(p.shape, generator=generator(1), dtype=p.dtype) for p in whole]
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad(sums, d, along)[0] for sums in (whole, parts)]
    assert slopes[0].abs().max() > 1e-3
    torch.testing.assert_close(*slopes, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("objective", ["binary", "multiclass", "runner-up"])
def test_the_fit_is_that_of_nonnegative_least_squares(objective: str) -> None:
    """SciPy's active-set method, on the matrix of every image's gradient for every pair of classes."""
    network, s = random_network(NETWORKS["all"], "relu", outputs_of(objective)), sample(objective)
    module, images = OwnClass(network), s.images.detach()
    task = OBJECTIVES[objective].task
    method = Exhume(objective=objective)
    found = examine(module, images, s.labels, method, task=task, centre=network.centre.centre, steps=0)
    pairs = Pairs(objective=OBJECTIVES[objective], labels=s.labels, scores=module(images).detach())
    parameters = [parameter.detach() for parameter in module.parameters()]
    squares = torch.stack([p.pow(2).sum() for p in parameters])
    sizes = squares.clamp_min(1e-3 * squares.mean()).sqrt()
    columns = []
    for unit in torch.eye(pairs.even.numel(), dtype=torch.float64):
        d = pairs.cotangents(unit.reshape(pairs.even.shape))
        sums = network_gradients(module, images, lambda _, d=d: d, ScaleFree(10.0))  # type: ignore[misc]
        columns.append(torch.cat([(g / size).flatten() for g, size in zip(sums, sizes, strict=True)]).detach())
    right = torch.cat([(p / size).flatten() for p, size in zip(parameters, sizes, strict=True)])
    _, norm = nnls(torch.stack(columns, 1).numpy(), right.numpy())
    assert found.residual == pytest.approx(norm**2 / float(right @ right), abs=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_without_labels_the_networks_own_are_taken(kind: str) -> None:
    module, s = planted(kind, "multiclass")
    own = module(s.images).argmax(1)
    one, other = (examined(kind, "multiclass", s.images, labels) for labels in (own, None))
    assert one.residual == other.residual and torch.equal(one.margins, other.margins)
    assert (one.margins >= 0).all()


# ---- A first guess that is given


@pytest.mark.parametrize("kind", ["dense", "head", "pixels", "reference"])
def test_a_search_begins_at_the_guess_it_is_given(kind: str) -> None:
    """Within a subspace of all directions every image is its own projection."""
    cnn = NetworkConfig(kind="cnn", channels=(2,), widths=(12, 9), init_scale=None)
    dense = NetworkConfig(widths=(40, 9), init_scale=0.5, bias="all")
    victim = checkpoint("multiclass", cnn if kind == "head" else dense)
    target = target_of(victim, "float64")
    if kind == "pixels":
        target = Target(network=OwnClass(target.network), centre=target.centre, task="multiclass", outputs=3)
    method = Reference() if kind == "reference" else Exhume(images=26, dtype="float64")
    guess = Guess(
        images=torch.rand(7, 1, 5, 5, generator=generator(3), dtype=torch.float64),
        labels=torch.arange(7) % 3,
        multipliers=torch.rand(7, generator=generator(4), dtype=torch.float64),
        shares=torch.randn(7, 3, generator=generator(5), dtype=torch.float64),
    )
    search: Any = method.prepared(target)(generator(), guess=guess)
    begun = search.iterate()
    torch.testing.assert_close(begun.images, guess.images)
    assert torch.equal(begun.multipliers, guess.multipliers) and torch.equal(search.labels, guess.labels)
    assert torch.equal(search.multipliers.shares, guess.shares)
    before = begun.images.clone()
    search.prepare(0)
    sum(search.objective()).backward()
    for optimiser in search.optimisers:
        optimiser.step()
    assert not torch.equal(search.iterate().images, before)
    torch.testing.assert_close(guess.images, before)  # the caller's own is left alone


# ---- Networks that were trained


@cache
def digits() -> tuple[Problem, Checkpoint]:
    """30 digits, and a network that was trained on them from a small start."""
    problem = load_problem("mnist-digits", Selection(per_class=3, data_dir="installed"))
    trained = train(problem, TrainingConfig(lr=0.5, epochs=600), network=NetworkConfig(widths=(200,)))
    return problem, trained.checkpoint


def test_training_images_satisfy_the_condition_and_a_search_stays_at_them_and_at_no_others() -> None:
    problem, trained = digits()
    own = examine(trained, problem.images, problem.labels)
    held_out = examine(trained, problem.held_out, problem.held_out_labels)
    assert own.residual < 0.3 and held_out.residual > 0.5
    assert own.believed["layers.1.weight"] < 0.4 and held_out.believed["layers.1.weight"] > 0.9
    assert (own.stays >= 0.9).sum() >= 25 and (held_out.stays >= 0.9).sum() <= 2
    assert own.reachable.min() > 0.99 > held_out.reachable.max()
    assert own.explained.median() > 2 * held_out.explained.median()


def test_what_training_added_to_a_known_start_is_of_the_images_it_saw() -> None:
    problem = digits()[0]
    network = NetworkConfig(widths=(200, 100), init_scale=None, bias="all")
    start, trained = (
        train(problem, TrainingConfig(lr=0.1, epochs=epochs, batch_size=8), network=network).checkpoint
        for epochs in (0, 40)
    )
    own, held_out = (
        examine(trained, images, labels, initial=start, steps=0)
        for images, labels in ((problem.images, problem.labels), (problem.held_out, problem.held_out_labels))
    )
    assert own.residual < 0.7 and held_out.residual > 0.8
    assert own.inside.min() > 0.999 > held_out.inside.max()
    assert set(own.believed) == {"layers.1.weight", "layers.3.weight"}
    torch.testing.assert_close(own.margins, examine(trained, problem.images, problem.labels, steps=0).margins)


def test_an_untrained_network_says_nothing_of_any_image() -> None:
    problem = digits()[0]
    network = NetworkConfig(widths=(200,), init_scale=None)
    fresh = train(problem, TrainingConfig(epochs=0), network=network).checkpoint
    own = examine(fresh, problem.images, problem.labels)
    assert own.residual > 0.95 and (own.stays < 0.9).all() and own.explained.abs().sum() < 0.01


def test_signals_are_larger_of_training_images() -> None:
    problem, trained = digits()
    images = torch.cat([problem.images, problem.held_out])
    told = signals(trained, images, torch.cat([problem.labels, problem.held_out_labels]))
    assert set(told) == {
        "loss",
        "margin",
        "share of the weights",
        "multiplier",
        "within the first layer",
        "neurons about to switch",
    }
    for name, values in told.items():
        assert values.shape == (60,) and values[:30].median() > values[30:].median(), name
    assert told["within the first layer"][:30].min() > told["within the first layer"][30:].max()


def test_signals_of_an_own_network_need_no_dense_layer() -> None:
    module, s = planted("any network", "binary")
    centre = with_mixed_gates("binary", "relu", "first")[0].centre.centre
    told = signals(module, s.images, s.labels, task="binary", centre=centre)
    assert set(told) == {"loss", "margin", "share of the weights", "multiplier"}
    torch.testing.assert_close(told["loss"], -nn.functional.softplus(-told["margin"]))


# ---- What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(0, 1, 5, 5), "labels": None}, "must be"),
        ({"images": torch.zeros(3, 1, 5, 6)}, "must be"),
        ({"images": torch.full((3, 1, 5, 5), torch.nan)}, "not finite"),
        ({"labels": torch.tensor([0, 1])}, "3 images"),
        ({"labels": torch.tensor([0, 1, 3])}, "from 0 to 2"),
        ({"labels": torch.tensor([-1, 1, 2])}, "from 0 to 2"),
        ({"chunk": 0}, "chunk"),
    ],
)
def test_images_that_do_not_fit_are_refused(change: dict[str, Any], message: str) -> None:
    victim = checkpoint("multiclass")
    given: dict[str, Any] = {"images": torch.rand(3, 1, 5, 5), "labels": torch.tensor([0, 1, 2]), **change}
    with pytest.raises(InputError, match=message):
        examine(victim, **given)
