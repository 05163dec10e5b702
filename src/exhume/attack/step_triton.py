"""What a search on a GPU does between its matrix products, each as one Triton kernel, forward and backward.

The mathematics is that of `activations.py` and `priors.py`, whose operations a CPU takes one by one; the tests hold
the kernels to them. Sums are in float32 whatever is given. It imports triton, so it is itself imported where needed.
"""

from typing import Any, no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from exhume.attack.priors import EDGE, OUTSIDE_WEIGHT
from exhume.networks import Shape

MOST_NEURONS = 16384
"""Of a layer that one program can hold."""
MOST_CHANNELS = 4
"""Of an image: with more the compilation takes longer than the search (32: minutes)."""
BLOCK = 1024
"""Numbers, or pixels, of one program."""
WARPS = 8
"""Of a program for pixels, which has many to load."""


# ---- A layer's hinge: its value, and its gate in units of each sample's own outputs


@triton.jit
@no_type_check
def _hinge_forward(  # noqa: PLR0917
    products, bias, value, gate, curve, width, sharpness, below,
    BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.arange(0, BLOCK)
    inside, at = column < width, tl.program_id(0).to(tl.int64) * width + column
    z = tl.load(products + at, mask=inside, other=0.0).to(tl.float32)
    if BIASED:
        z = tl.where(inside, z + tl.load(bias + column, mask=inside, other=0.0).to(tl.float32), 0.0)
    steep = sharpness / tl.maximum(tl.sqrt(tl.sum(z * z, 0) / width), 1e-12)
    # both from the positive side, where neither exponential nor difference loses digits
    small = tl.exp(-steep * tl.abs(z))
    share = tl.where(z > 0, 1.0, small) / (1 + small)
    slope, bend = below + (1 - below) * share, (1 - below) * steep * small / ((1 + small) * (1 + small))
    tl.store(value + at, tl.where(z > 0, z, below * z).to(value.dtype.element_ty), mask=inside)
    tl.store(gate + at, slope.to(gate.dtype.element_ty), mask=inside)
    tl.store(curve + at, bend.to(curve.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _hinge_backward(by_value, by_gate, gate, curve, by_products, count, BLOCK: tl.constexpr):  # noqa: PLR0917
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    slope = tl.load(gate + at, mask=inside, other=0.0).to(tl.float32)
    bend = tl.load(curve + at, mask=inside, other=0.0).to(tl.float32)
    along_value = tl.load(by_value + at, mask=inside, other=0.0).to(tl.float32)
    along_gate = tl.load(by_gate + at, mask=inside, other=0.0).to(tl.float32)
    along = along_value * slope + along_gate * bend
    tl.store(by_products + at, along.to(by_products.dtype.element_ty), mask=inside)


class _Hinge(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, products: Tensor, bias: Tensor | None, sharpness: float, below: float) -> Any:
        products, bias = products.contiguous(), None if bias is None else bias.contiguous()
        value, gate, curve = (torch.empty_like(products) for _ in range(3))
        count, width = products.shape
        _hinge_forward[(count,)](
            products, bias, value, gate, curve, width, sharpness, below,
            BIASED=bias is not None, BLOCK=triton.next_power_of_2(width), num_warps=4 if width <= 4096 else 16,
        )  # fmt: skip
        ctx.save_for_backward(gate, curve)
        return value, gate

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_value: Tensor, by_gate: Tensor) -> tuple[Tensor, None, None, None]:
        gate, curve = ctx.saved_tensors
        by_products, count = torch.empty_like(gate), gate.numel()
        by_value, by_gate = by_value.contiguous(), by_gate.contiguous()
        _hinge_backward[(triton.cdiv(count, BLOCK),)](by_value, by_gate, gate, curve, by_products, count, BLOCK=BLOCK)
        return by_products, None, None, None


def hinge(
    products: Float[Tensor, "m out"], bias: Float[Tensor, " out"] | None, sharpness: float, below: float
) -> tuple[Float[Tensor, "m out"], Float[Tensor, "m out"]]:
    """Value and smoothed slope of a hinge at `products + bias`, both in the precision of `products`.

    The slope is in units of the root mean square of each sample's own, as that of `ScaleFree` is.
    """
    value, gate = _Hinge.apply(products, bias, sharpness, below)  # type: ignore[no-untyped-call]
    return value, gate


# ---- What makes pixels implausible, and its slope at once


@triton.jit
@no_type_check
def _pixel(values, factor, offset, channel, place, area, inside, SCALED: tl.constexpr):  # noqa: PLR0917
    value = tl.load(values + channel * area + place, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        value *= tl.load(factor + channel * area + place, mask=inside, other=0.0)
    return value + tl.load(offset + channel * area + place, mask=inside, other=0.0)


@triton.jit
@no_type_check
def _steepness(  # noqa: PLR0917
    values, factor, offset, place, edge, inside,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, CHANNELS: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """sqrt(across^2 + down^2 + edge^2) at a place, over all channels."""
    area, total = WIDTH * HEIGHT, tl.zeros_like(place).to(tl.float32) + edge * edge
    across_too, down_too = inside & (place % WIDTH < WIDTH - 1), inside & (place // WIDTH < HEIGHT - 1)
    for channel in tl.static_range(CHANNELS):
        here = _pixel(values, factor, offset, channel, place, area, inside, SCALED)
        across = _pixel(values, factor, offset, channel, place + 1, area, across_too, SCALED) - here
        down = _pixel(values, factor, offset, channel, place + WIDTH, area, down_too, SCALED) - here
        total += tl.where(across_too, across * across, 0.0) + tl.where(down_too, down * down, 0.0)
    return tl.sqrt(total)


@triton.jit
@no_type_check
def _pixel_penalties(  # noqa: PLR0917
    values, factor, offset, grey_weight, penalty, slopes, stride,
    outside_weight, smoothness, edge, bias_weight,
    WIDTH: tl.constexpr, HEIGHT: tl.constexpr, CHANNELS: tl.constexpr, SCALED: tl.constexpr,
    SMOOTH: tl.constexpr, GREY: tl.constexpr, BIASED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, block = tl.program_id(0), tl.program_id(1)
    area, place = WIDTH * HEIGHT, block * BLOCK + tl.arange(0, BLOCK)
    inside = place < area
    values += image.to(tl.int64) * stride
    slopes += image.to(tl.int64) * stride
    x, y = place % WIDTH, place // WIDTH
    left, up = inside & (x > 0), inside & (y > 0)
    right, below = inside & (x < WIDTH - 1), inside & (y < HEIGHT - 1)
    total = tl.zeros((BLOCK,), tl.float32)
    if SMOOTH:
        here = _steepness(values, factor, offset, place, edge, inside, WIDTH, HEIGHT, CHANNELS, SCALED)
        before = _steepness(values, factor, offset, place - 1, edge, left, WIDTH, HEIGHT, CHANNELS, SCALED)
        above = _steepness(values, factor, offset, place - WIDTH, edge, up, WIDTH, HEIGHT, CHANNELS, SCALED)
        total += smoothness * (here - edge)
    for channel in tl.static_range(CHANNELS):
        pixel = _pixel(values, factor, offset, channel, place, area, inside, SCALED)
        beyond = pixel - tl.minimum(tl.maximum(pixel, 0.0), 1.0)
        total += outside_weight * beyond * beyond
        slope = 2 * outside_weight * beyond
        if SMOOTH:
            next_x = _pixel(values, factor, offset, channel, place + 1, area, right, SCALED)
            next_y = _pixel(values, factor, offset, channel, place + WIDTH, area, below, SCALED)
            last_x = _pixel(values, factor, offset, channel, place - 1, area, left, SCALED)
            last_y = _pixel(values, factor, offset, channel, place - WIDTH, area, up, SCALED)
            pull = tl.where(left, (pixel - last_x) / before, 0.0) + tl.where(up, (pixel - last_y) / above, 0.0)
            pull -= (tl.where(right, next_x - pixel, 0.0) + tl.where(below, next_y - pixel, 0.0)) / here
            slope += smoothness * pull
        if GREY:
            weight = tl.load(grey_weight)
            grey = (pixel >= 0) & (pixel <= 1)
            total += tl.where(grey, weight * pixel * (1 - pixel), 0.0)
            slope += tl.where(grey, weight * (1 - 2 * pixel), 0.0)
        if SCALED:
            slope *= tl.load(factor + channel * area + place, mask=inside, other=0.0)
        tl.store(slopes + channel * area + place, slope.to(slopes.dtype.element_ty), mask=inside)
    result = tl.sum(tl.where(inside, total, 0.0), 0)
    if block == 0:
        rest = CHANNELS * area + tl.arange(0, 16)  # the coordinate of the bias, and zeros up to the row's end
        one = BIASED & (rest == CHANNELS * area)
        missing = tl.load(values + rest, mask=one, other=1.0).to(tl.float32) - 1
        missing = tl.where(one, missing, 0.0)
        result += bias_weight * tl.sum(missing * missing, 0)
        tl.store(slopes + rest, (2 * bias_weight * missing).to(slopes.dtype.element_ty), mask=rest < stride)
    tl.store(penalty + image * tl.num_programs(1) + block, result)


class _PixelPenalties(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0917 autograd takes no keywords
        ctx: Any,
        values: Tensor,
        shape: Shape,
        factor: Tensor | None,
        offset: Tensor,
        grey_weight: Tensor | None,
        smoothness: float,
        bias_weight: float | None,
    ) -> Tensor:
        channels, height, width = shape
        blocks = triton.cdiv(height * width, BLOCK)
        factor = None if factor is None else factor.contiguous()
        values, offset = values.contiguous(), offset.contiguous()
        slopes = torch.empty_like(values)
        penalty = torch.empty(len(values), blocks, device=values.device)
        _pixel_penalties[(len(values), blocks)](
            values, factor, offset, grey_weight, penalty, slopes, values.shape[1],
            OUTSIDE_WEIGHT, smoothness, EDGE, bias_weight or 0.0,
            WIDTH=width, HEIGHT=height, CHANNELS=channels, SCALED=factor is not None, SMOOTH=smoothness != 0,
            GREY=grey_weight is not None, BIASED=bias_weight is not None, BLOCK=BLOCK, num_warps=WARPS,
        )  # fmt: skip
        ctx.save_for_backward(slopes)
        return penalty.sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, along: Tensor) -> Any:
        (slopes,) = ctx.saved_tensors
        return along.to(slopes.dtype) * slopes, None, None, None, None, None, None


def pixel_penalties(
    values: Float[Tensor, "m columns"],
    shape: Shape,
    *,
    factor: Float[Tensor, "c h w"] | None,
    offset: Float[Tensor, "c h w"],
    grey_weight: Tensor | None,
    smoothness: float,
    bias_weight: float | None,
) -> Tensor:
    """The penalties on the images `values * factor + offset`: `implausible` and `grey_weight` times `greyness`.

    values: pixel after pixel, then the coordinate b of the bias unless `bias_weight` is None, whose (b - 1)^2 counts by
    that, and at most 15 columns of no meaning.
    """
    return _PixelPenalties.apply(  # type: ignore[no-any-return, no-untyped-call]
        values, shape, factor, offset, grey_weight, smoothness, bias_weight
    )
