"""Images come out of a planted momentum by its zeros alone, and nothing comes out of one without zeros."""

import math
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from exhume.attack import closed_neurons
from exhume.attack.closed_neurons import images_of_closed_neurons
from exhume.attack.closed_neurons.contributions import Contributions, contributions
from exhume.attack.closed_neurons.fit import Gates, consistent, gates_of
from exhume.attack.closed_neurons.told import told_confidence
from exhume.attack.closed_neurons.zeros import distinct, sparse_combinations
from exhume.attack.known_init import WeightDelta
from exhume.attack.methods import Exhume
from exhume.attack.momentum import momentum_target
from exhume.attack.reconstruct import reconstruct
from exhume.attack.target import Target, make_target
from exhume.metrics import ncc
from exhume.networks import NetworkConfig
from victims import checkpoint, generator

COUNT, SIDE, WIDTH = 12, 6, 200


def planted(
    *, closed: bool, rectified: bool = True, of: Literal["change", "momentum"] = "momentum"
) -> tuple[Tensor, Target]:
    """Random images, and a target whose momentum is sum_i delta_i (x_i, 1)^T, delta_i Gaussian where neurons are open.

    closed: whether delta is 0 elsewhere; else it is Gaussian there too.
    """
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(SIDE**2, WIDTH), nn.ReLU() if rectified else nn.LeakyReLU(), nn.Linear(WIDTH, 4)
    )
    images = torch.rand(COUNT, 1, SIDE, SIDE, generator=generator(1))
    first = module[1]
    assert isinstance(first, nn.Linear)
    with torch.no_grad():
        first.weight.copy_(torch.randn(WIDTH, SIDE**2, generator=generator(2)) / SIDE)
        # the grey that the network does not subtract, so that about half of the gates are closed
        first.bias.copy_(-0.5 * first.weight.sum(1))
        deltas = torch.randn(COUNT, WIDTH, generator=generator(3))
        if closed:
            deltas = deltas * (first(images.flatten(1)) > 0)
        target = make_target(module, task="multiclass", centre=torch.full((1, SIDE, SIDE), 0.5))
        momentum = nn.Sequential(
            nn.Flatten(), nn.Linear(SIDE**2, WIDTH), nn.ReLU() if rectified else nn.LeakyReLU(), nn.Linear(WIDTH, 4)
        )
        for parameter in momentum.parameters():
            parameter.zero_()
        layer = momentum[1]
        assert isinstance(layer, nn.Linear)
        layer.weight.copy_(deltas.T @ images.flatten(1))
        layer.bias.copy_(deltas.sum(0))
    return images, replace(target, delta=WeightDelta(module=momentum, retained=1.0, of=of))


def found(target: Target) -> Tensor:
    nothing = torch.zeros(0, 1, SIDE, SIDE)
    return images_of_closed_neurons(target, nothing, generator(0), smooth=False).images


@pytest.mark.parametrize("of", ["change", "momentum"])
def test_images_come_out_by_the_zeros_alone(of: Literal["change", "momentum"]) -> None:
    """Each image that is told is another one of those planted; all are told, so that they are exact."""
    images, target = planted(closed=True, of=of)
    told = found(target)
    similar = ncc(told, images)
    assert len(told) == COUNT
    assert similar.amax(1).min() > 0.999
    assert similar.argmax(1).unique().numel() == len(told)
    assert ncc(told, torch.rand(100, 1, SIDE, SIDE, generator=generator(9))).max() < 0.8
    assert torch.equal(told, found(target))


def test_nothing_is_told_without_zeros() -> None:
    _, target = planted(closed=False)
    assert len(found(target)) == 0


def test_a_candidate_that_closes_the_right_neurons_gives_its_delta_exactly() -> None:
    """By hand: delta is proportional to M times what is dual to its image, and that is unique."""
    images, target = planted(closed=True)
    span = contributions(target, smooth=False)
    assert span is not None
    assert span.rank == COUNT
    coordinates = span.coordinates(target, images)
    combinations = sparse_combinations(span, coordinates)
    deltas = torch.linalg.inv(coordinates / span.singular)  # columns: c_i, up to their length
    cosines = (combinations * deltas.T).sum(1).abs() / deltas.norm(dim=0)
    assert cosines.min() > 1 - 1e-6
    assert len(distinct(span, combinations)) == COUNT


@pytest.mark.parametrize("why", ["leaky", "crowded", "nothing"])
def test_it_is_not_tried_where_it_cannot_be(why: str) -> None:
    images, target = planted(closed=True, rectified=why != "leaky")
    layer = target.explained.get_submodule("1")
    assert isinstance(layer, nn.Linear)
    with torch.no_grad():
        if why == "crowded":
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator(4)))
            layer.weight[50:], layer.bias[50:] = 0, 0
        if why == "nothing":
            layer.weight.zero_()
    kept = images[:2]
    assert len(images_of_closed_neurons(target, kept, generator(0), smooth=False).images) == 0


