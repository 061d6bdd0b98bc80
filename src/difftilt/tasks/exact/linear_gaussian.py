"""Gaussian prior, linear-Gaussian likelihood: everything in closed form, for any N and dimension.

Prior ``N(m, S)``, ``S = Q diag(exp(linspace(-1, 1, d))) Q'``; reward ``N(y; A x, 0.5² I)`` with A
of shape (d/2, d) and entries ``N(0, 1/d)``, y simulated from the model. The chain's own law differs
from ``N(m, S)`` (its kernels have isotropic variance), so truth is the recursion's (``affine``).

The isotropic variants have ``S = s² I`` and an A that measures single coordinates. There the Doob
kernels are diagonal, so a Gaussian kernel with learned variance can be exact.

The centred variant is n atoms in space without their centre of mass: ``S = 1.5 P``, of rank
``3 (n - 1)``, with P taking the mean off, and an A that reads ``P x`` alone. Its log Z is that of
densities on the subspace, because the inert directions are those of the prior's chain throughout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import MultivariateNormal

from difftilt.chains.chain import Chain
from difftilt.rewards.wrappers import GaussianLikelihood
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.exact.affine import (
    AffineChain,
    Quadratic,
    TiltedAffineChain,
    log_likelihood,
)
from difftilt.tasks.exact.base import ExactProblem, Truth
from difftilt.tasks.exact.denoisers import GaussianDenoiser
from difftilt.tasks.exact.vectors import vector_chain

NOISE = 0.5
# The free-diagonal floor at these N leaves room for an effective sample size of 0.88 or more.
STEPS = {2: 20, 10: 20, 50: 200}


@dataclass(frozen=True)
class LinearModel:
    """Prior ``N(mean, covariance)`` and one observation ``y = matrix x + 0.5 ε``, in float64."""

    mean: Float[Tensor, " d"]
    covariance: Float[Tensor, "d d"]
    matrix: Float[Tensor, "m d"]
    y: Float[Tensor, " m"]

    def chain(self, steps: int, dtype: torch.dtype = torch.float32) -> Chain:
        """The prior's chain; its steps are placed where d = 50 has the lowest floor."""
        log_snr = quantile_log_snr(steps, centre=0.5, spread=1.5, clean=6.0)
        denoiser = GaussianDenoiser(self.mean, self.covariance).to(dtype)
        return vector_chain(denoiser, log_snr, len(self.mean), dtype)

    def quadratic(self) -> Quadratic:
        """``log N(y; A x, 0.5² I)`` as a quadratic of x."""
        return log_likelihood(self.y, self.matrix, NOISE)

    @property
    def log_bound(self) -> float:
        """The largest value of the log-likelihood, ``-m/2 log(2π 0.5²)``."""
        return -0.5 * len(self.y) * math.log(2 * math.pi * NOISE**2)

    def log_reward(self, x_0: Float[Tensor, "B d"]) -> Float[Tensor, " B"]:
        """``log N(y; A x, 0.5² I)`` of samples."""
        residual = (self.y.to(x_0) - x_0 @ self.matrix.to(x_0).T) / NOISE
        return self.log_bound - 0.5 * residual.square().sum(1)

    def tilted(self, chain: Chain) -> TiltedAffineChain:
        """The exact answer on a chain of this prior."""
        prior = AffineChain(self.mean, self.covariance, chain.gaussian)
        return TiltedAffineChain(prior, self.quadratic())


