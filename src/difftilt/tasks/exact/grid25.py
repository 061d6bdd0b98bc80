"""The 25-mode prior, and two rewards on it with an answer by quadrature.

Data units: means on {-10, -5, 0, 5, 10}², variance 0.3 per coordinate. States are divided by
``SCALE = sqrt(50.3)``, to unit variance. The chain is DDPM's, except that step 1 has std sigma_1: a
last step without variance has no density.

* ``gmm9of25``: the reward ``p_9 / p_25`` keeps nine of the modes, with other weights
  (Venkatraman et al. 2024, section 4.1 and appendix, arXiv 2405.20971; torchgfn's example).
* ``rare_corner``: ``log r = -4 (relu(11 - x) + relu(11 - y))``, the far tail of one corner mode.
"""

import math
from functools import cache, partial
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import rollout
from difftilt.noise import GeneratorNoise
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.exact.base import ExactProblem, PathSampler, Truth, rejection_paths
from difftilt.tasks.exact.denoisers import ProductMixtureDenoiser
from difftilt.tasks.exact.line import Line, PlaneReward
from difftilt.tasks.exact.vectors import vector_chain

SCALE = math.sqrt(50.3)
VARIANCE = 0.3
CENTRES = (-10.0, -5.0, 0.0, 5.0, 10.0)
CUTS = (-7.5, -2.5, 2.5, 7.5)
WEIGHTS = {
    (-10, -5): 4,
    (-5, -10): 10,
    (-5, 0): 4,
    (10, -5): 5,
    (0, 0): 10,
    (0, 5): 5,
    (5, -5): 4,
    (5, 0): 15,
    (5, 10): 4,
}


def _denoiser(dtype: torch.dtype) -> ProductMixtureDenoiser:
    means = torch.tensor(CENTRES, dtype=torch.float64) / SCALE
    weights = torch.ones(5, dtype=torch.float64)
    return ProductMixtureDenoiser(means, weights, VARIANCE / SCALE**2).to(dtype)


def prior25(steps: int = 20) -> Chain:
    """The chain whose data are 25 equal Gaussians on a 5 × 5 grid, unit variance, in float32."""
    return vector_chain(_denoiser(torch.float32), quantile_log_snr(steps), 2)


def line25(chain: Chain, spacing: float = 0.01, data_spacing: float = 0.002) -> Line:
    """One coordinate of ``prior25`` on a grid."""
    return Line(_denoiser(torch.float64), chain.gaussian, spacing, data_spacing)


def cell25(x_0: Float[Tensor, "B 2"]) -> Tensor:
    """Which of the 5 × 5 cells, cut at ±2.5 and ±7.5 data units: ``5 column + row``, (B,)."""
    cuts = torch.tensor(CUTS, dtype=x_0.dtype, device=x_0.device) / SCALE
    column, row = torch.bucketize(x_0.contiguous(), cuts).unbind(1)
    return 5 * column + row


def _coupling() -> Float[Tensor, "5 5"]:
    """``25 w_ij``: r = Σ_ij 25 w_ij γ_i(x) γ_j(y), γ the responsibilities of the five columns."""
    coupling = torch.zeros(5, 5, dtype=torch.float64)
    for (x, y), weight in WEIGHTS.items():
        coupling[CENTRES.index(x), CENTRES.index(y)] = 25 * weight / 61
    return coupling


def log_shares(x: Float[Tensor, "..."]) -> Float[Tensor, "5 ..."]:
    """``log γ_i(x)`` of the five columns (or rows), for scaled coordinates."""
    centres = torch.tensor(CENTRES, dtype=x.dtype, device=x.device) / SCALE
    distance = (x - centres.reshape(-1, *[1] * x.ndim)) ** 2
    return torch.log_softmax(distance * (-0.5 * SCALE**2 / VARIANCE), 0)


def log_reward_9of25(x_0: Float[Tensor, "B 2"]) -> Float[Tensor, " B"]:
    """``log p_9(x) - log p_25(x)``; at most ``log(375 / 61)``."""
    columns, rows = ([CENTRES.index(mode[axis]) for mode in WEIGHTS] for axis in (0, 1))
    weights = torch.tensor([25 * w / 61 for w in WEIGHTS.values()], dtype=x_0.dtype).log()
    shares = log_shares(x_0)
    terms = shares[columns, :, 0] + shares[rows, :, 1] + weights.to(x_0.device)[:, None]
    return torch.logsumexp(terms, 0)


def log_reward_corner(x_0: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
    """``-4 Σ_i relu(11 - x_i)`` in data units; at most 0."""
    return -4 * torch.relu(11 - SCALE * x_0).sum(1)


def plane_truth(reward: PlaneReward, paths: PathSampler) -> Truth:
    """Everything that quadrature says of a reward on the 25-mode prior."""
    edges = (-math.inf, *(c / SCALE for c in CUTS), math.inf)
    line = reward.line
    cells = [line.overlap(*edge) for edge in pairwise(edges)]
    mean, covariance = reward.moments()
    return Truth(
        log_z=math.log(reward.z),
        label=cell25,
        label_probabilities=reward.cells(torch.stack(cells, 1)).flatten(),
        mean=mean,
        covariance=covariance,
        sample_paths=paths,
        kl_to_prior=reward.kl_to_prior(),
        prior_ess=reward.prior_ess(),
        floors=reward.floors(),
    )


def reward_9of25(line: Line) -> PlaneReward:
    """The nine-mode reward on a grid."""
    return PlaneReward(line, log_shares(line.x).exp().T, _coupling())


def reward_corner(line: Line) -> PlaneReward:
    """The corner reward on a grid; separable, so one factor."""
    factor = torch.exp(-4 * torch.relu(11 - SCALE * line.x))
    return PlaneReward(line, factor[:, None], torch.ones(1, 1, dtype=torch.float64))


@cache
def gmm9of25(steps: int = 20) -> ExactProblem:
    """Nine of 25 modes, re-weighted."""
    chain, bound = prior25(steps), math.log(25 * 15 / 61)
    paths = rejection_paths(chain, log_reward_9of25, bound + 1e-4)
    return ExactProblem(
        "gmm9of25",
        "25 equal Gaussians in the plane; the reward keeps nine, with other weights",
        chain,
        log_reward_9of25,
        bound,
        plane_truth(reward_9of25(line25(chain)), paths),
    )


@cache
def rare_corner(steps: int = 20) -> ExactProblem:
    """The far tail of one corner mode."""
    chain = prior25(steps)
    return ExactProblem(
        "rare_corner",
        "25 equal Gaussians in the plane; the reward wants the outer corner of one of them",
        chain,
        log_reward_corner,
        0.0,
        plane_truth(reward_corner(line25(chain)), partial(_corner_paths, chain)),
    )


def _corner_paths(
    chain: Chain, n: int, generator: torch.Generator | None = None, record: bool = True
) -> Path:
    """Rejection by coordinate: prior and reward factorise, so accepted coordinates are paired."""
    kept, found = [], 0
    while found < 2 * n:
        path = rollout(chain, 32_768, GeneratorNoise(generator), record=record)
        uniform = torch.rand(path.x_0.shape, generator=generator)
        accept = uniform.log() < -4 * torch.relu(11 - SCALE * path.x_0)
        kept.append(path.states[:, accept])
        found += kept[-1].shape[1]
    states = torch.cat(kept, 1)[:, : 2 * n]
    return Path(states.reshape(-1, n, 2))
