"""Uniform-state diffusion on tokens: noise is a token drawn evenly, a step may change any position.

    q(x_t | x_0) = alpha_t δ(x_0) + (1 - alpha_t) / V,                each position on its own,
    p(x_s | x_t) = Σ_{x_0} q(x_s | x_t, x_0) π(x_0 | x_t),            s < t,

with π the denoiser's. Every position has a density at every step and nothing cancels: the log-ratio
of a path is the sum over all positions and steps. A network has no mask to see; it is a
``TokenNetwork`` with ``mask_id=-1`` in a ``TokenDenoiser``.

No mask can stand for what is to be generated, so holding positions fixed would only be a heuristic
here, and canvases are refused; other conditions are the denoiser's affair.

Sources: Austin et al. 2021 (D3PM, arXiv 2107.03006, eq. 4); Schiff et al. 2024 (UDLM, arXiv
2412.10193), whose step puts π into the place of x_0 instead of averaging over it.
"""

import copy

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.masked import MaskedLevel
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Transition
from difftilt.transitions.categorical import Categorical, CategoricalTilt, Reveal, log_prob_of


class UniformDiffusion(Diffusion):
    """Tokens that change into any other.

    Arguments:
        vocab_size: V.
        steps: N; ``alpha = 1 - n / N``.

    Raises:
        InputError: fewer than 2 tokens or 1 step.
    """

    whole = False

    def __init__(self, vocab_size: int, steps: int) -> None:
        if vocab_size < 2 or steps < 1:
            raise InputError(
                "a uniform-state chain wants at least 2 tokens and 1 step, got "
                f"vocab_size={vocab_size}, steps={steps}"
            )
        self.vocab_size = vocab_size
        self.leaps = False
        self.alpha = 1 - torch.arange(steps + 1, dtype=torch.float64) / steps

    @property
    def steps(self) -> int:
        return len(self.alpha) - 1

    def has_density(self, n: int) -> bool:
        return True

    def level(
        self, n: int | Tensor, x: Int[Tensor, "B L"], condition: Tensor | None = None
    ) -> MaskedLevel:
        step = torch.as_tensor(n, device=x.device).expand(len(x))
        return MaskedLevel(_everywhere(x), step / self.steps)

    def base(self, like: Tensor, condition: Tensor | None = None) -> Categorical:
        """Even draws.

        Raises:
            InputError: the condition is a canvas.
        """
        if condition is not None and condition.ndim == 3 and condition.shape[1] == 2:
            raise InputError(
                "a uniform-state chain has no mask, so it cannot hold a canvas's tokens fixed; "
                "infill with a MaskedDiffusion"
            )
        x = torch.zeros(like.shape, dtype=torch.long, device=like.device)
        even = torch.zeros(self.vocab_size, device=like.device).log_softmax(0)
        return Categorical(x, _everywhere(x), even.expand(*x.shape, -1))

    def reverse(self, prediction: Tensor, x: Int[Tensor, "B L"], n: int | Tensor) -> Categorical:
        return Categorical(x, _everywhere(x), self._step(prediction, x, n))

    def tilt_between(
        self, other: Tensor, own: Tensor, x: Int[Tensor, "B L"], n: int | Tensor
    ) -> CategoricalTilt:
        laws = self._step(other, x, n), self._step(own, x, n)
        return CategoricalTilt(_everywhere(x), *laws)

    def kept(self, prediction: Tensor, law: Transition, landed: Int[Tensor, "B L"]) -> Tensor:
        """The log-probability of the step, (B,): all that a log-ratio needs."""
        return law.log_prob(landed)

    @property
    def leap(self) -> "UniformDiffusion":
        """Steps that end at once: the mean-field law of ``x_0`` given ``x_n``, which is ``π``."""
        leaping = copy.copy(self)
        leaping.leaps = True
        return leaping

    def clean(
        self, prediction: Float[Tensor, "B L V"], x: Int[Tensor, "B L"], n: int | Tensor
    ) -> Int[Tensor, "B L"]:
        """The likeliest tokens."""
        return prediction.argmax(2)

    def denoising_pair(
        self,
        x_0: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self._replaced(x_0, self.alpha.to(x_0.device)[n[:, None]], noise), x_0

    def denoising_loss(
        self,
        prediction: Float[Tensor, "R L V"],
        wanted: Int[Tensor, "R L"],
        x: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
    ) -> Float[Tensor, " R"]:
        """The cross-entropy of all tokens."""
        return -log_prob_of(prediction, wanted).sum(1)

    def noised(
        self,
        x_0: Int[Tensor, "B L"],
        upto: int,
        noise: Noise,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        states = [x_0]
        for n in range(1, upto + 1):
            kept = self.alpha[n] / self.alpha[n - 1]
            states.append(self._replaced(states[-1], kept.to(x_0.device), noise))
        return states

    def noised_pairs(
        self,
        x_0: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        alpha, step = self.alpha.to(x_0.device), n[:, None]
        before = self._landing(step)
        landed = self._replaced(x_0, alpha[before], noise)
        return self._replaced(landed, alpha[step] / alpha[before], noise), landed

    def _landing(self, n: Tensor) -> Tensor:
        """The level at which step n lands."""
        return torch.zeros_like(n) if self.leaps else n - 1

    def _replaced(self, x: Int[Tensor, "B L"], kept: Tensor, noise: Noise) -> Int[Tensor, "B L"]:
        """x with each token kept, or else drawn evenly."""
        stays = noise.uniforms(x) < kept
        drawn = (noise.uniforms(x) * self.vocab_size).long().clamp(max=self.vocab_size - 1)
        return torch.where(stays, x, drawn)

    def _step(
        self, log_probs: Float[Tensor, "B ..."], x: Int[Tensor, "B L"], n: int | Tensor
    ) -> Float[Tensor, "B ..."]:
        """``log p(x_s | x_t)`` of all tokens from ``log π``; what a path kept stays as it is.

        With ``Z(v) = q(x_t | x_0 = v)`` and ``w = π / Z`` it is
        ``q(x_t | x_s) (alpha_s w(x_s) + (1 - alpha_s) / V Σ w)``.
        """
        if log_probs.ndim == 1:
            return log_probs
        step, alpha = torch.as_tensor(n, device=x.device), self.alpha.to(x.device)
        t, s = (
            a.to(log_probs.dtype).reshape(-1, 1, 1)
            for a in (alpha[step], alpha[self._landing(step)])
        )
        here = torch.nn.functional.one_hot(x, self.vocab_size).to(log_probs.dtype)
        weight = log_probs.exp() / (t * here + (1 - t) / self.vocab_size)
        spread = (1 - s) / self.vocab_size * weight.sum(2, keepdim=True)
        kept = t / s
        probs = (kept * here + (1 - kept) / self.vocab_size) * (s * weight + spread)
        # The logarithm of a banned token's 0 has no gradient.
        possible = probs > 0
        return torch.where(possible, probs.where(possible, 1.0).log(), -torch.inf)


def _everywhere(x: Int[Tensor, "B L"]) -> Reveal:
    """Every position counts."""
    positions = torch.arange(x.shape[1], device=x.device).expand(x.shape)
    return Reveal(positions, torch.ones_like(x, dtype=torch.bool))
