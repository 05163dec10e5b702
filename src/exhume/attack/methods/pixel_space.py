"""The search for any network: over pixels, by autograd, judged by all parameters."""

from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.attack.activations import Sharpness
from exhume.attack.analysis import assume_images
from exhume.attack.optimisation import Multipliers, balanced_labels, first_guess, snapshot
from exhume.attack.priors import implausible
from exhume.attack.residuals import relative_residual
from exhume.attack.search import FixedImages, Guess, Iterate
from exhume.attack.stationarity import gradients_in_chunks, network_gradients
from exhume.attack.target import Target
from exhume.candidates import Assumptions, KnownInit


class PixelSpaceSearch:
    """Centred images, [m, pixels], judged by the relative residual of all parameters.

    The pixels are in units of the network's inputs.

    The method that begins it adds its multipliers, optimisers and schedules.
    """

    multipliers: Multipliers
    optimisers: list[torch.optim.Optimizer]
    schedules: list[torch.optim.lr_scheduler.LRScheduler]

    def __init__(
        self,
        target: Target,
        sharpness: Sharpness,
        generator: torch.Generator,
        *,
        images: int | None,
        per_class: int | None,
        init_scale: float,
        smoothness: float = 0.0,
        guess: Guess | None = None,
    ) -> None:
        self.target, self.sharpness = target, sharpness
        named = [(name, p) for name, p in target.explained.named_parameters() if p.requires_grad]
        self.changed = [target.changed(parameter) for _, parameter in named]
        named = list(compress(named, self.changed))
        self.parameters = [parameter.detach() for _, parameter in named]
        count, images_from = assume_images(images, 0)
        self.assumptions = Assumptions(
            regime=None,
            images=count,
            images_from=images_from,
            rank=0,
            discarded=None,
            layers=[name for name, _ in named],
            smoothness=smoothness,
            binary_prior=0.0,
            # only a first dense layer tells whether it is exact, and there is none to look at
            known_init=KnownInit(retained=target.delta.retained, exact=False, of=target.delta.of)
            if target.delta
            else None,
        )
        if guess is not None:
            self.labels = guess.labels.to(target.centre.device)
            differences = target.divided_by_scale(guess.images.to(target.centre) - target.centre)
            self.pixels = differences.flatten(1).clone().requires_grad_()
        else:
            self.labels = balanced_labels(target, per_class, count)
            around = torch.zeros_like(target.centre).flatten()
            self.pixels = first_guess((len(self.labels), len(around)), init_scale, around, generator)

    @property
    def images(self) -> Float[Tensor, "m c h w"]:
        """Un-centred images."""
        return self.target.scaled(self.pixels.reshape(-1, *self.target.shape)) + self.target.centre

    def prepare(self, step: int) -> None:
        """Nothing: the objective stays what it is."""

    def objective(self) -> tuple[Tensor, Tensor]:
        gradients = network_gradients(self.target.network, self.images, self.multipliers.cotangents, self.sharpness)
        return self.residual(list(compress(gradients, self.changed))), self.penalty()

    def residual(self, gradients: Sequence[Tensor]) -> Tensor:
        """How far the weighted sum of gradients is from the parameters."""
        return relative_residual(self.parameters, gradients)

    def penalty(self) -> Tensor:
        """What is plausible of any image: pixels within [0, 1], and smooth where asked for."""
        return self.multipliers.penalty() + implausible(self.images, self.assumptions.smoothness)

    def fix(self, images: Float[Tensor, "n c h w"], *, chunk: int) -> FixedImages:
        """The residual of un-centred images as a function of their cotangents; `chunk` are differentiated at a time."""
        images = images.to(self.target.centre)

        def residual(cotangents: Tensor) -> Tensor:
            gradients = gradients_in_chunks(self.target.network, images, cotangents, self.sharpness, chunk)
            return self.residual(list(compress(gradients, self.changed)))

        @torch.no_grad()
        def by_layer(cotangents: Tensor) -> dict[str, float]:
            gradients = gradients_in_chunks(self.target.network, images, cotangents, self.sharpness, chunk)
            asked = zip(self.assumptions.layers, self.parameters, compress(gradients, self.changed), strict=True)
            return {name: float(relative_residual([parameter], [gradient])) for name, parameter, gradient in asked}

        return FixedImages(residual=residual, by_layer=by_layer, reweight=lambda _: None, inside=None, projections=None)

    def iterate(self) -> Iterate:
        return snapshot(self.target, self.images, self.multipliers)

    def state(self) -> dict[str, Tensor]:
        """Nothing: the objective stays what it is."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Nothing, in the same way."""
