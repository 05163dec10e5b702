"""Full-batch gradient descent on dense ReLU networks with both passes written out, in the data's own subspace.

Gradient descent moves the rows of the first layer only within the span of the images (and the 1 of the bias); what lies
outside decays, and nothing else. So the descent runs on n coordinates instead of d pixels, exactly up to rounding, and
what remains are the matrix products.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Slope = Callable[[Float[Tensor, "n k"]], tuple[Tensor, Float[Tensor, "n k"]]]


def dense_relu(layers: Sequence[nn.Module]) -> list[nn.Linear] | None:
    """The dense layers of a chain (flatten, linear, ReLU, linear, ...), or None if it is anything else."""
    linear = [layer for layer in layers if isinstance(layer, nn.Linear)]
    kinds = [type(layer) for layer in layers]
    chain = [nn.Flatten, *[kind for _ in linear for kind in (nn.Linear, nn.ReLU)]][:-1]
    return linear if linear and kinds == chain else None


@torch.no_grad()
def descend(
    layers: Sequence[nn.Linear],
    inputs: Float[Tensor, "n d"],
    slope: Slope,
    rate: Callable[[Tensor], float],
    *,
    decay: float,
    epochs: int,
) -> None:
    """Takes `epochs` steps of gradient descent, changing the layers' parameters.

    Args:
        slope: scores -> (loss, its gradient by the scores).
        rate: loss -> learning rate of the step.
        decay: weight decay, added to the gradient as decay x weight.
    """
    biased = layers[0].bias is not None
    if biased:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    whole = [layers[0].weight, layers[0].bias[:, None]] if biased else [layers[0].weight]
    first = torch.cat([parameter.detach() for parameter in whole], 1)
    basis, coordinates = _span(inputs)
    weights = [first @ basis, *[layer.weight.detach() for layer in layers[1:]]]
    biases = [None, *[None if layer.bias is None else layer.bias.detach() for layer in layers[1:]]]
    outside, kept = first - weights[0] @ basis.T, 1.0
    for _ in range(epochs):
        activations = [coordinates]
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            activations.append(functional.linear(activations[-1], weight, bias).relu_())
        loss, delta = slope(functional.linear(activations[-1], weights[-1], biases[-1]))
        lr = rate(loss)
        shrink = 1 - lr * decay
        kept *= shrink
        for layer in reversed(range(len(weights))):
            below = (delta @ weights[layer]).mul_(activations[layer] > 0) if layer else delta
            weights[layer].addmm_(delta.T, activations[layer], alpha=-lr, beta=shrink)
            bias = biases[layer]
            if bias is not None:
                bias.mul_(shrink).sub_(delta.sum(0), alpha=lr)
            delta = below
    first = weights[0] @ basis.T + kept * outside
    layers[0].weight.copy_(first[:, : layers[0].in_features])
    if biased:
        layers[0].bias.copy_(first[:, -1])


def _span(inputs: Float[Tensor, "n d"]) -> tuple[Float[Tensor, "d r"], Float[Tensor, "n r"]]:
    """An orthonormal basis of the inputs' span, and their coordinates in it; the identity if that saves nothing."""
    count, size = inputs.shape
    if count >= size:
        return torch.eye(size, dtype=inputs.dtype, device=inputs.device), inputs
    basis = torch.linalg.qr(inputs.double().T)[0]
    return basis.to(inputs), (inputs.double() @ basis).to(inputs)
