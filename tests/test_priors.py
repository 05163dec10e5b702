"""What is plausible of an image: the penalties against their sums written out, in value and slope."""

import itertools

import pytest
import torch

from exhume import Exhume, NetworkConfig
from exhume.attack.priors import EDGE, implausible, total_variation
from victims import checkpoint, generator, target_of


@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 5), (1, 1, 1, 6), (2, 1, 3, 1)])
def test_pixels_beyond_0_and_1_and_variation_speak_against_images(shape: tuple[int, int, int, int]) -> None:
    """Against the sums written out, in value and slope."""
    g = torch.Generator().manual_seed(0)
    images = (2 * torch.rand(shape, generator=g, dtype=torch.float64) - 0.5).requires_grad_()
    beyond = (images - 1).relu().square().sum() + (-images).relu().square().sum()
    _, _, height, width = shape
    variation = images.new_zeros(())
    for row, column in itertools.product(range(height), range(width)):
        here = images[:, :, row, column]
        right = images[:, :, row, min(column + 1, width - 1)] - here
        below = images[:, :, min(row + 1, height - 1), column] - here
        variation = variation + ((right**2 + below**2).sum(1) + EDGE**2).sqrt().sum() - EDGE * len(images)
    for smoothness in (0.0, 0.3):
        oracle, value = 3e-3 * beyond + smoothness * variation, implausible(images, smoothness)
        torch.testing.assert_close(value, oracle)
        slopes = [torch.autograd.grad(of, images, retain_graph=True)[0] for of in (value, oracle)]
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(
    "network", [NetworkConfig(widths=(20,)), NetworkConfig(kind="cnn", channels=(2,), widths=(4,))]
)
def test_smoothness_counts_in_every_search(network: NetworkConfig) -> None:
    target, penalties = target_of(checkpoint("binary", network)), []
    for smoothness in (0.0, 0.3):
        search = Exhume(images=4, smoothness=smoothness, init_scale=10.0).start(target, generator())
        penalties.append(search.objective()[1])
    rough = total_variation(search.iterate().images)
    assert rough > 1
    torch.testing.assert_close(penalties[1] - penalties[0], 0.3 * rough, rtol=0.02, atol=0)  # products in bfloat16
