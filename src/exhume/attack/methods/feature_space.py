"""The search for MLPs behind a head, start unknown: over pixels, judged by what the dense layers see of them."""

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.architecture import SplitNetwork
from exhume.attack.activations import smooth_hinges
from exhume.attack.analysis import WeightAnalysis
from exhume.attack.methods.input_subspace import InputSubspaceSearch, SearchSettings
from exhume.attack.optimisation import first_guess, snapshot
from exhume.attack.search import Guess, Iterate
from exhume.attack.target import Target

OUTSIDE_WEIGHT = 300.0
"""Weight of the share of a candidate's features outside the dense layers' subspace. Chosen on one like cnn."""


class FeatureSpaceSearch(InputSubspaceSearch):
    """Centred images, [m, pixels], whose features must lie in the span that the first dense layer W shows.

    The pixels are in units of the network's inputs.

    W is a sum of delta_i phi(x_i)^T over the training images, so its rows lie in the span of their features phi, as
    those of an MLP's first layer do in the span of the images. A linear combination of features is the features of no
    image, in general: the span tells images of the training set from others (docs/theory.md, "Behind convolutions").
    """

    def __init__(
        self,
        target: Target,
        network: SplitNetwork,
        found: WeightAnalysis,
        settings: SearchSettings,
        generator: torch.Generator,
        *,
        guess: Guess | None = None,
    ) -> None:
        self.head = network.head
        super().__init__(target, network.mlp, found, settings, generator, guess=guess)

    def _start(self, scale: float, generator: torch.Generator) -> Tensor:
        around = torch.zeros_like(self.target.centre).flatten()
        return first_guess((len(self.labels), len(around)), scale / self.target.unit, around, generator)

    def _encode(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        return self.target.divided_by_scale(images - self.target.centre).flatten(1)

    @property
    def pixels(self) -> Float[Tensor, "m d"]:
        """Centred images, in units of the network's inputs."""
        return self.variables

    @property
    def images(self) -> Float[Tensor, "m c h w"]:
        """Un-centred images."""
        return self.target.scaled(self.pixels.reshape(-1, *self.target.shape)) + self.target.centre

    def _coordinates(self) -> Float[Tensor, "m r"]:
        return self._features(self.images)[0]

    def _decode(self) -> tuple[Float[Tensor, "m r"], Tensor]:
        coordinates, inside = self._features(self.images)
        penalty = self._pixel_penalties(self.pixels, self.target.centre, biased=False)
        return coordinates, penalty + OUTSIDE_WEIGHT * (1 - inside).mean()

    def _features(self, images: Float[Tensor, "m c h w"]) -> tuple[Float[Tensor, "m r"], Float[Tensor, " m"]]:
        """The coordinates of the images' features in the subspace, and the share of the features that is inside."""
        with smooth_hinges(self.sharpness):
            features = self.subspace.with_ones(self._seen(images))
        coordinates = features @ self.subspace.basis
        return coordinates, coordinates.pow(2).sum(1) / features.pow(2).sum(1).clamp_min(1e-30)

    def _seen(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The images' features: what the first dense layer sees of them."""
        features: Tensor = self.head(images).flatten(1)
        return features

    def _see(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor, Tensor | None]:
        return *self._features(images), None

    def iterate(self) -> Iterate:
        return snapshot(self.target, self.images, self.multipliers)
