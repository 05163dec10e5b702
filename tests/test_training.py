"""Training is the gradient descent it says it is: against formulas written out by hand, and by laws."""

import math
from collections.abc import Iterator
from itertools import product
from typing import get_args

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import Tensor

from exhume.defence.losses import LOSSES, LossRow, resolve_loss
from exhume.defence.privacy import epsilon
from exhume.defence.training import Trained, TrainingConfig, TrainingState, shifted, train
from exhume.errors import InputError
from exhume.networks import NetworkConfig, Task
from exhume.problems import Problem, load_problem
from exhume.progress import Progress

TASKS: tuple[Task, ...] = get_args(Task)
SMALL = NetworkConfig(widths=(16,), init_scale=None)
LINEAR = NetworkConfig(widths=(), bias="all", init_scale=None)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks as small as these only wait for further threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_problem(task: Task = "binary", count: int = 12, shape: tuple[int, int, int] = (1, 3, 4)) -> Problem:
    generator = torch.Generator().manual_seed(5)
    images, held_out = torch.rand(2, count, *shape, generator=generator)
    classes = {"binary": 2, "multiclass": 3, "regression": 1}[task]
    labels = torch.arange(count) % classes
    if task == "regression":
        labels = torch.randn(count, generator=generator)
    return Problem(
        name="noise",
        images=images,
        labels=labels,
        held_out=held_out,
        held_out_labels=labels,
        task=task,
        classes=tuple("abc"[:classes]),
        network=SMALL,
        source="made up",
    )


def flat_weights(trained: Trained) -> Tensor:
    return torch.cat([weight.flatten() for weight in trained.checkpoint.weights.values()])


@pytest.mark.parametrize(("name", "task"), list(product(LOSSES, TASKS)))
def test_a_loss_trains_the_tasks_it_is_for_and_no_others(name: str, task: Task) -> None:
    problem, config = make_problem(task), TrainingConfig(loss=name, lr=0.05, epochs=20)
    if task in LOSSES[name].tasks:
        history = train(problem, config).history
        assert history[-1].loss < history[0].loss
    else:
        with pytest.raises(InputError, match=f"The loss {name} does not fit the task {task}; "):
            train(problem, config)


# ---- Gradient descent


def linear_gradient(loss: str, design: np.ndarray, theta: np.ndarray, labels: np.ndarray) -> np.ndarray:
    scores = design @ theta
    if loss == "mse":
        return 2 * design.T @ (scores - labels) / len(labels)
    return design.T @ (1 / (1 + np.exp(-scores)) - labels) / len(labels)


