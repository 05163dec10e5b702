"""Full-batch gradient descent on ReLU MLPs with both passes written out, in the data's own subspace.

Gradient descent moves the rows of the first layer only within the span of the images (and the 1 of the bias); what lies
outside follows a recurrence of two numbers, by decay and momentum, and nothing else. So the descent runs on n
coordinates instead of d pixels, exactly up to rounding, and what remains are the matrix products.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from exhume.architecture import MLP
from exhume.devices import WARM_UP, recorded

EPOCHS_RECORDED = 25
"""Epochs that a GPU replays in one launch."""
Slope = Callable[[Float[Tensor, "n k"]], tuple[Tensor, Float[Tensor, "n k"]]]


@torch.no_grad()
def descend(
    mlp: MLP,
    inputs: Float[Tensor, "n d"],
    slope: Slope,
    rate: float | Callable[[Tensor], float],
    *,
    decay: float,
    epochs: int,
    momentum: float = 0.0,
    momenta: Sequence[Tensor] | None = None,
) -> None:
    """Takes `epochs` steps of gradient descent, changing the MLP's parameters, and their momenta where given.

    Args:
        slope: scores -> (loss, its gradient by the scores).
        rate: learning rate, or loss -> learning rate of the step. On a GPU a constant one costs less: the steps are
            then recorded.
        decay: weight decay, added to the gradient as decay x weight.
        momentum, momenta: as in PyTorch's SGD, one for each of `mlp.parameters`; None: from rest.
    """
    pairs = zip(mlp.weights, mlp.biases, strict=True)
    parameters = [[weight] if bias is None else [weight, bias] for weight, bias in pairs]
    given = iter(momenta or [torch.zeros_like(parameter) for of_layer in parameters for parameter in of_layer])
    moving = [[next(given) for _ in of_layer] for of_layer in parameters]
    if mlp.biases[0] is not None:
        # a first layer's bias is the weight of an input that is always 1
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    basis, coordinates = _span(inputs)
    first, drift = _joined(parameters[0]), _joined(moving[0])
    weights, velocities = [[first @ basis], *parameters[1:]], [[drift @ basis], *moving[1:]]
    outside, drifting = first - weights[0][0] @ basis.T, drift - velocities[0][0] @ basis.T
    kept = torch.eye(2, dtype=torch.float64)  # weights and momenta outside, by what they were

    def step(lr: float | Callable[[Tensor], float]) -> float:
        activations = [coordinates]
        for of_layer in weights[:-1]:
            activations.append(functional.linear(activations[-1], *of_layer).relu_())
        loss, delta = slope(functional.linear(activations[-1], *weights[-1]))
        lr = lr if isinstance(lr, float) else lr(loss)
        for layer in reversed(range(len(weights))):
            below = (delta @ weights[layer][0]).mul_(activations[layer] > 0) if layer else delta
            velocities[layer][0].addmm_(delta.T, activations[layer], beta=momentum)
            for velocity in velocities[layer][1:]:  # a bias
                velocity.mul_(momentum).add_(delta.sum(0))
            for weight, velocity in zip(weights[layer], velocities[layer], strict=True):
                if decay:
                    velocity.add_(weight, alpha=decay)
                weight.sub_(velocity, alpha=lr)
            delta = below
        return lr

    if isinstance(rate, float):
        fixed = rate

        def block() -> None:
            for _ in range(EPOCHS_RECORDED):
                step(fixed)

        alone = min(epochs, max(WARM_UP, epochs % EPOCHS_RECORDED))
        alone += (epochs - alone) % EPOCHS_RECORDED
        for _ in range(alone):
            step(fixed)
        many = recorded(coordinates.device, block, warm_up=0)
        for _ in range((epochs - alone) // EPOCHS_RECORDED):
            many()
        rates = [fixed] * epochs
    else:
        rates = [step(rate) for _ in range(epochs)]
    for lr in rates:
        kept = torch.tensor([[1 - lr * decay, -lr * momentum], [decay, momentum]], dtype=torch.float64) @ kept
    (w, wv), (vw, v) = kept.tolist()
    _part(weights[0][0] @ basis.T + w * outside + wv * drifting, parameters[0])
    _part(velocities[0][0] @ basis.T + vw * outside + v * drifting, moving[0])


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
