"""How alike two images are: NCC, agreement, SSIM, L2 and PSNR. Images are [n, c, h, w] in [0, 1]."""

from math import sqrt
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

MANY = 4_000_000
"""Pairs above which products are oneDNN's: on processors of AMD twice as fast as MKL's, on others as fast."""
Measure = Literal["ncc", "agreement"]
AT_ONCE = 500
"""Pairs whose SSIM is computed together, which takes many times their size (of 2,000 photographs twice the time)."""
NUMBERS = 32_768
"""Pixels that are standardised together: few enough for a processor's cache, and for PyTorch to wake no other thread
(3 times faster in one thread than 2,000 photographs together)."""
BLOCK = 2_000
"""Images whose similarities are held together where only the largest counts."""


def measure_of(images: Float[Tensor, "n c h w"]) -> Measure:
    """Names what `similarity` takes: "ncc" from 9 pixels per channel on, "agreement" below (points)."""
    return "ncc" if images.shape[2] * images.shape[3] >= 9 else "agreement"


def similarity(a: Float[Tensor, "n c h w"], b: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """Compares every image of `a` with every image of `b`, by `ncc` or, for points, by `agreement`.

    Returns:
        [n, m] in [-1, 1], 1 where the two are alike; NaN where one of them is not finite.
    """
    return ncc(a, b) if measure_of(a) == "ncc" else agreement(a, b)


def ncc(a: Float[Tensor, "n c h w"], b: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """Correlates every image of `a` with every image of `b`: Pearson's coefficient per channel, averaged over channels.

    Brightness and contrast do not count. A constant channel (spread below 1e-6 of its brightness, where float32 holds
    rounding alone) correlates 0 with everything, itself included.

    Returns:
        [n, m] in [-1, 1]; NaN where an image is not finite. Normalised cross-correlation, Haim et al. 2022, section 5.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)
    return _correlation(_rows(a, dtype), _rows(b, dtype))


def most_similar(a: Float[Tensor, "n c h w"], b: Float[Tensor, "m c h w"]) -> Int[Tensor, " n"]:
    """The image of `b` that is most similar to each of `a`, [n]: of `similarity`, which is never held as a whole."""
    if measure_of(a) != "ncc":
        return similarity(a, b).argmax(1)
    dtype = torch.promote_types(a.dtype, b.dtype)
    other = _rows(b, dtype)
    return torch.cat([_correlation(_rows(some, dtype), other).argmax(1) for some in torch.split(a, BLOCK)])


def agreement(a: Float[Tensor, "n c h w"], b: Float[Tensor, "m c h w"]) -> Float[Tensor, "n m"]:
    """Compares points, which have no contrast to remove: 1 - |a - b|^2 / (2 s^2), s^2 the mean squared distance of `a`
    from its mean.

    For standardised vectors this is their NCC. A single point in `a` has no spread: only its equal agrees with it.

    Returns:
        [n, m], 1 where equal, -1 from twice the spread on; NaN where a point is not finite.
    """
    dtype = torch.promote_types(a.dtype, b.dtype)
    points, others = a.double().flatten(1), b.double().flatten(1)
    spread = (points - points.mean(0)).square().sum(1).mean().clamp_min(torch.finfo(torch.float64).tiny)
    squared = torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (1 - squared / (2 * spread)).clamp(-1, 1).to(dtype)


def ssim(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"], window: int) -> Float[Tensor, " n"] | None:
    """Structural similarity of each image of `a` with the same row of `b`, averaged over channels and pixels.

    kornia's SSIM: a Gaussian window of `window` pixels (odd) and standard deviation 1.5 whatever its size, borders
    padded by reflection, data range 1. Window 3 is the papers' measure, 11 the common one (Wang et al. 2004).

    Returns:
        [n] in [-1, 1], or None for images smaller than the window (points), where SSIM is not defined.
    """
    from kornia.metrics import ssim as ssim_map  # noqa: PLC0415

    if min(a.shape[2:]) < window:
        return None
    parts = zip(torch.split(a, AT_ONCE), torch.split(b.to(a.dtype), AT_ONCE), strict=True)
    return torch.cat([ssim_map(some, others, window).mean((1, 2, 3)) for some, others in parts])


def l2(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Euclidean distance of each image of `a` from the same row of `b`: [n], 0 to sqrt(c h w) for images in [0, 1]."""
    return (a - b).square().sum((1, 2, 3)).sqrt()


def psnr(a: Float[Tensor, "n c h w"], b: Float[Tensor, "n c h w"]) -> Float[Tensor, " n"]:
    """Peak signal-to-noise ratio of each image of `a` against the same row of `b`: [n] in dB, data range 1.

    At most 100 dB, where identical images would have an infinite one.
    """
    return -10 * (a - b).square().mean((1, 2, 3)).clamp_min(1e-10).log10()


def min_max(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
    """Stretches each image, channels together, to [0, 1], as the papers do before SSIM; constant ones turn black."""
    low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
    return (images - low) / torch.where(high == low, 1, high - low)


def _correlation(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    return _products(one, other).clamp_(-1, 1)  # in place: it may be as large as memory allows


def _products(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Inner products of all rows: of many in float32 by oneDNN, whose units are as wide on every processor."""
    of_cpu = one.device.type == "cpu" and one.dtype == torch.float32
    if len(one) * len(other) <= MANY or not of_cpu or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return one @ other.T
    product, packed = torch.empty(len(one), len(other)), other.to_mkldnn()
    for some, into in zip(torch.split(one, BLOCK), torch.split(product, BLOCK), strict=True):
        into.copy_(functional.linear(some.to_mkldnn(), packed).to_dense())
    return product


def _rows(images: Float[Tensor, "n c h w"], dtype: torch.dtype) -> Float[Tensor, "n d"]:
    """Standardised images, a few at a time."""
    images = images.detach()
    rows = torch.empty(len(images), images.shape[1:].numel(), dtype=dtype, device=images.device)
    few = max(1, NUMBERS // max(1, rows.shape[1]))
    for some, into in zip(torch.split(images, few), torch.split(rows, few), strict=True):
        into.copy_(_standardised(some))
    return rows


def _standardised(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Rows whose inner products are the NCC; float64, so that a constant image leaves no rounding to correlate."""
    pixels = images.double().flatten(2)
    deviation = pixels - pixels.mean(2, keepdim=True)
    length = deviation.square().sum(2, keepdim=True).sqrt()
    rounding = 1e-6 * pixels.abs().amax(2, keepdim=True) * sqrt(pixels.shape[2])
    length = length.masked_fill(length <= rounding, torch.inf) * sqrt(images.shape[1])
    return (deviation / length).flatten(1)
