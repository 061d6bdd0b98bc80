"""Distances and two-sample tests between samples, or between a sample and known masses.

What they see differs. Energy distance and the classifier test pass a sampler whose mode weights
are off by 1-5 %; a chi-square of cell counts against exact masses does not. Sliced Wasserstein
is in the units of x and is dominated by mass in the wrong place. Samples are (n, *event); events
are flattened.
"""

import math
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from difftilt.diagnostics.intervals import Estimate, normal_quantile
from difftilt.diagnostics.weights import check_log_weights
from difftilt.errors import InputError, require


def mode_masses(
    labels: Int[Tensor, " n"], modes: int, log_w: Float[Tensor, " n"] | None = None
) -> Float[Tensor, " modes"]:
    """Share of the (weighted) sample in each mode.

    Arguments:
        labels: (n,) mode of each draw, 0 ... modes - 1.
        modes: how many there are.
        log_w: (n,) log importance weights, or None: equal ones.
    """
    if len(labels) == 0 or int(labels.min()) < 0 or int(labels.max()) >= modes:
        raise InputError(f"labels must be (n,) integers in 0 ... {modes - 1}, n ≥ 1")
    uniform = torch.zeros(len(labels), dtype=torch.float64, device=labels.device)
    log_w = uniform if log_w is None else check_log_weights(log_w)
    if log_w.max() == -math.inf:
        raise InputError("log_w is -inf everywhere: the weighted sample is empty")
    return uniform.new_zeros(modes).index_add(0, labels, torch.softmax(log_w, 0))


def _check_masses(masses: Num[Tensor, " K"], name: str) -> Float[Tensor, " K"]:
    masses = masses.detach().double()
    if masses.ndim != 1 or not bool((masses >= 0).all()) or not 0 < masses.sum() < math.inf:
        raise InputError(f"{name} must be a vector (K,) of finite numbers ≥ 0, not all 0")
    return masses


def mode_total_variation(
    masses: Num[Tensor, " modes"], probabilities: Float[Tensor, " K"]
) -> float:
    """``½ Σ_k |masses_k - probabilities_k|``, both normalised first.

    Arguments:
        masses: (K,) counts, or weighted masses (``mode_masses``).
        probabilities: (K,) the exact ones.
    """
    masses, probabilities = (
        _check_masses(masses, "masses"),
        _check_masses(probabilities, "probabilities"),
    )
    if masses.shape != probabilities.shape:
        raise InputError(f"{len(masses)} masses but {len(probabilities)} probabilities")
    return 0.5 * (masses / masses.sum() - probabilities / probabilities.sum()).abs().sum().item()


