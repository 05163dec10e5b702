"""The defender: trains a network on a problem, until its gradient vanishes or the epochs are over."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from exhume.architecture import MLP, as_mlp
from exhume.checkpoint import Checkpoint, check_fits
from exhume.defence.gradient_descent import Descent
from exhume.defence.losses import LOSSES, resolve_loss, targets
from exhume.defence.privacy import PrivateSteps
from exhume.devices import check_memory
from exhume.errors import InputError, check_seed
from exhume.layers import BATCH_NORMS
from exhume.networks import NetworkConfig, build, numbers_kept, weight_count
from exhume.problems import Problem
from exhume.progress import Progress, ProgressCallback, no_op


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train.

    Example:
        exhume.train(problem, exhume.TrainingConfig(epochs=500, lr=0.1))
    """

    loss: str | None = None
    """A row of LOSSES: bce, ce, mse, huber or l2.5; None: bce for binary, ce for multiclass, mse for regression."""
    epochs: int = 1000
    """Most passes over the training set."""
    lr: float = 0.5
    """Learning rate of gradient descent."""
    lr_over_loss: float = 0.0
    """For bce and ce without decay: the rate is lr_over_loss / loss where that is larger than lr, the same path in ever
    longer strides (Lyu & Li 2020, appendix L). A thousandth is safe on digits, too much for 500 photographs and bce;
    0: always lr."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    """Gradient descent, or Adam, whose path leads to another margin: the condition is then an approximation."""
    momentum: float = 0.0
    """Momentum of sgd; large values spoil the stationarity that reconstruction lives on."""
    weight_decay: float = 0.0
    """Weight decay, added to the gradient as weight_decay x weight."""
    batch_size: int | None = None
    """Images in a batch; None: all of them (gradient descent, as in the papers)."""
    shifts: int = 0
    """Augmentation: move each image by up to so many pixels across and down, anew at each step."""
    noise: float = 0.0
    """DP-SGD: standard deviation of the noise on the sum of a batch's gradients, relative to `clip`; 0: none. Needs
    the extra dp (opacus)."""
    clip: float = 1.0
    """DP-SGD: the norm that each image's gradient is clipped to."""
    stop_loss: float = 0.0
    """Stop when the loss falls below."""
    stop_gradient: float = 0.0
    """Stop when the norm of the gradient, decay included, falls below: stationarity."""
    patience: int | None = None
    """Early stopping: stop when the accuracy on held-out images has not improved for so many evaluations."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of the weights and of the arithmetic."""
    seed: int = 0
    """Seed of the initial weights and of the batches."""
    evaluate_every: int | None = None
    """Epochs between evaluations; None: about a hundred in all."""

    def __post_init__(self) -> None:
        if self.loss is not None and self.loss not in LOSSES:
            raise InputError(f"Unknown loss {self.loss!r}; there are {', '.join(LOSSES)}.")
        if self.dtype not in ("float32", "float64"):
            raise InputError(f"dtype must be float32 or float64, not {self.dtype!r}.")
        check_seed(self.seed)
        if self.epochs < 0:
            raise InputError(f"epochs must not be negative, and {self.epochs} is.")
        if not 0 < self.lr < math.inf:
            raise InputError(f"lr must be positive, not {self.lr}.")
        if not 0 <= self.lr_over_loss < math.inf:
            raise InputError(f"lr_over_loss must not be negative, and {self.lr_over_loss} is.")
        if self.lr_over_loss and (self.weight_decay or (self.loss is not None and LOSSES[self.loss].has_floor)):
            raise InputError("lr_over_loss is for bce and ce without weight decay: elsewhere the loss has a floor.")
        if not (0 <= self.momentum < 1) or not 0 <= self.weight_decay < math.inf:
            raise InputError("momentum must be in [0, 1) and weight_decay must not be negative.")
        if not (math.isfinite(self.stop_loss) and math.isfinite(self.stop_gradient)):
            raise InputError("stop_loss and stop_gradient must be finite.")
        for name in ("batch_size", "evaluate_every", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, not {value}.")
        if self.optimiser not in ("sgd", "adam"):
            raise InputError(f"optimiser must be sgd or adam, not {self.optimiser!r}.")
        if self.optimiser == "adam" and (self.momentum or self.lr_over_loss):
            raise InputError("momentum and lr_over_loss are for sgd; adam has a momentum and a rate of its own.")
        self._check_defences()

    def _check_defences(self) -> None:
        if self.shifts < 0 or not 0 <= self.noise < math.inf or not 0 < self.clip < math.inf:
            raise InputError("shifts and noise must not be negative, and clip must be positive.")
        if self.noise and self.batch_size is None:
            raise InputError("DP-SGD draws batches: give batch_size with noise.")


@dataclass(frozen=True, kw_only=True)
class TrainingPoint:
    """The network after `epoch` epochs: mean loss, norm of the full gradient with decay, accuracies in [0, 1]."""

    epoch: int
    loss: float
    gradient: float
    accuracy: float
    held_out_accuracy: float


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The result of `train`.

    status: "stationary", "fitted" (loss below the limit), "no better" (early stopping), "epochs over" or "diverged",
    with `message` as a sentence;
    margins: [n], by how much each training image is on the right side (regression: minus the absolute residual).
    """

    checkpoint: Checkpoint
    history: list[TrainingPoint]
    margins: list[float]
    status: str
    message: str
    seconds: float


@dataclass(kw_only=True)
class TrainingState:
    """Where an interrupted training goes on: weights, momenta and the batches' generator after `epoch` epochs.

    momenta: what the optimiser keeps of a parameter, by the parameter's name and its own: "0.weight momentum_buffer".
    """

    epoch: int
    weights: dict[str, Tensor]
    momenta: dict[str, Tensor]
    generator: Tensor
    history: list[TrainingPoint] = field(default_factory=list)
    seconds: float = 0.0


def train(
    problem: Problem,
    config: TrainingConfig | None = None,
    *,
    network: NetworkConfig | None = None,
    initial: Checkpoint | None = None,
    device: torch.device | str = "cpu",
    progress_callback: ProgressCallback = no_op,
    resume: TrainingState | None = None,
    keep: Callable[[TrainingState], None] = lambda _: None,
) -> Trained:
    """Trains `network` (None: the initial one, or the problem's own) on the problem's images by gradient descent.

        trained = exhume.train(exhume.load_problem("mnist-digits"), exhume.TrainingConfig(epochs=500))
        print(trained.message, trained.history[-1].loss)

    Args:
        initial: a network to begin with (fine-tuning), one that was built elsewhere too; what it does to images before
            its first layer stays. None: fresh weights from the seed.
        progress_callback: is told of the progress at every evaluation.
        resume: goes on from here; the numbers are those of an uninterrupted training.
        keep: is given the state at every evaluation, to keep it for `resume`.

    Raises:
        InputError: the loss does not fit the problem's task, or the initial network not the problem or `network`.
            Divergence is a status.
    """
    config = config or TrainingConfig()
    if initial is not None:
        check_fits(initial, network, (problem.task, problem.outputs, tuple(problem.images.shape[1:])))
    network = network or problem.network
    _check_memory(problem, network if initial is None else initial, config, torch.device(device))
    session = _Session(problem, network, config, torch.device(device), initial)
    history = session.resume(resume) if resume else []
    start = time.perf_counter() - (resume.seconds if resume else 0)
    every = config.evaluate_every or max(1, config.epochs // 100)
    epoch = resume.epoch if resume else 0
    while True:
        point = session.evaluate(epoch)
        history = [*(seen for seen in history if seen.epoch < epoch), point]
        verdict = _verdict(history, config)
        if verdict:
            break
        keep(session.state(epoch, history, time.perf_counter() - start))
        values = {"loss": point.loss, "gradient": point.gradient, "accuracy": point.accuracy}
        progress_callback(Progress(stage="train", step=epoch, total=config.epochs, values=values))
        if epoch == config.epochs:
            break
        until = min(epoch - epoch % every + every, config.epochs)
        session.advance(until - epoch)
        epoch = until
    status, message = verdict or ("epochs over", f"All {config.epochs} epochs are over.")
    return Trained(
        checkpoint=session.checkpoint(),
        history=history,
        margins=session.margins(),
        status=status,
        message=message,
        seconds=time.perf_counter() - start,
    )


COPIES = 3
"""Numbers of the weights' size that a training holds at the least: weights, gradients, and these with decay."""


def _check_memory(
    problem: Problem, network: NetworkConfig | Checkpoint, config: TrainingConfig, device: torch.device
) -> None:
    """Raises `InputError` for a training that does not fit into memory, before any of it is there."""
    channels, height, width = problem.images.shape[1:]
    if isinstance(network, NetworkConfig):
        count = weight_count(network, (channels, height, width), problem.outputs)
        outputs, lower = len(problem.images) * sum(network.widths), "smaller --widths, --channels or --per-class"
    else:
        count = sum(weight.numel() for weight in network.weights.values())
        outputs, lower = len(problem.images) * numbers_kept(network.build(), network.shape), "fewer images"
    size = getattr(torch, config.dtype).itemsize
    what = f"A network of {count:,} weights on {len(problem.images):,} images"
    check_memory((COPIES * count + outputs) * size, device, what, lower)


def _verdict(history: Sequence[TrainingPoint], config: TrainingConfig) -> tuple[str, str] | None:
    """Why to stop at the last point, as a status and a sentence; None to go on."""
    point = history[-1]
    if not (math.isfinite(point.loss) and math.isfinite(point.gradient)):
        return "diverged", f"The loss was no longer finite after {point.epoch} epochs; a smaller lr may help."
    if point.loss < config.stop_loss:
        return "fitted", f"The loss fell below {config.stop_loss:g} after {point.epoch} epochs."
    if point.gradient < config.stop_gradient:
        return "stationary", f"The gradient's norm fell below {config.stop_gradient:g} after {point.epoch} epochs."
    best = max(range(len(history)), key=lambda i: history[i].held_out_accuracy)
    if config.patience is not None and len(history) - 1 - best >= config.patience:
        return "no better", f"The accuracy on held-out images has not improved since epoch {history[best].epoch}."
    return None


class _Session:
    """A training under way: the module, its data on the device, the optimiser and the batches' generator."""

    def __init__(
        self,
        problem: Problem,
        network: NetworkConfig,
        config: TrainingConfig,
        device: torch.device,
        initial: Checkpoint | None,
    ) -> None:
        self.problem, self.network, self.config, self.initial = problem, network, config, initial
        row = LOSSES[resolve_loss(problem.task, config.loss)]
        self.loss, self.slopes = row.loss, row.slopes
        dtype = getattr(torch, config.dtype)
        self.generator = torch.Generator().manual_seed(config.seed)
        if initial is None:
            module = build(network, problem.images.to(dtype).mean(0), problem.outputs, self.generator)
        else:
            module = initial.build()
        self.module = module.to(device, dtype)
        self.images, self.labels = problem.images.to(device, dtype), problem.labels.to(device)
        self.held_out, self.held_out_labels = problem.held_out.to(device, dtype), problem.held_out_labels.to(device)
        self.measures_batches = any(isinstance(layer, BATCH_NORMS) for layer in module.modules())
        if self.measures_batches and min(config.batch_size or len(self.images), len(self.images)) < 2:
            raise InputError("A network with BatchNorm is trained in batches of at least two images.")
        self.optimiser = _optimiser(list(self.module.parameters()), config)
        self.private = self._private() if config.noise else None
        self.descent: Descent | None = None

    def advance(self, epochs: int) -> None:
        """Passes over the training set."""
        size = self.config.batch_size or len(self.images)
        self.module.train()
        mlp, plain = self._own_mlp(), not (self.config.shifts or self.config.noise)
        if plain and mlp and mlp.activation == "relu" and size >= len(self.images) and self.config.optimiser == "sgd":
            self.descent = self.descent or self._descent(mlp)
            self.descent.advance(epochs)
            return
        for _ in range(epochs):
            self._epoch(size)

    def _own_mlp(self) -> MLP | None:
        """The module as an MLP whose layers are all its own; None of a layer that is used twice."""
        mlp = as_mlp(self.module)
        return mlp if mlp and len(mlp.parameters) == len(list(self.module.parameters())) else None

    def _descent(self, mlp: MLP) -> Descent:
        momenta = None
        if self.config.momentum:
            # a network may have been built in another order than that of its work
            own = {parameter.data_ptr(): parameter for parameter in self.module.parameters()}
            parameters = [own[tensor.data_ptr()] for tensor in mlp.parameters]
            kept = [self.optimiser.state[parameter] for parameter in parameters]
            for state, parameter in zip(kept, parameters, strict=True):
                state.setdefault("momentum_buffer", torch.zeros_like(parameter))
            momenta = [state["momentum_buffer"] for state in kept]
        scores = self.images.new_empty(len(self.images), self.problem.outputs)
        return Descent(
            mlp,
            self.module.centre(self.images).flatten(1),
            self.slopes(scores, self.labels),
            (lambda scores: self._rate(self.loss(scores, self.labels))) if self.config.lr_over_loss else self.config.lr,
            decay=self.config.weight_decay,
            momentum=self.config.momentum,
            momenta=momenta,
        )

    def _private(self) -> PrivateSteps:
        return PrivateSteps(
            self.module,
            self.optimiser,
            noise=self.config.noise,
            clip=self.config.clip,
            batch_size=self.config.batch_size or len(self.images),
            device=self.images.device,
        )

    def _epoch(self, size: int) -> None:
        if self.private is not None:
            for _ in range(-(-len(self.images) // size)):
                rows = torch.rand(len(self.images), generator=self.generator) < size / len(self.images)
                self._step(self.images[rows], self.labels[rows])
            return
        if size >= len(self.images):
            self._step(self.images, self.labels)
            return
        order = torch.randperm(len(self.images), generator=self.generator).to(self.images.device)
        batches = list(torch.split(order, size))
        if self.measures_batches and len(batches[-1]) == 1:
            batches[-2:] = [torch.cat(batches[-2:])]  # of one image there is no variance
        for rows in batches:
            self._step(self.images[rows], self.labels[rows])

    def _step(self, images: Tensor, labels: Tensor) -> None:
        if self.config.shifts:
            images = shifted(images, self.config.shifts, self.generator)
        if self.private is not None:
            self.private.step(self.loss, images, labels, self.generator)
            return
        self.optimiser.zero_grad()
        loss = self.loss(self.module(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(loss)
        self.optimiser.step()

    def _rate(self, loss: Tensor) -> float:
        """The learning rate of a step from a point with this loss."""
        scaled = self.config.lr_over_loss
        return max(self.config.lr, scaled / max(loss.item(), 1e-30)) if scaled else self.config.lr

    def evaluate(self, epoch: int) -> TrainingPoint:
        """The figures of the moment, over the whole training set."""
        self.module.eval()
        scores = self.module(self.images)
        loss = self.loss(scores, self.labels)
        parameters = list(self.module.parameters())
        gradients = torch.autograd.grad(loss, parameters)
        decayed = [g + self.config.weight_decay * p.detach() for g, p in zip(gradients, parameters, strict=True)]
        with torch.no_grad():
            held_out_scores = self.module(self.held_out)
        return TrainingPoint(
            epoch=epoch,
            loss=loss.item(),
            gradient=torch.stack([g.norm() for g in decayed]).norm().item(),
            accuracy=_accuracy(scores, self.labels),
            held_out_accuracy=_accuracy(held_out_scores, self.held_out_labels),
        )

    def state(self, epoch: int, history: list[TrainingPoint], seconds: float) -> TrainingState:
        """Everything that a later process needs to go on from here."""
        momenta = {
            f"{name} {kept}": tensor.detach().clone()
            for name, parameter in self.module.named_parameters()
            for kept, tensor in self.optimiser.state[parameter].items()
            if tensor is not None
        }
        return TrainingState(
            epoch=epoch,
            weights={name: tensor.clone() for name, tensor in self._kept().items()},
            momenta=momenta,
            generator=self.generator.get_state(),
            history=history,
            seconds=seconds,
        )

    def resume(self, state: TrainingState) -> list[TrainingPoint]:
        """Takes up a kept state; returns its history."""
        parameters = dict(self.module.named_parameters())
        for name, tensor in self._kept().items():
            tensor.copy_(state.weights[name])
        for key, tensor in state.momenta.items():
            name, kept = key.split(" ")
            # Adam counts its steps on the CPU
            place = "cpu" if kept == "step" else parameters[name].device
            self.optimiser.state[parameters[name]][kept] = tensor.to(place, copy=True)
        self.generator.set_state(state.generator)
        return state.history

    def _kept(self) -> dict[str, Tensor]:
        """The layers' parameters, and the statistics that BatchNorm measures, as they are: no copies."""
        kept: dict[str, Tensor] = self.module.layers.state_dict(prefix="layers.")
        return kept

    def checkpoint(self) -> Checkpoint:
        """What the owner publishes: weights and training mean, no images."""
        weights = {name.removeprefix("layers."): tensor.cpu().clone() for name, tensor in self._kept().items()}
        centre, scale, classes = self.module.centre.centre.cpu(), self.module.centre.scale, self.problem.classes
        if self.initial is None:
            task = self.problem.task
            return Checkpoint(network=self.network, task=task, classes=classes, centre=centre, weights=weights)
        scale = None if scale is None else scale.cpu()
        return replace(self.initial, classes=classes, centre=centre, scale=scale, weights=weights, momentum={})

    def margins(self) -> list[float]:
        """How far each training image is on the right side of the decision (regression: minus the residual)."""
        with torch.no_grad():
            scores = self.module(self.images)
        if self.problem.task == "multiclass":
            right = scores.gather(1, self.labels[:, None])[:, 0]
            others = scores.scatter(1, self.labels[:, None], -math.inf)
            margins = right - others.amax(1)
        elif self.problem.task == "binary":
            margins = scores[:, 0] * targets(scores, self.labels)
        else:
            margins = -(scores[:, 0] - targets(scores, self.labels)).abs()
        return [float(margin) for margin in margins]


def shifted(
    images: Float[Tensor, "n c h w"], pixels: int, generator: torch.Generator | None = None
) -> Float[Tensor, "n c h w"]:
    """Each image moved by up to so many pixels across and down, black where nothing was.

    Args:
        generator: what draws the moves; None: PyTorch's own.
    """
    padded = functional.pad(images, [pixels] * 4)
    height, width = images.shape[2:]
    moves = torch.randint(2 * pixels + 1, (len(images), 2), generator=generator).tolist()
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)])


def _optimiser(parameters: list[nn.Parameter], config: TrainingConfig) -> torch.optim.Optimizer:
    """Both add the decay to the gradient, as weight_decay x weight."""
    if config.optimiser == "adam":
        return torch.optim.Adam(parameters, config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, config.lr, config.momentum, weight_decay=config.weight_decay)


def _accuracy(scores: Tensor, labels: Tensor) -> float:
    """Share on the right side; for real targets, of the same sign."""
    if scores.shape[1] > 1:
        return (scores.argmax(1) == labels).double().mean().item()
    return ((scores[:, 0] > 0) == (targets(scores, labels) > 0)).double().mean().item()
