"""What the numbers of a study say: differences beyond chance, correlations, the law of the widths, multipliers."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from exhume.architecture import as_mlp
from exhume.attack.activations import ScaleFree
from exhume.attack.objectives import OBJECTIVES
from exhume.attack.spectrum import first_layer
from exhume.attack.stationarity import mlp_terms
from exhume.checkpoint import Checkpoint
from exhume.problems import Problem
from exhume.runs.cells import Result
from exhume.runs.tables import Value

K = TypeVar("K")
SIGNIFICANT = 0.05
"""Probability of a difference by chance from which nothing is concluded."""


def grouped(results: Iterable[Result], column: str) -> dict[Value, list[Result]]:
    """The results by what they have in a column, in their order."""
    return _groups(results, lambda result: result.row[column])


def by_number(results: Iterable[Result], column: str) -> dict[float, list[Result]]:
    """The same for a column of numbers."""
    return _groups(results, lambda result: result.number(column))


def _groups(results: Iterable[Result], key: Callable[[Result], K]) -> dict[K, list[Result]]:
    groups: dict[K, list[Result]] = {}
    for result in results:
        groups.setdefault(key(result), []).append(result)
    return groups


def total(results: Sequence[Result], column: str) -> int:
    return int(sum(result.number(column) for result in results))


def counts(results: Sequence[Result]) -> str:
    """What came out of all of them together, with the same count for held-out images in brackets."""
    return f"{total(results, 'recovered')} [{total(results, 'null')}] of {total(results, 'images')}"


def share(results: Sequence[Result]) -> float:
    """Share of all their training images that came out at NCC >= 0.9."""
    return total(results, "recovered") / total(results, "images")


def best(groups: dict[K, list[Result]]) -> K:
    """The group of which the largest share came out; of equals the first."""
    return max(groups, key=lambda key: share(groups[key]))


# ---- Differences


@dataclass(frozen=True, kw_only=True)
class Difference:
    """sign: 1 where there is more or better than in the base, -1 less or worse, 0 where chance may explain it."""

    sign: int
    p_value: float


def difference(raw: float, p_value: float, tries: int = 1) -> Difference:
    """A difference by its direction and its probability by chance; tries: of how many it is the chosen one."""
    p_value = min(1.0, tries * p_value)
    return Difference(sign=int(np.sign(raw)) if p_value < SIGNIFICANT else 0, p_value=p_value)


def in_number(base: Sequence[Result], results: Sequence[Result], tries: int = 1) -> Difference:
    """Whether a larger share comes out than in the base (Fisher's exact test, two-sided)."""
    from scipy.stats import fisher_exact  # noqa: PLC0415

    (a, n), (b, m) = ((total(of, "recovered"), total(of, "images")) for of in (results, base))
    return difference(a / n - b / m, float(fisher_exact([[a, n - a], [b, m - b]]).pvalue), tries)


def in_quality(base: Sequence[Result], results: Sequence[Result], tries: int = 1) -> Difference:
    """Whether the images' NCC is higher than in the base (Mann-Whitney's test, two-sided)."""
    from scipy.stats import mannwhitneyu  # noqa: PLC0415

    ours, theirs = ([value for result in of for value in result.ncc] for of in (results, base))
    if len({*ours, *theirs}) == 1:
        return difference(0.0, 1.0)
    found = mannwhitneyu(ours, theirs)  # its statistic: how many pairs are in our favour
    return difference(float(found.statistic) - len(ours) * len(theirs) / 2, float(found.pvalue), tries)


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Spearman's correlation and its p-value; 0 and 1 where one of both does not vary."""
    from scipy.stats import spearmanr  # noqa: PLC0415

    if len(x) < 3 or len(set(x)) == 1 or len(set(y)) == 1:
        return 0.0, 1.0
    found = spearmanr(x, y)
    return float(found.statistic), float(found.pvalue)


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """k of the power law y ~ x^k that fits best (least squares of the logarithms)."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- The law of the widths


@dataclass(frozen=True, kw_only=True)
class Law:
    """share = ceiling / (1 + (ratio / half)^steepness), ratio = images / width: logistic in log(ratio).

    half: the ratio at which half of the ceiling comes out; r_squared: share of the variance that the law explains.
    """

    ceiling: float
    half: float
    steepness: float
    r_squared: float

    def share(self, ratio: float) -> float:
        return float(_logistic(np.array([self.ceiling, log(self.half), self.steepness]), np.log([ratio]))[0])

    def __str__(self) -> str:
        return (
            f"share = {self.ceiling:.2f} / (1 + (x / {self.half:.3g})^{self.steepness:.2g}), x = images / width, "
            f"R² = {self.r_squared:.2f}"
        )


def fit_law(ratios: Sequence[float], shares: Sequence[float]) -> Law | None:
    """The law that fits best (least squares from several starts); None for fewer than four cells, or all alike."""
    from scipy.optimize import least_squares  # noqa: PLC0415

    if len(ratios) < 4 or len(set(shares)) == 1 or len(set(ratios)) == 1:
        return None
    x, y = np.log(ratios), np.array(shares)
    bounds = ([0.01, x.min() - 3, 0.05], [1.0, x.max() + 3, 20.0])
    starts = [
        (y.max().clip(0.02, 0.99), middle, steep) for middle in np.quantile(x, [0.2, 0.5, 0.8]) for steep in (1, 4)
    ]
    fits = [least_squares(lambda law: _logistic(law, x) - y, start, bounds=bounds) for start in starts]
    found = min(fits, key=lambda fit: fit.cost)
    ceiling, half, steepness = (float(value) for value in found.x)
    r_squared = 1 - 2 * found.cost / ((y - y.mean()) ** 2).sum()
    return Law(ceiling=ceiling, half=exp(half), steepness=steepness, r_squared=float(r_squared))


def _logistic(law: NDArray[Any], log_ratio: NDArray[Any]) -> NDArray[Any]:
    ceiling, half, steepness = law
    shares: NDArray[Any] = ceiling / (1 + np.exp(np.clip(steepness * (log_ratio - half), -50, 50)))
    return shares


# ---- Multipliers of the true images


def multipliers(checkpoint: Checkpoint, problem: Problem) -> list[float]:
    """The multiplier of each training image with which they together explain the first layer best.

    W = sum_i lambda_i G_i (least squares, lambda_i >= 0, float64), for classification. G_i is the gradient by the first
    layer of y_i Phi(x_i), or of the score of its class less the others' weighted by their softmax (docs/theory.md).
    """
    from scipy.optimize import nnls  # noqa: PLC0415

    network = checkpoint.build().double()
    mlp = as_mlp(network)
    assert mlp is not None, "only MLPs are studied"
    with torch.no_grad():
        inputs = network.centre(problem.images.double()).flatten(1)
        deltas = mlp_terms(mlp, inputs, _unit(problem), ScaleFree(1e6), count=1)[0].delta
    if mlp.biases[0] is not None:
        inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
    gram = (deltas @ deltas.T) * (inputs @ inputs.T)
    along = (deltas * (inputs @ first_layer(mlp).T)).sum(1)
    gram.diagonal().add_(1e-10 * gram.trace() / len(gram))
    root = torch.linalg.cholesky(gram)
    right = torch.linalg.solve_triangular(root, along[:, None], upper=False)[:, 0]
    return [float(value) for value in nnls(root.T.numpy(), right.numpy())[0]]


def _unit(problem: Problem) -> Callable[[Tensor], Tensor]:
    """Cotangents with a multiplier of 1."""
    row = OBJECTIVES[problem.task]
    return lambda scores: row.cotangents(scores, problem.labels, scores.new_ones(len(scores)), scores)
