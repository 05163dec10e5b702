"""What is plausible of an image before any weight is looked at: penalties, and what the mean image says."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

OUTSIDE_WEIGHT = 3e-3
"""Weight of the squared distance of the pixels to [0, 1]. Chosen on b1 to b3, b5, b7, b8 and b8-decay."""
EDGE = 0.02
"""Slope, in image units a pixel, below which total variation is quadratic and so has a gradient. Chosen on b5, b7."""
MAX_VARIANCE = 0.25
"""Largest variance that a pixel in [0, 1] can have."""
BINARY_SHARE = 0.5
"""Share of MAX_VARIANCE that the mean image must rule out for pixels to be called black or white. (Digits leave a third
of it, photographs nearly all.)"""
NO_MEAN = 0.05**2
"""Share of MAX_VARIANCE below which an image is no mean of images: all of it is black or white, or zero."""


def implausible(images: Float[Tensor, "m c h w"], smoothness: float) -> Tensor:
    """The penalty on un-centred images: squared distance of the pixels to [0, 1], total variation where asked for."""
    outside = OUTSIDE_WEIGHT * (images - images.detach().clamp(0, 1)).pow(2).sum()
    return outside + smoothness * total_variation(images) if smoothness else outside


def greyness(images: Float[Tensor, "m c h w"]) -> Tensor:
    """sum over pixels y of y (1 - y), y clamped to [0, 1]: 0 for images in black and white."""
    pixels = images.clamp(0, 1)
    return (pixels * (1 - pixels)).sum()


def total_variation(images: Float[Tensor, "m c h w"]) -> Tensor:
    """sum over pixels of the slope sqrt(across^2 + down^2 + EDGE^2) - EDGE, over all channels at once.

    Photographs are flat with edges; squared differences blur edges more (Rudin, Osher, Fatemi 1992).
    """
    total: Tensor = _TotalVariation.apply(images)  # type: ignore[no-untyped-call]
    return total


class _TotalVariation(torch.autograd.Function):
    """The gradient is written out: PyTorch makes a whole picture of zeros for each of the four slices."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        across = functional.pad(images.diff(dim=-1), (0, 1))
        down = functional.pad(images.diff(dim=-2), (0, 0, 0, 1))
        slope = (across.pow(2) + down.pow(2)).sum(1, keepdim=True).add_(EDGE**2).sqrt_()
        ctx.save_for_backward(across.div_(slope), down.div_(slope))
        return (slope - EDGE).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        across, down = ctx.saved_tensors
        pull = -(across + down)
        pull[..., 1:] += across[..., :-1]
        pull[..., 1:, :] += down[..., :-1, :]
        result: Tensor = pull.mul_(gradient)
        return result


def spread(centre: Float[Tensor, "c h w"]) -> float:
    """The largest root-mean-square distance from their mean that images in [0, 1] can have: the scale of images.

    Where the centre is no mean (zero, for example, because nothing was subtracted): that of a grey mean.
    """
    return float((centre.numel() * (max_pixel_variance(centre) or MAX_VARIANCE)) ** 0.5)


def is_black_or_white(centre: Float[Tensor, "c h w"]) -> bool:
    """Whether images in [0, 1] of this mean m must be black or white for the most part.

    The mean of y (1 - y) over their pixels y is at most that of m (1 - m). False where the centre is no mean.
    """
    variance = max_pixel_variance(centre)
    return variance is not None and variance < BINARY_SHARE * MAX_VARIANCE


def max_pixel_variance(centre: Float[Tensor, "c h w"]) -> float | None:
    """The largest variance of a pixel, averaged over pixels, of images in [0, 1] of this mean; None: it is no mean."""
    variance = float((centre * (1 - centre)).clamp_min(0).mean())
    return variance if variance > NO_MEAN * MAX_VARIANCE else None
