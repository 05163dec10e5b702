"""Our scheme where dense layers stand behind others: pixels are searched, and judged by what the dense layers see."""

import torch
from torch import Tensor

from exhume.chains import Behind
from exhume.methods.ground import Found, Reconstruction, Target, first_guess, snapshot
from exhume.methods.subspace import SubspaceSearch
from exhume.stationarity import smooth_hinges

OUTSIDE = 300.0
"""Weight of the share of a candidate's features outside of the dense layers' subspace. Chosen by experiment."""


class FeatureSearch(SubspaceSearch):
    """Centred images, [m, pixels], whose features must lie in the span that the first dense layer W shows.

    W is a sum of delta_i phi(x_i)^T over the training images, so its rows lie in the span of their features phi, as
    those of a dense network's first layer do in that of the images. A linear combination of features is the features
    of no image, in general: the span tells images of the training set from others (docs/theory.md, item 13).
    """

    def __init__(self, target: Target, parts: Behind, config: Reconstruction, generator: torch.Generator) -> None:
        self.head = parts.head
        super().__init__(target, parts.dense, config, generator, pictures=False)

    def _start(self, count: int, scale: float, generator: torch.Generator) -> Tensor:
        around = torch.zeros_like(self.target.centre).flatten()
        return first_guess((count, len(around)), scale, around, generator)

    @property
    def images(self) -> Tensor:
        """Un-centred images."""
        return self.variables.reshape(-1, *self.target.shape) + self.target.centre

    def _look(self) -> tuple[Tensor, Tensor, Tensor]:
        images = self.images
        with smooth_hinges(self.sharpness):
            features: Tensor = self.head(images).flatten(1)
        if self.subspace.biased:
            features = torch.cat([features, features.new_ones(len(features), 1)], 1)
        inside = features @ self.subspace.basis
        outside = 1 - inside.pow(2).sum(1) / features.pow(2).sum(1).clamp_min(1e-30)
        return inside, images, OUTSIDE * outside.mean()

    def found(self) -> Found:
        return snapshot(self.target, self.images, self.multipliers)
