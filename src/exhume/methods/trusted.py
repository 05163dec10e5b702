"""What our method reads from the weights before it searches: subspace, images, layers to trust, priors."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.candidates import KnownStart, Reading
from exhume.methods.ground import Reconstruction, Target, assumed_images, black_or_white
from exhume.reading import (
    SMOOTH_DIRECTIONS,
    SMOOTH_ROUGHNESS,
    Subspace,
    bulk_noise,
    decomposed,
    ends,
    first_layer,
    is_stationary,
    roughness,
    spectrum_of,
)
from exhume.stationarity import Dense

LEFT_BEHIND = 0.26
"""Error of a candidate's own contribution to a neuron, of its root mean square (measured at the truth: see the log);
half of it where weight decay has made all layers stationary."""
FLOOR = 0.02
"""Error of the first layer that no candidate explains, of its root mean square; more where its initialisation shows."""
INEXACT = (0.5, 0.2)
"""Both where training from a known start was not gradient descent. Chosen by experiment (see the log)."""
SMOOTHNESS = 4e-6
"""Weight of a photograph's total variation against one layer's residual. Chosen by experiment (see the log)."""
BILEVEL = 5.0
"""Weight of grey in images that are black or white, against the weighted error. Chosen by experiment (see the log)."""


@dataclass(frozen=True, kw_only=True)
class NoisyLayer:
    """A hidden layer W that still shows its initialisation.

    noise: standard deviation of the initial weights; added: norm(W)^2 / noise^2 less the number of entries, on average
    0 for noise alone, so what candidates have to explain of the layer.
    """

    noise: float
    added: float


@dataclass(frozen=True, kw_only=True)
class Read:
    """What is read from the weights.

    rescaled: the subspace is that of a first layer whose columns were made as large as pixels vary;
    stationary: all layers are what the data made them, and are asked for as they are; otherwise, of the hidden layers
    from the second on, noisy: what is told of their initialisation, empty where it is not or not asked for; added:
    where the initial weights are known, the strongest directions of what training added to each that moved, by layer;
    errors: of a candidate's contribution, and of what no candidate explains, of their root mean squares.
    """

    subspace: Subspace
    rescaled: bool
    stationary: bool
    noisy: list[NoisyLayer]
    added: dict[int, Subspace]
    errors: tuple[float, float]
    reading: Reading


def read_weights(target: Target, dense: Dense, config: Reconstruction, *, pictures: bool = True) -> Read:
    """Reads subspace, number of images, trusted layers, weighting and priors from the weights and the mean alone.

    Args:
        dense: what the candidates have to explain, all of the weights or what training has added to known ones.
        pictures: whether directions are pictures, which tell photographs; where they are not, images are smoothed.
    """
    first, weighted = first_layer(dense), config.weighted is not False
    read, space = spectrum_of(dense)
    start, noise = None, None
    if target.change is None:
        noise = bulk_noise(first, space.singular)
    else:
        exact = ends(first, space.singular) and (pictures or only_dense_moved(target.explained, dense))
        start, read = KnownStart(left=target.change.left, exact=exact), read * exact
    rescaled = pictures and (noise is not None or (start is not None and not start.exact))
    if rescaled:
        scale = deviation(target.centre)
        noise = noise * float(scale.pow(2).mean().sqrt()) if noise is not None else None
        space = spectrum_of(replace(dense, weights=[dense.weights[0] * scale, *dense.weights[1:]]))[1]
    images, images_from = assumed_images(config, target, read)
    rank = min(max(read, images), *first.shape)
    left_out = space.singular[rank : rank + 1].sum() / space.singular[0].clamp_min(1e-30)
    space = space.leading(rank)
    stationary = not weighted if start else is_stationary(dense, images)
    noisy = noisy_layers(dense) if weighted and not stationary and not start else []
    hidden = enumerate(dense.weights[1:-1] if weighted and start else [], start=1)
    added = {layer: decomposed(weight).leading(rank) for layer, weight in hidden if target.moved(weight)}
    smoothness, bilevel = priors(target, space, pictures=pictures)
    trusted = len(dense.weights) if stationary else 1  # the residual is a sum over them
    return Read(
        subspace=space,
        rescaled=rescaled,
        stationary=stationary,
        noisy=noisy,
        added=added,
        errors=errors(space, noise, stationary=stationary, exact=start is None or start.exact),
        reading=Reading(
            images=images,
            images_from=images_from,
            rank=rank,
            left_out=left_out.item(),
            layers=asked_for(target, dense, added or range(1, 1 + len(noisy)), all_of_them=stationary),
            weighted=weighted,
            smoothness=config.smoothness if config.smoothness is not None else trusted * smoothness,
            bilevel=(config.bilevel if config.bilevel is not None else bilevel) * weighted,
            start=start,
        ),
    )


def only_dense_moved(added: nn.Module, dense: Dense) -> bool:
    """Whether training added nothing to what stands before the dense layers, so that features stayed what they were."""
    own = {parameter.data_ptr() for parameter in dense.parameters}
    return not any(parameter.any() for parameter in added.parameters() if parameter.data_ptr() not in own)


BLANK = 0.02
"""Mean of a pixel below which, or above 1 less which, it is taken for one of this mean: the mean may be another set's,
a public network's say."""


