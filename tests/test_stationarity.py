"""Laws of the mathematics, over objectives, activations and networks."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn
from torch.nn import functional

from exhume.methods import as_dense
from exhume.networks import ACTIVATIONS, CentredNetwork, Network, build
from exhume.stationarity import (
    OBJECTIVES,
    SLOPES,
    Cotangents,
    absolute_residual,
    dense_gradients,
    fixed,
    network_gradients,
    relative_residual,
    scale_free,
    smooth_hinges,
)
from exhume.training import LOSSES

MLP = Network(widths=(12, 9), init_scale=None)
NETWORKS = {
    "first": MLP,
    "all": Network(widths=(12, 9), init_scale=None, bias="all"),
    "none": Network(widths=(12,), init_scale=None, bias="none"),
    "cnn": Network(kind="cnn", channels=(4,), widths=(9,), init_scale=None),
}
GATES = {"fixed": fixed(7.0), "scale-free": scale_free(10.0)}


def random_network(
    network: Network, activation: str, outputs: int, dtype: torch.dtype = torch.float64
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
class TestSums:
    """What the weighted sum of gradients does not depend on."""

    def test_permuting_the_candidates(self, objective: str, activation: str, network: str, dtype: torch.dtype) -> None:
        module, tolerance = random_network(NETWORKS[network], activation, outputs_of(objective), dtype), tol(dtype)
        first = sample(objective, dtype=dtype)
        second = first.taken(torch.tensor([3, 1, 6, 0, 2, 5, 4]))
        sums = [network_gradients(module, s.images, s.cotangents(), scale_free(10.0)) for s in (first, second)]
        assert max(gradient.abs().max() for gradient in sums[0]) > 1e-3
        close(*sums, tolerance)

    def test_splitting_a_candidate(self, objective: str, activation: str, network: str, dtype: torch.dtype) -> None:
        module, tolerance = random_network(NETWORKS[network], activation, outputs_of(objective), dtype), tol(dtype)
        whole = sample(objective, dtype=dtype)
        halves = whole.taken(torch.tensor([0, 0, 1, 2, 3, 4, 5, 6]))
        halves.multipliers = halves.multipliers * torch.tensor([0.5, 0.5, 1, 1, 1, 1, 1, 1])
        sums = [network_gradients(module, s.images, s.cotangents(), scale_free(10.0)) for s in (whole, halves)]
        close(*sums, tolerance)


def tol(dtype: torch.dtype) -> float:
    return 1e-5 if dtype == torch.float32 else 1e-12


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("network", ["first", "all", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_written_out_gradients_are_autograds(objective: str, activation: str, network: str, gate: str) -> None:
    """In value, and in the derivative of the residual by images and multipliers, which the search follows."""
    module = random_network(NETWORKS[network], activation, outputs_of(objective))
    s, dense = sample(objective), as_dense(module)
    assert dense is not None
    general = network_gradients(module, s.images, s.cotangents(), GATES[gate])
    inputs = (s.images - module.centre.centre).flatten(1)
    written = dense_gradients(dense, inputs, s.cotangents(), GATES[gate])
    close(written, general, 1e-12)
    first = dense_gradients(dense, inputs, s.cotangents(), GATES[gate], first_only=True)
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
    at_truth = relative_residual(parameters, network_gradients(module, images, s.cotangents(), scale_free(10.0)))
    assert at_truth < 1e-15
    elsewhere = network_gradients(module, images.flip(0), s.cotangents(), scale_free(10.0))
    assert relative_residual(parameters, elsewhere) > 1e-2  # the control: the same images with each other's multipliers


def test_the_residuals_are_what_they_say() -> None:
    parameters = [torch.tensor([[3.0, 4.0]]), torch.tensor([2.0])]
    sums = [torch.tensor([[3.0, 1.0]]), torch.tensor([1.0])]
    assert absolute_residual(parameters, sums) == 9 + 1
    torch.testing.assert_close(relative_residual(parameters, sums), torch.tensor(9 / 25 + 1 / 4))
    weighted = relative_residual(parameters, sums, [torch.tensor([1.0, 0.5]), 1.0])
    torch.testing.assert_close(weighted, torch.tensor(2.25 / 13 + 1 / 4))


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


@pytest.mark.parametrize("activation", ["gelu", "tanh", "sigmoid"])
def test_the_slopes_of_smooth_activations_are_their_derivatives(activation: str) -> None:
    z = torch.linspace(-4, 4, 81, dtype=torch.float64).requires_grad_()
    value, slope = SLOPES[activation](z, 1.0)
    oracle = ACTIVATIONS[activation]()(z)
    torch.testing.assert_close(value, oracle)
    torch.testing.assert_close(slope, torch.autograd.grad(oracle.sum(), z)[0])


def test_the_tables_have_the_same_rows() -> None:
    assert set(SLOPES) == set(ACTIVATIONS)
    assert np.unique([row.task for row in OBJECTIVES.values()]).tolist() == ["binary", "multiclass", "regression"]