@pytest.mark.parametrize(("loss", "task"), [("mse", "regression"), ("bce", "binary")])
@pytest.mark.parametrize(("momentum", "weight_decay"), [(0.0, 0.0), (0.0, 0.3), (0.9, 0.3)])
def test_epochs_are_gradient_steps(loss: str, task: Task, momentum: float, weight_decay: float) -> None:
    problem = make_problem(task)
    settings = {"loss": loss, "lr": 0.2, "momentum": momentum, "weight_decay": weight_decay, "dtype": "float64"}

    def parameters(epochs: int) -> np.ndarray:
        return flat_weights(train(problem, TrainingConfig(epochs=epochs, **settings), network=LINEAR)).numpy()

    centred = problem.images.double() - problem.images.double().mean(0)
    design = np.concatenate([centred.flatten(1).numpy(), np.ones((len(centred), 1))], 1)
    theta, velocity = parameters(0), np.zeros(design.shape[1])
    for epochs in (1, 2, 3):
        gradient = linear_gradient(loss, design, theta, problem.labels.double().numpy()) + weight_decay * theta
        velocity = momentum * velocity + gradient
        theta = theta - 0.2 * velocity
        np.testing.assert_allclose(parameters(epochs), theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("task", TASKS)
def test_the_history_states_loss_and_gradient_of_the_network(task: Task) -> None:
    problem, config = make_problem(task), TrainingConfig(epochs=7, lr=0.1, weight_decay=0.05, dtype="float64")
    trained = train(problem, config)
    module = trained.checkpoint.build()
    loss = LOSSES[resolve_loss(task, None)].loss(module(problem.images.double()), problem.labels)
    decay = 0.05 / 2 * sum(parameter.pow(2).sum() for parameter in module.parameters())
    gradients = torch.autograd.grad(loss + decay, list(module.parameters()))
    last = trained.history[-1]
    assert last.epoch == 7
    assert last.loss == pytest.approx(loss.item(), rel=1e-10)
    assert last.gradient == pytest.approx(torch.cat([g.flatten() for g in gradients]).norm().item(), rel=1e-10)


@pytest.fixture
def seen_batches(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """A loss row, "seen", that is the squared error and writes down the targets of every batch."""
    batches: list[list[float]] = []

    def loss(scores: Tensor, labels: Tensor) -> Tensor:
        batches.append(labels.tolist())
        return (scores[:, 0] - labels).pow(2).mean()

    monkeypatch.setitem(LOSSES, "seen", LossRow(loss, LOSSES["mse"].slopes, ("regression",), has_floor=True))
    return batches


def test_batches_cover_every_image_once_an_epoch(seen_batches: list[list[float]]) -> None:
    problem = make_problem("regression", count=10)
    train(problem, TrainingConfig(loss="seen", batch_size=4, epochs=6, lr=1e-3, evaluate_every=100))
    batches = [batch for batch in seen_batches if len(batch) < 10]  # the others are evaluations
    assert [len(batch) for batch in batches] == [4, 4, 2] * 6
    epochs = [(*batches[i], *batches[i + 1], *batches[i + 2]) for i in range(0, 18, 3)]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(problem.labels.tolist()))}
    assert len(set(epochs)) == 6  # shuffled anew each time


