"""An optimiser's momentum, as a training checkpoint keeps it beside the weights: a sum of gradients at images.

    -momentum = sum_i J(x_i)^T d_i

over the batches of the last steps, with J at the trained weights: these hardly moved within so few steps. So it takes
the place of what training added to a known start, while nothing need be known of that (docs/theory.md, "Momentum").
"""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from exhume.attack.known_init import WeightDelta
from exhume.attack.target import Target
from exhume.errors import InputError


@torch.no_grad()
def with_momentum(target: Target, momentum: Mapping[str, Tensor]) -> Target:
    """The target whose candidates must explain a momentum, by parameter, with the gradients at the trained weights.

    Parameters that have none count as frozen.

    Raises:
        InputError: a name or a shape is not the network's, or a value is not finite, or all are 0.
    """
    module = copy.deepcopy(target.network)
    parameters = dict(module.named_parameters())
    given = {name if name in parameters else f"layers.{name}": value for name, value in momentum.items()}
    for name, value in given.items():
        if name not in parameters or parameters[name].shape != value.shape:
            raise InputError(f"The momentum is another network's: this one has no {name} of this shape.")
        if not value.isfinite().all():
            raise InputError(f"The momentum of {name} is not finite.")
    if not any(value.any() for value in given.values()):
        raise InputError("The momentum is 0: no step was taken.")
    for name, parameter in parameters.items():
        parameter.copy_(-given[name].to(parameter) if name in given else torch.zeros_like(parameter))
    return replace(target, delta=WeightDelta(module=module, retained=1.0, of="momentum"))
