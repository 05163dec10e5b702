"""Full-batch gradient descent on dense ReLU networks with both passes written out, in the data's own subspace.

Gradient descent moves the rows of the first layer only within the span of the images (and the 1 of the bias); what lies
outside follows a recurrence of two numbers, by decay and momentum, and nothing else. So the descent runs on n
coordinates instead of d pixels, exactly up to rounding, and what remains are the matrix products.
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
    momentum: float = 0.0,
    momenta: Sequence[Tensor] | None = None,
) -> None:
    """Takes `epochs` steps of gradient descent, changing the layers' parameters, and their momenta where given.

    Args:
        slope: scores -> (loss, its gradient by the scores).
        rate: loss -> learning rate of the step.
        decay: weight decay, added to the gradient as decay x weight.
        momentum, momenta: as in PyTorch's SGD, one for each parameter in the layers' order; None: from rest.
    """
    parameters = [parameter.detach() for layer in layers for parameter in layer.parameters()]
    momenta = [torch.zeros_like(parameter) for parameter in parameters] if momenta is None else momenta
    own = 1 + (layers[0].bias is not None)
    if layers[0].bias is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    basis, coordinates = _span(inputs)
    # a first layer's bias is the weight of an input that is always 1
    first, moving = _joined(parameters[:own]), _joined(momenta[:own])
    weights, velocities = [first @ basis, *parameters[own:]], [moving @ basis, *momenta[own:]]
    outside, drifting = first - weights[0] @ basis.T, moving - velocities[0] @ basis.T
    kept = torch.eye(2, dtype=torch.float64)  # weights and momenta outside, by what they were
    # where each layer's weight is among `weights`, and whether a bias follows it
    places, at = [(0, False)], 1
    for layer in layers[1:]:
        places.append((at, layer.bias is not None))
        at += 1 + (layer.bias is not None)
    for _ in range(epochs):
        activations = [coordinates]
        for place, biased in places:
            z = functional.linear(activations[-1], weights[place], weights[place + 1] if biased else None)
            activations.append(z if place == places[-1][0] else z.relu_())
        loss, delta = slope(activations.pop())
        lr = rate(loss)
        kept = torch.tensor([[1 - lr * decay, -lr * momentum], [decay, momentum]], dtype=torch.float64) @ kept
        for (place, biased), activation in zip(reversed(places), reversed(activations), strict=True):
            below = (delta @ weights[place]).mul_(activation > 0) if place else delta
            velocities[place].addmm_(delta.T, activation, beta=momentum)
            if biased:
                velocities[place + 1].mul_(momentum).add_(delta.sum(0))
            for moved in range(place, place + 1 + biased):
                if decay:
                    velocities[moved].add_(weights[moved], alpha=decay)
                weights[moved].sub_(velocities[moved], alpha=lr)
            delta = below
    (w, wv), (vw, v) = kept.tolist()
    _part(weights[0] @ basis.T + w * outside + wv * drifting, parameters[:own])
    _part(velocities[0] @ basis.T + vw * outside + v * drifting, momenta[:own])


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
