"""The mathematics: a trained network's parameters are a weighted sum of its gradients at the training images.

    theta = sum_i J(x_i)^T d_i          J: gradient of the scores by theta, d_i: the cotangent of sample i, [k]

which is Haim et al. 2022, eq. 3 (binary: d_i = lambda_i y_i), Buzaglo et al. 2023, eq. 4 (multiclass) and eq. 7
(any loss under weight decay). An objective says what d_i may be; a gradient function gives the right-hand side;
`residuals.py` says how far theta is from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from exhume.architecture import MLP
from exhume.attack.activations import Sharpness, smooth_hinges, through_activation

Scores = Float[Tensor, "m k"]
Cotangents = Callable[[Scores], Float[Tensor, "m k"]]


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
    through, kept = through_activation(mlp, sharpness)
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
