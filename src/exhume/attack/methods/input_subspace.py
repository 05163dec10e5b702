"""The search for MLPs: within the subspace that the first layer shows, with the gradients written out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import compress

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from exhume.architecture import MLP
from exhume.attack.activations import ScaleFree
from exhume.attack.analysis import WeightAnalysis
from exhume.attack.interruption import OtherState, digest
from exhume.attack.objectives import Objective
from exhume.attack.optimisation import (
    Multipliers,
    balanced_labels,
    begun_at,
    first_guess,
    image_scale,
    linear_decay,
    muon_and_adam,
    snapshot,
    uniform_start,
)
from exhume.attack.priors import greyness, implausible
from exhume.attack.residuals import (
    Weighting,
    change_by_sum,
    gls_weighting,
    in_place,
    relative_residual,
    sizes_of,
)
from exhume.attack.search import FixedImages, Guess, Iterate
from exhume.attack.spectrum import Subspace, first_layer
from exhume.attack.stationarity import Cotangents, Term, mlp_terms, product, summed
from exhume.attack.target import Target
from exhume.devices import alignment, fast_products, fuses, recorded

CORRELATED_ERROR = 0.1
"""Final error that neurons have in common, relative to what each direction of the neurons has. Its square grows from 0
in a line: the strongest directions guide a search in its first steps. Chosen on b1 to b3, b5, b7, b8 and b8-decay."""
HIDDEN_WEIGHT = 20.0
"""Weight of the noisy hidden layers' equations, times candidates over neurons, relative to the uncorrelated null
residual. Chosen on b2, b3 and b5 to b8 of the benchmark."""
REWEIGHT_EVERY = 25
"""Steps after which the weighting is computed anew from the candidates."""
BIAS_WEIGHT = 1e-3
"""Weight of (b - 1)^2: a true training image has the coordinate b = 1 for the bias. Chosen on b3."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """What a search of `Exhume` takes from its settings; `Exhume` documents them."""

    steps: int
    per_class: int | None
    objective: Objective
    lr_images: float
    lr_multipliers: float
    init_scale: float
    min_multiplier: float
    sharpness: float


class InputSubspaceSearch:
    """Coordinates [m, r] and multipliers, judged by the relative residual of the layers that can be believed."""

    def __init__(
        self,
        target: Target,
        mlp: MLP,
        found: WeightAnalysis,
        settings: SearchSettings,
        generator: torch.Generator,
        *,
        guess: Guess | None = None,
    ) -> None:
        """mlp: of the network where gradients are taken; found: the analysis of the MLP to explain."""
        explained = target.explained_mlp
        assert explained is not None
        self.target, self.sharpness = target, ScaleFree(settings.sharpness)
        self.assumptions, self.regime = found.assumptions, found.regime
        self.noisy, self.floor = found.noisy, found.floor
        device = found.subspace.first.device
        self.precision = fast_products(found.subspace.first.dtype, device)
        multiple = alignment(self.precision, device)
        self.subspace = found.subspace.padded(multiple)
        first = self.subspace.first
        self.decoder = pad(self.subspace.basis.T, (0, -len(self.subspace.basis) % multiple)).to(self.precision)
        self.explained = in_subspace(first, explained)
        self.changed = [target.changed(parameter) for parameter in self.explained.parameters]
        believed = self.explained.parameters if self.regime.every_layer else [first]
        self.sizes = sizes_of(list(compress(believed, self.changed)))
        same = target.delta is None and not found.rescaled
        here = self.explained if same else in_subspace(first_layer(mlp) @ self.subspace.basis, mlp)
        self.products = here.multiplied_in(self.precision)
        self.changed_layers = {
            layer: ChangedLayer(space.padded(multiple), self.precision) for layer, space in found.changed.items()
        }
        self.steps = settings.steps
        self.weighting: Weighting | None = None
        self._progress = torch.zeros((), dtype=torch.float64, device=device)
        self._weigh = recorded(device, self._weigh_candidates)
        self._subspace_digest = digest([self.subspace.basis, first])
        self.hidden_weight, self.grey_weight = first.new_zeros(()), first.new_zeros(())
        if guess is not None:
            self.multipliers = begun_at(guess, settings.objective, target, settings.min_multiplier)
            self.labels = self.multipliers.labels
            self.variables = self._encode(guess.images.to(target.centre)).requires_grad_()
        else:
            most = self.regime.most_candidates
            self.labels = balanced_labels(target, settings.per_class, self.assumptions.images, len(first), most)
            self.variables = self._start(settings.init_scale, generator)
            values = uniform_start(settings.objective, self.labels, target.centre, generator)
            self.multipliers = Multipliers(
                settings.objective, self.labels, values, target.outputs, settings.min_multiplier
            )
        self.optimisers = muon_and_adam(
            self.variables,
            self.multipliers,
            settings.lr_images * self._scale(),
            settings.lr_multipliers,
            shares_decay=self.regime.shares_decay,
        )
        self.schedules = [linear_decay(self.optimisers[0], settings.steps)]

    def _scale(self) -> float:
        """How large what is searched for can be: its rate is a part of that."""
        return image_scale(self.target)

    def _start(self, scale: float, generator: torch.Generator) -> Tensor:
        """What is searched for: coordinates, [m, r]."""
        pixels = self.subspace.basis[: self.target.centre.numel()]
        around = self.target.as_inputs(self.target.centre).flatten() @ pixels
        return self._first_coordinates(scale / self.target.unit, around, generator)

    def _first_coordinates(self, scale: float, around: Float[Tensor, " r"], generator: torch.Generator) -> Tensor:
        """Normal around a point, [m, r]; 0 in directions of zeros."""
        rank = self.assumptions.rank
        drawn = first_guess((len(self.labels), rank), scale, around[:rank], generator)
        return pad(drawn.detach(), (0, len(around) - rank)).requires_grad_()

    def _encode(self, images: Float[Tensor, "n c h w"]) -> Tensor:
        """The variables that un-centred images have, or the images of the subspace that are nearest to them."""
        return self.subspace.coordinates(self.target.as_inputs(images).flatten(1))

    def _decode(self) -> tuple[Float[Tensor, "m r"], Tensor]:
        """The candidates' coordinates, and the penalty on what makes them no images."""
        inputs = self.variables.to(self.precision) @ self.decoder
        return self.variables, self._pixel_penalties(inputs, self.target.subtracted, biased=self.subspace.biased)

    def _pixel_penalties(self, inputs: Float[Tensor, "m columns"], around: Tensor, *, biased: bool) -> Tensor:
        """The penalty on candidates by what the first layer sees of them.

        inputs: pixels, each relative to the image `around`, [c, h, w]; then the coordinate of the bias if there is one;
        columns beyond mean nothing.
        """
        smoothness, grey = self.assumptions.smoothness, bool(self.assumptions.binary_prior)
        if fuses(self.precision, inputs.device):
            from exhume.attack import step_triton  # noqa: PLC0415

            if len(around) <= step_triton.MOST_CHANNELS:
                return step_triton.pixel_penalties(
                    inputs,
                    self.target.shape,
                    factor=self.target.divided,
                    offset=around,
                    grey_weight=self.grey_weight if grey else None,
                    smoothness=smoothness,
                    bias_weight=BIAS_WEIGHT if biased else None,
                )
        inputs, count = inputs.to(self.variables.dtype), around.numel()
        images = self.target.scaled(inputs[:, :count].reshape(-1, *self.target.shape)) + around
        penalty = implausible(images, smoothness)
        if biased:
            penalty = penalty + BIAS_WEIGHT * (inputs[:, count] - 1).pow(2).sum()
        return penalty + self.grey_weight * greyness(images) if grey else penalty

    def _coordinates(self) -> Float[Tensor, "m r"]:
        """The candidates' coordinates alone."""
        return self.variables

    def prepare(self, step: int) -> None:
        """Computes the weightings anew from the candidates, every REWEIGHT_EVERY steps."""
        if step % REWEIGHT_EVERY == 0:
            self._progress.fill_(min(step / self.steps, 1))
            self._weigh()

    @torch.no_grad()
    def _weigh_candidates(self) -> None:
        self._reweight(self._terms(self._coordinates(), self.multipliers.cotangents), self._progress)

    def _terms(self, coordinates: Float[Tensor, "m r"], cotangents: Cotangents) -> list[Term]:
        """What each candidate adds to the layers that are believed."""
        count = None if self.regime.every_layer else 1 + max([len(self.noisy), *self.changed_layers])
        return mlp_terms(self.products, coordinates, cotangents, self.sharpness, count=count)

    def objective(self) -> tuple[Tensor, Tensor]:
        coordinates, penalty = self._decode()
        residual = self._residual(self._terms(coordinates, self.multipliers.cotangents))
        return residual, self.multipliers.penalty() + penalty

    def _residual(self, terms: Sequence[Term]) -> Tensor:
        """The relative residual of the layers that are believed, weighted."""
        every_layer = self.regime.every_layer
        gradients = summed(self.products, terms if every_layer else terms[:1])
        weightings = [self.weighting, *[None] * (len(gradients) - 1)]
        asked = compress(zip(self.explained.parameters, gradients, weightings, strict=False), self.changed)
        parameters, sums, weights = zip(*asked, strict=True)
        residual = relative_residual(parameters, sums, weights, sizes=self.sizes)
        for layer, row in enumerate(self.noisy, start=1):
            change = change_by_sum(self.products.weights[layer], terms[layer])
            residual = residual + self.hidden_weight * (row.added + change / row.noise**2)
        if self.changed_layers:
            of_changed = [changed.residual(terms[layer]) for layer, changed in self.changed_layers.items()]
            residual = torch.stack([residual, *of_changed]).mean()
        return residual

    @torch.no_grad()
    def _by_layer(self, terms: Sequence[Term]) -> dict[str, float]:
        """The relative residual of each layer that is believed, by the name of its weight, or of its bias."""
        names = {parameter.data_ptr(): name for name, parameter in self.target.explained.named_parameters()}
        explained = self.target.explained_mlp
        assert explained is not None
        believed = [explained.weights[0], *in_subspace(self.subspace.first, explained).parameters[1:]]
        own = [names[parameter.data_ptr()] for parameter in believed]
        gradients = summed(self.products, terms if self.regime.every_layer else terms[:1])
        weightings = [self.weighting, *[None] * (len(gradients) - 1)]
        asked = compress(zip(own, self.explained.parameters, gradients, weightings, strict=False), self.changed)
        found = {name: float(relative_residual([p], [g], [w])) for name, p, g, w in asked}
        for layer, row in enumerate(self.noisy, start=1):
            weight = self.products.weights[layer]
            change = float(change_by_sum(weight, terms[layer])) / row.noise**2
            # noise alone adds up to about this much, so less is nothing to explain
            found[names[explained.weights[layer].data_ptr()]] = 1 + change / max(row.added, (2 * weight.numel()) ** 0.5)
        for layer, changed in self.changed_layers.items():
            found[names[explained.weights[layer].data_ptr()]] = float(changed.residual(terms[layer]))
        return found

    def _reweight(self, terms: Sequence[Term], progress: Float[Tensor, ""]) -> None:
        """Computes the weightings, and the weights relative to the first layer's; progress: from 0 to 1.

        They stay where something is not finite: the residual will show the divergence.
        """
        term, on_gpu = terms[0], self.variables.is_cuda
        finite = term.delta.isfinite().all() & term.inputs.isfinite().all()
        if not on_gpu and not finite:
            return
        weigh = partial(
            gls_weighting,
            error=self.regime.contribution_error,
            floor=self.floor,
            correlated=CORRELATED_ERROR * progress.sqrt(),
            precision=self.precision,
            # on a GPU this and steps are recorded, which needs fixed shapes; and float64 shall give the same everywhere
            fixed_size=on_gpu or self.precision == torch.float64,
        )
        self.weighting = in_place(self.weighting, weigh(self.subspace.first, term.delta, term.inputs), where=finite)
        for layer, changed in self.changed_layers.items():
            new = weigh(changed.first, terms[layer].delta, changed.within(terms[layer]))
            changed.weighting = in_place(changed.weighting, new, where=finite)
        weights = HIDDEN_WEIGHT * len(self.labels) / term.delta.shape[1], self.assumptions.binary_prior
        residuals = self.weighting.uncorrelated_null_residual, self.weighting.null_residual
        for buffer, weight, null_residual in zip(
            (self.hidden_weight, self.grey_weight), weights, residuals, strict=True
        ):
            buffer.copy_(weight / null_residual)

    def iterate(self) -> Iterate:
        pixels = self.variables @ self.subspace.basis[: self.target.centre.numel()].T
        images = self.target.as_images(pixels.reshape(-1, *self.target.shape))
        return snapshot(self.target, images, self.multipliers)

    @torch.no_grad()
    def fix(self, images: Float[Tensor, "n c h w"], *, chunk: int) -> FixedImages:
        """The residual of un-centred images as a function of their cotangents; `chunk` are encoded at a time."""
        seen = [self._see(some) for some in torch.split(images.to(self.target.centre), chunk)]
        coordinates = torch.cat([each for each, _, _ in seen])
        known = [each for _, _, each in seen if each is not None]

        @torch.no_grad()
        def reweight(cotangents: Tensor) -> None:
            self._reweight(self._terms(coordinates, lambda _: cotangents), torch.ones_like(self._progress))

        return FixedImages(
            residual=lambda cotangents: self._residual(self._terms(coordinates, lambda _: cotangents)),
            by_layer=lambda cotangents: self._by_layer(self._terms(coordinates, lambda _: cotangents)),
            reweight=reweight,
            inside=torch.cat([each for _, each, _ in seen]),
            projections=torch.cat(known) if known else None,
        )

    def _see(self, images: Float[Tensor, "n c h w"]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Coordinates of un-centred images, the share of each that is inside, and its projection."""
        pixels = self.target.as_inputs(images).flatten(1)
        coordinates = self.subspace.coordinates(pixels)
        projections = (coordinates @ self.subspace.basis.T)[:, : pixels.shape[1]].reshape(images.shape)
        return coordinates, self.subspace.share(pixels), self.target.as_images(projections)

    def state(self) -> dict[str, Tensor]:
        state = {"subspace": self._subspace_digest, "hidden": self.hidden_weight, "grey": self.grey_weight}
        for name, holder in self._weighted():
            if holder.weighting is not None:
                state |= {f"{name} {item.name}": getattr(holder.weighting, item.name) for item in fields(Weighting)}
        return state

    def restore(self, state: Mapping[str, Tensor]) -> None:
        if not torch.equal(state["subspace"], self._subspace_digest):
            raise OtherState(
                "Another machine, version or number of threads rounds differently, so its coordinates are others."
            )
        self.hidden_weight.copy_(state["hidden"])
        self.grey_weight.copy_(state["grey"])
        for name, holder in self._weighted():
            if f"{name} columns" in state:
                parts = {item.name: state[f"{name} {item.name}"].clone() for item in fields(Weighting)}
                holder.weighting = Weighting(**{part: t.to(self.variables.device) for part, t in parts.items()})

    def _weighted(self) -> "Iterator[tuple[str, InputSubspaceSearch | ChangedLayer]]":
        """What has a weighting, by name: the first layer, and the changed ones."""
        yield "first", self
        for layer, changed in self.changed_layers.items():
            yield f"layer {layer}", changed


class ChangedLayer:
    """What training added to a hidden layer with a known start, within its strongest directions."""

    def __init__(self, strongest: Subspace, precision: torch.dtype) -> None:
        # column by column: the order of summation by which the published figures repeat to the last bit
        self.first, self.basis = strongest.first.T.contiguous().T, strongest.basis.to(precision)
        self.weighting: Weighting | None = None

    def within(self, term: Term) -> Float[Tensor, "m r"]:
        """The layer's inputs in these directions."""
        return product(term.inputs, self.basis)

    def residual(self, term: Term) -> Tensor:
        """Relative residual of the layer's change, weighted as the first layer's."""
        gradient = product(term.delta.T, self.within(term).to(self.basis.dtype))
        return relative_residual([self.first], [gradient], [self.weighting])


def in_subspace(first: Float[Tensor, "width r"], mlp: MLP) -> MLP:
    """An MLP whose first layer, [W | b], takes coordinates in a basis."""
    return MLP([first, *mlp.weights[1:]], [None, *mlp.biases[1:]], mlp.activation)
