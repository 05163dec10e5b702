"""Images that a sum of gradients tells exactly, by the neurons that were closed for them.

    M = sum_i delta_i x_i^T = U S V^T,   delta_i = U c_i,   delta_ij = 0 where neuron j was closed for image i

M: the first layer of a momentum, or of the change since a known start that has as few directions as images; x_i with a
1 for the bias. A vector of the n-dimensional span of U has n - 1 zeros in general, and delta_i has as many as neurons
were closed: this is finding a sparse vector in a subspace (Qu, Sun, Wright 2014; reweighted least squares: Daubechies
et al. 2010). Where it is 0 tells where W x_i is negative, so that x_i is found by itself, to about its gates. And where
several c_i are known, their dual vectors give these x_i exactly, but for the span of the other images, which is known
exactly too. So each delta that is found makes the next one easier (docs/theory.md, "Closed neurons").
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from exhume.attack.closed_neurons.contributions import Contributions, contributions
from exhume.attack.closed_neurons.fit import consistent, fitted, fitted_of_either_sign, gates_of
from exhume.attack.closed_neurons.zeros import ALIKE, distinct, duals, sparse_combinations
from exhume.attack.target import Target
from exhume.progress import Progress, ProgressCallback, no_op

STAGE = "closed neurons"
STARTS = 200
"""Candidates that are followed at once."""
ROUNDS = 40
"""Most rounds of finding zeros and images in turn."""
PATIENCE = 3
"""Rounds without a new image after which it ends."""


@dataclass(frozen=True, kw_only=True)
class Told:
    """images: un-centred, each another one, [k, c, h, w]; directions: of what is explained, as many as images; else 0.

    What of an image is in the span of those that are not told is known by its gates only.
    """

    images: Float[Tensor, "k c h w"]
    directions: int


def images_of_closed_neurons(
    target: Target,
    starts: Float[Tensor, "m c h w"],
    generator: torch.Generator,
    *,
    smooth: bool,
    progress_callback: ProgressCallback = no_op,
) -> Told:
    """The images that zeros tell; none where it cannot be tried.

    That is where the network is no dense one of ReLU, or where what is explained has more than MOST_RANK of as many
    directions as neurons, as what Adam changed has. No image need be known, and of a momentum no start either.

        told = images_of_closed_neurons(momentum_target(checkpoint), found.images, torch.Generator(), smooth=True)

    Args:
        target: of `momentum_target`, or of a known start.
        starts: candidates that a search has found, [m, c, h, w], m may be 0. At most half of STARTS are taken of them,
            at random; the others are random images.
        smooth: whether the images are smooth, as photographs are.
        progress_callback: is told of each round, of ROUNDS at most, and how many images are told.
    """
    span = contributions(target, smooth=smooth)
    if span is None:
        return Told(images=starts[:0], directions=0)
    some = torch.randperm(len(starts), generator=generator)[: STARTS // 2]
    given = span.coordinates(target, starts[some])
    more = random_within(torch.eye(span.rank, dtype=torch.float64), STARTS - len(given), span.length, generator)
    candidates, best, idle = torch.cat([given, more]), given[:0], 0
    for number in range(ROUNDS):
        progress_callback(Progress(stage=STAGE, step=number, total=ROUNDS, values={"images": len(best)}))
        found, others, rest = one_round(span, candidates)
        idle = 0 if len(found) > len(best) else idle + 1
        best = found if len(found) >= len(best) else best
        if idle == PATIENCE or len(rest) == 0:
            break
        fresh = random_within(rest, STARTS - len(found) - len(others), span.length, generator)
        candidates = torch.cat([found, others, fresh])
    progress_callback(Progress(stage=STAGE, step=ROUNDS, total=ROUNDS, values={"images": len(best)}))
    return Told(images=(span.differences(best) + span.subtracted).float(), directions=span.rank)


def one_round(
    span: Contributions, candidates: Float[Tensor, "m n"]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "l n"], Float[Tensor, "r n"]]:
    """From candidates to zeros and back: those whose zeros tell them, the others, and a basis of the others' span."""
    combinations = sparse_combinations(span, candidates)
    exact = distinct(span, combinations)
    rest, images = duals(span, exact)
    other = ((combinations @ exact.T).abs() < ALIKE).all(1)  # U is orthonormal
    others = candidates[other]
    if len(others) and len(rest):
        none = torch.zeros_like(others)
        others = fitted(span, gates_of(span, combinations[other]), none, others @ rest.T, rest)[0]
    if len(exact) == 0:
        return candidates[:0], others, rest
    base = functional.normalize(images) * span.length * (len(exact) / span.rank) ** 0.5
    gates = gates_of(span, exact)
    found = fitted_of_either_sign(span, gates, base, rest)
    return found[consistent(span, gates, found)], others, rest


def random_within(
    rest: Float[Tensor, "r n"], count: int, length: float, generator: torch.Generator
) -> Float[Tensor, "m n"]:
    """Random coordinates of about this length within the span of orthonormal rows."""
    drawn = torch.randn(max(0, count), len(rest), generator=generator, dtype=torch.float64)
    within: Tensor = drawn @ rest * (length / len(rest) ** 0.5)
    return within
