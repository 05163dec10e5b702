"""Images that a momentum tells exactly, by the neurons that were closed for them.

    M = sum_i delta_i x_i^T = U S V^T,   delta_i = U c_i,   delta_ij = 0 where neuron j was closed for image i

M: the first layer of the momentum, x_i with a 1 for the bias. A vector of the n-dimensional span of U has n - 1 zeros
in general, and delta_i has as many as neurons were closed: this is finding a sparse vector in a subspace (Qu, Sun,
Wright 2014; reweighted least squares: Daubechies et al. 2010). Where it is 0 tells where W x_i is negative, so that
x_i is found by itself, to about its gates. And where several c_i are known, their dual vectors give these x_i exactly,
but for the span of the other images, which is known exactly too. So each delta that is found makes the next one easier
(docs/theory.md, "Closed neurons").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from exhume.architecture import MLP
from exhume.attack.momentum import FLOAT32_ROUNDING, rank_above_rounding
from exhume.attack.priors import spread
from exhume.attack.spectrum import first_layer
from exhume.attack.target import Target
from exhume.progress import Progress, ProgressCallback, no_op

STAGE = "closed neurons"
MORE_ZEROS = 0.15
"""Share of neurons that must be closed beyond rank / neurons, which a wrong vector reaches. The right ones on
photographs have 0.3 more in the median, the wrong ones 0.05. Chosen on one network."""
MOST_RANK = 0.25
"""Rank over neurons up to which right vectors can be told from wrong ones by their zeros."""
MOST_DIRECTIONS = 200
"""Directions up to which it is tried: the time grows with their third power."""
STARTS = 200
"""Candidates that are followed at once."""
ROUNDS = 16
"""Most rounds of finding zeros and images in turn."""
PATIENCE = 3
"""Rounds without a new image after which it ends."""
OPEN, CLOSED = 0.3, 0.02
"""Size of delta_ij, relative to the 90th percentile of image i, from and up to which neuron j counts as open or closed.
Between them it was open in earlier steps only."""
EXACT_ZERO = 0.01
"""The same for the zeros that are counted."""
LARGE = 0.9
"""Quantile of |delta_ij| over the neurons that is a large one."""
MARGIN = 0.2
"""Pre-activation, by the root mean square, below whose negative a candidate's neuron is taken as closed."""
SPARSE_POWER, SHARP_POWER = 0.5, 0.2
"""p of sum |delta_j|^p, first by a candidate's closed neurons, then by all."""
SPARSE_EPSILONS = [max(1e-3, 0.3 * 0.7**k) for k in range(1, 20)]
SHARP_EPSILONS = [max(1e-5, 0.02 * 0.6**k) for k in range(15)]
"""What is added to |delta_j|, relative to a large one, from step to step."""
RIDGE = 1e-10
"""Added to the diagonal of a quadratic form, relative to its mean."""
FIT_STEPS, FIT_RATE = 100, 0.3
"""Steps of Adam that fit an image to its gates, and their rate in coordinates."""
ALIKE = 0.9
"""Cosine of two deltas from which on they are those of one image."""
OPEN_ERROR, CLOSED_ERROR = 0.3, 0.02
"""Chance that a neuron which counts as open, or as closed, is not so for the weights of the end."""
SLOPE = 10.0
"""Of the gates' logistic function, by the pre-activations' root mean square: that of the search."""
SMOOTHNESS = 0.1
"""Weight of the total variation, of an image of usual contrast, beside the log-likelihood of its gates."""
TYPICAL_SPREAD = 0.45
"""Distance of an image from the mean, relative to the largest that images in [0, 1] can have on average."""
SIZE_WEIGHT, BIAS_WEIGHT = 5.0, 10.0
"""Of the squared logarithm of that distance over the typical one; of (b - 1)^2, b the coordinate of the bias."""


