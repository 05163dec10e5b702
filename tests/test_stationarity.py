"""Laws of the mathematics, over objectives, activations and networks."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from exhume.architecture import as_mlp
from exhume.attack.activations import SLOPES, ScaleFree, fixed, smooth_hinges
from exhume.attack.methods import METHODS
from exhume.attack.objectives import OBJECTIVES
from exhume.attack.residuals import absolute_residual, change_by_sum, relative_residual
from exhume.attack.stationarity import Cotangents, Term, mlp_terms, network_gradients, summed
from exhume.attack.target import Target
from exhume.defence.losses import LOSSES
from exhume.defence.training import TrainingConfig, train
from exhume.networks import ACTIVATIONS, CentredNetwork, NetworkConfig, build
from exhume.problems import Problem

THREE_LAYERS = NetworkConfig(widths=(12, 9), init_scale=None)
NETWORKS = {
    "first": THREE_LAYERS,
    "all": NetworkConfig(widths=(12, 9), init_scale=None, bias="all"),
    "none": NetworkConfig(widths=(12,), init_scale=None, bias="none"),
    "cnn": NetworkConfig(kind="cnn", channels=(4,), widths=(9,), init_scale=None),
}
GATES = {"fixed": fixed(7.0), "scale-free": ScaleFree(10.0)}


def random_network(
    network: NetworkConfig, activation: str, outputs: int, dtype: torch.dtype = torch.float64
) -> CentredNetwork:
    centre = torch.rand(1, 4, 4, generator=torch.Generator().manual_seed(1)).to(dtype)
    return build(replace(network, activation=activation), centre, outputs, torch.Generator().manual_seed(2))


@dataclass
class Sample:
    """Random candidates for an objective; images and multipliers ask for gradients."""

    name: str
    images: Tensor
    labels: Tensor
    multipliers: Tensor
    shares: Tensor

    def cotangents(self) -> Cotangents:
        row = OBJECTIVES[self.name]
        return lambda scores: row.cotangents(scores, self.labels, self.multipliers, self.shares)

    def taken(self, rows: Tensor) -> "Sample":
        return Sample(self.name, *(t[rows] for t in (self.images, self.labels, self.multipliers, self.shares)))


def outputs_of(objective: str) -> int:
    return 3 if OBJECTIVES[objective].task == "multiclass" else 1


def sample(objective: str, count: int = 7, dtype: torch.dtype = torch.float64) -> Sample:
    generator = torch.Generator().manual_seed(3)
    k = outputs_of(objective)
    return Sample(
        objective,
        torch.rand(count, 1, 4, 4, generator=generator, dtype=dtype).requires_grad_(),
        torch.randint(max(k, 2), (count,), generator=generator),
        torch.rand(count, generator=generator, dtype=dtype).requires_grad_(),
        torch.randn(count, k, generator=generator, dtype=dtype),
    )


def close(left: list[Tensor], right: list[Tensor], tolerance: float) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("network", ["all", "cnn"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_sum_depends_neither_on_the_order_of_the_candidates_nor_on_halves(objective: str, network: str) -> None:
    module, whole = random_network(NETWORKS[network], "relu", outputs_of(objective)), sample(objective)
    permuted = whole.taken(torch.tensor([3, 1, 6, 0, 2, 5, 4]))
    halves = whole.taken(torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]))
    halves.multipliers = halves.multipliers * torch.tensor([0.5, 0.5, 1, 1, 1, 1, 1, 1])
    first, *others = (
        network_gradients(module, s.images, s.cotangents(), ScaleFree(10.0)) for s in (whole, permuted, halves)
    )
    assert max(gradient.abs().max() for gradient in first) > 1e-3
    for other in others:
        close(first, other, 1e-12)


COVERING = [("multiclass", activation, network) for activation in ACTIVATIONS for network in NETWORKS] + [
    (objective, "relu", "all") for objective in OBJECTIVES if objective != "multiclass"
]
"""Every activation in every network, and every objective: an objective never sees the layers."""


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize(("objective", "activation", "network"), [row for row in COVERING if row[2] != "cnn"])
def test_the_written_out_gradients_are_autograds(objective: str, activation: str, network: str, gate: str) -> None:
    """In value, and in the derivative of the residual by images and multipliers, which the search follows."""
    module = random_network(NETWORKS[network], activation, outputs_of(objective))
    s, mlp = sample(objective), as_mlp(module)
    assert mlp is not None
    general = network_gradients(module, s.images, s.cotangents(), GATES[gate])
    inputs = (s.images - module.centre.centre).flatten(1)
    written = summed(mlp, mlp_terms(mlp, inputs, s.cotangents(), GATES[gate]))
    close(written, general, 1e-12)
    first = summed(mlp, mlp_terms(mlp, inputs, s.cotangents(), GATES[gate], count=1))
    assert len(first) == 1 + (mlp.biases[0] is not None)
    close(first, general[: len(first)], 1e-12)
    parameters = [parameter.detach() for parameter in module.parameters()]
    slopes = [
        torch.autograd.grad(relative_residual(parameters, sums), [s.images, s.multipliers], retain_graph=True)
        for sums in (written, general)
    ]
    assert slopes[0][0].abs().max() > 1e-6
    close(list(slopes[0]), list(slopes[1]), 1e-10)


def trained_to_the_end(module: nn.Module, images: Tensor, labels: Tensor, loss: str, decay: float) -> None:
    """Minimises loss + decay / 2 norm(theta)^2 by SciPy and Newton's method, until the gradient is rounding."""
    named = dict(module.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def value(theta: Tensor) -> Tensor:
        parts = {n: v.view_as(p) for (n, p), v in zip(named.items(), theta.split(sizes), strict=True)}
        scores = torch.func.functional_call(module, parts, (images,))
        return LOSSES[loss].loss(scores, labels) + decay / 2 * theta.pow(2).sum()

    gradient, hessian = torch.func.grad(value), torch.func.jacrev(torch.func.grad(value))
    start = torch.cat([p.detach().flatten() for p in named.values()]).numpy() * 2
    found = minimize(
        lambda theta: value(torch.from_numpy(theta)).item(),
        start,
        jac=lambda theta: gradient(torch.from_numpy(theta)).numpy(),
        method="L-BFGS-B",
        options={"maxiter": 3000, "ftol": 0, "gtol": 1e-8},
    )
    theta = torch.from_numpy(found.x)
    for _ in range(4):
        theta = theta - torch.linalg.lstsq(hessian(theta), gradient(theta)[:, None]).solution[:, 0]
    assert gradient(theta).norm() < 1e-11
    assert theta.norm() > 0.3
    with torch.no_grad():
        for parameter, part in zip(named.values(), theta.split(sizes), strict=True):
            parameter.copy_(part.view_as(parameter))


@pytest.mark.parametrize("activation", ["tanh", "gelu", "sigmoid"])
@pytest.mark.parametrize(("objective", "loss"), [("binary", "bce"), ("multiclass", "ce"), ("regression", "mse")])
def test_a_network_trained_with_decay_is_the_sum_of_its_own_gradients(
    objective: str, loss: str, activation: str
) -> None:
    """The papers' theorem (2023, eq. 7): the training images, with multipliers -l'_i / (n w), have residual 0."""
    module = random_network(NETWORKS["all"], activation, outputs_of(objective))
    s, decay = sample(objective, count=6), 1e-2
    images = s.images.detach()
    trained_to_the_end(module, images, s.labels, loss, decay)
    scores = module(images).detach().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[loss].loss(scores, s.labels), [scores])
    truth = -slope / decay
    if objective == "binary":
        s.multipliers = truth[:, 0] * (2 * s.labels - 1)
        assert (s.multipliers > 0).all()
    elif objective == "regression":
        s.multipliers = truth[:, 0]
    else:  # the multiplier is the own class's cotangent, the shares are the others' in proportion
        s.multipliers = truth.gather(1, s.labels[:, None])[:, 0]
        s.shares = (-truth).clamp_min(1e-300).log()
    parameters = [parameter.detach() for parameter in module.parameters()]
    at_truth = relative_residual(parameters, network_gradients(module, images, s.cotangents(), ScaleFree(10.0)))
    assert at_truth < 1e-15
    elsewhere = network_gradients(module, images.flip(0), s.cotangents(), ScaleFree(10.0))
    assert relative_residual(parameters, elsewhere) > 1e-2  # the control: the same images with each other's multipliers


