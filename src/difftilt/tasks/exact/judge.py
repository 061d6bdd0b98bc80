"""How near a sampler is to a known posterior: one row of numbers per sampler.

The judge reads the truth; the sampler under judgement was made without it.
"""

from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diagnostics.distances import (
    classifier_two_sample_test,
    energy_test,
    mode_total_variation,
)
from difftilt.diagnostics.evidence import effective_sample_size, elbo, log_evidence, pareto_k
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.sampling.draws import Tilted, batches
from difftilt.smc.population import Ends, Population
from difftilt.tasks.exact.base import ExactProblem

DRAWS = 50_000
EUBO_DRAWS = 20_000
TEST_DRAWS = 1_000
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Judgement:
    """Figures of one sampler; None where the truth, or a sampler without weights, defines none.

    Of a population the "paths" are whole systems, each with one drawn end and the weight Ẑ.

    Arguments:
        log_z_error: importance estimate of log Z minus the truth, nats (50,000 paths).
        elbo_gap: ``log Z - ELBO = KL(q ‖ π)`` on paths, nats.
        eubo_gap: ``EUBO - log Z = KL(π ‖ q)`` on paths, nats (20,000 exact paths).
        ess: effective sample size of the weights, as a share.
        k_hat: Pareto shape of the largest weights.
        mode_tv_raw: total variation of the label frequencies of 50,000 samples.
        mode_tv_corrected: the same with importance weights.
        moments_z: largest deviation of the importance-weighted mean and covariance of x_0 from the
            truth's, in standard errors.
        energy_distance: of 1,000 samples and 1,000 exact ones.
        energy_p: its permutation p-value.
        c2st: accuracy of a classifier telling them apart; 0.5 cannot.
        tv: exact total variation, where all completions can be summed over.
    """

    log_z_error: float | None
    elbo_gap: float | None
    eubo_gap: float | None
    ess: float | None
    k_hat: float | None
    mode_tv_raw: float | None
    mode_tv_corrected: float | None
    moments_z: float | None
    energy_distance: float | None
    energy_p: float | None
    c2st: float | None
    tv: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return asdict(self)


