"""Coupled wells: d two-well coordinates whose signs a non-differentiable reward couples.

Prior: independent coordinates, each an equal mixture of ``N(±1, 0.2²)`` scaled to unit variance.
Reward, with ``s = sign(x)``, J = 0.5, B = 0.1:

    log r = J Σ_i s_i s_{i+1} + B Σ_i s_i - ((d - 1) J + d B)  <= 0.

The chain is odd and its coordinates do not interact, so its sign pattern is uniform on {-1, 1}^d
for every N: the posterior's signs are an Ising chain, solved by its transfer matrix, and given its
sign a coordinate's path has the prior's law.
"""

import math
from functools import cache, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.chains.rollouts import rollout
from difftilt.noise import GeneratorNoise
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.exact.base import ExactProblem, Truth
from difftilt.tasks.exact.denoisers import ProductMixtureDenoiser
from difftilt.tasks.exact.vectors import vector_chain

COUPLING, FIELD = 0.5, 0.1
WELL_STD = 0.2
SCALE = math.sqrt(1 + WELL_STD**2)
SIGNS = torch.tensor([-1.0, 1.0], dtype=torch.float64)


def signs(x: Float[Tensor, "B d"]) -> Float[Tensor, "B d"]:
    """±1; zero counts as +1."""
    return torch.where(x >= 0, 1.0, -1.0).to(x.dtype)


def log_reward(x_0: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
    """The Ising energy of the signs, at most 0."""
    s, d = signs(x_0), x_0.shape[1]
    pairs = (s[:, 1:] * s[:, :-1]).sum(1)
    return COUPLING * (pairs - (d - 1)) + FIELD * (s.sum(1) - d)


def wells_denoiser(dtype: torch.dtype) -> ProductMixtureDenoiser:
    """The two-well coordinates' exact denoiser."""
    means = torch.tensor([-1.0, 1.0], dtype=torch.float64) / SCALE
    weights = torch.ones(2, dtype=torch.float64)
    return ProductMixtureDenoiser(means, weights, (WELL_STD / SCALE) ** 2).to(dtype)


def _strengths(power: float = 1.0) -> tuple[Tensor, Tensor]:
    """J and B, times ``power``, in float64."""
    first, second = torch.tensor([power * COUPLING, power * FIELD], dtype=torch.float64)
    return first, second


def _transfer(coupling: Tensor, field: Tensor) -> Float[Tensor, "2 2"]:
    """``exp(J s s' + B s')``, rows s, columns s'."""
    return torch.exp(coupling * torch.outer(SIGNS, SIGNS) + field * SIGNS)


def log_partition(d: int, coupling: Tensor, field: Tensor) -> Tensor:
    """``log Σ_s exp(J Σ s_i s_{i+1} + B Σ s_i)`` of an open chain of d spins."""
    row, total = torch.exp(field * SIGNS), torch.zeros((), dtype=torch.float64)
    for _ in range(d - 1):
        row = row @ _transfer(coupling, field)
        total, row = total + row.sum().log(), row / row.sum()
    return total + row.sum().log()


def spin_averages(d: int) -> tuple[float, float]:
    """``E Σ s_i s_{i+1}`` and ``E Σ s_i``: the partition's derivatives by J and B."""
    coupling, field = (v.requires_grad_() for v in _strengths())
    pair, single = torch.autograd.grad(log_partition(d, coupling, field), (coupling, field))
    return float(pair), float(single)


def log_evidence(d: int, power: float = 1.0) -> float:
    """``log E_p[r^power]``."""
    ising = log_partition(d, *_strengths(power))
    return float(ising) - d * math.log(2) - power * ((d - 1) * COUPLING + d * FIELD)


def plus_law(d: int) -> Float[Tensor, " counts"]:
    """Law of the number of positive spins, 0 ... d, by dynamic programming."""
    transfer = _transfer(*_strengths())
    table = torch.zeros(2, d + 1, dtype=torch.float64)
    table[0, 0], table[1, 1] = math.exp(-FIELD), math.exp(FIELD)
    for _ in range(d - 1):
        table = transfer.T @ table / table.sum()
        table[1] = table[1].roll(1)
    return table.sum(0) / table.sum()


def plus_count(x_0: Float[Tensor, "B d"]) -> Int[Tensor, " B"]:
    """Number of positive coordinates."""
    return (x_0 >= 0).sum(1)


def draw_signs(d: int, n: int, generator: torch.Generator | None) -> Float[Tensor, "n d"]:
    """Exact draws of the Ising chain's spins: backward messages, then forward draws."""
    transfer = _transfer(*_strengths())
    messages = [torch.ones(2, dtype=torch.float64)]
    for _ in range(d - 1):
        message = transfer @ messages[-1]
        messages.append(message / message.sum())
    first = torch.exp(FIELD * SIGNS) * messages[-1]
    uniform = torch.rand(d, n, dtype=torch.float64, generator=generator)
    plus = [uniform[0] < first[1] / first.sum()]
    for i in range(1, d):
        weight = transfer * messages[d - 1 - i]
        chance = weight[:, 1] / weight.sum(1)
        plus.append(uniform[i] < chance[plus[-1].long()])
    return 2 * torch.stack(plus, 1).float() - 1


def _paths(
    chain: Chain, n: int, generator: torch.Generator | None = None, record: bool = True
) -> Path:
    """Exact paths of π: each coordinate of a prior path is mirrored to the sign drawn for it."""
    path = rollout(chain, n, GeneratorNoise(generator), record=record)
    wanted = draw_signs(chain.event_shape[0], n, generator)
    return Path(path.states * (wanted * signs(path.x_0)))


def _neighbours(x_0: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
    s = signs(x_0)
    return (s[:, 1:] * s[:, :-1]).mean(1)


def log_snr(steps: int) -> Float[Tensor, " N"]:
    """Where the signs are decided: of nine placements the one with the lowest kernel floors.

    Free-diagonal floor at d = 8, N = 20: 0.084 nats (0.23 with equal steps in log-SNR); at d = 32,
    N = 50: 0.12 (0.41).
    """
    return quantile_log_snr(steps, centre=0.5, spread=1.2, clean=5.0)


@cache
def wells(dimension: int, steps: int | None = None) -> ExactProblem:
    """Coupled wells in ``dimension`` coordinates; N = 20 up to d = 8, else 50."""
    steps = (20 if dimension <= 8 else 50) if steps is None else steps
    chain = vector_chain(wells_denoiser(torch.float32), log_snr(steps), dimension)
    pair, single = spin_averages(dimension)
    log_z = log_evidence(dimension)
    mean_log_reward = COUPLING * (pair - dimension + 1) + FIELD * (single - dimension)
    truth = Truth(
        log_z=log_z,
        label=plus_count,
        label_probabilities=plus_law(dimension),
        sample_paths=partial(_paths, chain),
        statistics={
            "neighbour_correlation": (_neighbours, pair / (dimension - 1)),
            "magnetisation": (lambda x_0: signs(x_0).mean(1), single / dimension),
        },
        kl_to_prior=mean_log_reward - log_z,
        prior_ess=math.exp(2 * log_z - log_evidence(dimension, 2.0)),
    )
    return ExactProblem(
        f"wells_d{dimension}",
        f"{dimension} two-well coordinates, their signs coupled like a chain of spins",
        chain,
        log_reward,
        0.0,
        truth,
    )