def _flat_pair(
    x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
    """Both samples as float64 matrices; at least two draws each, finite, of one event shape."""
    if x.ndim == 0 or y.ndim == 0 or x.shape[1:] != y.shape[1:] or min(len(x), len(y)) < 2:
        raise InputError(
            f"samples of shapes {tuple(x.shape)} and {tuple(y.shape)} cannot be compared; "
            "both need (n, *event) with the same event and n ≥ 2"
        )
    x, y = (sample.detach().double().reshape(len(sample), -1) for sample in (x, y))
    if not bool(x.isfinite().all() and y.isfinite().all()):
        raise InputError("a sample holds NaN or infinite values; a distance needs finite ones")
    return x, y


def _distances(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, "n m"]:
    """Euclidean distances, by differences: the faster product form loses those of near points."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


def _energy_statistic(
    within_x: Tensor, within_y: Tensor, between: Tensor, n: int, m: int
) -> Tensor:
    """From sums of distances (each within-sum counts ordered pairs)."""
    return 2 * between / (n * m) - within_x / (n * (n - 1)) - within_y / (m * (m - 1))


def energy_distance(x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."]) -> float:
    """``2 E|X - Y| - E|X - X'| - E|Y - Y'|``, unbiased: around 0, also below, for equal laws.

    Source: Szekely and Rizzo 2013 (J. Stat. Plan. Inference 143).
    """
    x, y = _flat_pair(x, y)
    within_x, within_y = _distances(x, x).sum(), _distances(y, y).sum()
    between = _distances(x, y).sum()
    return _energy_statistic(within_x, within_y, between, len(x), len(y)).item()


def energy_test(
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "m ..."],
    permutations: int = 999,
    generator: torch.Generator | None = None,
) -> tuple[float, float]:
    """Energy distance and its permutation p-value ``(1 + #{as large}) / (1 + permutations)``.

    Exact for every n: under equal laws the p-value is at most u with probability at most u.
    Memory is the (n + m)² matrix of distances.

    Arguments:
        x: (n, *event) draws.
        y: (m, *event) draws, independent of x and of each other.
        permutations: how many relabellings, ≥ 1.
        generator: of the relabellings, on the device of x.

    Returns:
        The statistic (``energy_distance``) and p.
    """
    x, y = _flat_pair(x, y)
    n, m = len(x), len(y)
    both = torch.cat([x, y])
    distance = _distances(both, both)
    noise = torch.rand(permutations + 1, n + m, generator=generator, device=x.device)
    member = torch.zeros(n + m, permutations + 1, dtype=torch.float64, device=x.device)
    member.scatter_(0, noise.argsort(1)[:, :n].T, 1.0)
    member[:, 0] = (torch.arange(n + m, device=x.device) < n).double()
    within_x = (member * (distance @ member)).sum(0)
    touching_x = distance.sum(0) @ member
    within_y = distance.sum() - 2 * touching_x + within_x
    values = _energy_statistic(within_x, within_y, touching_x - within_x, n, m)
    # Equal splits differ by rounding only: count them as ties, on the safe side.
    as_large = values[1:] >= values[0] - 1e-12 * distance.mean()
    return values[0].item(), (1 + int(as_large.sum())) / (1 + permutations)


def _wasserstein_on_lines(x: Float[Tensor, "n D"], y: Float[Tensor, "m D"]) -> Float[Tensor, " D"]:
    """Squared W2 of each pair of columns: the integral of the squared quantile difference."""
    n, m = len(x), len(y)
    steps = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique()
    width = torch.diff(steps, prepend=steps.new_zeros(1)).double() / (n * m)
    rank_x, rank_y = (steps - 1) // m, (steps - 1) // n
    gap = x.sort(0).values[rank_x.to(x.device)] - y.sort(0).values[rank_y.to(x.device)]
    return (width.to(x.device)[:, None] * gap**2).sum(0)


def sliced_wasserstein(
    x: Float[Tensor, "n ..."],
    y: Float[Tensor, "m ..."],
    directions: int = 128,
    generator: torch.Generator | None = None,
) -> float:
    """``sqrt(mean_θ W2²(θ·x, θ·y))`` over random unit directions θ; exact on each line.

    Arguments:
        x: (n, *event) draws.
        y: (m, *event) draws; n and m may differ.
        directions: how many θ.
        generator: of the directions, on the device of x.

    Source: Bonneel et al. 2015 (J. Math. Imaging Vis. 51).
    """
    x, y = _flat_pair(x, y)
    theta = torch.randn(
        x.shape[1], directions, generator=generator, dtype=torch.float64, device=x.device
    )
    theta = theta / theta.norm(dim=0)
    return _wasserstein_on_lines(x @ theta, y @ theta).mean().sqrt().item()


def classifier_two_sample_test(
    x: Float[Tensor, "n ..."], y: Float[Tensor, "m ..."], seed: int = 0, folds: int = 5
) -> Estimate:
    """Held-out balanced accuracy of a small network that tells x from y (C2ST); 1/2 if it cannot.

    Two hidden layers of 10 d units (32 ... 256) on standardised features, cross-validated. The
    standard error is binomial; it leaves out that the folds share training data.

    Arguments:
        x: (n, *event) draws.
        y: (m, *event) draws.
        seed: of the folds and of the network.
        folds: of the cross-validation, ≥ 2.

    Raises:
        MissingPackage: scikit-learn is not installed.

    Source: Lopez-Paz and Oquab 2017 (arXiv 1610.06545); settings as Lueckmann et al. 2021 (sbibm).
    """
    x, y = _flat_pair(x, y)
    features = torch.cat([x, y]).cpu().numpy()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).long().numpy()
    said_y = torch.from_numpy(_held_out(features, labels, seed, folds) > labels.mean())
    right = [int((~said_y[: len(x)]).sum()), int(said_y[len(x) :].sum())]
    value = (right[0] / len(x) + right[1] / len(y)) / 2
    error = 0.5 * math.hypot(_binomial_error(right[0], len(x)), _binomial_error(right[1], len(y)))
    half = normal_quantile(0.99) * error
    return Estimate(value, error, max(0.0, value - half), min(1.0, value + half), 0.99)


def _binomial_error(count: int, n: int) -> float:
    """Standard error of ``count / n``; one success and one failure added, so it is never 0."""
    rate = (count + 1) / (n + 2)
    return math.sqrt(rate * (1 - rate) / n)


def _held_out(features: np.ndarray, labels: np.ndarray, seed: int, folds: int) -> np.ndarray:
    """Probability of label 1 of each row, by the network that did not see it."""
    require("sklearn", "report")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    width = min(256, max(32, 10 * features.shape[1]))
    network = MLPClassifier((width, width), early_stopping=True, max_iter=300, random_state=seed)
    model = make_pipeline(StandardScaler(), network)
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = cross_val_predict(model, features, labels, cv=split, method="predict_proba")
    return np.asarray(found)[:, 1]


@dataclass(frozen=True)
class CellTest:
    """Counts of cells against exact probabilities.

    Attributes:
        statistic: chi-square of the cells with an expectation of at least 5.
        degrees: of freedom, the number of these cells minus 1.
        rare_count: draws in the pool of all rarer cells, if that pool too expects fewer than 5.
        rare_expected: its expectation; 0 if there is no such pool.
        p_value: of both together: twice the smaller of the chi-square's and the pool's exact
            binomial tail (at least ``rare_count``).
    """

    statistic: float
    degrees: int
    rare_count: int
    rare_expected: float
    p_value: float


def chi_square_cells(
    counts: Num[Tensor, " K"], probabilities: Float[Tensor, " K"], least: float = 5.0
) -> CellTest:
    """Do the counts come from these probabilities?

    Cells that expect fewer than ``least`` draws are pooled. If the pool expects fewer as well,
    it is kept out of the chi-square and gets an exact binomial tail: mass leaked into dead modes
    is the commonest fault of a trained sampler, and would be diluted in any other cell.

    Arguments:
        counts: (K,) draws in each cell, independent draws.
        probabilities: (K,) exact ones, normalised here.
        least: expectation from which the chi-square law is used.
    """
    from scipy import stats

    observed = _check_masses(counts, "counts")
    expected = _check_masses(probabilities, "probabilities")
    if observed.shape != expected.shape or bool((observed != observed.round()).any()):
        raise InputError("counts must be whole numbers (K,), one per probability")
    n = int(observed.sum())
    cells, rare = _pool_rare(observed, n * expected / expected.sum(), least)
    if len(cells) == 0:
        raise InputError(f"{n} draws are too few: no cell, nor all together, expects {least:g}")
    observed, expected = cells.T
    expected = expected * (observed.sum() / expected.sum())
    statistic, degrees = ((observed - expected) ** 2 / expected).sum().item(), len(cells) - 1
    p_value = float(stats.chi2.sf(statistic, degrees)) if degrees else 1.0
    if rare is None:
        return CellTest(statistic, degrees, 0, 0.0, p_value)
    p_rare = float(stats.binom.sf(rare[0] - 1, n, rare[1] / n))
    return CellTest(statistic, degrees, rare[0], rare[1], min(1.0, 2 * min(p_value, p_rare)))


def _pool_rare(
    observed: Float[Tensor, " K"], expected: Float[Tensor, " K"], least: float
) -> tuple[Float[Tensor, "L 2"], tuple[int, float] | None]:
    """(observed, expected) of the usable cells, and of the pool of rare ones if not usable."""
    table, usable = torch.stack([observed, expected], 1), expected >= least
    pool = table[~usable].sum(0)
    if bool(usable.all()):
        return table, None
    if pool[1] >= least:
        return torch.cat([table[usable], pool[None]]), None
    return table[usable], (int(pool[0]), pool[1].item())