@torch.no_grad()
def judge(problem: ExactProblem, chain: Chain, seed: int = 0, draws: int = DRAWS) -> Judgement:
    """Judge a sampler of a problem's posterior.

    Arguments:
        problem: with its truth.
        chain: the sampler (the prior itself is judged as importance sampling).
        seed: of the judging draws.
        draws: number of paths, a multiple of 10.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    path = _ends(chain, draws, generator)
    assert path.log_ratio is not None
    log_w = problem.log_reward(path.x_0).double() - path.log_ratio.double()
    judgement = _judged(problem, path.x_0, log_w, generator)
    return replace(judgement, eubo_gap=_eubo_gap(problem, chain, generator))


@torch.no_grad()
def judge_population(
    problem: ExactProblem, population: Population, chain: Chain, seed: int = 0, draws: int = DRAWS
) -> Judgement:
    """Judge a population: ``draws`` systems, and 2/5 as many around exact paths for the EUBO.

    Arguments:
        problem: with its truth.
        population: the method; one without an unbiased Ẑ has no figures of weights, and one
            without exact conditional runs no EUBO.
        chain: what moves its particles.
        seed: of the judging draws.
        draws: number of systems, of K paths each.

    Raises:
        InputError: draws below 2.
    """
    if draws < 2:
        raise InputError(f"a judgement needs at least 2 draws, got {draws}")
    noise = GeneratorNoise(torch.Generator().manual_seed(10_000 + seed))
    goal, at_once = _goal(problem), max(1, ROWS_AT_ONCE // population.size)
    sizes = [len(rows) for rows in batches(draws, at_once)]
    ends = Ends.joined([population.draw(chain, goal, size, noise) for size in sizes])
    judgement = _judged(problem, ends.x_0, ends.log_z, noise.generator)
    gap = _conditional_gap(problem, population, chain, noise, draws * EUBO_DRAWS // DRAWS)
    return replace(judgement, eubo_gap=gap)


def _goal(problem: ExactProblem) -> Tilted:
    return Tilted(lambda x_0, condition: problem.log_reward(x_0))


def _judged(
    problem: ExactProblem,
    x_0: Tensor,
    log_w: Float[Tensor, " n"] | None,
    generator: torch.Generator | None,
) -> Judgement:
    """All but the EUBO, from independent draws and their log-weights."""
    truth = problem.truth
    raw, corrected = _label_distances(problem, x_0, log_w)
    distance, p, c2st = _two_sample(problem, x_0, generator)
    return Judgement(
        log_z_error=None if log_w is None else log_evidence(log_w).value - truth.log_z,
        elbo_gap=None if log_w is None else truth.log_z - elbo(log_w).value,
        eubo_gap=None,
        ess=None if log_w is None else effective_sample_size(log_w),
        k_hat=None if log_w is None else pareto_k(log_w),
        mode_tv_raw=raw,
        mode_tv_corrected=corrected,
        moments_z=None if log_w is None else _moments_z(problem, x_0, log_w),
        energy_distance=distance,
        energy_p=p,
        c2st=c2st,
    )


def _ends(chain: Chain, n: int, generator: torch.Generator) -> Path:
    noise = GeneratorNoise(generator)
    parts = [rollout(chain, n // 10, noise, record=False) for _ in range(10)]
    return Path.joined(parts)


def _label_distances(
    problem: ExactProblem, x_0: Tensor, log_w: Float[Tensor, " n"] | None
) -> tuple[float | None, float | None]:
    truth = problem.truth
    if truth.label is None or truth.label_probabilities is None:
        return None, None
    labels = truth.label(x_0)
    probabilities = truth.label_probabilities
    zeros = torch.zeros(len(probabilities), dtype=torch.float64)

    def distance(weights: Float[Tensor, " n"]) -> float:
        return mode_total_variation(zeros.index_add(0, labels, weights), probabilities)

    raw = distance(torch.ones(len(x_0), dtype=torch.float64))
    return raw, None if log_w is None else distance(torch.softmax(log_w, 0))


def _moments_z(problem: ExactProblem, x_0: Tensor, log_w: Float[Tensor, " n"]) -> float | None:
    truth = problem.truth
    if truth.mean is None or truth.covariance is None:
        return None
    centred, w = (x_0.flatten(1).double() - truth.mean), torch.softmax(log_w, 0)
    largest = _largest_z(centred, w, torch.zeros_like(truth.mean))
    for i, row in enumerate(truth.covariance):
        largest = max(largest, _largest_z(centred[:, i : i + 1] * centred, w, row))
    return largest


def _largest_z(
    values: Float[Tensor, "n k"], w: Float[Tensor, " n"], expected: Float[Tensor, " k"]
) -> float:
    """Of self-normalised estimates of k expectations, by the delta method."""
    found = w @ values
    error = (w[:, None] ** 2 * (values - found) ** 2).sum(0).sqrt()
    return float(((found - expected).abs() / error).max())


def _eubo_gap(problem: ExactProblem, chain: Chain, generator: torch.Generator) -> float | None:
    if problem.truth.sample_paths is None:
        return None
    path = problem.truth.sample_paths(EUBO_DRAWS, generator)
    ratio = log_ratio(chain, path, 65_536)
    return float((problem.log_reward(path.x_0) - ratio).double().mean()) - problem.truth.log_z


def _conditional_gap(
    problem: ExactProblem, population: Population, chain: Chain, noise: GeneratorNoise, n: int
) -> float | None:
    """``E[log Ẑ] - log Z`` of systems around exact paths."""
    if problem.truth.sample_paths is None or not population.has_conditional:
        return None
    path = problem.truth.sample_paths(max(1, n), noise.generator)
    total = 0.0
    for rows in batches(path.batch, max(1, ROWS_AT_ONCE // population.size)):
        part = path.select(torch.arange(rows.start, rows.stop))
        total += float(population.conditional(chain, _goal(problem), part, noise)[0].sum())
    return total / path.batch - problem.truth.log_z


def _two_sample(
    problem: ExactProblem, x_0: Tensor, generator: torch.Generator | None
) -> tuple[float | None, float | None, float | None]:
    if problem.truth.sample_paths is None:
        return None, None, None
    exact = problem.truth.sample(TEST_DRAWS, generator).flatten(1)
    rows = torch.randperm(len(x_0), generator=generator)[:TEST_DRAWS]
    drawn = x_0[rows].flatten(1)
    distance, p = energy_test(drawn, exact, 200, generator)
    return distance, p, classifier_two_sample_test(drawn, exact, 0).value
