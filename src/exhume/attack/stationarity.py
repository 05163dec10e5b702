"""The mathematics: a trained network's parameters are a weighted sum of its gradients at the training images.

    theta = sum_i J(x_i)^T d_i          J: gradient of the scores by theta, d_i: the cotangent of sample i, [k]

which is Haim et al. 2022, eq. 3 (binary: d_i = lambda_i y_i), Buzaglo et al. 2023, eq. 4 (multiclass) and eq. 7
(any loss under weight decay). An objective says what d_i may be; a gradient function gives the right-hand side;
`residuals.py` says how far theta is from it.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from exhume.architecture import MLP
from exhume.devices import fuses
from exhume.errors import InputError
from exhume.networks import Task

Scores = Float[Tensor, "m k"]
Cotangents = Callable[[Scores], Float[Tensor, "m k"]]
Sharpness = Callable[[Tensor], Tensor | float]


# ---- Objectives: which cotangents a task allows


@dataclass(frozen=True, kw_only=True)
class Objective:
    """What the cotangents of a task are made of.

    cotangents(scores, labels, multipliers, shares) -> [m, k], with scores [m, k], labels [m] class indices,
    multipliers [m] and shares [m, k] (logits of how a multiplier is shared among the other classes);
    signed: multipliers may be negative; shared: the shares are searched for as well.
    """

    task: Task
    cotangents: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    signed: bool = False
    shared: bool = False


def _binary(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i y_i with y_i = -1 or 1 (2022, eq. 3)."""
    return (multipliers * (2 * labels - 1))[:, None]


def _runner_up(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i (e_y - e_j), j the highest-scoring other class: one multiplier a sample (2023, section 4.1)."""
    own = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
    runner_up = scores.detach().masked_fill(own.bool(), -torch.inf).argmax(1)
    return multipliers[:, None] * (own - functional.one_hot(runner_up, scores.shape[1]))


def _multiclass(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = sum_j lambda_ij (e_y - e_j): every multiplier of 2023, eq. 4, as lambda_i times shares that sum to 1."""
    own = functional.one_hot(labels, scores.shape[1]).to(scores.dtype)
    others = shares.masked_fill(own.bool(), -torch.inf).softmax(1)
    return multipliers[:, None] * (own - others)


def _regression(scores: Tensor, labels: Tensor, multipliers: Tensor, shares: Tensor) -> Tensor:
    """d_i = lambda_i of free sign (2023, eq. 7)."""
    return multipliers[:, None]


OBJECTIVES: dict[str, Objective] = {
    "binary": Objective(task="binary", cotangents=_binary),
    "multiclass": Objective(task="multiclass", cotangents=_multiclass, shared=True),
    "runner-up": Objective(task="multiclass", cotangents=_runner_up),
    "regression": Objective(task="regression", cotangents=_regression, signed=True),
}


def choose_objective(name: str | None, task: Task, multiclass: str) -> Objective:
    """The objective of that name, or the task's own; `multiclass` is the method's own for several classes.

    Raises:
        InputError: the objective is for another task.
    """
    row = OBJECTIVES[name or (multiclass if task == "multiclass" else task)]
    if row.task != task:
        raise InputError(f"The objective {name} is for the task {row.task}, not {task}.")
    return row


def check_objective(name: str | None) -> None:
    """Raises `InputError` if there is no such row of OBJECTIVES; None stands for the task's own."""
    if name is not None and name not in OBJECTIVES:
        raise InputError(f"Unknown objective {name!r}; there are {', '.join(OBJECTIVES)}.")


# ---- The smoothed gate: the value of an activation as it is, its derivative made differentiable


def fixed(sharpness: float) -> Sharpness:
    """The papers' gate: the derivative of ReLU at z becomes sigmoid(sharpness z)."""
    return lambda _: sharpness


@dataclass(frozen=True)
class ScaleFree:
    """The gate in units of each image's own pre-activations: sigmoid(sharpness z / rms(z)).

    No gradient flows through the root mean square, so that a candidate's scale stays free.
    """

    sharpness: float

    def __call__(self, z: Tensor) -> Tensor:
        squares = z.detach().pow(2).flatten(1).mean(1)
        return self.sharpness / squares.sqrt().clamp_min(1e-12).reshape(-1, *[1] * (z.ndim - 1))


def _hinge_gate(z: Tensor, sharpness: Tensor | float, below: float) -> Tensor:
    """Derivative of a hinge with slope `below` on the left: a sigmoid step from `below` to 1."""
    gate = torch.sigmoid(sharpness * z)
    return below + (1 - below) * gate if below else gate


def smoothed_hinge(z: Tensor, sharpness: Tensor | float, below: float = 0.0) -> Tensor:
    """(Leaky) ReLU whose value is exact and whose derivatives are those of the smoothed gate, to any order."""
    soft = below * z - (1 - below) * functional.logsigmoid(-sharpness * z) / sharpness
    return functional.leaky_relu(z, below).detach() + (soft - soft.detach())


class _SmoothHinges(TorchFunctionMode):
    """Replaces every ReLU and leaky ReLU that is called, as module, function or method."""

    def __init__(self, sharpness: Sharpness) -> None:
        super().__init__()
        self.sharpness = sharpness

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_):
            below = 0.0
        elif func in (functional.leaky_relu, functional.leaky_relu_):
            below = kwargs.get("negative_slope", args[1] if len(args) > 1 else 0.01)
        else:
            return func(*args, **kwargs)
        z = args[0] if args else kwargs["input"]
        if not (kwargs.get("inplace") or func.__name__.endswith("_")):
            return smoothed_hinge(z, self.sharpness(z), below)
        before = z.clone()
        return z.copy_(smoothed_hinge(before, self.sharpness(before), below))


