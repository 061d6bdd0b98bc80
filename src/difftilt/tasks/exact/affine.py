"""Chains whose steps are affine and Gaussian, and their exact tilt by a Gaussian likelihood.

    x_{n-1} = G_n x_n + g_n + s_n ε,      log h_n(x) = -x'Kx/2 + b'x + c

With a quadratic ``log h_0 = log r``, every ``h_n(x) = E[r(x_0) | x_n = x]`` stays of that form. In
a step's standardised coordinates the exactly tilted (Doob) kernel is ``N(δ, R)`` with
``R = (I + s² K)^{-1}`` and ``δ = s R (b - K μ)`` at prior mean μ. So log Z, the posterior of x_0,
the optimal kernels and the floors of restricted families are closed forms for any N, in float64.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Kernel, Path
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.transitions.gaussian import GaussianTilt


@dataclass(frozen=True)
class Quadratic:
    """``-x'Kx/2 + b'x + c``.

    Arguments:
        curvature: K, (d, d), symmetric.
        linear: b, (d,).
        constant: c, a scalar.
    """

    curvature: Float[Tensor, "d d"]
    linear: Float[Tensor, " d"]
    constant: Tensor

    def after(self, weight: Float[Tensor, "d d"], offset: Float[Tensor, " d"]) -> "Quadratic":
        """This function of ``weight x + offset``, as a function of x."""
        bent = self.curvature @ offset
        return Quadratic(
            weight.T @ self.curvature @ weight,
            weight.T @ (self.linear - bent),
            self.constant + self.linear @ offset - 0.5 * offset @ bent,
        )


def log_likelihood(y: Float[Tensor, " m"], matrix: Float[Tensor, "m d"], noise: float) -> Quadratic:
    """``log N(y; A x, noise² I)`` as a function of x."""
    scaled = matrix / noise
    log_norm = 0.5 * len(y) * math.log(2 * math.pi * noise**2)
    return Quadratic(scaled.T @ scaled, scaled.T @ y / noise, -0.5 * (y @ y) / noise**2 - log_norm)


@dataclass(frozen=True)
class AffineTilt:
    """The Doob tilt ``N(δ, R)`` of a step, ``δ = gain μ + shift``, and ``log h`` of μ."""

    covariance: Float[Tensor, "d d"]
    gain: Float[Tensor, "d d"]
    shift: Float[Tensor, " d"]
    value: Quadratic

    @staticmethod
    def of(value: Quadratic, std: float) -> "AffineTilt":
        """Tilt of ``N(μ, std² I)`` by ``exp(value)``."""
        identity = torch.eye(len(value.linear), dtype=value.linear.dtype)
        spread = torch.linalg.inv(identity + std**2 * value.curvature)
        spread = 0.5 * (spread + spread.T)
        pulled = spread @ value.linear
        bent = value.curvature @ spread
        gained = 0.5 * spread.logdet() + 0.5 * std**2 * value.linear @ pulled
        mean_value = Quadratic(0.5 * (bent + bent.T), pulled, value.constant + gained)
        return AffineTilt(spread, -std * bent.T, std * pulled, mean_value)

    @property
    def variance_floor(self) -> float:
        """Least KL of a kernel with the prior's variance: ``(tr R - d - log|R|) / 2``."""
        trace = self.covariance.trace() - len(self.covariance)
        return float(trace - self.covariance.logdet()) / 2

    @property
    def diagonal_floor(self) -> float:
        """Least KL of a kernel with a free diagonal: ``(log|diag R| - log|R|) / 2``."""
        return float(self.covariance.diagonal().log().sum() - self.covariance.logdet()) / 2