@pytest.mark.parametrize("bias", ["first", "all"])
def test_how_a_sum_changes_what_of_a_layer_is_unexplained(bias: str) -> None:
    """Two Gram matrices give what the layer's own sum gives, in value and slope."""
    module = random_network(NETWORKS[bias], "relu", 3)
    s, mlp = sample("multiclass"), as_mlp(module)
    assert mlp is not None
    inputs = (s.images - module.centre.centre).flatten(1)
    term = mlp_terms(mlp, inputs, s.cotangents(), ScaleFree(10.0), count=2)[1]
    weight = mlp.weights[1]
    long = (weight - term.delta.T @ term.inputs).pow(2).sum() - weight.pow(2).sum()
    short = change_by_sum(weight, term)
    torch.testing.assert_close(short, long, rtol=1e-10, atol=1e-8)
    slopes = [torch.autograd.grad(value, [s.images, s.multipliers], retain_graph=True) for value in (short, long)]
    assert slopes[0][0].abs().max() > 1e-6
    close(list(slopes[0]), list(slopes[1]), 1e-8)


def test_products_in_half_precision_round_and_nothing_else() -> None:
    module = random_network(NETWORKS["first"], "relu", 3, torch.float32)
    s, mlp = sample("multiclass", dtype=torch.float32), as_mlp(module)
    assert mlp is not None
    half = mlp.multiplied_in(torch.bfloat16)
    inputs = (s.images - module.centre.centre).flatten(1)
    exact, rounded = (summed(chain, mlp_terms(chain, inputs, s.cotangents(), ScaleFree(10.0))) for chain in (mlp, half))
    for one, other in zip(exact, rounded, strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).norm() < 0.03 * one.norm()


