"""What a network does to images before its first layer: subtracting, dividing, another order of pixels."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from exhume.errors import InputError
from exhume.networks import Shape

Numbers = float | Sequence[float] | Tensor | NDArray[np.generic]
"""One number, one a channel, or an image."""


def as_image(values: Numbers, shape: Shape, what: str, *, layout: str = "chw", channels: str = "rgb") -> Tensor:
    """A mean or a deviation as an image [c, h, w].

    Args:
        values: one number, one a channel, or an image, in the order in which the network takes its images.
        what: what to call it in a sentence.

    Raises:
        InputError: it fits no image of this shape, or is not finite.

    Example:
        >>> as_image([0.1, 0.2, 0.3], (3, 1, 1), "mean", channels="bgr").flatten()
        tensor([0.3000, 0.2000, 0.1000])
    """
    try:
        array = torch.as_tensor(np.asarray(values, dtype=np.float64) if not isinstance(values, Tensor) else values)
    except (TypeError, ValueError):
        raise InputError(f"{what} must be one number, one a channel, or an image.") from None
    array = array.detach().double().cpu()
    if not array.isfinite().all():
        raise InputError(f"{what} holds values that are not finite.")
    image = _spread(array, shape, layout)
    if image is None:
        raise InputError(
            f"{what} has the shape {tuple(array.shape)}; it must be one number, one a channel ({shape[0]}), or an "
            f"image {_as_taken(shape, layout)}."
        )
    image = image.flip(0) if channels == "bgr" else image
    return image.float().contiguous()


def _as_taken(shape: Shape, layout: str) -> tuple[int, ...]:
    return (*shape[1:], shape[0]) if layout == "hwc" else tuple(shape)


def _spread(array: Tensor, shape: Shape, layout: str) -> Tensor | None:
    """The values as [c, h, w] in the network's order of channels; None: they fit no image."""
    taken = _as_taken(shape, layout)
    squeezed = array.squeeze()
    if array.numel() == 1:
        return array.reshape(1, 1, 1).expand(shape)
    if squeezed.ndim == 1 and len(squeezed) == shape[0]:
        return squeezed.reshape(-1, 1, 1).expand(shape)
    flat = squeezed.ndim == 1 and len(squeezed) == torch.Size(shape).numel()
    if flat or tuple(array.shape) in (taken, (1, *taken)) or (shape[0] == 1 and tuple(array.shape) == shape[1:]):
        image = array.reshape(taken)
        return image.permute(2, 0, 1) if layout == "hwc" else image
    return None


def check_mean(mean: Float[Tensor, "c h w"], what: str) -> None:
    """Raises `InputError` for a mean that is none of images in [0, 1]."""
    if float(mean.min()) < 0 or float(mean.max()) > 1:
        hint = " Divide it by 255." if float(mean.min()) >= 0 and 1 < float(mean.max()) <= 255 else ""
        raise InputError(
            f"{what} must be a mean of images in [0, 1], and goes from {float(mean.min()):.3g} to "
            f"{float(mean.max()):.3g}.{hint}"
        )


def check_scale(scale: Float[Tensor, "c h w"], what: str) -> None:
    """Raises `InputError` for a deviation that nothing can be divided by."""
    if not float(scale.min()) > 0:
        raise InputError(f"{what} must be positive, and goes down to {float(scale.min()):.3g}.")


TOLD_DIRECTIONS = 20
"""Strongest directions of the first layer by which a layout is told: the images' own, and smooth where these are."""
SURE = 1.3
"""Ratio of the roughness under both layouts from which one is told for sure: noise has 1."""


def tell_layout(weight: Float[Tensor, "out d"], shape: Shape) -> tuple[str, float]:
    """The layout in which a first dense layer takes its images, chw or hwc, and how sure: 1 for no idea, SURE for sure.

    Under the right one its strongest directions are smooth pictures. The second value is the ratio of their roughness
    under both.

    Example:
        >>> rows = torch.linspace(0, 1, 8).expand(3, 8, 8).flatten()[None]
        >>> tell_layout(rows, (3, 8, 8))[0]
        'chw'
    """
    if shape[0] == 1:
        return "chw", 1.0
    directions = torch.linalg.svd(weight.double(), full_matrices=False)[2][:TOLD_DIRECTIONS]
    channels, height, width = shape
    pictures = {
        "chw": directions.reshape(-1, *shape),
        "hwc": directions.reshape(-1, height, width, channels).permute(0, 3, 1, 2),
    }
    rough = {
        layout: float(of.diff(dim=-1).pow(2).sum() + of.diff(dim=-2).pow(2).sum()) for layout, of in pictures.items()
    }
    best, other = sorted(rough, key=lambda layout: rough[layout])
    return best, rough[other] / max(rough[best], 1e-30)
