"""Gaussian diffusions: a schedule's levels with the reverse kernels of a sampler.

Given a prediction ``c`` of the clean sample, every ancestral sampler of the field takes

    x_{n-1} = a_n clip(c) + b_n c + g_n x_n + std_n ε,       ε ~ N(0, I),

and differs only in the tables ``a, b, g, std`` (``ReverseTables``). DDPM uses ``a`` and ``g``; DDIM
keeps the unclipped ``c`` in its direction to ``x_n``; Euler-ancestral is DDIM with η = 1 on levels
with alpha = 1; a rectified flow run as an SDE is the same with alpha = 1 - sigma. The marginals
``x_n = alpha_n x_0 + sigma_n ε`` are kept for every η in [0, 1].

A step with ``std_n = 0`` is a map: it has no density and prior and posterior share it.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.denoisers import Level
from difftilt.diffusions.base import Diffusion
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.objectives.weighted import denoising
from difftilt.schedules import NoiseLevels
from difftilt.transitions.base import rows_of
from difftilt.transitions.gaussian import Gaussian, GaussianTilt


@dataclass(frozen=True)
class ReverseTables:
    """Coefficients of the reverse kernels, each of shape (N + 1,) in float64, entry 0 unused."""

    clipped: Float[Tensor, " levels"]
    clean: Float[Tensor, " levels"]
    state: Float[Tensor, " levels"]
    std: Float[Tensor, " levels"]


def posterior_variance(levels: NoiseLevels) -> Float[Tensor, " levels"]:
    """``sigma_s² (1 - alpha_t² sigma_s² / (alpha_s² sigma_t²))``, variance of ``x_s | x_t, x_0``.

    Source: Ho et al. 2020, eq. 7 (arXiv 2006.11239), for any ``(alpha, sigma)``. Entry 0 is 0.
    """
    alpha_t, sigma_t = levels.alpha[1:], levels.sigma[1:]
    alpha_s, sigma_s = levels.alpha[:-1], levels.sigma[:-1]
    variance = sigma_s**2 * (1 - (alpha_t * sigma_s / (alpha_s * sigma_t)) ** 2)
    return torch.cat([torch.zeros(1, dtype=variance.dtype), variance.clamp(min=0)])


def ancestral_tables(levels: NoiseLevels, std: Tensor | None = None) -> ReverseTables:
    """DDPM's kernels: mean and std of ``q(x_{n-1} | x_n, x_0 = clip(c))``.

    Arguments:
        levels: the noise levels.
        std: another std per step (N + 1,), e.g. DDPM's "fixed_large" or a non-zero last one.

    Source: Ho et al. 2020, eq. 7 (arXiv 2006.11239).
    """
    alpha_t, sigma_t = levels.alpha[1:], levels.sigma[1:]
    alpha_s, sigma_s = levels.alpha[:-1], levels.sigma[:-1]
    ratio = alpha_t / alpha_s
    forward_variance = sigma_t**2 - ratio**2 * sigma_s**2
    zero = torch.zeros(1, dtype=torch.float64)
    clipped = torch.cat([zero, alpha_s * forward_variance / sigma_t**2])
    state = torch.cat([zero, ratio * sigma_s**2 / sigma_t**2])
    own = posterior_variance(levels).sqrt() if std is None else std
    return ReverseTables(clipped, torch.zeros_like(clipped), state, own)


def implicit_tables(
    levels: NoiseLevels, eta: float = 1.0, std: Tensor | None = None
) -> ReverseTables:
    """DDIM's kernels at stochasticity ``eta``: mean ``alpha_s clip(c) + sqrt(sigma_s² - std²) ε̂``.

    ``ε̂ = (x_n - alpha_t c) / sigma_t`` keeps the unclipped prediction, as diffusers does.

    Source: Song et al. 2020, eq. 12 and 16 (arXiv 2010.02502).

    Raises:
        InputError: ``eta`` outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise InputError(f"eta must lie in [0, 1], got {eta}")
    own = eta * posterior_variance(levels).sqrt() if std is None else std
    alpha_t, sigma_t = levels.alpha[1:], levels.sigma[1:]
    alpha_s, sigma_s = levels.alpha[:-1], levels.sigma[:-1]
    direction = (sigma_s**2 - own[1:] ** 2).clamp(min=0).sqrt()
    zero = torch.zeros(1, dtype=torch.float64)
    return ReverseTables(
        torch.cat([zero, alpha_s]),
        torch.cat([zero, -direction * alpha_t / sigma_t]),
        torch.cat([zero, direction / sigma_t]),
        own,
    )


