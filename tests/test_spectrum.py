"""What the spectra of layers show, on matrices whose answer is known."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from exhume.architecture import MLP, as_mlp
from exhume.attack.spectrum import (
    _median_singular,
    bulk_noise,
    bulk_rank,
    first_layer,
    first_layer_spectrum,
    is_stationary,
    roughness,
)
from exhume.networks import NetworkConfig, build


def rank_of(matrix: Tensor) -> int:
    return bulk_rank(torch.linalg.svdvals(matrix), (matrix.shape[0], matrix.shape[1]))


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def directions(size: int, count: int, seed: int) -> Tensor:
    """[size, count] with orthonormal columns."""
    columns: Tensor = torch.linalg.qr(gaussian(size, count, seed=seed))[0]
    return columns


def low_rank(rows: int, columns: int, singular: Tensor, seed: int = 0) -> Tensor:
    left, right = (directions(size, len(singular), seed + i) for i, size in enumerate((rows, columns)))
    return (left * singular) @ right.T


# ---------------------------------------------------------------- the rank


@pytest.mark.parametrize("share", [0, 0.02, 0.25, 0.5, 0.6])
@pytest.mark.parametrize(("rows", "columns"), [(40, 100), (100, 40), (120, 120), (300, 785)])
def test_rank_is_the_number_of_directions_above_gaussian_noise(rows: int, columns: int, share: float) -> None:
    """Whatever the scale of the matrix."""
    rank, edge = int(share * min(rows, columns)), rows**0.5 + columns**0.5
    planted = low_rank(rows, columns, torch.linspace(20, 2, rank, dtype=torch.float64) * edge)
    noisy = planted + gaussian(rows, columns, seed=7)
    # the largest singular value of small noise matrices leaves the law's edge now and then, by one
    assert abs(rank_of(noisy) - rank) <= 1
    assert rank_of(1e-4 * noisy) == rank_of(noisy)


@pytest.mark.parametrize("rank", [0, 10, 40])
@pytest.mark.parametrize("size", [(100, 160), (120, 120), (300, 785)])
def test_the_noise_that_initialisation_left_is_read_whatever_training_added(size: tuple[int, int], rank: int) -> None:
    planted = low_rank(
        *size, torch.linspace(3, 1.5, rank, dtype=torch.float64) * 0.3 * (size[0] ** 0.5 + size[1] ** 0.5)
    )
    noise = bulk_noise(planted + 0.3 * gaussian(*size, seed=3))
    assert noise == pytest.approx(0.3, rel=0.03)


def test_no_noise_is_read_where_training_has_made_everything() -> None:
    few = low_rank(100, 160, torch.linspace(2, 1, 20, dtype=torch.float64))
    assert bulk_noise(few) is None
    assert bulk_noise(few + 1e-3 * gaussian(100, 160)) is None
    assert bulk_noise(0 * few) is None


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (120, 120), (300, 785)])
def test_uniform_noise_has_no_direction_above_it(size: tuple[int, int]) -> None:
    uniform = torch.rand(size, generator=torch.Generator().manual_seed(0)) - 0.5
    assert rank_of(uniform) <= 1


@pytest.mark.parametrize("rank", [1, 30, 50])
@pytest.mark.parametrize("size", [(60, 100), (100, 60)])
def test_after_weight_decay_the_rank_ends_at_the_fall_to_rounding(size: tuple[int, int], rank: int) -> None:
    planted = low_rank(*size, torch.logspace(0, -2, rank, dtype=torch.float64))
    assert rank_of(planted.float().double()) == rank
    assert rank_of(planted + 1e-9 * gaussian(*size)) == rank
    decayed = low_rank(*size, torch.logspace(-6, -20, 60, dtype=torch.float64), seed=5)  # no bulk at all
    assert rank_of(planted + decayed) == rank


@pytest.mark.parametrize("size", [(40, 100), (100, 40), (200, 200), (300, 785)])
def test_median_singular_value_is_that_of_gaussian_matrices(size: tuple[int, int]) -> None:
    medians = [torch.linalg.svdvals(gaussian(*size, seed=seed)).median().item() for seed in range(5)]
    assert _median_singular(*size) == pytest.approx(sum(medians) / 5, rel=0.02)


def test_a_trained_layer_has_the_rank_of_its_images(trained: nn.Module) -> None:
    """The whole claim on a real training, where the bulk is the initialisation's."""
    mlp = as_mlp(trained)
    assert mlp is not None
    assert rank_of(first_layer(mlp)) == 12


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """A network trained on 12 random images by plain gradient descent."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(12, 1, 8, 8, generator=generator)
    module = build(NetworkConfig(widths=(100,)), images.mean(0), 1, generator)
    optimiser = torch.optim.SGD(module.parameters(), lr=0.5)
    for _ in range(500):
        optimiser.zero_grad()
        targets = (torch.arange(12) % 2).float()
        loss = functional.binary_cross_entropy_with_logits(module(images)[:, 0], targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return module


# ---------------------------------------------------------------- the subspace


@pytest.mark.parametrize("biased", [True, False])
def test_subspace_holds_the_first_layer(biased: bool) -> None:
    layer = low_rank(20, 17, torch.linspace(3, 1, 5, dtype=torch.float64))
    mlp = MLP([layer[:, :16] if biased else layer], [layer[:, 16] if biased else None], "relu")
    torch.testing.assert_close(first_layer(mlp), layer)
    rank, whole = first_layer_spectrum(mlp)
    assert rank == 5
    space = whole.leading(rank)
    assert space.biased == biased
    torch.testing.assert_close(space.first @ space.basis.T, layer)
    torch.testing.assert_close(space.basis.T @ space.basis, torch.eye(5, dtype=torch.float64))
    torch.testing.assert_close(space.singular, torch.linspace(3, 1, 5, dtype=torch.float64))
    fewer = whole.leading(2)
    assert fewer.basis.shape == (17, 2)
    error = torch.linalg.matrix_norm(fewer.first @ fewer.basis.T - layer, 2).item()
    assert error == pytest.approx(2)  # the third singular value: no better approximation of this rank (Eckart, Young)


# ---------------------------------------------------------------- stationary layers


def chain(hidden: Tensor, activation: str = "tanh") -> MLP:
    """A hidden layer between two of its norm."""
    norm = hidden.norm()
    first, last = gaussian(hidden.shape[1], 30, seed=3), gaussian(1, hidden.shape[0], seed=4)
    return MLP([first * (norm / first.norm()), hidden, last * (norm / last.norm())], [None] * 3, activation)


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_a_layer_is_stationary_if_its_energy_lies_in_as_many_directions_as_images(activation: str) -> None:
    images = 10
    assert not is_stationary(chain(gaussian(80, 90), activation), images)
    made = low_rank(80, 90, torch.ones(images, dtype=torch.float64))
    assert is_stationary(chain(made, activation), images)
    assert is_stationary(chain(made + 1e-3 * gaussian(80, 90), activation), images)
    assert not is_stationary(chain(made, activation), images // 2)
    assert not is_stationary(chain(made + 0.1 * gaussian(80, 90), activation), images)


@pytest.mark.parametrize("hinge", ["relu", "leaky-relu"])
def test_layers_with_hinges_are_stationary_only_if_their_norms_balance(hinge: str) -> None:
    first, last = (weight / weight.norm() for weight in (gaussian(30, 20), gaussian(1, 30, seed=1)))
    bias = torch.full((30,), 30**-0.5, dtype=torch.float64)  # its norm counts with its layer's
    assert is_stationary(MLP([first, last], [None, None], hinge), 10)
    assert not is_stationary(MLP([first, 2 * last], [None, None], hinge), 10)
    assert not is_stationary(MLP([first, last], [bias, None], hinge), 10)
    assert is_stationary(MLP([first, 2**0.5 * last], [bias, None], hinge), 10)
    assert not is_stationary(MLP([first, last], [None, None], "tanh"), 10)  # no hinge, no hidden layer: nothing tells


# ---------------------------------------------------------------- smooth or not


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_roughness_of_noise_is_about_four_and_of_a_smooth_picture_small(shape: tuple[int, int, int]) -> None:
    count = shape[0] * shape[1] * shape[2]
    noise = directions(count + 1, 30, seed=0)  # the last coordinate is the bias's and no pixel
    assert roughness(noise, shape) == pytest.approx(4, rel=0.05)
    wave = torch.linspace(0, torch.pi, shape[2], dtype=torch.float64).sin()
    smooth = (wave[:, None] * wave).expand(shape).reshape(count, 1)
    assert roughness(smooth, shape) < 0.05
    assert roughness(7 * smooth, shape) == pytest.approx(roughness(smooth, shape))