class AffineChain:
    """The prior of a Gaussian's exact denoiser on a diffusion, as affine steps in float64.

    Arguments:
        mean: of the clean Gaussian, (d,).
        covariance: (d, d).
        diffusion: DDPM's tables, every step with a density.
    """

    def __init__(
        self,
        mean: Float[Tensor, " d"],
        covariance: Float[Tensor, "d d"],
        diffusion: GaussianDiffusion,
    ) -> None:
        self.dimension = len(mean)
        self.steps = diffusion.steps
        self.base_std = diffusion.base_std
        self.stds: list[float] = diffusion.tables.std.tolist()
        self.weights, self.offsets = [covariance], [mean]
        identity = torch.eye(self.dimension, dtype=torch.float64)
        for n in range(1, self.steps + 1):
            alpha, sigma = diffusion.levels.alpha[n], diffusion.levels.sigma[n]
            noisy = alpha**2 * covariance + sigma**2 * identity
            gain = alpha * torch.linalg.solve(noisy, covariance)
            clean, state = diffusion.tables.clipped[n], diffusion.tables.state[n]
            self.weights.append(clean * gain + state * identity)
            self.offsets.append(clean * (mean - alpha * gain @ mean))

    def data_law(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Mean and covariance of the chain's own x_0."""
        identity = torch.eye(self.dimension, dtype=torch.float64)
        mean, covariance = torch.zeros_like(self.offsets[0]), self.base_std**2 * identity
        for n in range(self.steps, 0, -1):
            weight = self.weights[n]
            mean = weight @ mean + self.offsets[n]
            covariance = weight @ covariance @ weight.T + self.stds[n] ** 2 * identity
        return mean, covariance


class TiltedAffineChain:
    """The tilted path measure of an affine chain: the answer to everything.

    Arguments:
        prior: the chain.
        log_reward: as a quadratic of x_0.
    """

    def __init__(self, prior: AffineChain, log_reward: Quadratic) -> None:
        self.prior = prior
        self.tilts: list[AffineTilt] = []
        value = log_reward
        for n in range(1, prior.steps + 1):
            self.tilts.append(AffineTilt.of(value, prior.stds[n]))
            value = self.tilts[-1].value.after(prior.weights[n], prior.offsets[n])
        self.initial = AffineTilt.of(value, prior.base_std)
        self.log_z = float(self.initial.value.constant)

    def posterior(self) -> tuple[Float[Tensor, " d"], Float[Tensor, "d d"]]:
        """Mean and covariance of x_0 under π, by the forward recursion of the Doob kernels."""
        mean = torch.zeros(self.prior.dimension, dtype=torch.float64)
        covariance = torch.zeros(self.prior.dimension, self.prior.dimension, dtype=torch.float64)
        for weight, offset, spread in self._laws():
            mean = weight @ mean + offset
            covariance = weight @ covariance @ weight.T + spread
        return mean, covariance

    def _laws(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Weight, offset and covariance of the tilted law of each state given the one above."""
        nothing = torch.zeros_like(self.initial.covariance)
        std = self.prior.base_std
        yield nothing, std * self.initial.shift, std**2 * self.initial.covariance
        identity = torch.eye(self.prior.dimension, dtype=torch.float64)
        for n in range(self.prior.steps, 0, -1):
            tilt, std = self.tilts[n - 1], self.prior.stds[n]
            response = identity + std * tilt.gain
            offset = response @ self.prior.offsets[n] + std * tilt.shift
            yield response @ self.prior.weights[n], offset, std**2 * tilt.covariance

    def floors(self) -> dict[str, float]:
        """Least path-KL ``KL(π ‖ q)`` of the Gaussian kernel families, see ``Truth.floors``."""
        shift = float(self.initial.shift @ self.initial.shift) / 2
        return {
            "prior_variance": sum(t.variance_floor for t in self.tilts),
            "diagonal_variance": sum(t.diagonal_floor for t in self.tilts),
            "initial": self.initial.variance_floor + shift,
        }

    def sample_paths(
        self, n: int, generator: torch.Generator | None = None, record: bool = True
    ) -> Path:
        """Exact draws of π, in float32 (a ``PathSampler``)."""
        x, states = torch.zeros(n, self.prior.dimension), []
        for weight, offset, spread in self._laws():
            root = torch.linalg.cholesky(spread).float()
            x = torch.addmm(offset.float(), x, weight.float().T)
            x = x.addmm_(torch.randn(x.shape, generator=generator), root.T)
            states = [*states, x] if record else [x]
        return Path(torch.stack(states[::-1]))


class OptimalKernel(Kernel):
    """The best Gaussian kernel with diagonal variance; the Doob kernel itself where R is diagonal.

    For judges: it reads the answer.

    Arguments:
        tilts: Doob tilts of the steps ``1 ... N``.
        diffusion: of the prior.
    """

    def __init__(self, tilts: Sequence[AffineTilt], diffusion: GaussianDiffusion) -> None:
        super().__init__()
        self.diffusion = diffusion
        self.gains = torch.stack([t.gain for t in tilts])
        self.shifts = torch.stack([t.shift for t in tilts])
        self.log_scales = torch.stack([0.5 * t.covariance.diagonal().log() for t in tilts])

    def forward(
        self, x: Float[Tensor, "B d"], n: int | Tensor, prediction: Tensor, condition: Tensor | None
    ) -> GaussianTilt:
        mean = self.diffusion.reverse(prediction, x, n).mean
        levels = torch.as_tensor(n).expand(len(x))
        delta = torch.empty_like(mean)
        for level in levels.unique().tolist():
            rows = levels == level
            gain, shift = self.gains[level - 1].to(x.dtype), self.shifts[level - 1].to(x.dtype)
            delta[rows] = mean[rows] @ gain.T + shift
        return GaussianTilt(delta, self.log_scales[levels - 1].to(x.dtype))
