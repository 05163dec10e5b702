"""The method `reference`: the papers' scheme, exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from exhume.attack.activations import fixed
from exhume.attack.methods.pixel_space import PixelSpaceSearch
from exhume.attack.objectives import check_objective, choose_objective
from exhume.attack.optimisation import MOMENTUM, Multipliers, begun_at, images_given
from exhume.attack.residuals import absolute_residual
from exhume.attack.search import Begin, Guess, Method, check_counts, check_finite, check_positive
from exhume.attack.target import Target
from exhume.networks import Task

MULTIPLIER_PENALTY = 5.0
"""The papers' weight of sum relu(min_multiplier - lambda)^2."""


@dataclass(frozen=True, kw_only=True)
class Reference(Method):
    """The papers' scheme: absolute residual, one multiplier a sample, gate of fixed sharpness, SGD with momentum.

    The defaults lie amid the published winners; the papers searched for them anew for every network (see the presets).
    Haim et al. 2022, section 3.2; Buzaglo et al. 2023, section 3.2.

    Example:
        exhume.reconstruct(checkpoint, exhume.Reference(lr_images=0.3, steps=10_000))
    """

    steps: int = 50_000
    """Steps of SGD."""
    restarts: int = 1
    """Searches from independent starts. The candidates of all are kept."""
    dtype: Literal["float32", "float64"] = "float64"
    """Precision of the variables."""
    images: int | None = None
    """Number of training images assumed; None: 100."""
    per_class: int | None = None
    """Candidates of each class in a search; None: twice the images assumed, at least 200 in all."""
    objective: str | None = None
    """A row of OBJECTIVES; None: runner-up for several classes, else the task's own."""
    lr_images: float = 0.3
    """Learning rate of the images."""
    lr_multipliers: float = 1e-4
    """Learning rate of the multipliers."""
    init_scale: float = 5e-3
    """Standard deviation of the first guess of the images around the centre."""
    min_multiplier: float = 0.4
    """Multipliers below are penalised, unless they may be negative."""
    sharpness: float = 50.0
    """Sharpness of the smoothed derivative of ReLU."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_objective(self.objective)
        check_counts(images=self.images, per_class=self.per_class)
        check_positive(
            lr_images=self.lr_images,
            lr_multipliers=self.lr_multipliers,
            init_scale=self.init_scale,
            sharpness=self.sharpness,
        )
        check_finite(min_multiplier=self.min_multiplier)

    def check_task(self, task: Task) -> None:
        choose_objective(self.objective, task, "runner-up")

    def prepared(self, target: Target) -> Begin:
        return partial(ReferenceSearch, target, self)


class ReferenceSearch(PixelSpaceSearch):
    """Minimises, over centred images x and multipliers lambda,

    L = sum_p norm(theta_p - G_p / m)^2 + sum relu(x - 1)^2 + relu(-1 - x)^2 + 5 sum relu(lambda_min - lambda)^2.
    """

    def __init__(
        self, target: Target, settings: Reference, generator: torch.Generator, *, guess: Guess | None = None
    ) -> None:
        objective = choose_objective(settings.objective, target.task, "runner-up")
        super().__init__(
            target,
            fixed(settings.sharpness),
            generator,
            images=images_given(settings.images, settings.per_class, target),
            per_class=settings.per_class,
            init_scale=settings.init_scale,
            guess=guess,
        )
        if guess is not None:
            self.multipliers = begun_at(guess, objective, target, settings.min_multiplier)
        else:
            draw = torch.randn if objective.signed else torch.rand
            values = draw(len(self.labels), generator=generator, dtype=target.centre.dtype).to(target.centre.device)
            self.multipliers = Multipliers(objective, self.labels, values, target.outputs, settings.min_multiplier)
        groups = [
            {"params": [self.pixels], "lr": settings.lr_images},
            {"params": self.multipliers.variables, "lr": settings.lr_multipliers},
        ]
        self.optimisers = [torch.optim.SGD(groups, momentum=MOMENTUM)]
        self.schedules = []

    def residual(self, gradients: Sequence[Tensor]) -> Tensor:
        """The papers' absolute residual."""
        return absolute_residual(self.parameters, gradients)

    def penalty(self) -> Tensor:
        """The papers' penalties: centred pixels within [-1, 1], multipliers above their minimum."""
        pixels = self.target.scaled(self.pixels.reshape(-1, *self.target.shape))
        beyond = (pixels.abs() - 1).relu().pow(2).sum()
        return beyond + MULTIPLIER_PENALTY * self.multipliers.penalty()
