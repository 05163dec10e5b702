"""Networks under attack that several files of tests share."""

import torch
from torch import Tensor

from exhume import Checkpoint, Exhume, NetworkConfig, Reference
from exhume.attack.search import Method
from exhume.attack.target import Target, make_target
from exhume.networks import Task, build

SMALL: dict[str, Method] = {
    "exhume": Exhume(steps=60, per_class=5),
    "reference": Reference(steps=60, per_class=5, lr_images=0.05, lr_multipliers=1e-2, sharpness=20.0),
}
"""Every method, as short as it shows anything."""


def checkpoint(
    task: Task, network: NetworkConfig | None = None, seed: int = 0, centre: Tensor | None = None
) -> Checkpoint:
    """A random network: what a search does does not depend on training."""
    network = network or NetworkConfig(widths=(20, 10), init_scale=0.3)
    if centre is None:
        centre = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(seed))
    k = 3 if task == "multiclass" else 1
    module = build(network, centre, k, torch.Generator().manual_seed(seed))
    weights = {name: p.detach() for name, p in module.layers.named_parameters()}
    classes = ("a", "b", "c")[: max(k, 2)]
    return Checkpoint(network=network, task=task, classes=classes, centre=centre, weights=weights)


def target_of(victim: Checkpoint, dtype: str = "float32") -> Target:
    """The checkpoint as a method attacks it in this precision."""
    return make_target(victim).moved_to(torch.device("cpu"), getattr(torch, dtype))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