def test_adam_takes_adams_steps() -> None:
    """Kingma & Ba 2015, algorithm 1, on a linear network; the decay is part of the gradient."""
    problem = make_problem("regression")
    settings = {"optimiser": "adam", "loss": "mse", "lr": 0.01, "weight_decay": 0.3, "dtype": "float64"}
    parameters = [
        flat_weights(train(problem, TrainingConfig(epochs=epochs, **settings), network=LINEAR)).numpy()
        for epochs in range(4)
    ]
    centred = problem.images.double() - problem.images.double().mean(0)
    design = np.concatenate([centred.flatten(1).numpy(), np.ones((len(centred), 1))], 1)
    theta, first, second = parameters[0], np.zeros(design.shape[1]), np.zeros(design.shape[1])
    for step in (1, 2, 3):
        gradient = linear_gradient("mse", design, theta, problem.labels.double().numpy()) + 0.3 * theta
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        theta = theta - 0.01 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        np.testing.assert_allclose(parameters[step], theta, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [None, 12, 100])
def test_a_batch_of_all_images_is_gradient_descent(batch_size: int | None) -> None:
    config = TrainingConfig(epochs=5, batch_size=batch_size)
    expected = flat_weights(train(make_problem(), TrainingConfig(epochs=5)))
    assert torch.equal(flat_weights(train(make_problem(), config)), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_precision_is_the_one_asked_for(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    checkpoint = train(make_problem(), TrainingConfig(epochs=2, dtype=name)).checkpoint
    assert {weight.dtype for weight in checkpoint.weights.values()} == {checkpoint.centre.dtype} == {dtype}


# ---- When it ends


def test_stops_when_the_loss_is_small_enough() -> None:
    config = TrainingConfig(epochs=2000, lr=0.3, stop_loss=0.1, evaluate_every=1)
    trained = train(make_problem(), config)
    assert trained.status == "fitted"
    assert str(trained.history[-1].epoch) in trained.message
    assert trained.history[-1].loss < 0.1 <= min(point.loss for point in trained.history[:-1])


def test_stops_when_the_gradient_vanishes() -> None:
    config = TrainingConfig(loss="mse", epochs=5000, lr=0.3, weight_decay=0.1, stop_gradient=1e-8, dtype="float64")
    trained = train(make_problem(), config, network=LINEAR)
    assert trained.status == "stationary"
    assert trained.history[-1].gradient < 1e-8 <= trained.history[-2].gradient
    # ridge regression in closed form: (2/n) X^T (X theta - y) + decay theta = 0
    problem = make_problem()
    centred = (problem.images.double() - problem.images.double().mean(0)).flatten(1)
    design = torch.cat([centred, torch.ones(len(centred), 1, dtype=torch.float64)], 1)
    matrix = 2 / len(design) * design.T @ design + 0.1 * torch.eye(design.shape[1], dtype=torch.float64)
    solution = torch.linalg.solve(matrix, 2 / len(design) * design.T @ (2.0 * problem.labels.double() - 1))
    torch.testing.assert_close(flat_weights(trained), solution, rtol=0, atol=1e-6)


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_when_held_out_images_are_told_no_better(patience: int) -> None:
    config = TrainingConfig(epochs=500, lr=0.3, evaluate_every=2, patience=patience)
    trained = train(make_problem(), config)
    assert trained.status == "no better"
    accuracies = [point.held_out_accuracy for point in trained.history]
    best = accuracies.index(max(accuracies))
    assert len(accuracies) - 1 - best == patience
    assert f"since epoch {2 * best}" in trained.message


def test_ends_with_the_epochs_otherwise() -> None:
    trained = train(make_problem(), TrainingConfig(epochs=10))
    assert (trained.status, trained.message) == ("epochs over", "All 10 epochs are over.")


def test_no_epochs_leave_the_initial_network() -> None:
    initial, further = (train(make_problem(), TrainingConfig(epochs=epochs)) for epochs in (0, 1))
    assert [point.epoch for point in initial.history] == [0]
    assert initial.history[0] == further.history[0]
    assert not torch.equal(flat_weights(initial), flat_weights(further))


@pytest.mark.parametrize("loss", ["mse", "l2.5"])
def test_divergence_is_a_status(loss: str) -> None:
    trained = train(make_problem("regression"), TrainingConfig(loss=loss, lr=1e9, epochs=50, evaluate_every=1))
    assert trained.status == "diverged"
    assert "a smaller lr may help" in trained.message
    last = trained.history[-1]
    assert last.epoch < 50
    assert not (math.isfinite(last.loss) and math.isfinite(last.gradient))
    assert all(math.isfinite(point.loss) for point in trained.history[:-1])


# ---- Interruption


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"momentum": 0.9},
        {"batch_size": 5},
        {"momentum": 0.9, "batch_size": 5, "dtype": "float64"},
        {"shifts": 1, "batch_size": 5},
        {"noise": 0.5, "batch_size": 5},
        {"optimiser": "adam", "batch_size": 5},
    ],
    ids=["full batch", "momentum", "batches", "all", "shifts", "DP-SGD", "adam"],
)
def test_a_resumed_training_ends_with_the_very_same_numbers(settings: dict[str, object]) -> None:
    problem, config = make_problem(), TrainingConfig(epochs=30, lr=0.1, evaluate_every=4, **settings)
    states: list[TrainingState] = []
    whole = train(problem, config, keep=states.append)
    assert [state.epoch for state in states] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    for state in (states[0], states[3], states[-1]):
        resumed = train(problem, config, resume=state)
        assert torch.equal(flat_weights(resumed), flat_weights(whole))
        assert resumed.history == whole.history
        assert resumed.margins == whole.margins
        assert resumed.seconds > state.seconds


def test_a_kept_state_is_not_changed_by_going_on() -> None:
    copies: list[tuple[TrainingState, dict[str, Tensor], dict[str, Tensor]]] = []

    def keep(state: TrainingState) -> None:
        momenta = {name: momentum.clone() for name, momentum in state.momenta.items()}
        copies.append((state, {name: weight.clone() for name, weight in state.weights.items()}, momenta))

    problem, config = make_problem(), TrainingConfig(epochs=8, momentum=0.5, evaluate_every=2)
    train(problem, config, keep=keep)
    train(problem, config, resume=copies[1][0])
    for state, weights, momenta in copies:
        assert all(torch.equal(state.weights[name], weights[name]) for name in weights)
        assert all(torch.equal(state.momenta[name], momenta[name]) for name in momenta)


# ---- Defences