def anisotropic_model(dimension: int, seed: int = 0) -> LinearModel:
    """A rotated prior with variances from 1/e to e, and a dense A."""
    draw = _normals(seed)
    mean, rotation = draw(dimension), torch.linalg.qr(draw(dimension, dimension))[0]
    spectrum = torch.linspace(-1, 1, dimension, dtype=torch.float64).exp()
    matrix = draw(dimension // 2, dimension) / math.sqrt(dimension)
    return _observed(mean, rotation * spectrum @ rotation.T, matrix, draw)


def isotropic_model(dimension: int, seed: int = 0) -> LinearModel:
    """Variance 1.5 in every direction; half of the coordinates measured, gains 0.5 to 1.5."""
    draw = _normals(seed)
    measured = max(1, dimension // 2)
    matrix = torch.zeros(measured, dimension, dtype=torch.float64)
    matrix[range(measured), range(measured)] = torch.linspace(0.5, 1.5, measured).double()
    covariance = 1.5 * torch.eye(dimension, dtype=torch.float64)
    return _observed(draw(dimension), covariance, matrix, draw)


def centred_model(atoms: int, seed: int = 0) -> LinearModel:
    """Atoms in space whose mean is 0, and three dense measurements of their places."""
    draw, d = _normals(seed), 3 * atoms
    between = torch.eye(atoms, dtype=torch.float64) - 1 / atoms
    projection = torch.kron(between, torch.eye(3, dtype=torch.float64))
    matrix = draw(3, d) / math.sqrt(d) @ projection
    clean = projection @ (math.sqrt(1.5) * draw(d))
    mean = torch.zeros(d, dtype=torch.float64)
    return LinearModel(mean, 1.5 * projection, matrix, matrix @ clean + NOISE * draw(3))


def _normals(seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, dtype=torch.float64, generator=generator)


def _observed(
    mean: Tensor, covariance: Tensor, matrix: Tensor, draw: Callable[..., Tensor]
) -> LinearModel:
    clean = mean + torch.linalg.cholesky(covariance) @ draw(len(mean))
    return LinearModel(mean, covariance, matrix, matrix @ clean + NOISE * draw(len(matrix)))


def closed_form_log_z(model: LinearModel, mean: Tensor, covariance: Tensor) -> float:
    """``log N(y; A m_0, A S_0 A' + 0.5² I)`` of a data law ``N(m_0, S_0)``."""
    return float(_evidence(model, mean, covariance, NOISE**2))


def _evidence(model: LinearModel, mean: Tensor, covariance: Tensor, variance: float) -> Tensor:
    spread = model.matrix @ covariance @ model.matrix.T
    spread = spread + variance * torch.eye(len(spread), dtype=spread.dtype)
    return MultivariateNormal(model.matrix @ mean, spread).log_prob(model.y)


def _prior_ess(model: LinearModel, chain: Chain, log_z: float) -> float:
    """``E_p[r]² / E_p[r²]``; r² is a likelihood of half the variance, but for a constant."""
    prior = AffineChain(model.mean, model.covariance, chain.gaussian)
    constant = -0.5 * len(model.y) * math.log(4 * math.pi * NOISE**2)
    second = float(_evidence(model, *prior.data_law(), NOISE**2 / 2)) + constant
    return math.exp(2 * log_z - second)


def _problem(name: str, summary: str, model: LinearModel, steps: int) -> ExactProblem:
    chain = model.chain(steps)
    tilted = model.tilted(chain)
    mean, covariance = tilted.posterior()
    residual = (model.y - model.matrix @ mean).square().sum()
    spread = (model.matrix @ covariance * model.matrix).sum()
    mean_log_reward = model.log_bound - float(residual + spread) / (2 * NOISE**2)
    truth = Truth(
        log_z=tilted.log_z,
        mean=mean,
        covariance=covariance,
        sample_paths=tilted.sample_paths,
        statistics={"log_reward": (model.log_reward, mean_log_reward)},
        kl_to_prior=mean_log_reward - tilted.log_z,
        prior_ess=_prior_ess(model, chain, tilted.log_z),
        floors=tilted.floors(),
    )
    matrix = model.matrix
    likelihood = GaussianLikelihood(model.y, lambda x: x @ matrix.to(x).T, NOISE)
    return ExactProblem(name, summary, chain, model.log_reward, model.log_bound, truth, likelihood)


@cache
def linear_gaussian(dimension: int, steps: int | None = None) -> ExactProblem:
    """Rotated prior and dense measurement, d = 2, 10, 50 (or any, with ``steps``)."""
    return _problem(
        f"linear_gaussian_d{dimension}",
        f"Gaussian prior in {dimension} dimensions, {dimension // 2} noisy linear measurements",
        anisotropic_model(dimension),
        STEPS[dimension] if steps is None else steps,
    )


@cache
def linear_gaussian_isotropic(dimension: int, steps: int = 20) -> ExactProblem:
    """Isotropic prior, single coordinates measured: a diagonal Gaussian kernel can be exact."""
    return _problem(
        f"linear_gaussian_isotropic_d{dimension}",
        f"isotropic Gaussian prior in {dimension} dimensions, half of them measured",
        isotropic_model(dimension),
        steps,
    )


@cache
def centred_gaussian(atoms: int, steps: int = 20) -> ExactProblem:
    """Atoms without a centre of mass: a prior on a subspace of ``3 (atoms - 1)`` dimensions."""
    return _problem(
        f"centred_gaussian_n{atoms}",
        f"{atoms} atoms without a centre of mass, 3 noisy linear measurements",
        centred_model(atoms),
        steps,
    )
