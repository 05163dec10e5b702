"""An optimiser's momentum, as a training checkpoint keeps it beside the weights: a sum of gradients at images.

    -momentum = sum_i J(x_i)^T d_i

over the batches of the last steps, with J at the trained weights: these hardly moved within so few steps. So it takes
the place of what training added to a known start, while nothing need be known of that (docs/theory.md, "Momentum").
"""

from dataclasses import replace

import torch
from torch import nn

from exhume.attack.folding import folded
from exhume.attack.known_init import WeightDelta
from exhume.attack.target import Target, make_target
from exhume.checkpoint import Checkpoint
from exhume.errors import InputError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@torch.no_grad()
def momentum_target(checkpoint: Checkpoint) -> Target:
    """The target whose candidates must explain a checkpoint's momentum, with the gradients at its trained weights.

    Parameters without a momentum count as frozen.

    Raises:
        InputError: a name or a shape is not the network's, a value is not finite, all are 0, or there is BatchNorm,
            whose batches mix the images' gradients.
    """
    module = checkpoint.build()
    if any(isinstance(layer, NORMS) for layer in module.modules()):
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