def test_shifts_move_images_and_lose_only_what_leaves_the_frame() -> None:
    images = torch.zeros(40, 1, 7, 7)
    images[:, :, 3, 3] = 1
    moved = shifted(images, 2, torch.Generator().manual_seed(0))
    assert moved.flatten(1).sum(1).tolist() == [1.0] * 40
    places = moved[:, 0].nonzero()[:, 1:]
    assert places.amin() == 1
    assert places.amax() == 5
    assert torch.equal(shifted(images, 0), images)


def test_without_noise_a_step_of_dp_sgd_is_the_mean_of_clipped_gradients() -> None:
    """By hand, image by image; the batch is a Poisson sample whose mean is over the batch that was asked for."""
    problem, clip = make_problem("multiclass", count=10), 0.05
    config = TrainingConfig(epochs=1, lr=0.3, batch_size=10, noise=1e-9, clip=clip)
    start = train(problem, TrainingConfig(epochs=0), network=LINEAR)
    weight, bias = (tensor.clone().requires_grad_() for tensor in start.checkpoint.weights.values())
    sums, norms = [torch.zeros_like(weight), torch.zeros_like(bias)], []
    for image, label in zip(problem.images - problem.images.mean(0), problem.labels, strict=True):
        loss = torch.nn.functional.cross_entropy((weight @ image.flatten() + bias)[None], label[None])
        gradients = torch.autograd.grad(loss, [weight, bias])
        length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
        norms.append(length)
        for total, gradient in zip(sums, gradients, strict=True):
            total.add_(gradient, alpha=min(1.0, clip / length))
    assert min(norms) > clip
    expected = torch.cat([(weight - 0.03 * sums[0]).flatten(), bias - 0.03 * sums[1]])
    torch.testing.assert_close(flat_weights(train(problem, config, network=LINEAR)), expected.detach())


def test_epsilon_falls_with_noise_and_grows_with_steps() -> None:
    values = [
        epsilon(noise=noise, rate=0.1, steps=steps, delta=1e-3) for noise, steps in ((1, 100), (2, 100), (1, 400))
    ]
    assert values[1] < values[0] < values[2]
    # without sampling one step is the Gaussian mechanism, whose exact epsilon is known (Balle & Wang 2018, theorem 8)
    sigma, delta = 4.0, 1e-3

    def excess(value: float) -> float:
        return float(norm.cdf(0.5 / sigma - value * sigma) - math.exp(value) * norm.cdf(-0.5 / sigma - value * sigma))

    exact = brentq(lambda value: excess(value) - delta, 1e-3, 5.0)
    assert exact <= epsilon(noise=sigma, rate=1.0, steps=1, delta=delta) < 1.2 * exact


# ---- What comes out


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_margin_is_positive_exactly_where_the_network_is_right(task: Task) -> None:
    problem = make_problem(task, count=24)
    trained = train(problem, TrainingConfig(epochs=40, lr=0.3))
    scores = trained.checkpoint.build()(problem.images).detach()
    predicted = scores.argmax(1) if task == "multiclass" else (scores[:, 0] > 0).long()
    right = predicted == problem.labels
    assert 0 < right.sum() < 24  # both kinds are there to be told apart
    assert [margin > 0 for margin in trained.margins] == right.tolist()
    assert trained.history[-1].accuracy == pytest.approx(right.double().mean().item())


def test_a_margin_is_the_score_towards_the_right_side() -> None:
    problem = make_problem("multiclass")
    trained = train(problem, TrainingConfig(epochs=5))
    scores = trained.checkpoint.build()(problem.images)
    for row, label, margin in zip(scores.tolist(), problem.labels.tolist(), trained.margins, strict=True):
        assert margin == pytest.approx(row[label] - max(row[:label] + row[label + 1 :]), abs=1e-6)


