"""Descent written out, against the same descent by autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from exhume import InputError
from exhume.architecture import as_mlp
from exhume.defence.gradient_descent import Descent
from exhume.defence.losses import LOSSES
from exhume.defence.training import Trained, TrainingConfig, train
from exhume.networks import NetworkConfig, build
from exhume.problems import Problem


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
        network=NetworkConfig(widths=(12, 9)),
    )


@pytest.mark.parametrize("bias", ["first", "all", "none"])
@pytest.mark.parametrize("count", [6, 40])  # fewer and more than the 16 pixels
def test_descent_written_out_takes_the_steps_of_autograd(bias: str, count: int) -> None:
    """Rate, decay and what lies outside the images' span included."""
    data = problem(count)
    network = NetworkConfig(widths=(12, 9), bias=bias, init_scale=0.3)  # type: ignore[arg-type]
    g = torch.Generator().manual_seed(2)
    module = build(network, data.images.mean(0), 3, g)
    mlp = as_mlp(module)
    assert mlp is not None and len(mlp.weights) == 3
    twin = build(network, data.images.mean(0), 3, torch.Generator().manual_seed(2))
    start = [p.detach().clone() for p in module.parameters()]

    def loss_of(scores: Tensor) -> Tensor:
        return functional.cross_entropy(scores, data.labels)

    def slope(scores: Tensor) -> Tensor:
        with torch.enable_grad():
            scores = scores.detach().requires_grad_()
            return torch.autograd.grad(loss_of(scores), scores)[0]

    inputs = module.centre(data.images).flatten(1)
    Descent(mlp, inputs, slope, lambda scores: 0.1 / loss_of(scores).item(), decay=0.01).advance(25)
    for _ in range(25):
        loss = functional.cross_entropy(twin(data.images), data.labels)
        slopes = torch.autograd.grad(loss, list(twin.parameters()))
        with torch.no_grad():
            for parameter, by in zip(twin.parameters(), slopes, strict=True):
                parameter.sub_(0.1 / loss.item() * (by + 0.01 * parameter))
    torch.testing.assert_close(list(module.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-11)
    assert all((p - s).norm() > 1e-2 * s.norm() for p, s in zip(module.parameters(), start, strict=True))


@pytest.mark.parametrize("bias", ["first", "all", "none"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_optimiser_of_the_general_path_ends_where_the_written_out_descent_does(
    momentum: float, bias: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the descent is taken up again, at every evaluation, with the momenta it had."""
    data, network = problem(6), NetworkConfig(widths=(12, 9), bias=bias, init_scale=0.3)  # type: ignore[arg-type]
    config = TrainingConfig(epochs=40, lr=0.1, dtype="float64", weight_decay=0.01, momentum=momentum, evaluate_every=7)
    written_out = train(data, config, network=network)
    monkeypatch.setattr("exhume.defence.training.as_mlp", lambda _: None)
    monkeypatch.setattr("exhume.defence.training.Descent", None)
    general = train(data, config, network=network)
    for name, weight in written_out.checkpoint.weights.items():
        torch.testing.assert_close(general.checkpoint.weights[name], weight, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.0, 0.02), (0.9, 0.02)])
@pytest.mark.parametrize("count", [6, 40])
def test_a_constant_rate_takes_the_steps_of_pytorchs_own_optimiser(count: int, momentum: float, decay: float) -> None:
    """Of so many epochs most are taken together; the momenta are its own too."""
    data, network = problem(count), NetworkConfig(widths=(12, 9), bias="all", init_scale=0.3)
    module, twin = (build(network, data.images.mean(0), 3, torch.Generator().manual_seed(2)) for _ in range(2))
    mlp, optimiser = as_mlp(module), torch.optim.SGD(twin.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
    assert mlp is not None
    momenta = [torch.zeros_like(parameter) for parameter in mlp.parameters]
    slope = LOSSES["ce"].slopes(torch.zeros(count, 3, dtype=torch.float64), data.labels)
    inputs = module.centre(data.images).flatten(1)
    descent = Descent(mlp, inputs, slope, 0.1, decay=decay, momentum=momentum, momenta=momenta)
    for epochs in (60, 7):
        descent.advance(epochs)
    for _ in range(67):
        optimiser.zero_grad()
        functional.cross_entropy(twin(data.images), data.labels).backward()
        optimiser.step()
    torch.testing.assert_close(list(module.parameters()), list(twin.parameters()), rtol=1e-9, atol=1e-11)
    kept = [optimiser.state[parameter].get("momentum_buffer") for parameter in twin.parameters()]
    for ours, theirs in zip(momenta, kept, strict=True):
        assert not ours.any() if theirs is None else torch.allclose(ours, theirs, rtol=1e-9, atol=1e-11)
    assert all(theirs is None for theirs in kept) == (momentum == 0)


@pytest.mark.parametrize("settings", [{"loss": "mse"}, {"weight_decay": 1e-3}])
def test_a_growing_rate_is_refused_where_the_loss_has_a_floor(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="lr_over_loss is for bce and ce"):
        TrainingConfig(lr_over_loss=1e-3, **settings)  # type: ignore[arg-type]


def test_the_rate_grows_as_the_loss_falls() -> None:
    """As long as a constant rate takes, much further; and the path is that of gradient flow: the norms' balance."""
    data = problem(6)
    constant = train(data, TrainingConfig(epochs=600, lr=0.1))
    scaled = train(data, TrainingConfig(epochs=600, lr=0.1, lr_over_loss=1e-2))
    assert scaled.history[-1].loss < 1e-3 * constant.history[-1].loss
    start = train(data, TrainingConfig(epochs=0))

    def balance(trained: Trained) -> tuple[float, float]:
        """Squared norms of the last two weights: their difference is kept by gradient flow, their sum grows."""
        *_, before, last = [w.square().sum().item() for n, w in trained.checkpoint.weights.items() if "weight" in n]
        return last - before, last + before

    (kept, grown), (at_start, small) = balance(scaled), balance(start)
    assert grown > 2 * small
    assert abs(kept - at_start) < 0.05 * (grown - small)
