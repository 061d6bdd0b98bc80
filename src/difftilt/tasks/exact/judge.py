"""How near a sampler is to a known posterior: one row of numbers per sampler.

The judge reads the truth; the sampler under judgement was made without it.
"""

from dataclasses import asdict, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains import Chain, Path
from difftilt.diagnostics.distances import (
    classifier_two_sample_test,
    energy_test,
    mode_total_variation,
)
from difftilt.diagnostics.evidence import effective_sample_size, elbo, log_evidence, pareto_k
from difftilt.noise import GeneratorNoise
from difftilt.rollouts import rollout
from difftilt.scoring import log_ratio
from difftilt.tasks.exact.base import ExactProblem

DRAWS = 50_000
EUBO_DRAWS = 20_000
TEST_DRAWS = 1_000


@dataclass(frozen=True)
class Judgement:
    """Figures of one sampler; None where the truth does not define one.

    Arguments:
        log_z_error: importance estimate of log Z minus the truth, nats (50,000 paths).
        elbo_gap: ``log Z - ELBO = KL(q ‖ π)`` on paths, nats.
        eubo_gap: ``EUBO - log Z = KL(π ‖ q)`` on paths, nats (20,000 exact paths).
        ess: effective sample size of the weights, as a share.
        k_hat: Pareto shape of the largest weights.
        mode_tv_raw: total variation of the label frequencies of 50,000 samples.
        mode_tv_corrected: the same with importance weights.
        energy_distance: of 1,000 samples and 1,000 exact ones.
        energy_p: its permutation p-value.
        c2st: accuracy of a classifier telling them apart; 0.5 cannot.
    """

    log_z_error: float
    elbo_gap: float
    eubo_gap: float | None
    ess: float
    k_hat: float
    mode_tv_raw: float | None
    mode_tv_corrected: float | None
    energy_distance: float | None
    energy_p: float | None
    c2st: float | None

    def to_dict(self) -> dict[str, float | None]:
        """The figures by name."""
        return asdict(self)


@torch.no_grad()
def judge(problem: ExactProblem, chain: Chain, seed: int = 0) -> Judgement:
    """Judge a sampler of a problem's posterior.

    Arguments:
        problem: with its truth.
        chain: the sampler (the prior itself is judged as importance sampling).
        seed: of the judging draws.
    """
    generator = torch.Generator().manual_seed(10_000 + seed)
    path = _ends(chain, DRAWS, generator)
    assert path.log_ratio is not None
    log_w = problem.log_reward(path.x_0).double() - path.log_ratio.double()
    truth = problem.truth
    raw, corrected = _label_distances(problem, path.x_0, log_w)
    distance, p, c2st = _two_sample(problem, path.x_0, generator)
    return Judgement(
        log_z_error=log_evidence(log_w).value - truth.log_z,
        elbo_gap=truth.log_z - elbo(log_w).value,
        eubo_gap=_eubo_gap(problem, chain, generator),
        ess=effective_sample_size(log_w),
        k_hat=pareto_k(log_w),
        mode_tv_raw=raw,
        mode_tv_corrected=corrected,
        energy_distance=distance,
        energy_p=p,
        c2st=c2st,
    )


def _ends(chain: Chain, n: int, generator: torch.Generator) -> Path:
    noise = GeneratorNoise(generator)
    parts = [rollout(chain, n // 10, noise, record=False) for _ in range(10)]
    return Path.joined(parts)


def _label_distances(
    problem: ExactProblem, x_0: Tensor, log_w: Float[Tensor, " n"]
) -> tuple[float | None, float | None]:
    truth = problem.truth
    if truth.label is None or truth.label_probabilities is None:
        return None, None
    labels = truth.label(x_0)
    zeros = torch.zeros(len(truth.label_probabilities), dtype=torch.float64)
    counts = zeros.index_add(0, labels, torch.ones_like(log_w))
    weighted = zeros.index_add(0, labels, torch.softmax(log_w, 0))
    probabilities = truth.label_probabilities
    return (
        mode_total_variation(counts, probabilities),
        mode_total_variation(weighted, probabilities),
    )


def _eubo_gap(problem: ExactProblem, chain: Chain, generator: torch.Generator) -> float | None:
    if problem.truth.sample_paths is None:
        return None
    path = problem.truth.sample_paths(EUBO_DRAWS, generator)
    ratio = log_ratio(chain, path, 65_536)
    return float((problem.log_reward(path.x_0) - ratio).double().mean()) - problem.truth.log_z


def _two_sample(
    problem: ExactProblem, x_0: Tensor, generator: torch.Generator
) -> tuple[float | None, float | None, float | None]:
    if problem.truth.sample_paths is None:
        return None, None, None
    exact = problem.truth.sample(TEST_DRAWS, generator).flatten(1)
    rows = torch.randperm(len(x_0), generator=generator)[:TEST_DRAWS]
    drawn = x_0[rows].flatten(1)
    distance, p = energy_test(drawn, exact, 200, generator)
    return distance, p, classifier_two_sample_test(drawn, exact, 0).value
