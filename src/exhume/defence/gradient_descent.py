"""Full-batch gradient descent on ReLU MLPs with both passes written out, in the data's own subspace.

Gradient descent moves the rows of the first layer only within the span of the images (and the 1 of the bias); what lies
outside follows a recurrence of two numbers, by decay and momentum, and nothing else. So the descent runs on n
coordinates instead of d pixels, exactly up to rounding, and what remains are the matrix products.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from exhume.architecture import MLP
from exhume.devices import recorded

Slope = Callable[[Float[Tensor, "n k"]], tuple[Tensor, Float[Tensor, "n k"]]]
Rate = float | int | Callable[[Tensor], float]


class Descent:
    """Gradient descent that changes an MLP's parameters, and their momenta where given, epoch after epoch.

    On a GPU an epoch at a constant rate is recorded once and replayed.
    """

    def __init__(
        self,
        mlp: MLP,
        inputs: Float[Tensor, "n d"],
        slope: Slope,
        rate: Rate,
        *,
        decay: float,
        momentum: float = 0.0,
        momenta: Sequence[Tensor] | None = None,
    ) -> None:
        """Looks at the inputs once; nothing is changed yet.

        Args:
            slope: scores -> (loss, its gradient by the scores).
            rate: learning rate, or loss -> learning rate of the step. A constant one costs less on a GPU.
            decay: weight decay, added to the gradient as decay x weight.
            momentum, momenta: as in PyTorch's SGD, one for each of `mlp.parameters`; None: from rest.
        """
        self.slope, self.rate, self.decay, self.momentum = slope, rate, decay, momentum
        pairs = zip(mlp.weights, mlp.biases, strict=True)
        self.parameters = [[weight] if bias is None else [weight, bias] for weight, bias in pairs]
        of_each = (parameter for of_layer in self.parameters for parameter in of_layer)
        given = iter(momenta or [torch.zeros_like(parameter) for parameter in of_each])
        self.moving = [[next(given) for _ in of_layer] for of_layer in self.parameters]
        if mlp.biases[0] is not None:
            # a first layer's bias is the weight of an input that is always 1
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        self.basis, self.coordinates = _span(inputs)
        within = inputs.new_empty(len(mlp.weights[0]), self.basis.shape[1])
        self.weights = [[within], *self.parameters[1:]]
        self.velocities = [[torch.empty_like(within)], *self.moving[1:]]
        self._recorded = recorded(inputs.device, partial(self._step, rate))

    @torch.no_grad()
    def advance(self, epochs: int) -> None:
        """Takes so many steps, and writes them into the parameters and momenta."""
        first, drift = _joined(self.parameters[0]), _joined(self.moving[0])
        self.weights[0][0].copy_(first @ self.basis)
        self.velocities[0][0].copy_(drift @ self.basis)
        outside = first - self.weights[0][0] @ self.basis.T
        drifting = drift - self.velocities[0][0] @ self.basis.T
        kept = torch.eye(2, dtype=torch.float64)  # weights and momenta outside, by what they were
        for _ in range(epochs):
            if callable(self.rate):
                lr = self._step(self.rate)
            else:
                self._recorded()
                lr = self.rate
            step = [[1 - lr * self.decay, -lr * self.momentum], [self.decay, self.momentum]]
            kept = torch.tensor(step, dtype=torch.float64) @ kept
        (w, wv), (vw, v) = kept.tolist()
        _part(self.weights[0][0] @ self.basis.T + w * outside + wv * drifting, self.parameters[0])
        _part(self.velocities[0][0] @ self.basis.T + vw * outside + v * drifting, self.moving[0])

    @torch.no_grad()
    def _step(self, rate: Rate) -> float:
        """One step on the coordinates; returns its learning rate."""
        weights, velocities, activations = self.weights, self.velocities, [self.coordinates]
        for of_layer in weights[:-1]:
            activations.append(functional.linear(activations[-1], *of_layer).relu_())
        loss, delta = self.slope(functional.linear(activations[-1], *weights[-1]))
        lr = rate(loss) if callable(rate) else rate
        for layer in reversed(range(len(weights))):
            below = (delta @ weights[layer][0]).mul_(activations[layer] > 0) if layer else delta
            velocities[layer][0].addmm_(delta.T, activations[layer], beta=self.momentum)
            for velocity in velocities[layer][1:]:  # a bias
                velocity.mul_(self.momentum).add_(delta.sum(0))
            for weight, velocity in zip(weights[layer], velocities[layer], strict=True):
                if self.decay:
                    velocity.add_(weight, alpha=self.decay)
                weight.sub_(velocity, alpha=lr)
            delta = below
        return lr


def _joined(parts: Sequence[Tensor]) -> Float[Tensor, "out columns"]:
    """Weight and bias of a layer side by side."""
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def _part(joined: Float[Tensor, "out columns"], parts: Sequence[Tensor]) -> None:
    """Writes what `_joined` has put together back into its parts."""
    sizes = [part[0].numel() for part in parts]
    for part, columns in zip(parts, torch.split(joined, sizes, 1), strict=True):
        part.copy_(columns.reshape(part.shape))


def _span(inputs: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d r"], Float[Tensor, "n r"]]:
    """An orthonormal basis of the inputs' span, and their coordinates in it; the identity if that saves nothing."""
    count, size = inputs.shape
    if count >= size:
        return torch.eye(size, dtype=inputs.dtype, device=inputs.device), inputs
    basis = torch.linalg.qr(inputs.double().T)[0]
    return basis.to(inputs), (inputs.double() @ basis).to(inputs)
