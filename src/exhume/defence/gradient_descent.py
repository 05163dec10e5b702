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
from exhume.defence.losses import Slope
from exhume.devices import recorded

Rate = float | int | Callable[[Float[Tensor, "n k"]], float]
RECORDED_TOGETHER = 25
"""Epochs of one recording on a GPU: with fewer the GPU waits between replays, with more the first ones take longer."""


class Descent:
    """Gradient descent that changes an MLP's parameters, and their momenta where given, epoch after epoch.

    On a GPU epochs at a constant rate are recorded once and replayed.
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
            slope: scores [n, k] -> the loss's gradient by them.
            rate: learning rate, or scores -> learning rate of the step. A constant one costs less on a GPU.
            decay: weight decay, added to the gradient as decay x weight.
            momentum, momenta: as in PyTorch's SGD, one for each of `mlp.parameters`; None: from rest. Without a
                momentum there are none.
        """
        self.slope, self.rate, self.decay, self.momentum = slope, rate, decay, momentum
        pairs = zip(mlp.weights, mlp.biases, strict=True)
        self.parameters = [[weight] if bias is None else [weight, bias] for weight, bias in pairs]
        self.moving: list[list[Tensor]] = [[] for _ in self.parameters]
        if momentum:
            of_each = (parameter for of_layer in self.parameters for parameter in of_layer)
            given = iter(momenta or [torch.zeros_like(parameter) for parameter in of_each])
            self.moving = [[next(given) for _ in of_layer] for of_layer in self.parameters]
        if mlp.biases[0] is not None:
            # a first layer's bias is the weight of an input that is always 1
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        self.basis, self.coordinates = _span(inputs)
        within = inputs.new_empty(len(mlp.weights[0]), self.basis.shape[1])
        self.weights = [[within], *self.parameters[1:]]
        self.velocities = [[torch.empty_like(within)] if momentum else [], *self.moving[1:]]
        one = partial(self._step, rate)
        self._together = recorded(inputs.device, lambda: [one() for _ in range(RECORDED_TOGETHER)])
        self._alone = recorded(inputs.device, one)

    @torch.no_grad()
    def advance(self, epochs: int) -> None:
        """Takes so many steps, and writes them into the parameters and momenta."""
        first = [(self.weights[0][0], self.parameters[0])]
        if self.momentum:
            first.append((self.velocities[0][0], self.moving[0]))
        outside = []
        for within, parts in first:
            whole = _joined(parts)
            within.copy_(whole @ self.basis)
            outside.append(whole - within @ self.basis.T)
        for (within, parts), shares in zip(first, self._take(epochs).tolist(), strict=True):
            rest = torch.stack([share * part for share, part in zip(shares, outside, strict=True)]).sum(0)
            _part(within @ self.basis.T + rest, parts)

    def _take(self, epochs: int) -> Tensor:
        """Takes the steps on the coordinates; returns what they make of weights and momenta outside, as `_outside`."""
        if not callable(self.rate):
            for _ in range(epochs // RECORDED_TOGETHER):
                self._together()
            for _ in range(epochs % RECORDED_TOGETHER):
                self._alone()
            together: Tensor = torch.linalg.matrix_power(self._outside(self.rate), epochs)
            return together
        kept = torch.eye(2 if self.momentum else 1, dtype=torch.float64)
        for _ in range(epochs):
            kept = self._outside(self._step(self.rate)) @ kept
        return kept

    def _outside(self, lr: float) -> Tensor:
        """What a step makes of weights and momenta where there is no gradient, [2, 2]; of weights alone, [1, 1]."""
        step = [[1 - lr * self.decay, -lr * self.momentum], [self.decay, self.momentum]]
        return torch.tensor(step if self.momentum else [step[0][:1]], dtype=torch.float64)

    @torch.no_grad()
    def _step(self, rate: Rate) -> float:
        """One step on the coordinates; returns its learning rate."""
        activations = [self.coordinates]
        for of_layer in self.weights[:-1]:
            activations.append(functional.linear(activations[-1], *of_layer).relu_())
        scores = functional.linear(activations[-1], *self.weights[-1])
        delta, lr = self.slope(scores), rate(scores) if callable(rate) else rate
        for layer in reversed(range(len(self.weights))):
            # of what comes through a ReLU, nothing where it gave 0
            below = delta @ self.weights[layer][0] if layer else delta
            below = torch.ops.aten.threshold_backward(below, activations[layer], 0) if layer else below
            self._move(layer, delta, activations[layer], lr)
            delta = below
        return lr

    def _move(self, layer: int, delta: Float[Tensor, "n out"], inputs: Float[Tensor, "n in"], lr: float) -> None:
        """Changes a layer by its gradient delta^T inputs, and its momenta where there are any."""
        weight, *bias = self.weights[layer]
        kept = 1 - lr * self.decay
        if not self.momentum:
            weight.addmm_(delta.T, inputs, beta=kept, alpha=-lr)
            for one in bias:
                one.mul_(kept).sub_(delta.sum(0), alpha=lr)
            return
        velocity, *of_bias = self.velocities[layer]
        velocity.addmm_(delta.T, inputs, beta=self.momentum)
        for one in of_bias:
            one.mul_(self.momentum).add_(delta.sum(0))
        for moved, by in zip(self.weights[layer], self.velocities[layer], strict=True):
            if self.decay:
                by.add_(moved, alpha=self.decay)
            moved.sub_(by, alpha=lr)


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