@pytest.mark.parametrize("convolution", [False, True])
def test_a_reconstruction_adds_what_is_told(convolution: bool) -> None:
    """The momentum after one step. A search of one step finds nothing. Behind a convolution nothing is told."""
    kind = {"kind": "cnn", "channels": (2,)} if convolution else {"bias": "all"}
    config = NetworkConfig(widths=(WIDTH, WIDTH), init_scale=None, **kind)  # type: ignore[arg-type]
    images = torch.rand(COUNT, 1, SIDE, SIDE, generator=generator(1))
    published = checkpoint("multiclass", config, centre=torch.full((1, SIDE, SIDE), 0.5))
    module = published.build()
    cross_entropy(module(images), torch.arange(COUNT) % 3).backward()
    momentum = {name: p.grad for name, p in module.layers.named_parameters() if p.grad is not None}
    attacked, method = replace(published, momentum=momentum), Exhume(steps=1, restarts=1)
    found = reconstruct(attacked, method)
    searches = [method.start(target, generator()) for target in (make_target(published), momentum_target(attacked))]
    added = len(found.images) - sum(len(search.labels) for search in searches)
    if convolution:
        assert added == 0
        assert "closed" not in found.message
        return
    assert f"{added} more candidates are told by the neurons that were closed for them" in found.message
    assert added >= COUNT // 2
    assert (ncc(found.images[-added:], images).amax(1) > 0.9).double().mean() > 0.7
    assert (found.confidence[-added:] == told_confidence(added, COUNT, images)).all()
    assert found.confidence[:-added].isnan().all()
    assert ((found.explained[-added:] > 0) & (found.explained[-added:] < 1)).all()
    assert len(found.labels) == len(found.multipliers) == len(found.images)


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_known_start_tells_images_after_gradient_descent(optimiser: str) -> None:
    """In batches, with momentum and decay. A search of one step finds nothing. What Adam changed has no zeros."""
    config = NetworkConfig(widths=(WIDTH, WIDTH), init_scale=None, bias="all")
    images = torch.rand(COUNT, 1, SIDE, SIDE, generator=generator(1))
    start = checkpoint("multiclass", config, centre=torch.full((1, SIDE, SIDE), 0.5))
    module, labels = start.build(), torch.arange(COUNT) % 3
    moved = list(module.layers.parameters())
    descent = (
        torch.optim.SGD(moved, 0.1, momentum=0.9, weight_decay=1e-3)
        if optimiser == "sgd"
        else torch.optim.Adam(moved, 1e-3)
    )
    for step in range(20):
        rows = torch.arange(step % 2, COUNT, 2)
        descent.zero_grad()
        cross_entropy(module(images[rows]), labels[rows]).backward()
        descent.step()
    trained = {name: value.detach().clone() for name, value in module.layers.named_parameters()}
    found = reconstruct(replace(start, weights=trained), Exhume(steps=1, restarts=1), initial=start)
    if optimiser == "adam":
        assert "closed" not in found.message
        return
    told = int(found.message.split(" more candidates are told by")[0].split()[-1])
    similar = ncc(found.images[-told:], images)
    assert similar.argmax(1).unique().numel() == told == COUNT
    assert similar.amax(1).min() > 0.999
    assert ncc(found.images[:-told], images).max() < 0.9
    others = torch.rand(COUNT, 1, SIDE, SIDE, generator=generator(9))
    assert ncc(found.images[-told:], others).max() < 0.9


def test_the_difference_of_two_deltas_is_no_third_one() -> None:
    """It has the zeros that both have, more than a wrong vector."""
    images, target = planted(closed=True)
    span = contributions(target, smooth=False)
    assert span is not None
    deltas = functional.normalize(torch.linalg.inv(span.coordinates(target, images) / span.singular).T)
    difference = functional.normalize(deltas[:1] - deltas[1:2])
    assert len(distinct(span, difference)) == 1
    kept = distinct(span, torch.cat([difference, deltas[:2]]))
    assert len(kept) == 2
    assert (kept @ deltas[:2].T).abs().amax(1).min() > 1 - 1e-6


def test_an_image_must_close_the_neurons_that_its_zeros_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its negative does not. If one of all that are told does not, the others are told, and nothing more is tried."""
    images, target = planted(closed=True)
    span = contributions(target, smooth=False)
    assert span is not None
    coordinates = span.coordinates(target, images)
    deltas = functional.normalize(torch.linalg.inv(coordinates / span.singular).T)
    gates = gates_of(span, deltas)
    assert consistent(span, gates, coordinates).all()
    assert not consistent(span, gates, -coordinates).any()

    def all_but_one(span: Contributions, gates: Gates, coordinates: Tensor) -> Tensor:
        return consistent(span, gates, coordinates) & (torch.arange(len(coordinates)) > 0)

    monkeypatch.setattr(closed_neurons, "consistent", all_but_one)
    assert len(found(target)) == COUNT - 1


def test_a_candidate_that_closes_no_neuron_tells_nothing_and_does_no_harm() -> None:
    images, target = planted(closed=True)
    span = contributions(target, smooth=False)
    assert span is not None
    coordinates = span.coordinates(target, images)
    combinations = sparse_combinations(span, torch.cat([torch.zeros_like(coordinates[:1]), coordinates]))
    assert combinations.isfinite().all()
    assert len(distinct(span, combinations)) == COUNT


def test_the_more_is_told_the_surer_it_is() -> None:
    """Few are not sure; all are; points never."""
    images = torch.rand(2, 1, SIDE, SIDE)
    assert told_confidence(30, 100, images) < 0.3
    assert 0.88 < told_confidence(76, 100, images) < 0.91
    assert 0.97 < told_confidence(100, 100, images) < 0.99
    assert math.isnan(told_confidence(1, 2, torch.rand(2, 1, 1, 2)))