class _Functional(nn.Module):
    def __init__(self, hinge: str) -> None:
        super().__init__()
        self.hinge = hinge

    def forward(self, x: Tensor) -> Tensor:
        return {
            "F.relu": lambda: functional.relu(x),
            "F.relu in place": lambda: functional.relu(x * 1, inplace=True),
            "torch.relu": lambda: torch.relu(x),
            "method": x.relu,
            "method in place": (x * 1).relu_,
            "nn.ReLU": lambda: nn.ReLU()(x),
            "nn.ReLU in place": lambda: nn.ReLU(inplace=True)(x * 1),
            "nn.LeakyReLU": lambda: nn.LeakyReLU(0.2)(x),
            "F.leaky_relu": lambda: functional.leaky_relu(x, negative_slope=0.2),
        }[self.hinge]()


@pytest.mark.parametrize(
    "hinge",
    ["F.relu", "F.relu in place", "torch.relu", "method", "method in place", "nn.ReLU", "nn.ReLU in place",
     "nn.LeakyReLU", "F.leaky_relu"],
)  # fmt: skip
def test_every_hinge_keeps_its_value_and_has_the_smoothed_derivatives(hinge: str) -> None:
    below, a = (0.2 if "eaky" in hinge else 0.0), 3.0
    x = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    with smooth_hinges(fixed(a)):
        value = _Functional(hinge)(x)
    torch.testing.assert_close(value, functional.leaky_relu(x, below), rtol=0, atol=1e-15)
    (first,) = torch.autograd.grad(value.sum(), x, create_graph=True)
    gate = torch.sigmoid(a * x)
    torch.testing.assert_close(first, below + (1 - below) * gate)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(second, (1 - below) * a * gate * (1 - gate))


def test_outside_of_the_context_a_hinge_is_a_hinge() -> None:
    x = torch.tensor([-1e-3, 1e-3], requires_grad=True)
    with smooth_hinges(fixed(1.0)):
        pass
    (slope,) = torch.autograd.grad(x.relu().sum(), x)
    assert slope.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("activation", sorted(set(ACTIVATIONS) - {"relu", "leaky-relu"}))
def test_the_slopes_of_smooth_activations_are_their_derivatives(activation: str) -> None:
    z = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()
    value, slope = SLOPES[activation](z, 1.0)
    oracle = ACTIVATIONS[activation]()(z)
    torch.testing.assert_close(value, oracle)
    torch.testing.assert_close(slope, torch.autograd.grad(oracle.sum(), z)[0])


@pytest.mark.parametrize(("activation", "below"), [("relu", 0.0), ("leaky-relu", 0.01)])
def test_the_value_of_a_hinge_is_exact_and_goes_back_through_the_gate(activation: str, below: float) -> None:
    z = torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    value, slope = SLOPES[activation](z, 3.0)
    torch.testing.assert_close(value, functional.leaky_relu(z, below), rtol=0, atol=0)
    torch.testing.assert_close(slope, below + (1 - below) * torch.sigmoid(3 * z))
    torch.testing.assert_close(torch.autograd.grad(value.sum(), z)[0], slope)


