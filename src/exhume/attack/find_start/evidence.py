"""The evidence of a match with a stream: correlation, z, and a p-value corrected for everything that was looked at.

A stream that has nothing to do with weights w gives z = sum(w u) / sqrt(variance sum(w^2)) of mean 0 and variance 1.
Uniform and normal draws are strictly sub-Gaussian (Marchal and Arbel 2017), so P(z >= t) <= exp(-t^2 / 2) for every w:
a bound, not an approximation, as far as the outputs of unrelated seeds behave as random ones. Times the number of
trials (Bonferroni) it bounds the chance of one false alarm in all. A state that was solved for is another matter: the
surplus of its equations proves it (`generator_state`), and the p-value is that of the replayed network alone.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from exhume.attack.find_start.draws import Distribution

LOG10_FOUND = -6.0
"""A start is reported as found if the corrected p-value is below 1e-6."""
LOG10_MATCHES = -4.0
"""Where the stream is known, a parameter is reported as matching at a p-value below 1e-4."""


def chance(log10: float) -> str:
    """A bound on a chance in words, never rounded down; beyond 1e-40 no model of it is worth its digits.

    Example:
        >>> chance(-6.6), chance(-41295.0)
        ('< 1e-6', '< 1e-40')
    """
    return f"< 1e{max(math.ceil(log10), -40)}"


def log10_p(z: float, trials: float = 1) -> float:
    """The decimal logarithm of a bound on the chance that the best of `trials` streams reaches z; at most 0.

    Example:
        >>> round(log10_p(8.2, 2**32), 1)
        -5.0
    """
    return min(0.0, math.log10(max(trials, 1)) - max(z, 0.0) ** 2 / 2 / math.log(10))


Verdict = Literal["matches", "implied", "unknown"]
"""Whether a parameter is the start's: its own values show it, its neighbours' do, or nothing does."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What ties one parameter to the stream.

    verdict: `matches`, its own values show it; `implied`, too few to show it, but the next layer's place does;
    `unknown`, nothing ties it to the stream. correlation: of trained and initial values, about 0 (not centred);
    z: of the correlation, see `log10_p`; exact: share of values that are the initial ones to the last bit;
    retained: the factor of the initial values that fits the trained ones best (decay makes it smaller, but training may
    move weights along their start too);
    place: outputs before its first; initialisation: a row of INITIALISATIONS, or "" where the scale was fitted.
    """

    parameter: str
    verdict: Verdict
    correlation: float = 0.0
    z: float = 0.0
    exact: float = 0.0
    retained: float = 0.0
    place: int | None = None
    distribution: str = ""
    initialisation: str = ""


def z_score(trained: Tensor, standard: Tensor, distribution: Distribution) -> float:
    """z of trained values against the standard draws of a stream; 0 where the trained are all 0."""
    trained, standard = trained.double().flatten(), standard.double().flatten()
    norm = math.sqrt(distribution.variance) * float(trained.norm())
    return float(trained @ standard) / norm if norm > 0 else 0.0


def compare(trained: Tensor, initial: Tensor) -> tuple[float, float, float]:
    """(correlation, share that is equal, best factor) of trained and initial values of one shape."""
    equal = float((trained == initial.to(trained.dtype)).double().mean())
    trained, initial = trained.double().flatten(), initial.double().flatten()
    product, norms = float(trained @ initial), float(trained.norm() * initial.norm())
    return product / max(norms, 1e-300), equal, product / max(float(initial @ initial), 1e-300)
