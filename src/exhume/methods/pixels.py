"""Searches over pixels, for any network, by autograd: the papers' scheme, and ours where no dense layers are read."""

from collections.abc import Callable, Sequence
from itertools import compress

import torch
from torch import Tensor

from exhume.candidates import KnownStart, Reading
from exhume.methods.ground import (
    Found,
    Multipliers,
    Reconstruction,
    Target,
    assumed_images,
    balanced_labels,
    falling,
    first_guess,
    image_optimisers,
    implausible,
    snapshot,
)
from exhume.residual import absolute_residual, relative_residual
from exhume.stationarity import Sharpness, fixed, network_gradients, scale_free


class PixelSearch:
    """Centred images, [m, pixels], and multipliers, judged by a residual over all parameters."""

    def __init__(
        self,
        target: Target,
        config: Reconstruction,
        generator: torch.Generator,
        sharpness: Callable[[float], Sharpness],
        residual: Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor],
    ) -> None:
        assert config.init_scale is not None and config.sharpness is not None
        self.target, self.sharpness, self.residual = target, sharpness(config.sharpness), residual
        named = [(name, p) for name, p in target.explained.named_parameters() if p.requires_grad]
        self.moved = [target.moved(parameter) for _, parameter in named]
        named = list(compress(named, self.moved))
        self.parameters = [parameter.detach() for _, parameter in named]
        images, images_from = assumed_images(config, target, 0)
        self.reading = Reading(
            images=images,
            images_from=images_from,
            rank=0,
            left_out=None,
            layers=[name for name, _ in named],
            weighted=False,
            smoothness=config.smoothness or 0.0,
            bilevel=0.0,
            # whether it is exact is told by a first dense layer, which is not looked at
            start=KnownStart(left=target.change.left, exact=False) if target.change else None,
        )
        self.labels = balanced_labels(target, config, self.reading.images)
        self.pixels = first_guess(
            (len(self.labels), target.centre.numel()),
            config.init_scale,
            torch.zeros_like(target.centre).flatten(),
            generator,
        )
        self.multipliers = Multipliers(target, self.labels, config, generator)
        self.optimisers: list[torch.optim.Optimizer] = image_optimisers(self.pixels, self.multipliers, target, config)
        self.schedules = [falling(self.optimisers[0], config)]

    @property
    def images(self) -> Tensor:
        """Un-centred images."""
        return self.pixels.reshape(-1, *self.target.shape) + self.target.centre

    def objective(self) -> tuple[Tensor, Tensor]:
        gradients = network_gradients(self.target.network, self.images, self.multipliers.cotangents, self.sharpness)
        return self.residual(self.parameters, list(compress(gradients, self.moved))), self.penalty()

    def penalty(self) -> Tensor:
        """What is plausible of any image: pixels within [0, 1], and smooth where asked for."""
        return self.multipliers.penalty() + implausible(self.images, self.reading.smoothness)

    def found(self) -> Found:
        return snapshot(self.target, self.images, self.multipliers)


class ReferenceSearch(PixelSearch):
    """The papers' scheme: one multiplier a sample, SGD with momentum, absolute residual, gate of fixed sharpness.

    L = sum_p norm(theta_p - G_p / m)^2 + sum relu(x - 1)^2 + relu(-1 - x)^2 + 5 sum relu(lambda_min - lambda)^2, over
    the centred images x (2022, section 3.2; 2023, section 3.2).
    """

    def __init__(self, target: Target, config: Reconstruction, generator: torch.Generator) -> None:
        super().__init__(target, config, generator, fixed, absolute_residual)
        images = {"params": [self.pixels], "lr": config.lr_images}
        self.optimisers = [torch.optim.SGD([images, self.multipliers.group(config)], momentum=0.9)]
        self.schedules = []

    def penalty(self) -> Tensor:
        """The papers' penalties: centred pixels within [-1, 1], multipliers above their minimum."""
        beyond = (self.pixels.abs() - 1).relu().pow(2).sum()
        return beyond + 5 * self.multipliers.penalty()


def any_network(target: Target, config: Reconstruction, generator: torch.Generator) -> PixelSearch:
    """Our objective for any network: all multipliers, relative residual, scale-free gate."""
    return PixelSearch(target, config, generator, scale_free, relative_residual)
