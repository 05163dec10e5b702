"""Muon for the candidates: momentum whose steps are orthogonalised (Jordan et al. 2024).

PyTorch's own `torch.optim.Muon` rounds to bfloat16 whatever the precision asked for, and its steps cannot be recorded
on a GPU. This one is the same to the last bit where both apply; the tests hold it to that.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from exhume.devices import fast_products

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic Newton-Schulz iteration, whose slope at 0 is the largest (Jordan et al. 2024)."""
ITERATIONS = 5
RMS = 0.2
"""Root mean square of a step of rate 1, that of Adam's steps (Liu et al. 2025, arXiv 2502.16982)."""
TINY = 1e-30
"""A gradient's scale tells nothing, so only a gradient of zeros is told from others."""


class Muon(torch.optim.Optimizer):
    """Steps along the nearest orthogonal matrix, nearly, of Nesterov's momentum; for matrices [m, d].

    On a GPU the rate is a tensor there, so that a recorded step follows its schedule. It is float64: rounded to float32
    it moves the residual of 30 steps by 1e-6.
    """

    def __init__(self, params: list[Tensor], lr: float, momentum: float) -> None:
        rate = torch.tensor(lr, dtype=torch.float64, device=params[0].device) if params[0].is_cuda else lr
        super().__init__(params, {"lr": rate, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                self._step(matrix, self.state[matrix], group)

    def _step(self, matrix: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        gradient = matrix.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        update = orthogonalised(gradient.lerp(momentum, group["momentum"]))
        rate = RMS * max(matrix.shape) ** 0.5 * group["lr"]
        if isinstance(rate, Tensor):
            matrix.sub_(rate * update)
        else:
            matrix.add_(update, alpha=-rate)


def orthogonalised(matrix: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
    """U V^T of a matrix U S V^T, nearly: its singular values become 0.7 to 1.2.

    Multiplied in bfloat16 where float32 is asked for and the device has units for it, else in the matrix's precision.
    """
    a, b, c = COEFFICIENTS
    wide = matrix.to(fast_products(matrix.dtype, matrix.device))
    tall = wide.shape[0] > wide.shape[1]
    wide = wide / wide.norm().clamp(min=TINY)
    for _ in range(ITERATIONS):
        # rows stay rows: a transposed one would have rows of a length that a GPU multiplies slowly
        gram = wide.T @ wide if tall else wide @ wide.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        wide = torch.addmm(wide, *((wide, polynomial) if tall else (polynomial, wide)), beta=a)
    return wide