@contextmanager
def smooth_hinges(sharpness: Sharpness) -> Iterator[None]:
    """Within, every ReLU and leaky ReLU of any network has the smoothed derivative; other activations are smooth."""
    # the mode must be off inside its own handler, which PyTorch sees to
    with _SmoothHinges(sharpness):
        yield


# ---- The weighted sum of gradients, for any network and written out for dense ones


def network_gradients(
    network: nn.Module, images: Float[Tensor, "m ..."], cotangents: Cotangents, sharpness: Sharpness
) -> list[Tensor]:
    """sum_i J(x_i)^T d_i for every parameter of any network, differentiable by images and cotangents (autograd)."""
    with smooth_hinges(sharpness):
        scores = network(images)
    total = (cotangents(scores) * scores).sum()
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # materialize_grads: a last bias, say, has no second derivative, and a parameter may be unused
    return list(torch.autograd.grad(total, parameters, create_graph=True, materialize_grads=True))


def gradients_in_chunks(
    network: nn.Module,
    images: Float[Tensor, "m ..."],
    cotangents: Float[Tensor, "m k"],
    sharpness: Sharpness,
    chunk: int,
) -> list[Tensor]:
    """The same for fixed images, differentiable by the cotangents alone; `chunk` images are held at a time."""
    return list(_GradientsInChunks.apply(network, images, sharpness, chunk, cotangents))  # type: ignore[no-untyped-call]


class _GradientsInChunks(torch.autograd.Function):
    """A linear map of the cotangents, whose graph of each chunk is made anew on the way back."""

    @staticmethod
    def forward(  # noqa: PLR0917 autograd takes no keywords
        ctx: Any, network: nn.Module, images: Tensor, sharpness: Sharpness, chunk: int, cotangents: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.chunks, ctx.sharpness, ctx.network = torch.split(images, chunk), sharpness, network
        ctx.save_for_backward(cotangents)
        totals: Sequence[Tensor | int] = []
        for some, their in zip(ctx.chunks, torch.split(cotangents, chunk), strict=True):
            sums = _chunk_gradients(network, some, their, sharpness)
            totals = [s.detach() + total for s, total in zip(sums, totals or [0] * len(sums), strict=True)]
        return tuple(total for total in totals if isinstance(total, Tensor))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *along: Tensor) -> tuple[None, None, None, None, Tensor]:
        (cotangents,) = ctx.saved_tensors
        slopes = []
        for some, their in zip(ctx.chunks, torch.split(cotangents, len(ctx.chunks[0])), strict=True):
            variable = their.detach().requires_grad_()
            sums = _chunk_gradients(ctx.network, some, variable, ctx.sharpness)
            slopes.append(torch.autograd.grad(sums, variable, along)[0])
        return None, None, None, None, torch.cat(slopes)


@torch.enable_grad()
def _chunk_gradients(network: nn.Module, images: Tensor, cotangents: Tensor, sharpness: Sharpness) -> list[Tensor]:
    return network_gradients(network, images, lambda _: cotangents, sharpness)


@dataclass(frozen=True)
class Term:
    """What each of m samples adds to a layer's sum G = delta^T inputs, and the layer's products W inputs."""

    delta: Float[Tensor, "m out"]
    inputs: Float[Tensor, "m in"]
    products: Float[Tensor, "m out"]


