"""The search for MLPs behind a head, of a known start or a momentum: features first, then images that have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.architecture import SplitNetwork
from exhume.attack.activations import smooth_hinges
from exhume.attack.analysis import WeightAnalysis
from exhume.attack.methods.feature_space import FeatureSpaceSearch
from exhume.attack.methods.input_subspace import BIAS_WEIGHT, SearchSettings
from exhume.attack.muon import Muon
from exhume.attack.optimisation import MOMENTUM, image_scale, linear_decay
from exhume.attack.priors import max_pixel_variance
from exhume.attack.search import Guess
from exhume.attack.stationarity import product
from exhume.attack.target import Target

MATCH_WEIGHT = 0.1
"""Weight of the squared distance between an image's features and those that are searched for, of their squared norm,
for the image. Chosen on known-cnn-photographs and strided-photographs-sgd."""
PULL_WEIGHT = 0.1
"""The same for the features, at the end of a search: it grows in a line from 0 in the second half, when there are
images. Chosen as MATCH_WEIGHT was."""
NEGATIVE_WEIGHT = 1.0
"""Weight of what is negative of features that never are, relative to their size. Chosen as MATCH_WEIGHT was."""
SMALLEST = 0.1
"""Size of features, relative to what they have, from which a distance to them is relative to their own. One candidate
whose features are nearly 0 would else take the step of all."""
ENCODED_AT_ONCE = 100
"""Given images whose features are looked at together."""
TRIED_IMAGES = 8
"""Random images by which it is told how large features are, and whether they are ever negative. Those in black and
white were chosen on known-cnn, strided-photographs-sgd and LeNets of digits: the centre's features are too small."""


class FeaturesFirstSearch(FeatureSpaceSearch):
    """Coordinates of features, [m, r], in the span that the first dense layer shows, and centred images, [m, pixels].

    While training moved the head, the features of an image moved. So no image has, anywhere on the way, just what the
    first dense layer has gathered, and the span is no test of an image. But features can be found as an MLP's images
    are, and images after them: each moves towards features that have been found. In the second half features move
    towards those of their images too, since a combination of features is the features of no image, in general
    (docs/theory.md, "Behind convolutions").
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
        self.head, self.target = network.head, target
        with torch.no_grad():
            self._of_centre = self._seen(target.centre[None])
            tried = self._seen(in_black_and_white(target.centre, TRIED_IMAGES))
            plain = self._seen(torch.stack([torch.zeros_like(target.centre), torch.ones_like(target.centre)]))
        self._size = float(tried.norm(dim=1).mean()) or 1.0
        self._never_negative = all(bool((one >= 0).all()) for one in (tried, plain, self._of_centre))
        super().__init__(target, network, found, settings, generator, guess=guess)
        muon = Muon([self._pixels], lr=settings.lr_images * image_scale(target), momentum=MOMENTUM)
        self.optimisers.append(muon)
        self.schedules.append(linear_decay(muon, settings.steps))
        self._pull = self._pixels.new_zeros(())

    @property
    def pixels(self) -> Float[Tensor, "m d"]:
        return self._pixels

    def _scale(self) -> float:
        return self._size

    def _start(self, scale: float, generator: torch.Generator) -> Tensor:
        self._pixels = super()._start(scale, generator)
        around = self.subspace.coordinates(self._of_centre)[0]
        return self._first_coordinates(scale * self._size, around, generator)

    def _encode(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        self._pixels = super()._encode(images).clone().requires_grad_()
        with torch.no_grad():
            some = [self.subspace.coordinates(self._seen(part)) for part in torch.split(images, ENCODED_AT_ONCE)]
        return torch.cat(some)

    def prepare(self, step: int) -> None:
        super().prepare(step)
        self._pull.fill_(PULL_WEIGHT * max(0.0, 2 * min(step / self.steps, 1) - 1))

    def _coordinates(self) -> Float[Tensor, "m r"]:
        return self.variables

    def _decode(self) -> tuple[Float[Tensor, "m r"], Tensor]:
        values = product(self.variables, self.decoder)[:, : len(self.subspace.basis)]
        features, ones = (values[:, :-1], values[:, -1]) if self.subspace.biased else (values, values.new_ones(()))
        penalty = self._pixel_penalties(self.pixels, self.target.centre, biased=False)
        penalty = penalty + BIAS_WEIGHT * (ones - 1).pow(2).sum()
        if self._never_negative:
            penalty = penalty + NEGATIVE_WEIGHT * (features.clamp(max=0) / self._size).pow(2).sum()
            features = features.clamp_min(0)
        with smooth_hinges(self.sharpness):
            seen = self._seen(self.images)
        norms = features.detach().pow(2).sum(1).clamp_min((SMALLEST * self._size) ** 2)
        match = ((seen - features.detach()).pow(2).sum(1) / norms).sum()
        pull = ((seen.detach() - features).pow(2).sum(1) / norms).sum()
        return self.variables, penalty + MATCH_WEIGHT * match + self._pull * pull


def in_black_and_white(mean: Float[Tensor, "c h w"], count: int) -> Float[Tensor, "n c h w"]:
    """Random images of this mean, each pixel 0 or 1; of a grey one where it is no mean. The same at each call."""
    mean = mean if max_pixel_variance(mean) else torch.full_like(mean, 0.5)
    drawn = torch.rand(count, *mean.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (drawn.to(mean) < mean).to(mean)
