"""Numbers with their uncertainty, and intervals for the mean of bounded variables.

An ``Estimate`` is a value, its standard error and an equal-tailed interval: each end fails with
probability ``(1 - confidence) / 2``. Three kinds of interval are made of the same sample:

* *central limit*: ``mean ± z sd / sqrt(n)``; right for large n, and silent about what was not
  drawn;
* *empirical Bernstein*: holds for every n if the variables lie in [0, 1];
* *betting*: holds for every n too, and is 2 to 5 times shorter where one large, unseen value could
  matter. It is what the certificate uses.

The last two need independent variables whose means *average* to the wanted mean; the variables
need not have the same law. So they cover a fixed number of paths from each of two samplers.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error and an equal-tailed interval of the given confidence."""

    value: float
    standard_error: float
    low: float
    high: float
    confidence: float

    def __str__(self) -> str:
        """``0.125 ± 0.004``, with as many decimals as the standard error deserves."""
        places = decimals(self.standard_error)
        return f"{self.value:.{places}f} ± {self.standard_error:.{places}f}"


def decimals(error: float) -> int:
    """How many decimals show the first digit of ``error``: 2 ... 5, at least 3 below 0.1."""
    if not math.isfinite(error) or error <= 0:
        return 3
    return min(5, max(2 if error >= 0.1 else 3, -math.floor(math.log10(error))))


def check_confidence(confidence: float) -> None:
    """Refuse a confidence outside (0, 1), percentages above all."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence = {confidence} must lie strictly between 0 and 1 (0.99)")


def normal_quantile(confidence: float) -> float:
    """``z`` such that a standard normal lies in ``[-z, z]`` with probability ``confidence``."""
    check_confidence(confidence)
    return NormalDist().inv_cdf((1 + confidence) / 2)


def mean_estimate(values: Float[Tensor, " n"], confidence: float) -> Estimate:
    """Mean of independent draws with its central-limit interval; -inf if a draw is -inf."""
    value = values.mean().item()
    if not math.isfinite(value):
        return Estimate(value, math.nan, value, value, confidence)
    error = (values.std() / math.sqrt(len(values))).item()
    half = normal_quantile(confidence) * error
    return Estimate(value, error, value - half, value + half, confidence)


def check_unit_values(values: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """At least two values in [0, 1], as float64."""
    if values.ndim != 1 or len(values) < 2:
        raise InputError(f"values has shape {tuple(values.shape)}; an interval needs (n,), n ≥ 2")
    if not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError("values must lie in [0, 1]; divide them by their upper bound first")
    return values.detach().double()


def bernstein_half_width(values: Float[Tensor, " n"], confidence: float) -> float:
    """Half-width of the two-sided empirical Bernstein interval for a mean.

    ``sqrt(2 V ln(2/e) / n) + 7 ln(2/e) / (3 (n - 1))``, V the sample variance, e the error of one
    side, ``(1 - confidence) / 2``.

    Arguments:
        values: (n,) independent, in [0, 1].
        confidence: of both sides together.

    Source: Maurer and Pontil 2009, Theorem 4; Theorem 11 for laws that differ (arXiv 0907.3740).
    """
    check_confidence(confidence)
    values = check_unit_values(values)
    n, tail = len(values), math.log(4 / (1 - confidence))
    return math.sqrt(2 * values.var().item() * tail / n) + 7 * tail / (3 * (n - 1))


def _stakes(n: int) -> tuple[Float[Tensor, " J"], Float[Tensor, " J"]]:
    """Shares of the capital to bet, halving down to the order 1 / sqrt(n), and log prior weights.

    They may depend on n, never on the data. The full stake gets a quarter of the prior: it is the
    best one where the sample has almost no spread.
    """
    count = max(2, math.ceil(math.log2(n) / 2) + 2)
    stakes = 0.5 ** torch.arange(count + 1, dtype=torch.float64)
    weights = torch.full((count + 1,), 0.75 / count, dtype=torch.float64)
    weights[0] = 0.25
    return stakes, weights.log()


def betting_lower(values: Float[Tensor, " n"], error: float) -> float:
    """Lower bound of a mean that fails with probability at most ``error``, for every n.

    Who bets the share c of a capital of 1 against "the mean is m" holds, after the sample,
    ``Π_i (1 - c + c x_i / m)``. If the means of the x_i average to m, the expected capital is
    ``Π_i (1 - c + c E[x_i] / m) ≤ 1`` (arithmetic and geometric mean), and so is that of a fixed
    mixture over c. By Markov it exceeds ``1 / error`` with probability at most ``error``; the
    bound is the smallest m which has not been ruined in this way. It grows with each x_i.

    Arguments:
        values: (n,) independent, in [0, 1].
        error: in (0, 1).

    Source: Waudby-Smith and Ramdas 2024 (arXiv 2010.09686); Orabona and Jun 2024
    (arXiv 2110.14099). Stakes that ignore the data make laws that differ admissible.
    """
    check_confidence(1 - error)
    values = check_unit_values(values).cpu()
    stakes, log_prior = _stakes(len(values))
    low, high = 0.0, values.mean().item()
    for _ in range(36):  # to 2e-11 of the mean, on the safe side
        mean = (low + high) / 2
        if mean <= 0:
            break
        growth = (1 - stakes[:, None]) + stakes[:, None] * (values / mean)
        ruined = torch.logsumexp(log_prior + growth.log().sum(1), 0).item() >= -math.log(error)
        low, high = (mean, high) if ruined else (low, mean)
    return low


def betting_upper(values: Float[Tensor, " n"], error: float) -> float:
    """Upper bound of a mean, failing with at most ``error``; see ``betting_lower``."""
    return 1 - betting_lower(1 - check_unit_values(values), error)