def test_the_margin_of_a_regression_is_minus_the_error() -> None:
    problem = make_problem("regression")
    trained = train(problem, TrainingConfig(epochs=5, lr=0.1))
    errors = (trained.checkpoint.build()(problem.images)[:, 0] - problem.labels).abs()
    torch.testing.assert_close(torch.tensor(trained.margins), -errors.detach())


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_held_out_accuracy_is_of_the_held_out_images(task: Task) -> None:
    problem = make_problem(task, count=18)
    trained = train(problem, TrainingConfig(epochs=300, lr=0.5, stop_loss=0.05))
    scores = trained.checkpoint.build()(problem.held_out)
    predicted = scores.argmax(1) if task == "multiclass" else (scores[:, 0] > 0).long()
    expected = (predicted == problem.held_out_labels).double().mean().item()
    last = trained.history[-1]
    assert last.accuracy == 1.0
    assert last.held_out_accuracy == pytest.approx(expected) != 1.0


def test_the_checkpoint_holds_mean_and_weights_alone() -> None:
    problem = make_problem("multiclass")
    checkpoint = train(problem, TrainingConfig(epochs=2)).checkpoint
    torch.testing.assert_close(checkpoint.centre, problem.images.mean(0))
    assert (checkpoint.task, checkpoint.classes, checkpoint.network) == ("multiclass", ("a", "b", "c"), SMALL)
    assert set(checkpoint.weights) == {"1.weight", "1.bias", "3.weight"}


@pytest.mark.parametrize("batch_size", [None, 5])
def test_the_same_seed_gives_the_same_weights(batch_size: int | None) -> None:
    def weights(seed: int) -> Tensor:
        return flat_weights(train(make_problem(), TrainingConfig(epochs=9, batch_size=batch_size, seed=seed)))

    torch.manual_seed(1)
    first, state = weights(3), torch.get_rng_state()
    torch.rand(5)
    assert torch.equal(weights(3), first)
    assert not torch.equal(weights(4), first)
    torch.manual_seed(1)
    assert torch.equal(torch.get_rng_state(), state)  # training draws nothing from the global generator


def test_the_images_are_left_as_they_are() -> None:
    problem = make_problem()
    before = problem.fingerprint
    train(problem, TrainingConfig(epochs=3, dtype="float64"))
    assert problem.fingerprint == before


def test_the_callback_is_told_of_every_evaluation() -> None:
    events: list[Progress] = []
    trained = train(make_problem(), TrainingConfig(epochs=10, evaluate_every=3), progress_callback=events.append)
    assert [event.step for event in events] == [0, 3, 6, 9, 10] == [point.epoch for point in trained.history]
    assert {(event.stage, event.total) for event in events} == {("train", 10)}
    assert [event.values["loss"] for event in events] == [point.loss for point in trained.history]


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"loss": "bse"}, "Unknown loss 'bse'; there are bce, ce, mse, huber, l2.5."),
        ({"epochs": -1}, "epochs must not be negative"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": float("nan")}, "lr must be positive"),
        ({"lr": float("inf")}, "lr must be positive"),
        ({"momentum": 1.0}, "momentum must be in"),
        ({"optimiser": "lbfgs"}, "optimiser must be sgd or adam"),
        ({"optimiser": "adam", "momentum": 0.5}, "are for sgd"),
        ({"optimiser": "adam", "lr_over_loss": 1e-3}, "are for sgd"),
        ({"patience": 0}, "patience must be at least 1"),
        ({"momentum": -0.1}, "momentum must be in"),
        ({"momentum": float("nan")}, "momentum must be in"),
        ({"weight_decay": -1e-3}, "weight_decay must not be negative"),
        ({"shifts": -1}, "shifts and noise must not be negative"),
        ({"noise": -0.1}, "shifts and noise must not be negative"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"noise": 1.0}, "give batch_size with noise"),
        ({"weight_decay": float("inf")}, "weight_decay must not be negative"),
        ({"stop_loss": float("nan")}, "must be finite"),
        ({"stop_gradient": float("inf")}, "must be finite"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"evaluate_every": 0}, "must be at least 1"),
        ({"dtype": "float16"}, "dtype must be float32 or float64"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**63}, "seed must be"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        TrainingConfig(**wrong)


def test_a_whole_number_is_a_rate() -> None:
    problem = load_problem("toy-circle")
    one, same = (train(problem, TrainingConfig(epochs=3, lr=lr), network=problem.network) for lr in (1, 1.0))
    for name, weight in one.checkpoint.weights.items():
        assert torch.equal(weight, same.checkpoint.weights[name])