@dataclass(frozen=True, kw_only=True)
class MomentumSpan:
    """M = U S V^T, and what the trained first layer W gives within it.

    subtracted, divided: before the first layer; typical: an image's distance from the mean, length: that of its
    inputs; neurons: U, [N, n]; singular: S, [n]; basis: V, [d, n]; gates: W V, [N, n]. An image is its coordinates
    x V, [n].
    """

    subtracted: Float[Tensor, "c h w"]
    divided: Float[Tensor, "c h w"] | None
    typical: float
    length: float
    neurons: Float[Tensor, "N n"]
    singular: Float[Tensor, " n"]
    basis: Float[Tensor, "d n"]
    gates: Float[Tensor, "N n"]
    biased: bool
    smooth: bool

    @property
    def rank(self) -> int:
        return len(self.singular)

    def inputs(self, coordinates: Float[Tensor, "m n"]) -> Float[Tensor, "m c h w"]:
        """What the first layer sees of the images."""
        pixels = self.subtracted.numel()
        return (coordinates @ self.basis[:pixels].T).reshape(-1, *self.subtracted.shape)

    def differences(self, coordinates: Float[Tensor, "m n"]) -> Float[Tensor, "m c h w"]:
        """The images less what the network subtracts."""
        inputs = self.inputs(coordinates)
        return inputs if self.divided is None else inputs * self.divided

    def coordinates(self, target: Target, images: Float[Tensor, "m c h w"]) -> Float[Tensor, "m n"]:
        """Those of un-centred images, of their projections."""
        inputs = target.as_inputs(images.to(target.centre)).flatten(1).cpu().double()
        return (torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1) if self.biased else inputs) @ self.basis


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Neurons that count as open and as closed for each candidate, [m, N] each; the others tell nothing."""

    opened: Bool[Tensor, "m N"]
    closed: Bool[Tensor, "m N"]


def images_of_closed_neurons(
    target: Target,
    starts: Float[Tensor, "m c h w"],
    generator: torch.Generator,
    *,
    smooth: bool,
    progress_callback: ProgressCallback = no_op,
) -> Float[Tensor, "k c h w"]:
    """Images of which the momentum tells the zeros: un-centred, each another one; none where it cannot be tried.

    That is where the network is no dense one of ReLU, or the momentum has more than MOST_RANK of as many directions as
    neurons. No start of the training and no image need be known.

        images = images_of_closed_neurons(momentum_target(checkpoint), found.images, torch.Generator(), smooth=True)

    Args:
        target: of `momentum_target`.
        starts: candidates that a search has found, [m, c, h, w], m may be 0. Random ones are added.
        smooth: whether the images are smooth, as photographs are.
        progress_callback: is told of each round, of ROUNDS at most, and how many images are told.
    """
    span = momentum_span(target, smooth=smooth)
    if span is None:
        return starts[:0]
    given = span.coordinates(target, starts)[:STARTS]
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
    return (span.differences(best) + span.subtracted).float()


def momentum_span(target: Target, *, smooth: bool) -> MomentumSpan | None:
    """What is read of the momentum; None where it cannot be tried."""
    mlp, explained = target.architecture, target.explained_mlp
    if not isinstance(mlp, MLP) or explained is None or mlp.activation != "relu" or not explained.weights[0].any():
        return None
    momentum = first_layer(explained).detach().cpu().double()
    size = momentum.norm(dim=1)
    told = size > FLOAT32_ROUNDING * size.max()  # a neuron that was closed for every image is a zero of any vector
    neurons, singular, basis = torch.linalg.svd(momentum[told], full_matrices=False)
    rank = rank_above_rounding(singular)
    if not 1 < rank <= min(MOST_RANK * len(neurons), MOST_DIRECTIONS):
        return None
    cut = basis[:rank].T.contiguous()
    divided, typical = target.divided, TYPICAL_SPREAD * spread(target.centre)
    return MomentumSpan(
        subtracted=target.subtracted.detach().cpu().double(),
        divided=None if divided is None else divided.detach().cpu().double(),
        typical=typical,
        length=typical / target.unit,
        neurons=neurons[:, :rank].contiguous(),
        singular=singular[:rank],
        basis=cut,
        gates=first_layer(mlp).detach().cpu().double()[told] @ cut,
        biased=explained.biases[0] is not None,
        smooth=smooth,
    )


def one_round(
    span: MomentumSpan, candidates: Float[Tensor, "m n"]
) -> tuple[Float[Tensor, "k n"], Float[Tensor, "l n"], Float[Tensor, "r n"]]:
    """From candidates to zeros and back: those whose zeros tell them, the others, and a basis of the others' span."""
    combinations = sparse_combinations(span, candidates)
    chosen, alike = distinct(span, combinations)
    exact = sharpened(span, combinations[chosen]) if len(chosen) else combinations[chosen]
    rest, images = duals(span, exact)
    others = (~alike).nonzero().flatten()
    unlike, none = candidates[others], candidates.new_zeros(len(others), span.rank)
    within = fitted(span, gates_of(span, combinations[others]), none, unlike @ rest.T, rest) if len(others) else unlike
    if len(chosen) == 0:
        return candidates[:0], within, rest
    sign = (images * candidates[chosen]).sum(1, keepdim=True).sign()
    length = span.length * (len(chosen) / span.rank) ** 0.5
    base = functional.normalize(images) * sign * length
    found = fitted(span, gates_of(span, exact), base, candidates.new_zeros(len(chosen), len(rest)), rest)
    return found, within, rest