class _Hinge(torch.autograd.Function):
    """The exact value of a hinge, going back through a gate that is given: one operation each way."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, gate: Tensor, below: float) -> Tensor:
        ctx.save_for_backward(gate)
        return functional.leaky_relu(z, below) if below else functional.relu(z)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (gate,) = ctx.saved_tensors
        return gradient * gate, None, None


def _hinge(below: float) -> Callable[[Tensor, Tensor | float], tuple[Tensor, Tensor]]:
    def of(z: Tensor, sharpness: Tensor | float) -> tuple[Tensor, Tensor]:
        gate = _hinge_gate(z, sharpness, below)
        value: Tensor = _Hinge.apply(z, gate, below)  # type: ignore[no-untyped-call]
        return value, gate

    return of


def _gelu(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    normal = torch.exp(-z.pow(2) / 2) / (2 * torch.pi) ** 0.5
    return functional.gelu(z), torch.special.ndtr(z) + z * normal


def _silu(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    gate = z.sigmoid()
    return z * gate, gate + z * gate * (1 - gate)


def _mish(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    gate = functional.softplus(z).tanh()
    return z * gate, gate + z * z.sigmoid() * (1 - gate.pow(2))


def _elu(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    return functional.elu(z), z.clamp_max(0).exp()


def _softplus(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    return functional.softplus(z), z.sigmoid()


def _tanh(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    value = z.tanh()
    return value, 1 - value.pow(2)


def _sigmoid(z: Tensor, _: Tensor | float) -> tuple[Tensor, Tensor]:
    value = z.sigmoid()
    return value, value * (1 - value)


HINGES = {"relu": 0.0, "leaky-relu": 0.01}
"""Slope on the left of each row of `networks.ACTIVATIONS` that is a hinge."""
SLOPES: dict[str, Callable[[Tensor, Tensor | float], tuple[Tensor, Tensor]]] = {
    **{name: _hinge(below) for name, below in HINGES.items()},
    "gelu": _gelu,
    "silu": _silu,
    "mish": _mish,
    "elu": _elu,
    "softplus": _softplus,
    "tanh": _tanh,
    "sigmoid": _sigmoid,
}
"""Value and derivative of each row of `networks.ACTIVATIONS`, the derivative smoothed where there is a hinge."""


def mlp_terms(
    mlp: MLP,
    inputs: Float[Tensor, "m d"],
    cotangents: Cotangents,
    sharpness: Sharpness,
    *,
    count: int | None = None,
) -> list[Term]:
    """What each sample adds to the sum, for dense layers, first layer first: delta_l and a_{l-1} with

        G_l = delta_l^T a_{l-1},  delta_l = (delta_{l+1} W_{l+1}) * slope(z_l).

    Differentiating them once more is ordinary back-propagation, where `network_gradients` needs a second pass.

    Args:
        count: only the first `count` layers' are wanted; None: all.
    """
    through, kept = _through(mlp, sharpness)
    activations, slopes, products = [inputs.to(kept or inputs.dtype)], [], []
    for weight, bias in zip(mlp.weights, mlp.biases, strict=True):
        products.append(product(activations[-1], weight.T))
        if len(activations) < len(mlp.weights):
            value, slope = through(products[-1], bias)
            activations.append(value)
            slopes.append(slope)
    scores = products[-1].to(inputs.dtype)
    delta = cotangents(scores if mlp.biases[-1] is None else scores + mlp.biases[-1]).to(activations[0].dtype)
    terms: list[Term] = []
    for layer in reversed(range(len(mlp.weights))):
        if count is None or layer < count:
            terms.insert(0, Term(delta, activations[layer], products[layer]))
        if layer:
            delta = product(delta, mlp.weights[layer]) * slopes[layer - 1]
    return terms


Through = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def _through(mlp: MLP, sharpness: Sharpness) -> tuple[Through, torch.dtype | None]:
    """What leads through an activation, (products, bias) to value and slope, and the precision that all is kept in.

    On a GPU that multiplies in half precision it is one kernel for a hinge, and all is kept in that; None: in that of
    the inputs.
    """
    first = mlp.weights[0]
    if isinstance(sharpness, ScaleFree) and mlp.activation in HINGES and fuses(first.dtype, first.device):
        from exhume.attack import fused  # noqa: PLC0415

        if max(len(weight) for weight in mlp.weights) <= fused.MOST_NEURONS:
            return partial(fused.hinge, sharpness=sharpness.sharpness, below=HINGES[mlp.activation]), first.dtype
    row = SLOPES[mlp.activation]

    def through(z: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        z = z if bias is None else z + bias
        return row(z, sharpness(z))

    return through, None


def summed(mlp: MLP, terms: Sequence[Term]) -> list[Tensor]:
    """The weighted sum of gradients from its terms: two matrix products a layer, in the order of `mlp.parameters`."""
    gradients: list[Tensor] = []
    for term, weight, bias in zip(terms, mlp.weights, mlp.biases, strict=False):  # the first layers' may be all
        gradients.append(product(term.delta.T, term.inputs.to(weight.dtype)))
        if bias is not None:
            gradients.append(term.delta.sum(0))
    return gradients


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right, multiplied in the precision of `right` and returned in that of `left`."""
    return (left.to(right.dtype) @ right).to(left.dtype)
