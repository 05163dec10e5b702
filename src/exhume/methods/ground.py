"""What the methods stand on: the target, the settings, the multipliers, and what a search is."""

import math
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from exhume.candidates import Reading
from exhume.errors import InputError, check_seed
from exhume.initialisation import Change
from exhume.networks import Shape, Task
from exhume.stationarity import OBJECTIVES, Objective


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is attacked: a network in evaluation mode, its input's centre [c, h, w], task and number of outputs.

    network: where gradients are taken, the trained one or, if its start is known, one halfway to it; change: what
    training has done to that start, None where it is unknown.
    """

    network: nn.Module
    centre: Float[Tensor, "c h w"]
    task: Task
    outputs: int
    change: Change | None = None

    @property
    def explained(self) -> nn.Module:
        """The module whose parameters the candidates have to explain: all of theta, or what was added to its start."""
        return self.network if self.change is None else self.change.added

    def moved(self, parameter: Tensor) -> bool:
        """Whether a parameter of `explained` has anything to explain: one that was frozen since a known start has not,
        and it was never asked to follow its gradient."""
        return self.change is None or bool(parameter.any())

    @property
    def shape(self) -> Shape:
        """(channels, height, width) of an image."""
        channels, height, width = self.centre.shape
        return channels, height, width

    @property
    def labels(self) -> int:
        """Number of different labels a candidate can have."""
        return self.outputs if self.task == "multiclass" else 2


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """How to reconstruct. None means: the method's own value, or read from the weights."""

    method: str = "exhume"
    """A row of METHODS: exhume, or reference (the papers' scheme, exactly)."""
    steps: int | None = None
    """Steps of the optimiser; None: 1000 for exhume, 50000 for reference."""
    restarts: int | None = None
    """Searches from independent starts, whose candidates are all kept; how far they agree tells how sure each is. None:
    2 for exhume, 1 for reference."""
    images: int | None = None
    """Number of training images assumed; None: read from the spectrum of the first dense layer."""
    per_class: int | None = None
    """Candidates of each class in a search; None: twice the images assumed, at least 200, as far as neurons allow."""
    objective: str | None = None
    """A row of OBJECTIVES; None: binary, regression, multiclass for exhume, runner-up for reference."""
    lr_images: float | None = None
    """Learning rate of the images (exhume: Muon, of the largest spread the images can have, falling to a fiftieth;
    reference: SGD)."""
    lr_multipliers: float | None = None
    """Learning rate of the multipliers (exhume: 0.02, Adam; reference: SGD)."""
    init_scale: float | None = None
    """Standard deviation of the first guess of the images around the centre."""
    min_multiplier: float | None = None
    """Multipliers below are penalised, unless they may be negative."""
    sharpness: float | None = None
    """Sharpness of the smoothed derivative of ReLU (exhume: per rms of an image's pre-activations)."""
    smoothness: float | None = None
    """Weight of the images' total variation (exhume); None: 4e-6 where the data's directions are smooth as those of
    photographs are, or dense layers stand behind others, for each layer if all are stationary; else 0."""
    bilevel: float | None = None
    """Weight of the images' grey, y (1 - y) of a pixel y, against the weighted error, twice a negative log-likelihood
    (exhume, without effect where that is not weighted); None: 5 where the mean says that pixels are black or white, and
    they are not smooth; else 0."""
    weighted: bool | None = None
    """Whether to weight the first layer's residual by the error that training leaves behind (exhume); None: yes."""
    dtype: str | None = None
    """Precision: float32 or float64."""
    seed: int = 0
    """Seed of the first guess."""

    def __post_init__(self) -> None:
        if self.objective is not None and self.objective not in OBJECTIVES:
            raise InputError(f"Unknown objective {self.objective!r}; there are {', '.join(OBJECTIVES)}.")
        if self.dtype not in (None, "float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, not {self.dtype!r}.")
        for name in ("steps", "restarts", "images", "per_class"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        for name in ("lr_images", "lr_multipliers", "init_scale", "sharpness"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InputError(f"{name} must be positive, not {value}.")
        if self.min_multiplier is not None and not math.isfinite(self.min_multiplier):
            raise InputError(f"min_multiplier must be a finite number, not {self.min_multiplier}.")
        check_seed(self.seed)
        for name in ("smoothness", "bilevel"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise InputError(f"{name} must not be negative, and {value} is.")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search has at the moment: images [m, c, h, w] un-centred, multipliers [m], cotangents [m, k]."""

    images: Tensor
    multipliers: Tensor
    cotangents: Tensor


@runtime_checkable
class Search(Protocol):
    """A search under way: each optimiser step follows the gradient of `objective`, at a rate that its schedule sets."""

    reading: Reading
    labels: Int[Tensor, " m"]
    optimisers: list[torch.optim.Optimizer]
    schedules: list[torch.optim.lr_scheduler.LRScheduler]

    def objective(self) -> tuple[Tensor, Tensor]:
        """The stationarity residual and the penalties, two scalars to be minimised together."""

    def found(self) -> Found:
        """The candidates of the moment."""


class Multipliers:
    """The multipliers of m candidates with their labels, and how each is shared among the other classes."""

    def __init__(self, target: Target, labels: Tensor, config: Reconstruction, generator: torch.Generator) -> None:
        assert config.objective is not None and config.min_multiplier is not None
        self.row: Objective = OBJECTIVES[config.objective]
        self.labels, self.least = labels, config.min_multiplier
        count, dtype, device = len(labels), target.centre.dtype, target.centre.device
        draw = torch.randn if self.row.signed and config.method == "reference" else torch.rand
        start = draw(count, generator=generator, dtype=dtype).to(device)
        if self.row.signed and config.method != "reference":
            start = start * (2 * labels - 1)
        self.values = start.requires_grad_()
        self.shares = torch.zeros(count, target.outputs, dtype=dtype, device=device, requires_grad=True)

    def cotangents(self, scores: Tensor) -> Tensor:
        return self.row.cotangents(scores, self.labels, self.values, self.shares) / len(self.labels)

    def penalty(self) -> Tensor:
        """sum relu(min_multiplier - lambda)^2, nothing where multipliers may be negative."""
        if self.row.signed:
            return self.values.new_zeros(())
        return (self.least - self.values).relu().pow(2).sum()

    def group(self, config: Reconstruction) -> dict[str, Any]:
        """The optimiser's parameter group of everything that is searched for besides the images."""
        return {"params": [self.values, self.shares] if self.row.shared else [self.values], "lr": config.lr_multipliers}


GUESS = 100
"""Training images assumed where neither the settings nor the weights tell."""


def assumed_images(
    config: Reconstruction, target: Target, rank: int
) -> tuple[int, Literal["weights", "settings", "nothing"]]:
    """How many training images to assume, and why; rank: what the first layer shows, 0 for nothing."""
    if config.images is not None:
        return config.images, "settings"
    if config.per_class is not None:
        return max(config.per_class * target.labels // 2, 1), "settings"
    return (rank, "weights") if rank else (GUESS, "nothing")


def balanced_labels(target: Target, config: Reconstruction, images: int, neurons: int | None = None) -> Tensor:
    """The candidates' labels: twice the images assumed, at least 200, shared evenly among the classes.

    Within r directions m candidates have m r unknowns and the first layer gives `neurons` x r equations. No more
    candidates than half the neurons, or than images, leave the condition over-determined.
    """
    count = max(2 * images, 200)
    if neurons is not None:
        count = min(count, max(images, neurons // 2))
    per_class = config.per_class or -(-count // target.labels)
    return torch.arange(target.labels, device=target.centre.device).repeat_interleave(per_class)


def first_guess(shape: tuple[int, ...], scale: float, around: Tensor, generator: torch.Generator) -> Tensor:
    """Normal with standard deviation `scale` around a point, which must broadcast to `shape`."""
    start = scale * torch.randn(shape, generator=generator, dtype=around.dtype)
    return (around + start.to(around.device)).requires_grad_()


def implausible(images: Float[Tensor, "m c h w"], smoothness: float) -> Tensor:
    """What speaks against un-centred images: squared distance of the pixels to [0, 1], variation where asked for."""
    outside = 3e-3 * (images - images.detach().clamp(0, 1)).pow(2).sum()
    return outside + smoothness * total_variation(images) if smoothness else outside


def grey(images: Float[Tensor, "m c h w"]) -> Tensor:
    """sum over pixels of y (1 - y), the pixels clamped to [0, 1]: nothing for images in black and white."""
    pixels = images.clamp(0, 1)
    return (pixels * (1 - pixels)).sum()


EDGE = 0.02
"""Slope of an image, in its units a pixel, below which total variation is quadratic, so that it has a gradient."""


def total_variation(images: Float[Tensor, "m c h w"]) -> Tensor:
    """sum over pixels of the slope sqrt(across^2 + down^2 + EDGE^2) - EDGE, over all channels at once.

    Photographs are flat with edges, which squared differences blur more (Rudin, Osher, Fatemi 1992; see the log).
    """
    total: Tensor = _TotalVariation.apply(images)  # type: ignore[no-untyped-call]
    return total


class _TotalVariation(torch.autograd.Function):
    """With its gradient written out: that of a slice is a whole picture of zeros to PyTorch, four of them here."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        across = functional.pad(images.diff(dim=-1), (0, 1))
        down = functional.pad(images.diff(dim=-2), (0, 0, 0, 1))
        slope = (across.pow(2) + down.pow(2)).sum(1, keepdim=True).add_(EDGE**2).sqrt_()
        ctx.save_for_backward(across.div_(slope), down.div_(slope))
        return (slope - EDGE).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        across, down = ctx.saved_tensors
        pull = -(across + down)
        pull[..., 1:] += across[..., :-1]
        pull[..., 1:, :] += down[..., :-1, :]
        result: Tensor = pull.mul_(gradient)
        return result


def spread(centre: Tensor) -> float:
    """The largest root-mean-square distance from their mean that images in [0, 1] can have: their scale.

    Where the centre is no such mean (zero, say, because none was subtracted): that of a grey one.
    """
    return float((centre.numel() * (_room(centre) or WIDEST)) ** 0.5)


def black_or_white(centre: Tensor) -> bool:
    """Whether images in [0, 1] of this mean m must be black or white for the most part.

    The mean of their y (1 - y) is at most that of m (1 - m); asked is half of what a grey mean allows (digits a third,
    photographs nearly all). Says no where the centre is no mean.
    """
    room = _room(centre)
    return room is not None and room < WIDEST / 2


WIDEST = 0.25
"""Variance that a pixel in [0, 1] has at most."""


def _room(centre: Tensor) -> float | None:
    """Variance of a pixel, on average, that images in [0, 1] of this mean have at most; None: it is no such mean."""
    room = float((centre * (1 - centre)).clamp_min(0).mean())
    return room if room > 0.05**2 * WIDEST else None


def image_optimisers(
    images: Float[Tensor, "m d"], multipliers: Multipliers, target: Target, config: Reconstruction
) -> list[torch.optim.Optimizer]:
    """Ours: Muon for the candidates, a matrix, and Adam for their multipliers.

    Muon's orthogonalised step moves all directions alike, between candidates as well as within one, however weakly the
    weights depend on them; Adam's diagonal scaling cannot (on binary networks 44 instead of 15 images).
    """
    assert config.lr_images is not None
    lr = config.lr_images * spread(target.centre)
    steps = torch.optim.Muon([images], lr=lr, weight_decay=0.0, momentum=0.9, adjust_lr_fn="match_rms_adamw", eps=1e-30)
    return [steps, torch.optim.Adam([multipliers.group(config)])]


def falling(images: torch.optim.Optimizer, config: Reconstruction) -> torch.optim.lr_scheduler.LRScheduler:
    """Lets the images' rate fall in a line to a fiftieth over the search.

    Muon's steps do not get shorter by themselves. Long ones at first find more, short ones at the end let it come to
    rest (of 500 photographs 101 instead of 37, see the log).
    """
    assert config.steps is not None
    return torch.optim.lr_scheduler.LinearLR(images, 1.0, 0.02, total_iters=config.steps)


def snapshot(target: Target, images: Tensor, multipliers: Multipliers) -> Found:
    with torch.no_grad():
        images, values = images.detach(), multipliers.values.detach().clone()
        return Found(images=images, multipliers=values, cotangents=multipliers.cotangents(target.network(images)))
