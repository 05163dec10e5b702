"""The method `exhume`: ours. Nothing needs tuning; what is not set is read from the weights."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from exhume.architecture import MLP, SplitNetwork
from exhume.attack.activations import ScaleFree
from exhume.attack.analysis import WeightAnalysis, analyse_weights
from exhume.attack.methods.feature_space import FeatureSpaceSearch
from exhume.attack.methods.features_first import FeaturesFirstSearch
from exhume.attack.methods.input_subspace import InputSubspaceSearch, SearchSettings
from exhume.attack.methods.pixel_space import PixelSpaceSearch
from exhume.attack.objectives import check_objective, choose_objective
from exhume.attack.optimisation import (
    Multipliers,
    begun_at,
    image_scale,
    images_given,
    linear_decay,
    muon_and_adam,
    uniform_start,
)
from exhume.attack.search import Begin, Guess, Method, check_counts, check_finite, check_positive, check_weights
from exhume.attack.target import Target
from exhume.networks import Task


@dataclass(frozen=True, kw_only=True)
class Exhume(Method):
    """Our method: within the data's own subspace, weighted by the errors that training leaves (docs/theory.md).

    The search is over coordinates in the first layer's subspace for an MLP, over pixels judged by features where an MLP
    stands behind other layers, or over features and pixels where its start is known too, and over pixels judged by all
    parameters for any other network.

    Example:
        exhume.reconstruct(checkpoint, exhume.Exhume(steps=500, images=100))
    """

    steps: int = 1000
    """Steps of the optimiser in each search."""
    restarts: int = 2
    """Searches from independent starts. The candidates of all are kept, and their agreement gives the confidence."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the variables. With float32, matrix products are in bfloat16 where the machine has units for it."""
    images: int | None = None
    """Number of training images assumed; None: read from the spectrum of the first dense layer."""
    per_class: int | None = None
    """Candidates of each class in a search; None: twice the images assumed, at least 200 in all, at most three quarters
    of the neurons, or half as many again as images (a half, and as many, of an inexact start or of more images than
    neurons)."""
    objective: str | None = None
    """A row of OBJECTIVES; None: the task's own."""
    lr_images: float = 0.02
    """Learning rate of the images, of the largest spread that images can have; it falls to a fiftieth (Muon)."""
    lr_multipliers: float = 0.02
    """Learning rate of the multipliers (Adam)."""
    init_scale: float = 0.01
    """Standard deviation of the first guess around the centre."""
    min_multiplier: float = 0.0
    """Multipliers below are penalised, unless they may be negative."""
    sharpness: float = 10.0
    """Sharpness of the smoothed derivative of ReLU, per root mean square of an image's pre-activations."""
    smoothness: float | None = None
    """Weight of the images' total variation; None: for each believed layer 4e-6 for images of 3,072 values, more in
    proportion for smaller ones, where the data's directions look like pictures, and where an MLP stands behind other
    layers and a known start or a momentum is explained, else 4e-6; 0 where they look like noise, or pixels are black or
    white."""
    binary_prior: float | None = None
    """Weight of grey, y (1 - y) of a pixel y, against the weighted error; None: 5 where the mean image says that pixels
    are black or white; else 0. No effect on a search judged by all parameters."""

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
        check_weights(smoothness=self.smoothness, binary_prior=self.binary_prior)

    def check_task(self, task: Task) -> None:
        choose_objective(self.objective, task, "multiclass")

    def prepared(self, target: Target) -> Begin:
        settings, found = self._search_settings(target), self.analyse(target)
        match target.architecture:
            case MLP() as mlp if found is not None:
                return partial(InputSubspaceSearch, target, mlp, found, settings)
            case SplitNetwork() as network if found is not None:
                search = FeatureSpaceSearch if target.delta is None else FeaturesFirstSearch
                return partial(search, target, network, found, settings)
            case _:
                return partial(self._over_pixels, target, settings)

    def analyse(self, target: Target) -> WeightAnalysis | None:
        """What is read from the weights before the search; None if the search is over pixels and all parameters.

        That is so where no MLP is recognised, or training with a known start added nothing to its first layer.
        """
        mlp = target.explained_mlp
        if mlp is None or (target.delta is not None and not mlp.weights[0].any()):
            return None
        return analyse_weights(
            target,
            mlp,
            images=images_given(self.images, self.per_class, target),
            smoothness=self.smoothness,
            binary_prior=self.binary_prior,
            sees_images=isinstance(target.architecture, MLP),
        )

    def _search_settings(self, target: Target) -> SearchSettings:
        return SearchSettings(
            steps=self.steps,
            per_class=self.per_class,
            objective=choose_objective(self.objective, target.task, "multiclass"),
            lr_images=self.lr_images,
            lr_multipliers=self.lr_multipliers,
            init_scale=self.init_scale,
            min_multiplier=self.min_multiplier,
            sharpness=self.sharpness,
        )

    def _over_pixels(
        self, target: Target, settings: SearchSettings, generator: torch.Generator, *, guess: Guess | None = None
    ) -> PixelSpaceSearch:
        search = PixelSpaceSearch(
            target,
            ScaleFree(self.sharpness),
            generator,
            images=images_given(self.images, self.per_class, target),
            per_class=self.per_class,
            init_scale=self.init_scale / target.unit,
            smoothness=self.smoothness or 0.0,
            guess=guess,
        )
        objective = settings.objective
        if guess is not None:
            search.multipliers = begun_at(guess, objective, target, self.min_multiplier)
        else:
            values = uniform_start(objective, search.labels, target.centre, generator)
            search.multipliers = Multipliers(objective, search.labels, values, target.outputs, self.min_multiplier)
        search.optimisers = muon_and_adam(
            search.pixels, search.multipliers, self.lr_images * image_scale(target), self.lr_multipliers
        )
        search.schedules = [linear_decay(search.optimisers[0], self.steps)]
        return search
