"""An optimiser's momentum, as a training checkpoint keeps it beside the weights: a sum of gradients at images.

    -momentum = sum_i J(x_i)^T d_i

over the batches of the last steps, with J at the trained weights: these hardly moved within so few steps. So it takes
the place of what training added to a known start, while nothing need be known of that (docs/theory.md, "Momentum").
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from exhume.architecture import MLP
from exhume.attack.folding import folded
from exhume.attack.known_init import WeightDelta
from exhume.attack.spectrum import Span, first_layer, first_layer_spectrum, most_directions
from exhume.attack.target import Target, make_target
from exhume.checkpoint import Checkpoint
from exhume.errors import InputError
from exhume.layers import BATCH_NORMS

FLOAT32_ROUNDING = 1e-7
"""Singular value of a momentum, relative to the largest, below which there is its rounding (100 digits: the 100th 5e-5,
the next 2e-8)."""


@torch.no_grad()
def momentum_target(checkpoint: Checkpoint) -> Target:
    """The target whose candidates must explain a checkpoint's momentum, with the gradients at its trained weights.

    Parameters without a momentum count as frozen.

    Raises:
        InputError: a name or a shape is not the network's, a value is not finite, all are 0, or there is BatchNorm,
            whose batches mix the images' gradients.
    """
    module = checkpoint.build()
    if any(isinstance(layer, BATCH_NORMS) for layer in module.modules()):
        raise InputError("The momentum is not attacked: BatchNorm mixes the gradients of a batch.")
    parameters = dict(module.layers.named_parameters())
    for name, value in checkpoint.momentum.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise InputError(f"The momentum is another network's: this one has no {name} of this shape.")
        if not value.isfinite().all():
            raise InputError(f"The momentum of {name} is not finite.")
    if not any(value.any() for value in checkpoint.momentum.values()):
        raise InputError("The momentum is not attacked: it is 0, for no step was taken.")
    for name, parameter in parameters.items():
        parameter.copy_(-checkpoint.momentum.get(name, torch.zeros_like(parameter)))
    target = make_target(checkpoint)
    delta = WeightDelta(module=folded(module, target.shape), retained=1.0, of="momentum")
    return replace(target, delta=delta)


def within_momentum(target: Target, attacked: Checkpoint | nn.Module) -> Target:
    """The target of a known start, with the images' span where the momentum tells it.

    Both are sums over the same images. Adam divides the change weight by weight, so that it leaves their span, but not
    the momentum: its first layer is made of no more directions than images, to rounding (docs/theory.md, "Momentum").
    As it is where the start is unknown, the network is not dense, or the momentum has many directions too.
    """
    changed = target.delta is not None and target.delta.of == "change" and isinstance(target.architecture, MLP)
    if not changed or not isinstance(attacked, Checkpoint) or not attacked.momentum:
        return target
    try:
        mlp = momentum_target(attacked).explained_mlp
    except InputError:
        return target  # it is told where the momentum is attacked
    if mlp is None or not mlp.weights[0].any():
        return target
    space = first_layer_spectrum(mlp)[1]
    rank = rank_above_rounding(space.singular)
    if rank > most_directions(first_layer(mlp)):
        return target
    discarded = float(space.singular[rank : rank + 1].sum() / space.singular[0])
    return replace(target, span=Span(basis=space.leading(rank).basis, discarded=discarded))


def rank_above_rounding(singular: Float[Tensor, " k"]) -> int:
    """Number of singular values, in descending order, that are more than the rounding of a sum in float32."""
    return int((singular > FLOAT32_ROUNDING * singular[0]).sum())