def sparse_combinations(span: MomentumSpan, candidates: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """For each candidate the c, of length 1, for which U c is sparsest on the neurons that the candidate closes."""
    before = candidates @ span.gates.T
    closed = (before < -MARGIN * before.pow(2).mean(1, keepdim=True).sqrt()).double()
    start = torch.linalg.eigh(quadratic_forms(span, closed))[1][:, :, 0]
    return reweighted(span, start, closed, SPARSE_POWER, SPARSE_EPSILONS)


def sharpened(span: MomentumSpan, combinations: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The same with the zeros that they have themselves, of any neuron, to rounding."""
    every = combinations.new_ones(len(combinations), len(span.neurons))
    return reweighted(span, combinations, every, SHARP_POWER, SHARP_EPSILONS)


def reweighted(
    span: MomentumSpan,
    start: Float[Tensor, "m n"],
    weights: Float[Tensor, "m N"],
    power: float,
    epsilons: Sequence[float],
) -> Float[Tensor, "m n"]:
    """Minimises sum_j w_j |(U c)_j|^p by least squares, each time with the last c as the direction of length 1."""
    for epsilon in epsilons:
        size = (start @ span.neurons.T).abs()
        floor = epsilon * size.quantile(LARGE, dim=1, keepdim=True)
        now = weights / (size.pow(2) + floor**2).pow(1 - power / 2)
        start = functional.normalize(torch.linalg.solve(quadratic_forms(span, now), start[:, :, None])[:, :, 0])
    return start


def quadratic_forms(span: MomentumSpan, weights: Float[Tensor, "m N"]) -> Float[Tensor, "m n n"]:
    """U^T diag(w) U for each row of weights, of mean 1, and a little more that it can be inverted."""
    scaled = weights / weights.mean(1, keepdim=True).clamp_min(1e-300)
    forms = torch.stack([span.neurons.T @ (row[:, None] * span.neurons) for row in scaled])
    ridge = RIDGE * forms.diagonal(dim1=1, dim2=2).mean(1)
    return forms + ridge[:, None, None] * torch.eye(span.rank, dtype=torch.float64)


def relative_sizes(span: MomentumSpan, combinations: Float[Tensor, "m n"]) -> Float[Tensor, "m N"]:
    """|delta_ij| over its 90th percentile."""
    size = (combinations @ span.neurons.T).abs()
    return size / size.quantile(LARGE, dim=1, keepdim=True)


def gates_of(span: MomentumSpan, combinations: Float[Tensor, "m n"]) -> Gates:
    size = relative_sizes(span, combinations)
    return Gates(opened=size > OPEN, closed=size < CLOSED)


def distinct(span: MomentumSpan, combinations: Float[Tensor, "m n"]) -> tuple[Tensor, Bool[Tensor, " m"]]:
    """Rows with more zeros than a wrong vector has, no two alike, and which rows are like one of them."""
    share = (relative_sizes(span, combinations) < EXACT_ZERO).double().mean(1)
    cosines = (combinations @ combinations.T).abs()  # U is orthonormal
    enough, chosen = span.rank / len(span.neurons) + MORE_ZEROS, list[int]()
    for row in share.argsort(descending=True, stable=True).tolist():
        if share[row] < enough or len(chosen) == span.rank - 1:
            break
        if not chosen or float(cosines[row, chosen].max()) < ALIKE:
            chosen.append(row)
    rows = torch.tensor(chosen, dtype=torch.long)
    return rows, (cosines[:, rows] > ALIKE).any(1)


def duals(span: MomentumSpan, combinations: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "r n"], Float[Tensor, "k n"]]:
    """An orthonormal basis of the other images' span, and the images of these c, outside of it, up to their length.

    With C the matrix of all c_i, the images are C^-1 S V^T. So those of some c_i lie in the rest's span plus that of
    pinv(C) S, and all others are orthogonal to these c_i S^-1.
    """
    scaled = torch.diag(span.singular)
    known = torch.linalg.qr(combinations.T)[0]
    rest = torch.linalg.svd(scaled - known @ (known.T @ scaled))[2][: span.rank - len(combinations)]
    images = torch.linalg.pinv(combinations.T) @ scaled
    return rest, images - images @ rest.T @ rest


def fitted(
    span: MomentumSpan,
    gates: Gates,
    base: Float[Tensor, "m n"],
    start: Float[Tensor, "m r"],
    rest: Float[Tensor, "r n"],
) -> Float[Tensor, "m n"]:
    """Coordinates s base + y rest, s > 0, that are likeliest by their gates and are plausible images."""
    within, scale = start.clone().requires_grad_(), base.new_zeros(len(base), 1).requires_grad_()
    optimiser = torch.optim.Adam([{"params": [within], "lr": FIT_RATE}, {"params": [scale], "lr": FIT_RATE / 3}])
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, FIT_STEPS)
    by_base, by_rest = base @ span.gates.T, span.gates @ rest.T
    for _ in range(FIT_STEPS):
        optimiser.zero_grad()
        coordinates = scale.exp() * base + within @ rest
        before = scale.exp() * by_base + within @ by_rest.T
        (unlikeliness(before, gates) + implausibility(span, coordinates)).backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    return (scale.exp() * base + within @ rest).detach()


def unlikeliness(before: Float[Tensor, "m N"], gates: Gates) -> Tensor:
    """The negative log-likelihood of gates that pre-activations have, where some gates are told wrongly."""
    chance = torch.sigmoid(SLOPE * before / before.detach().pow(2).mean(1, keepdim=True).sqrt())
    opened = (OPEN_ERROR + (1 - OPEN_ERROR) * chance).log() * gates.opened
    closed = (CLOSED_ERROR + (1 - CLOSED_ERROR) * (1 - chance)).log() * gates.closed
    cost: Tensor = -(opened + closed).sum()
    return cost


def implausibility(span: MomentumSpan, coordinates: Float[Tensor, "m n"]) -> Tensor:
    """What makes coordinates no image: pixels outside of [0, 1], an odd size, b other than 1, a rough photograph.

    The total variation is that of the image at the typical size: it must not make images faint.
    """
    images = span.differences(coordinates)
    size = images.flatten(1).norm(dim=1).clamp_min(1e-30)
    pixels = images + span.subtracted
    cost: Tensor = (pixels - pixels.detach().clamp(0, 1)).pow(2).sum()
    cost = cost + SIZE_WEIGHT * (size / span.typical).log().pow(2).sum()
    if span.biased:
        cost = cost + BIAS_WEIGHT * (coordinates @ span.basis[-1] - 1).pow(2).sum()
    if span.smooth:
        slopes = images.diff(dim=-1).abs().sum((1, 2, 3)) + images.diff(dim=-2).abs().sum((1, 2, 3))
        cost = cost + SMOOTHNESS * (slopes / size).sum() * span.typical
    return cost


def random_within(
    rest: Float[Tensor, "r n"], count: int, length: float, generator: torch.Generator
) -> Float[Tensor, "m n"]:
    """Random coordinates of about this length within the span of orthonormal rows."""
    drawn = torch.randn(max(0, count), len(rest), generator=generator, dtype=torch.float64)
    within: Tensor = drawn @ rest * (length / len(rest) ** 0.5)
    return within