def deviation(centre: Float[Tensor, "c h w"]) -> Float[Tensor, " d"]:
    """By how much pixels of images in [0, 1] vary, at most, about this mean m: sqrt(m (1 - m)); ones if it is no mean.

    Steps element by element (Adam's) divide what an image adds by the size of all that was added there, nearly that of
    the neuron times that of the pixel; the former is left to the weighting. An initialisation that is still there is as
    strong where pixels never vary as where they do.
    """
    mean = centre.clamp(BLANK, 1 - BLANK)
    return (mean * (1 - mean)).sqrt().flatten() if centre.any() else torch.ones_like(centre).flatten()


def errors(space: Subspace, noise: float | None, *, stationary: bool, exact: bool) -> tuple[float, float]:
    """The errors by which the first layer is weighted; noise: standard deviation of what its initialisation left."""
    if not exact:
        return INEXACT
    left = noise / float(space.first.pow(2).mean().sqrt()) if noise is not None else 0.0
    return LEFT_BEHIND / 2 if stationary else LEFT_BEHIND, max(FLOOR, left)


def priors(target: Target, space: Subspace, *, pictures: bool) -> tuple[float, float]:
    """Weights of total variation and of grey: photographs are flat with edges, digits black or white."""
    shown = min(target.shape[1:]) >= 3
    smooth = shown and (
        not pictures
        or (
            len(space.singular) >= SMOOTH_DIRECTIONS
            and roughness(space.leading(SMOOTH_DIRECTIONS).basis, target.shape) < SMOOTH_ROUGHNESS
        )
    )
    return SMOOTHNESS * smooth, BILEVEL * (shown and not smooth and black_or_white(target.centre))


def asked_for(target: Target, dense: Dense, hidden: Iterable[int], *, all_of_them: bool) -> list[str]:
    """Names of the parameters whose condition is asked for: all, or the first layer's and the weights of `hidden`."""
    names = {parameter.data_ptr(): name for name, parameter in target.explained.named_parameters()}
    first = [dense.weights[0], *([dense.biases[0]] if dense.biases[0] is not None else [])]
    some = [*first, *(dense.weights[layer] for layer in hidden)]
    asked = dense.parameters if all_of_them else some
    return [names[p.data_ptr()] for p in asked if target.moved(p)]


def noisy_layers(dense: Dense) -> list[NoisyLayer]:
    """The hidden layers from the second on, if all of them show what initialisation has left."""
    rows = []
    for weight in dense.weights[1:-1]:
        noise = bulk_noise(weight)
        if noise is None:
            return []
        rows.append(NoisyLayer(noise=noise, added=weight.pow(2).sum().item() / noise**2 - weight.numel()))
    return rows
