"""Every metric against an independent implementation, and the laws that make it honest."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate1d
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from exhume.metrics import MANY, agreement, l2, measure_of, min_max, ncc, psnr, similarity, ssim


def random_images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def pairs() -> tuple[Tensor, Tensor]:
    """Five images and noisy copies of them, colour, not square."""
    images = random_images(5, 3, 14, 17)
    return images, (images + 0.3 * random_images(5, 3, 14, 17, seed=1)).clamp(0, 1)


def test_the_products_of_many_pairs_are_the_same() -> None:
    """Above MANY pairs another library multiplies; blocks and order stay."""
    a, b = random_images(2_050, 3, 4, 4), random_images(2_000, 3, 4, 4, seed=1)
    assert len(a) * len(b) > MANY
    few = torch.cat([ncc(some, b) for some in torch.split(a, 1_000)])
    assert float((ncc(a, b) - few).abs().max()) < 2e-6
    assert ncc(a, b).argmax(1).equal(few.argmax(1))


def test_ncc_is_numpys_correlation_averaged_over_channels() -> None:
    a, b = random_images(4, 3, 5, 6), random_images(7, 3, 5, 6, seed=1)
    expected = [
        [np.mean([np.corrcoef(x[c].ravel(), y[c].ravel())[0, 1] for c in range(3)]) for y in b.numpy()]
        for x in a.numpy()
    ]
    np.testing.assert_allclose(ncc(a, b), expected, atol=1e-6)


def test_ncc_ignores_brightness_and_contrast() -> None:
    a, b = random_images(4, 3, 5, 6), random_images(6, 3, 5, 6, seed=1)
    for gain, offset in ((1e-4, 0.5), (3.0, -1.0), (1e6, 0.0)):
        torch.testing.assert_close(ncc(a.double() * gain + offset, b.double()), ncc(a.double(), b.double()))
        torch.testing.assert_close(ncc(-gain * a.double(), b.double()), -ncc(a.double(), b.double()))
    for extreme in (1e-25, 1e25):  # whose squares leave the range of float32
        torch.testing.assert_close(ncc(a * extreme, b), ncc(a, b))


def test_ncc_is_symmetric_bounded_and_one_on_itself() -> None:
    a = random_images(500, 1, 5, 5)
    values = ncc(a, a)
    torch.testing.assert_close(values, values.T)
    torch.testing.assert_close(values.diagonal(), torch.ones(500))
    assert values.abs().max() <= 1
    assert values.dtype == torch.float32
    assert ncc(a, a.double()).dtype == torch.float64


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, 1.0, 1e4])
def test_a_constant_image_correlates_with_nothing_not_even_itself(value: float) -> None:
    constant = torch.full((1, 3, 28, 28), value)
    rounding = constant + 1e-8 * torch.randn(1, 3, 28, 28)
    others = torch.cat([constant, rounding, random_images(3, 3, 28, 28)])
    assert (ncc(constant, others) == 0).all()


def test_a_constant_channel_counts_as_zero() -> None:
    image = random_images(1, 3, 6, 6)
    image[:, 1] = 0.25
    torch.testing.assert_close(ncc(image, image), torch.tensor([[2 / 3]]))


def test_an_image_that_is_not_finite_spoils_its_own_column_only() -> None:
    a, b = random_images(3, 1, 4, 4), random_images(4, 1, 4, 4, seed=1)
    b[1, 0, 0, 0], b[2, 0, 0, 0] = torch.nan, torch.inf
    for measure in (ncc, agreement):
        values = measure(a, b)
        assert values[:, [1, 2]].isnan().sum() + (values[:, [1, 2]] == -1).sum() == 6
        torch.testing.assert_close(values[:, [0, 3]], measure(a, b[[0, 3]]))


def test_agreement_is_the_stated_formula() -> None:
    a, b = random_images(5, 1, 1, 2).double(), random_images(6, 1, 1, 2, seed=1).double()
    x, y = a.flatten(1).numpy(), b.flatten(1).numpy()
    spread = x.var(0).sum()
    expected = [[1 - ((p - q) ** 2).sum() / (2 * spread) for q in y] for p in x]
    np.testing.assert_allclose(agreement(a, b), np.maximum(expected, -1))
    torch.testing.assert_close(agreement(a, a).diagonal(), torch.ones(5).double())


def test_agreement_of_standardised_images_is_their_ncc() -> None:
    half = random_images(4, 1, 4, 4).double()
    a = torch.cat([half, -half])  # so that the mean image is black
    a = (a - a.mean((2, 3), keepdim=True)) / a.std((2, 3), keepdim=True)
    torch.testing.assert_close(agreement(a, a), ncc(a, a))


def test_a_single_point_agrees_only_with_its_equal() -> None:
    point = torch.tensor([[[[0.2, 0.7]]]])
    assert agreement(point, torch.cat([point, point + 0.01])).tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize(
    ("shape", "name", "measure"),
    [((1, 1, 2), "agreement", agreement), ((3, 2, 4), "agreement", agreement), ((1, 3, 3), "ncc", ncc)],
)
def test_similarity_takes_ncc_from_nine_pixels_on(shape: tuple[int, int, int], name: str, measure: object) -> None:
    a, b = random_images(4, *shape), random_images(5, *shape, seed=1)
    assert measure_of(a) == name
    assert callable(measure)
    assert torch.equal(similarity(a, b), measure(a, b))


def test_ssim_11_is_scikit_images(pairs: tuple[Tensor, Tensor]) -> None:
    """scikit-image pads borders by another rule, so it is given images padded beforehand."""
    a, b = (torch.nn.functional.pad(x.double(), (5, 5, 5, 5), mode="reflect") for x in pairs)
    values = ssim(pairs[0].double(), pairs[1].double(), 11)
    assert values is not None
    for i in range(len(a)):
        _, expected = structural_similarity(  # type: ignore[no-untyped-call]
            a[i].numpy(), b[i].numpy(), channel_axis=0, data_range=1, full=True,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert values[i].item() == pytest.approx(expected[:, 5:-5, 5:-5].mean(), abs=1e-9)


@pytest.mark.parametrize("window", [3, 7, 11])
def test_ssim_is_its_definition_in_numpy(pairs: tuple[Tensor, Tensor], window: int) -> None:
    offsets = np.arange(window) - window // 2
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))

    def blurred(images: np.ndarray) -> np.ndarray:
        for axis in (2, 3):
            images = correlate1d(images, kernel / kernel.sum(), axis=axis, mode="mirror")
        return images

    a, b = (x.double().numpy() for x in pairs)
    mean_a, mean_b, c1, c2 = blurred(a), blurred(b), 0.01**2, 0.03**2
    covariance = blurred(a * b) - mean_a * mean_b
    variances = blurred(a * a) - mean_a**2 + blurred(b * b) - mean_b**2
    expected = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (variances + c2))
    values = ssim(*pairs, window)
    assert values is not None
    np.testing.assert_allclose(values, expected.mean((1, 2, 3)), atol=1e-5)


def test_ssim_is_one_on_itself_and_undefined_below_the_window() -> None:
    image = random_images(2, 1, 10, 12)
    own = ssim(image, image, 3)
    assert own is not None
    torch.testing.assert_close(own, torch.ones(2))
    assert ssim(image, image, 11) is None
    assert ssim(torch.rand(2, 1, 1, 2), torch.rand(2, 1, 1, 2), 3) is None


def test_psnr_is_scikit_images(pairs: tuple[Tensor, Tensor]) -> None:
    a, b = pairs
    expected = [
        peak_signal_noise_ratio(x, y, data_range=1)  # type: ignore[no-untyped-call]
        for x, y in zip(a.numpy(), b.numpy(), strict=True)
    ]
    np.testing.assert_allclose(psnr(a, b), expected, rtol=1e-5)


def test_psnr_of_identical_images_is_100_decibels() -> None:
    image = random_images(2, 1, 4, 4)
    assert psnr(image, image).tolist() == [100, 100]


def test_l2_is_numpys_norm(pairs: tuple[Tensor, Tensor]) -> None:
    a, b = pairs
    np.testing.assert_allclose(l2(a, b), np.linalg.norm((a - b).numpy().reshape(5, -1), axis=1), rtol=1e-5)
    assert l2(torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)).item() == pytest.approx(48**0.5)


def test_min_max_stretches_each_image_by_itself_and_leaves_its_ncc() -> None:
    images = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    stretched = min_max(images)
    assert (stretched.amin((1, 2, 3)) == 0).all()
    assert (stretched.amax((1, 2, 3)) == 1).all()
    torch.testing.assert_close(ncc(stretched, images).diagonal(), torch.ones(4))
    np.testing.assert_allclose(stretched[0], (images[0] - images[0].min()) / np.ptp(images[0].numpy()), rtol=1e-6)
    assert (min_max(torch.full((1, 1, 4, 4), 0.7)) == 0).all()