class GaussianDiffusion(Diffusion):
    """Levels, reverse kernels, and the forward process they invert.

    Arguments:
        levels: noise levels 0 ... N.
        tables: reverse kernels; default DDPM's.
        clip: clamp the clean prediction to ±clip inside the kernel, or None.
        base_std: std of ``x_N``'s law ``N(0, base_std² I)``; default ``sqrt(alpha_N² + sigma_N²)``.
        learned_range: per-step bounds of ``log variance`` (low, high), each (N + 1,), between which
            the second half of the prediction's channels interpolates (diffusers' learned_range).
    """

    def __init__(
        self,
        levels: NoiseLevels,
        tables: ReverseTables | None = None,
        clip: float | None = None,
        base_std: float | None = None,
        learned_range: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        self.levels = levels
        self.tables = ancestral_tables(levels) if tables is None else tables
        self.clip = clip
        last_alpha, last_sigma = float(levels.alpha[-1]), float(levels.sigma[-1])
        self.base_std = math.hypot(last_alpha, last_sigma) if base_std is None else base_std
        self.learned_range = learned_range
        reverse = {k: getattr(self.tables, k) for k in ReverseTables.__annotations__}
        self._tensors = reverse | {k: getattr(levels, k) for k in ("time", "alpha", "sigma")}
        self._floats = {name: table.tolist() for name, table in self._tensors.items()}
        each = (self._floats[k] for k in ("time", "alpha", "sigma"))
        self._levels = [Level(*entries) for entries in zip(*each, strict=True)]
        self._uses_unclipped = bool(self.tables.clean.any())
        self._cast: dict[tuple[torch.dtype, torch.device], dict[str, Tensor]] = {}

    @property
    def steps(self) -> int:
        return self.levels.steps

    def has_density(self, n: int) -> bool:
        return self._floats["std"][n] > 0

    def with_std(self, n: int, std: float) -> "GaussianDiffusion":
        """This diffusion with another std at step n (a last step of zero variance made a law)."""
        own = self.tables.std.clone()
        own[n] = std
        tables = replace(self.tables, std=own)
        return GaussianDiffusion(self.levels, tables, self.clip, self.base_std, self.learned_range)

    def level(self, n: int | Tensor, x: Tensor, condition: Tensor | None = None) -> Level:
        """Level ``n`` (an int, or one per sample (B,)) in the dtype of ``x``."""
        if isinstance(n, int):
            return self._levels[n]
        tables = self._tables(x)
        return Level(tables["time"][n], *(rows_of(tables[k], n, x) for k in ("alpha", "sigma")))

    def reverse(
        self, prediction: Float[Tensor, "B ..."], x: Float[Tensor, "B ..."], n: int | Tensor
    ) -> Gaussian:
        """The law of ``x_{n-1}`` given ``x_n`` and the network's clean prediction.

        Arguments:
            prediction: of the clean sample, (B, *event) (double channels for a learned range).
            x: the state x_n.
            n: the step, one int or one per sample (B,).
        """
        fraction = None
        if self.learned_range is not None:
            prediction, fraction = prediction.split(x.shape[1], dim=1)
        clean = self._clip(prediction)
        mean = self._entry("clipped", n, x) * clean + self._entry("state", n, x) * x
        if self._uses_unclipped:
            mean = mean + self._entry("clean", n, x) * prediction
        if fraction is not None:
            return Gaussian(mean, self._learned_std(fraction, n, x))
        return Gaussian(mean, rows_of(self._tables(x)["std"], n, x))

    def tilt_between(
        self, other: Tensor, own: Tensor, x: Float[Tensor, "B ..."], n: int | Tensor
    ) -> GaussianTilt:
        """The tilt from the kernel of prediction ``own`` to that of prediction ``other``.

        ``delta = (a (clip(other) - clip(own)) + b (other - own)) / std``: exactly zero where the
        predictions agree. With a learned range the two stds differ too.
        """
        log_scale = None
        std = self._entry("std", n, x)
        if self.learned_range is not None:
            own, own_fraction = own.split(x.shape[1], dim=1)
            other, other_fraction = other.split(x.shape[1], dim=1)
            std = self._learned_std(own_fraction, n, x)
            low, high = (self._entry(k, n, x) for k in ("log_low", "log_high"))
            log_scale = 0.25 * (other_fraction - own_fraction) * (high - low)
        a, b = self._entry("clipped", n, x), self._entry("clean", n, x)
        difference = a * (self._clip(other) - self._clip(own))
        if self._uses_unclipped:
            difference = difference + b * (other - own)
        return GaussianTilt(difference / std, log_scale)

    def base(self, like: Float[Tensor, "B ..."], condition: Tensor | None = None) -> Gaussian:
        std = torch.tensor(self.base_std, dtype=like.dtype, device=like.device)
        return Gaussian(torch.zeros_like(like), std)

    def noised(
        self,
        x_0: Float[Tensor, "B ..."],
        upto: int,
        noise: Noise,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """States ``x_0 ... x_upto``, step by step, consistent with the levels' marginals."""
        states = [x_0]
        for n in range(1, upto + 1):
            states.append(self.forward_step(states[-1], n).at(noise.normal(x_0)))
        return states

    def forward_step(self, x: Float[Tensor, "B ..."], n: int) -> Gaussian:
        """The noising law of ``x_n`` given ``x_{n-1}``, consistent with the levels' marginals."""
        alpha, sigma = self.levels.alpha, self.levels.sigma
        ratio = float(alpha[n] / alpha[n - 1])
        variance = float(sigma[n] ** 2) - ratio**2 * float(sigma[n - 1] ** 2)
        return Gaussian(ratio * x, torch.tensor(max(variance, 0.0) ** 0.5, dtype=x.dtype))

    def noised_pairs(
        self,
        x_0: Float[Tensor, "R ..."],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = (t.to(x_0) for t in (self.levels.alpha, self.levels.sigma))
        a_n, a_s, s_n, s_s = (rows_of(t, k, x_0) for t in (alpha, sigma) for k in (n, n - 1))
        from_data = a_s / alpha[0]
        spread = (s_s**2 - (from_data * sigma[0]) ** 2).clamp(min=0).sqrt()
        landed = torch.addcmul(from_data * x_0, noise.normal(x_0), spread)
        ratio = a_n / a_s
        added = (s_n**2 - (ratio * s_s) ** 2).clamp(min=0).sqrt()
        return torch.addcmul(ratio * landed, noise.normal(x_0), added), landed

    def clean(
        self, prediction: Tensor, x: Float[Tensor, "B ..."], n: int | Tensor
    ) -> Float[Tensor, "B ..."]:
        return self._clip(prediction[:, : x.shape[1]])

    def denoising_pair(
        self,
        x_0: Float[Tensor, "R ..."],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        alpha, sigma = self._scales(x_0, n)
        return alpha * x_0 + sigma * noise.normal(x_0), x_0

    def denoising_loss(
        self,
        prediction: Tensor,
        wanted: Float[Tensor, "R ..."],
        x: Float[Tensor, "R ..."],
        n: Int[Tensor, " R"],
    ) -> Float[Tensor, " R"]:
        alpha, sigma = self._scales(x, n)
        return denoising(prediction[:, : x.shape[1]], wanted, sigma, alpha)

    def _scales(self, x: Tensor, n: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of each row."""
        levels = self.levels
        return rows_of(levels.alpha.to(x.dtype), n, x), rows_of(levels.sigma.to(x.dtype), n, x)

    def _clip(self, prediction: Tensor) -> Tensor:
        return prediction if self.clip is None else prediction.clamp(-self.clip, self.clip)

    def _learned_std(self, fraction: Tensor, n: int | Tensor, x: Tensor) -> Tensor:
        low, high = (self._entry(k, n, x) for k in ("log_low", "log_high"))
        share = (fraction + 1) / 2
        std = torch.exp(0.5 * (share * high + (1 - share) * low))
        return std * (self._entry("std", n, x) > 0)

    def _entry(self, name: str, n: int | Tensor, x: Tensor) -> Tensor | float:
        if isinstance(n, int) and name in self._floats:
            return self._floats[name][n]
        return rows_of(self._tables(x)[name], n, x)

    def _tables(self, like: Tensor) -> dict[str, Tensor]:
        key = (like.dtype, like.device)
        if key not in self._cast:
            tables = dict(self._tensors)
            if self.learned_range is not None:
                tables |= dict(zip(("log_low", "log_high"), self.learned_range, strict=True))
            self._cast[key] = {k: v.to(dtype=key[0], device=key[1]) for k, v in tables.items()}
        return self._cast[key]
