"""What a method of reconstruction is, and what a search under way is."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from exhume.attack.target import Target
from exhume.candidates import Assumptions
from exhume.errors import InputError, check_seed
from exhume.networks import Task


@dataclass(frozen=True, kw_only=True)
class Iterate:
    """The candidates after some steps: images [m, c, h, w] un-centred, multipliers [m], cotangents [m, k]."""

    images: Float[Tensor, "m c h w"]
    multipliers: Float[Tensor, " m"]
    cotangents: Float[Tensor, "m k"]

    def moved_to(self, like: Tensor) -> "Iterate":
        """The same on the device of a tensor."""
        parts = {item.name: getattr(self, item.name).to(like.device) for item in fields(self)}
        return Iterate(**parts)


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A first guess that is given, in place of a random one.

    images: [n, c, h, w] un-centred; labels: [n] class indices, or signs as 0 and 1; multipliers: [n]; shares: [n, k],
    logits of how each multiplier is shared among the other classes.
    """

    images: Float[Tensor, "n c h w"]
    labels: Int[Tensor, " n"]
    multipliers: Float[Tensor, " n"]
    shares: Float[Tensor, "n k"]


@dataclass(frozen=True, kw_only=True)
class FixedImages:
    """The residual of images that stay as they are: a quadratic function of their cotangents d, [n, k].

    residual(d): a scalar, differentiable by d; by_layer(d): the same of each layer that is believed, by the name of its
    weight, each relative to what is to be explained of it; reweight(d): weighs errors from now on as at the end of a
    search whose candidates are these images; inside: [n], the share of each image's squared norm, or of its features',
    within the subspace that is searched, None where there is none; projections: [n, c, h, w], the images of that
    subspace nearest to them, None where every image can be reached.
    """

    residual: Callable[[Float[Tensor, "n k"]], Tensor]
    by_layer: Callable[[Float[Tensor, "n k"]], dict[str, float]]
    reweight: Callable[[Float[Tensor, "n k"]], None]
    inside: Float[Tensor, " n"] | None
    projections: Float[Tensor, "n c h w"] | None


@runtime_checkable
class Search(Protocol):
    """A search under way: each step follows the gradient of `objective`, at a rate that the schedules set."""

    assumptions: Assumptions
    labels: Int[Tensor, " m"]
    optimisers: list[torch.optim.Optimizer]
    schedules: list[torch.optim.lr_scheduler.LRScheduler]

    def prepare(self, step: int) -> None:
        """Does what comes before the objective of step `step`, at some steps only, a new weighting for example."""

    def objective(self) -> tuple[Tensor, Tensor]:
        """The stationarity residual and the penalties, two scalars to be minimised together."""

    def iterate(self) -> Iterate:
        """The candidates of the moment."""

    def state(self) -> dict[str, Tensor]:
        """What the next steps depend on besides variables, optimisers and schedules: a weighting, for example."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes up what `state` gave; raises `OtherState` if this search cannot go on from it."""


@dataclass(frozen=True, kw_only=True)
class Method(ABC):
    """A method of reconstruction: a frozen dataclass of its own settings. These four are common to all methods."""

    steps: int = 1000
    """Steps of the optimiser in each search."""
    restarts: int = 1
    """Searches from independent starts. The candidates of all are kept, and their agreement gives the confidence."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the variables."""
    seed: int = 0
    """Seed of the first guess."""

    def __post_init__(self) -> None:
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, not {self.dtype!r}.")
        check_seed(self.seed)
        check_counts(steps=self.steps, restarts=self.restarts)

    def check_task(self, task: Task) -> None:  # noqa: B027 a method without settings for one task needs none
        """Raises `InputError` if the settings do not fit the task."""

    @abstractmethod
    def prepared(self, target: Target) -> "Begin":
        """Looks at the weights once, and returns what begins a search from a random first guess.

        Raises:
            InputError: the settings do not fit the target's task.
        """

    def start(self, target: Target, generator: torch.Generator) -> Search:
        """Begins one search; raises as `prepared` does."""
        return self.prepared(target)(generator)


@runtime_checkable
class SearchOfFixed(Search, Protocol):
    """A search that can also judge images that stay as they are."""

    def fix(self, images: Float[Tensor, "n c h w"], *, chunk: int) -> FixedImages:
        """The residual of un-centred images as a function of their cotangents; `chunk` of them are held at a time."""


@runtime_checkable
class Begin(Protocol):
    """Begins a search; each call draws another first guess, unless one is given."""

    def __call__(self, generator: torch.Generator, *, guess: Guess | None = None) -> Search: ...


def check_counts(**settings: int | None) -> None:
    """Raises `InputError` for a number below 1; None is no number."""
    for name, value in settings.items():
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, not {value}.")


def check_positive(**settings: float) -> None:
    """Raises `InputError` for a setting that is not a positive finite number."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InputError(f"{name} must be positive, not {value}.")


def check_weights(**settings: float | None) -> None:
    """Raises `InputError` for a weight that is negative or not finite; None is no weight."""
    for name, value in settings.items():
        if value is not None and not 0 <= value < math.inf:
            raise InputError(f"{name} must not be negative, and {value} is.")


def check_finite(**settings: float) -> None:
    """Raises `InputError` for a setting that is not a finite number."""
    for name, value in settings.items():
        if not math.isfinite(value):
            raise InputError(f"{name} must be a finite number, not {value}.")
