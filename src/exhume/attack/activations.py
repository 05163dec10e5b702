"""Activations with a smoothed gate: their value as it is, their derivative made differentiable."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from exhume.architecture import MLP
from exhume.devices import fuses

Sharpness = Callable[[Tensor], Tensor | float]


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


# ---- Value and smoothed derivative at once, for gradients that are written out


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


Through = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]


def through_activation(mlp: MLP, sharpness: Sharpness) -> tuple[Through, torch.dtype | None]:
    """What leads through an activation, (products, bias) to value and slope, and the precision that all is kept in.

    On a GPU that multiplies in half precision it is one kernel for a hinge, and all is kept in that; None: in that of
    the inputs.
    """
    first = mlp.weights[0]
    if isinstance(sharpness, ScaleFree) and mlp.activation in HINGES and fuses(first.dtype, first.device):
        from exhume.attack import step_triton  # noqa: PLC0415

        if max(len(weight) for weight in mlp.weights) <= step_triton.MOST_NEURONS:
            return partial(step_triton.hinge, sharpness=sharpness.sharpness, below=HINGES[mlp.activation]), first.dtype
    row = SLOPES[mlp.activation]

    def through(z: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        z = z if bias is None else z + bias
        return row(z, sharpness(z))

    return through, None