def test_the_tables_have_the_same_rows() -> None:
    assert set(SLOPES) == set(ACTIVATIONS)
    assert np.unique([row.task for row in OBJECTIVES.values()]).tolist() == ["binary", "multiclass", "regression"]


# ---------------------------------------------------------------- stationary points


def with_mixed_gates(objective: str, activation: str, bias: Literal["first", "none"]) -> tuple[CentredNetwork, Sample]:
    """A stationary network with hinges, worked out by hand.

    The images x_i are the corners of a simplex, so that (x_i, 1) have negative inner products; a neuron fires on its
    own image i alone: w = s |e|^2 lambda A_i and v = s e, where d_i = lambda y_i e are the cotangents,
    A_i = y_i x_i + slope sum_{k != i} y_k x_k, lambda = 1 / (|e| |A_i|), and s, of the sign of y_i, is free.
    """
    count, slope = 4, 0.01 if activation == "leaky-relu" else 0.0
    corners = torch.eye(count, dtype=torch.float64) - 1 / count
    basis = torch.linalg.qr(torch.randn(16, count, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    points = 3 * count * corners @ basis.T
    ends = torch.cat([points, torch.ones(count, 1)], 1) if bias == "first" else points
    labels = torch.arange(count) % 2
    signs = 2 * labels - 1
    gates = slope + (1 - slope) * torch.eye(count, dtype=torch.float64)
    own = (gates * signs) @ ends
    e = torch.tensor([1.0] if OBJECTIVES[objective].task != "multiclass" else [-1.0, 1.0], dtype=torch.float64)
    size = 1 / (e.norm() * own[0].norm())
    free = torch.rand(3, count, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * signs
    dead = torch.zeros(1, dtype=torch.float64)
    scales, images_of = torch.cat([free.flatten(), dead]), torch.arange(count).repeat(4)[: 3 * count + 1]
    layer = scales[:, None] * e.pow(2).sum() * size * own[images_of]
    module = random_network(NetworkConfig(widths=(len(scales),), bias=bias), activation, len(e))
    parameters = [layer[:, :16], *([layer[:, 16]] if bias == "first" else []), e[:, None] * scales]
    with torch.no_grad():
        for parameter, planted in zip(module.parameters(), parameters, strict=True):
            parameter.copy_(planted)
    images = points.reshape(count, 1, 4, 4) + module.centre.centre
    multipliers = size * (signs if OBJECTIVES[objective].signed else signs.abs()).double()
    return module, Sample(objective, images, labels, multipliers, torch.zeros(count, len(e), dtype=torch.float64))


@pytest.mark.parametrize("bias", ["first", "none"])
@pytest.mark.parametrize("activation", ["relu", "leaky-relu"])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_planted_stationary_point_has_residual_zero(
    objective: str, activation: str, bias: Literal["first", "none"]
) -> None:
    """And twice its multipliers leave norm(theta - 2 theta)^2 / norm(theta)^2 = 1 of each parameter."""
    module, s = with_mixed_gates(objective, activation, bias)
    parameters = [parameter.detach() for parameter in module.parameters()]
    for gate in (fixed(1e4), ScaleFree(1e4)):
        sums = network_gradients(module, s.images, s.cotangents(), gate)
        assert relative_residual(parameters, sums) < 1e-26
        assert absolute_residual(parameters, sums) < 1e-26
    s.multipliers = 2 * s.multipliers
    doubled = relative_residual(parameters, network_gradients(module, s.images, s.cotangents(), gate))
    assert doubled.item() == pytest.approx(len(parameters))


@pytest.mark.parametrize(
    ("network", "lr"),
    [
        (NetworkConfig(widths=(5,), activation="tanh", init_scale=None), 0.5),
        (NetworkConfig(kind="cnn", channels=(6,), widths=(), activation="gelu", bias="all", init_scale=None), 0.2),
    ],
    ids=["dense", "cnn"],
)
@pytest.mark.parametrize("loss", LOSSES)
def test_what_a_converged_training_publishes_is_stationary_at_its_images(
    loss: str, network: NetworkConfig, lr: float
) -> None:
    """The theorem end to end: `train` to a vanishing gradient, every loss, and only what was published afterwards."""
    task = LOSSES[loss].tasks[0]
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    labels = torch.arange(12) % (3 if task == "multiclass" else 2)
    targets = torch.randn(12, generator=generator, dtype=torch.float64) if task == "regression" else labels
    problem = Problem(
        name="random",
        images=images[:6],
        labels=targets[:6],
        held_out=images[6:],
        held_out_labels=targets[6:],
        task=task,
        classes=("a", "b", "c") if task == "multiclass" else ("a", "b"),
        network=network,
        source="random",
    )
    decay = 0.05
    config = TrainingConfig(
        loss=loss,
        epochs=4000,
        lr=lr,
        momentum=0.9,
        weight_decay=decay,
        dtype="float64",
        stop_gradient=1e-11,
        evaluate_every=50,
    )
    trained = train(problem, config)
    assert trained.status == "stationary"
    module = trained.checkpoint.build()
    scores = module(problem.images).detach().requires_grad_()
    (slope,) = torch.autograd.grad(LOSSES[loss].loss(scores, problem.labels), [scores])
    parameters = [parameter.detach() for parameter in module.parameters()]
    sums = network_gradients(module, problem.images, lambda _: -slope / decay, fixed(1.0))
    assert all(parameter.norm() > 1e-2 for parameter in parameters)
    assert relative_residual(parameters, sums) < 1e-15
    control = network_gradients(module, problem.held_out, lambda _: -slope / decay, fixed(1.0))
    assert relative_residual(parameters, control) > 1e-2


@pytest.mark.parametrize(("objective", "activation", "network"), COVERING)
def test_the_sum_is_that_of_every_candidates_jacobian(objective: str, activation: str, network: str) -> None:
    """sum_i J(x_i)^T d_i one candidate at a time, by the network as it is: a sharp gate is none."""
    module, s = random_network(NETWORKS[network], activation, outputs_of(objective)), sample(objective)
    theta = {name: parameter.detach() for name, parameter in module.named_parameters()}
    d = s.cotangents()(module(s.images)).detach()
    expected = {name: torch.zeros_like(parameter) for name, parameter in theta.items()}
    for i in range(len(d)):

        def scores(parameters: dict[str, Tensor], i: int = i) -> Tensor:
            result: Tensor = torch.func.functional_call(module, parameters, (s.images[i : i + 1].detach(),))
            return result[0]

        for name, jacobian in torch.func.jacrev(scores)(theta).items():
            expected[name] += torch.tensordot(d[i], jacobian, 1)
    close(network_gradients(module, s.images, s.cotangents(), fixed(1e12)), list(expected.values()), 1e-12)


# ---------------------------------------------------------------- symmetries of a whole search


class OwnClass(nn.Module):
    """The same network, but of an operation that is not read by its layers: every parameter is judged."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.layers(images.roll(1, 0).roll(-1, 0))
        return scores


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("method", ["exhume", "exhume, any network", "reference"])
def test_the_residual_of_a_search_knows_neither_order_nor_halves(method: str, objective: str) -> None:
    """With the 1/m of the papers: of m + 1 candidates each counts for m / (m + 1) of what it did.

    Halves are compared by one weighting: two candidates err independently of each other, and so by less.
    """
    network = random_network(THREE_LAYERS, "relu", outputs_of(objective))
    target = Target(
        network=OwnClass(network) if "any" in method else network,
        centre=network.centre.centre,
        task=OBJECTIVES[objective].task,
        outputs=outputs_of(objective),
    )
    settings = METHODS[method.split(",", maxsplit=1)[0]](
        objective=objective, per_class=4, images=5, init_scale=0.3, dtype="float64"
    )
    weighting: list[Any] = []

    def residual(rows: list[int], factors: Tensor, *, weighted_alike: bool = False) -> Tensor:
        search: Any = settings.start(target, torch.Generator().manual_seed(0))
        found, m = search.multipliers, len(search.labels)
        found.labels, found.shares = found.labels[rows], torch.randn(m, outputs_of(objective), generator=shares())[rows]
        found.values = found.values[rows] * factors * len(rows) / m
        variable = "pixels" if hasattr(search, "pixels") else "variables"
        setattr(search, variable, getattr(search, variable)[rows])
        search.prepare(0)
        if weighted_alike and weighting:
            search.weighting, search.hidden_weight = weighting
        value: Tensor = search.objective()[0]
        if not weighting and hasattr(search, "weighting"):
            weighting.extend([search.weighting, search.hidden_weight])
        return value.detach()

    def shares() -> torch.Generator:
        return torch.Generator().manual_seed(9)

    count = 4 * target.labels
    as_it_is = residual(list(range(count)), torch.ones(count))
    assert as_it_is > 1e-3 and bool(weighting) == (method == "exhume")
    permuted = residual(torch.randperm(count, generator=shares()).tolist(), torch.ones(count))
    torch.testing.assert_close(permuted, as_it_is, rtol=1e-12, atol=0)
    factors = torch.tensor([0.5, 0.5, *[1.0] * (count - 1)])
    halves = residual([0, *range(count)], factors, weighted_alike=True)
    torch.testing.assert_close(halves, as_it_is, rtol=1e-12, atol=0)


# ---------------------------------------------------------------- hinges, and what is none


@pytest.mark.parametrize(
    "call",
    [
        lambda z: z.relu_(),
        torch.relu_,
        lambda z: functional.relu(z, inplace=True),
        lambda z: functional.leaky_relu(z, 0.0, True),
        lambda z: functional.leaky_relu_(z, 0.0),
        nn.ReLU(inplace=True),
    ],
)
def test_a_hinge_in_place_is_smoothed_where_it_stands(call: Callable[[Tensor], Tensor]) -> None:
    """Also if what it returns is thrown away, and to any order."""
    x = torch.linspace(-2, 2, 21, dtype=torch.float64).requires_grad_()
    with smooth_hinges(fixed(3.0)):
        z = 1 * x
        call(z)
    assert torch.equal(z, x.relu())
    derivatives, of = [], z
    for _ in range(3):
        (of,) = torch.autograd.grad(of.sum(), x, create_graph=True)
        derivatives.append(of)
    gate = torch.sigmoid(3 * x)
    slope = 3 * gate * (1 - gate)
    close(derivatives, [gate, slope, 3 * slope * (1 - 2 * gate)], 1e-12)


def test_a_hinge_named_by_keyword_is_smoothed() -> None:
    x = torch.tensor([-0.1], requires_grad=True)
    with smooth_hinges(fixed(1.0)):
        value = torch.relu(input=x) + functional.leaky_relu(input=x, negative_slope=0.0)
    (slope,) = torch.autograd.grad(value, x)
    torch.testing.assert_close(slope, 2 * torch.sigmoid(x.detach()))


@pytest.mark.parametrize(
    "function",
    [functional.gelu, torch.tanh, torch.sigmoid, functional.silu, functional.elu, functional.relu6, torch.abs,
     lambda z: z.clamp(min=0), lambda z: functional.max_pool1d(z[None], 3)],
)  # fmt: skip
def test_other_functions_are_untouched(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.linspace(-2, 2, 21, dtype=torch.float64).requires_grad_()
    with smooth_hinges(fixed(3.0)):
        within = function(x)
    without = function(x)
    assert torch.equal(within, without)
    assert torch.equal(*(torch.autograd.grad(value.sum(), x)[0] for value in (within, without)))


def test_a_scale_free_gate_does_not_see_the_scale() -> None:
    """Of one candidate at a time, whatever the shape of what it passes."""
    z = torch.randn(3, 4, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = torch.tensor([1e-3, 1.0, 1e3], dtype=torch.float64)[:, None, None, None]
    torch.testing.assert_close(factors * z * ScaleFree(10.0)(factors * z), z * ScaleFree(10.0)(z))
    rms = z[0].pow(2).mean().sqrt()
    torch.testing.assert_close(torch.as_tensor(ScaleFree(10.0)(z))[0].squeeze(), 10 / rms)
    assert torch.as_tensor(ScaleFree(10.0)(torch.zeros(1, 4))).isfinite().all()


@pytest.mark.parametrize("samples", [2, 5, 6, 50])
def test_the_change_by_a_sum_is_the_same_for_few_and_for_many_samples(samples: int) -> None:
    """Of more than 5 the sum itself is less work than Gram matrices."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 6, generator=draw, dtype=torch.float64)
    delta, inputs = (
        torch.randn(samples, side, generator=draw, dtype=torch.float64, requires_grad=True) for side in (8, 6)
    )
    term = Term(delta, inputs, inputs @ weight.T)
    long = (weight - delta.T @ inputs).pow(2).sum() - weight.pow(2).sum()
    short = change_by_sum(weight, term)
    torch.testing.assert_close(short, long, rtol=1e-10, atol=1e-8)
    for one, other in zip(*(torch.autograd.grad(value, [delta, inputs]) for value in (short, long)), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)
