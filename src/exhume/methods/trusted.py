"""What our method reads from the weights before it searches: subspace, images, layers to trust, priors."""

from dataclasses import dataclass, replace

from jaxtyping import Float
from torch import Tensor

from exhume.candidates import KnownStart, Reading
from exhume.methods.ground import Reconstruction, Target, assumed_images, black_or_white
from exhume.reading import (
    SMOOTH_DIRECTIONS,
    SMOOTH_ROUGHNESS,
    Directions,
    Subspace,
    bulk_noise,
    ends,
    first_layer,
    is_stationary,
    roughness,
    spectrum_of,
    strongest,
)
from exhume.stationarity import Dense

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

    stationary: all layers are what the data made them, and are asked for as they are; otherwise, of the hidden layers
    from the second on, noisy: what is told of their initialisation, empty where it is not or not asked for; added:
    where the initial weights are known, the strongest directions of what training added to each.
    """

    subspace: Subspace
    stationary: bool
    noisy: list[NoisyLayer]
    added: list[Directions]
    reading: Reading


def read_weights(target: Target, dense: Dense, config: Reconstruction, *, pictures: bool = True) -> Read:
    """Reads subspace, number of images, trusted layers, weighting and priors from the weights and the mean alone.

    Args:
        dense: what the candidates have to explain, all of the weights or what training has added to known ones.
        pictures: whether directions are pictures, which tell photographs; where they are not, images are smoothed.
    """
    read, space = spectrum_of(dense)
    start = (
        KnownStart(left=target.change.left, exact=ends(first_layer(dense), space.singular)) if target.change else None
    )
    if start and not start.exact:
        read, space = 0, spectrum_of(as_pixels_vary(dense, target.centre) if pictures else dense)[1]
    images, images_from = assumed_images(config, target, read)
    rank = min(max(read, images), *first_layer(dense).shape)
    left_out = space.singular[rank : rank + 1].sum() / space.singular[0].clamp_min(1e-30)
    space = space.leading(rank)
    weighted = config.weighted is not False
    stationary = not weighted if start else is_stationary(dense, images)
    shown = min(target.shape[1:]) >= 3
    smooth = shown and (
        not pictures
        or (
            rank >= SMOOTH_DIRECTIONS
            and roughness(space.leading(SMOOTH_DIRECTIONS).basis, target.shape) < SMOOTH_ROUGHNESS
        )
    )
    bilevel = BILEVEL * (shown and not smooth and black_or_white(target.centre))
    noisy = noisy_layers(dense) if weighted and not stationary and not start else []
    added = [strongest(weight, rank) for weight in dense.weights[1:-1]] if weighted and start else []
    trusted = len(dense.weights) if stationary else 1  # the residual is a sum over them
    named = {parameter.data_ptr(): name for name, parameter in target.explained.named_parameters()}
    names = [named[parameter.data_ptr()] for parameter in dense.parameters]
    first = 1 + (dense.biases[0] is not None)
    hidden = [name for name in names[first:] if name.endswith("weight")][: len(noisy or added)]
    return Read(
        subspace=space,
        stationary=stationary,
        noisy=noisy,
        added=added,
        reading=Reading(
            images=images,
            images_from=images_from,
            rank=rank,
            left_out=left_out.item(),
            layers=names if stationary else names[:first] + hidden,
            weighted=weighted,
            smoothness=config.smoothness if config.smoothness is not None else trusted * SMOOTHNESS * smooth,
            bilevel=(config.bilevel if config.bilevel is not None else bilevel) * weighted,
            start=start,
        ),
    )


def as_pixels_vary(dense: Dense, centre: Float[Tensor, "c h w"]) -> Dense:
    """A chain with the columns of its first layer as large as pixels vary, at most, about this mean m: sqrt(m (1 - m)).

    Steps element by element (Adam's) divide what an image adds by the size of all that was added there, nearly that of
    the neuron times that of the pixel; the former is left to the weighting.
    """
    deviation = (centre * (1 - centre)).clamp_min(0).sqrt().flatten()
    return dense if not deviation.any() else replace(dense, weights=[dense.weights[0] * deviation, *dense.weights[1:]])


def noisy_layers(dense: Dense) -> list[NoisyLayer]:
    """The hidden layers from the second on, if all of them show what initialisation has left."""
    rows = []
    for weight in dense.weights[1:-1]:
        noise = bulk_noise(weight)
        if noise is None:
            return []
        rows.append(NoisyLayer(noise=noise, added=weight.pow(2).sum().item() / noise**2 - weight.numel()))
    return rows
