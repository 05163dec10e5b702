"""The methods of reconstruction, by name: how a search starts, and the settings it takes where none are given."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import nn

from exhume.chains import as_dense, dense_behind, dense_part
from exhume.errors import InputError
from exhume.methods.features import FeatureSearch
from exhume.methods.ground import Reconstruction as Reconstruction
from exhume.methods.ground import Search, Target
from exhume.methods.pixels import ReferenceSearch, any_network
from exhume.methods.subspace import SubspaceSearch
from exhume.networks import Task
from exhume.stationarity import OBJECTIVES


def exhume(target: Target, config: Reconstruction, generator: torch.Generator) -> Search:
    """Our method: in the data's subspace where the network is dense, in that of the features where dense layers
    stand behind others, over pixels and all layers elsewhere."""
    if target.change is not None and not first_moved(target.change.added):
        return any_network(target, config, generator)  # the span of the images is not to be seen
    if (dense := as_dense(target.network)) is not None:
        return SubspaceSearch(target, dense, config, generator)
    if (network := dense_behind(target.network)) is not None:
        return FeatureSearch(target, network, config, generator)
    return any_network(target, config, generator)


def first_moved(added: nn.Module) -> bool:
    """Whether training added anything to the first dense layer; no where there are none."""
    dense = dense_part(added)
    return dense is not None and bool(dense.weights[0].any())


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a search starts, what fills the settings left at None, and the objective for several classes."""

    start: Callable[[Target, Reconstruction, torch.Generator], Search]
    defaults: Reconstruction
    multiclass: str


METHODS: dict[str, Method] = {
    "exhume": Method(
        start=exhume,
        multiclass="multiclass",
        defaults=Reconstruction(
            steps=1000,
            restarts=2,
            lr_images=0.02,
            lr_multipliers=0.02,
            init_scale=0.01,
            min_multiplier=0.0,
            sharpness=10.0,
            dtype="float32",
        ),
    ),
    "reference": Method(
        start=ReferenceSearch,
        multiclass="runner-up",
        # amid the published winners; the papers chose anew for every network, see the presets
        defaults=Reconstruction(
            method="reference",
            steps=50_000,
            restarts=1,
            lr_images=0.3,
            lr_multipliers=1e-4,
            init_scale=5e-3,
            min_multiplier=0.4,
            sharpness=50.0,
            dtype="float64",
        ),
    ),
}

FILLED = ("steps", "restarts", "lr_images", "lr_multipliers", "init_scale", "min_multiplier", "sharpness", "dtype")
"""Settings that a method fills in; the others left at None are read from the weights."""


def resolve(config: Reconstruction, task: Task) -> Reconstruction:
    """Fills in what the method decides by itself, so that a record holds every setting that was used.

    Raises:
        InputError: the method is unknown, or the objective is for another task.
    """
    if config.method not in METHODS:
        raise InputError(f"Unknown method {config.method!r}; there are {', '.join(METHODS)}.")
    method = METHODS[config.method]
    objective = config.objective or (method.multiclass if task == "multiclass" else task)
    if OBJECTIVES[objective].task != task:
        raise InputError(f"The objective {objective} is for the task {OBJECTIVES[objective].task}, not {task}.")
    ours = (config.smoothness, config.bilevel, config.weighted)
    if config.method == "reference" and any(setting is not None for setting in ours):
        raise InputError("smoothness, bilevel and weighted are for the method exhume; the papers' scheme has none.")
    own = {name: getattr(method.defaults, name) for name in FILLED if getattr(config, name) is None}
    return replace(config, objective=objective, **own)
