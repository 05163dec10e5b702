"""Descent written out, against the same descent by autograd."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume import InputError
from exhume.descent import dense_relu, descend
from exhume.losses import LOSSES
from exhume.networks import Network, build
from exhume.problems import Problem
from exhume.training import Trained, Training, train


def problem(count: int) -> Problem:
    g = torch.Generator().manual_seed(1)
    images = torch.rand(count, 1, 4, 4, generator=g, dtype=torch.float64)
    labels = torch.arange(count) % 3
    return Problem(
        name="noise",
        task="multiclass",
        images=images,
        labels=labels,
        classes=("a", "b", "c"),
        held_out=images.flip(3),
        held_out_labels=labels,
        source="noise",
        network=Network(widths=(12, 9)),
    )


@pytest.mark.parametrize("bias", ["first", "all", "none"])
@pytest.mark.parametrize("count", [6, 40])  # fewer and more than the 16 pixels
def test_descent_written_out_takes_the_steps_of_autograd(bias: str, count: int) -> None:
    """Rate, decay and what lies outside the images' span included."""
    data = problem(count)
    network = Network(widths=(12, 9), bias=bias, init_scale=0.3)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(2)
    module = build(network, data.images.mean(0), 3, g)
    layers = dense_relu(list(module.layers))
    assert layers is not None and len(layers) == 3
    twin = build(network, data.images.mean(0), 3, torch.Generator().manual_seed(2))
    start = [p.detach().clone() for p in module.parameters()]

    def slope(scores: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            scores = scores.requires_grad_()
            loss = functional.cross_entropy(scores, data.labels)
        return loss, torch.autograd.grad(loss, scores)[0]

    inputs = module.centre(data.images).flatten(1)
    descend(layers, inputs, slope, lambda loss: 0.1 / loss.item(), decay=0.01, epochs=25)
    for _ in range(25):
        loss = functional.cross_entropy(twin(data.images), data.labels)
        slopes = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, by in zip(twin.parameters(), slopes, strict=True):
                parameter.sub_(0.1 / loss.item() * (by + 0.01 * parameter))
    torch.testing.assert_close(list(module.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-11)
    assert all((p - s).norm() > 1e-2 * s.norm() for p, s in zip(module.parameters(), start, strict=True))


def test_only_chains_of_dense_layers_and_relus_are_written_out() -> None:
    dense = [nn.Flatten(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)]
    assert dense_relu(dense) == [dense[1], dense[3]]
    for other in (dense[1:], dense[:3], [*dense[:2], nn.GELU(), dense[3]], [nn.Conv2d(1, 2, 3), *dense], []):
        assert dense_relu(other) is None


@pytest.mark.parametrize("bias", ["first", "all", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_of_the_general_path_ends_where_the_written_out_descent_does(
    momentum: float, bias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the descent is taken up again, at every evaluation, with the momenta it had."""
    data, network = problem(6), Network(widths=(12, 9), bias=bias, init_scale=0.3)  # type: ignore[arg-type]
    config = Training(epochs=40, lr=0.1, dtype="float64", weight_decay=0.01, momentum=momentum, evaluate_every=7)
    written_out = train(data, config, network=network)
    monkeypatch.setattr("exhume.training.dense_relu", lambda _: None)
    monkeypatch.setattr("exhume.training.descend", None)
    general = train(data, config, network=network)
    for name, weight in written_out.checkpoint.weights.items():
        torch.testing.assert_close(general.checkpoint.weights[name], weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("scale", [1.0, 10.0, 80.0])
def test_cross_entropy_keeps_the_digits_of_its_gradient(scale: float) -> None:
    """1 - p of the own class is summed from the others, where 1 - p itself would round to 0."""
    scores = scale * torch.tensor([[1.0, 0.1, -0.3], [0.2, 0.9, 0.0]])
    labels = torch.tensor([0, 1])
    ours = scores.clone().requires_grad_()
    loss = LOSSES["ce"].loss(ours, labels)
    (slopes,) = torch.autograd.grad(loss, ours)
    others = [
        sum(math.exp(row[j] - row[own]) for j in range(3) if j != own)
        for row, own in zip(scores.double().tolist(), labels.tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(sum(map(math.log1p, others)) / 2, rel=1e-4)
    for i, (own, odds) in enumerate(zip(labels.tolist(), others, strict=True)):
        assert slopes[i, own].item() == pytest.approx(-odds / (1 + odds) / 2, rel=1e-4)
    torch.testing.assert_close(loss, functional.cross_entropy(scores, labels), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("margin", [0.5, 20.0, 80.0])
def test_binary_cross_entropy_keeps_the_digits_of_its_gradient(label: int, margin: float) -> None:
    scores = torch.tensor([[margin if label else -margin]]).requires_grad_()
    loss = LOSSES["bce"].loss(scores, torch.tensor([label]))
    (slope,) = torch.autograd.grad(loss, scores)
    odds = math.exp(-margin)
    assert loss.item() == pytest.approx(math.log1p(odds), rel=1e-4)
    assert slope.item() == pytest.approx((-1 if label else 1) * odds / (1 + odds), rel=1e-4)


@pytest.mark.parametrize("settings", [{"loss": "mse"}, {"weight_decay": 1e-3}])
def test_a_growing_rate_is_refused_where_the_loss_has_a_floor(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="lr_over_loss is for bce and ce"):
        Training(lr_over_loss=1e-3, **settings)  # type: ignore[arg-type]


def test_the_rate_grows_as_the_loss_falls() -> None:
    """As long as a constant rate takes, much further; and the path is that of gradient flow: the norms' balance."""
    data = problem(6)
    constant = train(data, Training(epochs=600, lr=0.1))
    scaled = train(data, Training(epochs=600, lr=0.1, lr_over_loss=1e-2))
    assert scaled.history[-1].loss < 1e-3 * constant.history[-1].loss
    start = train(data, Training(epochs=0))

    def balance(trained: Trained) -> tuple[float, float]:
        """Squared norms of the last two weights: their difference is kept by gradient flow, their sum grows."""
        *_, before, last = [w.square().sum().item() for n, w in trained.checkpoint.weights.items() if "weight" in n]
        return last - before, last + before

    (kept, grown), (at_start, small) = balance(scaled), balance(start)
    assert grown > 2 * small
    assert abs(kept - at_start) < 0.05 * (grown - small)
