"""A diffusion model as a finite Markov chain with known kernels, and the paths it draws.

    p(τ) = p(x_N) Π_n p(x_{n-1} | x_n),      τ = (x_N, ..., x_1, x_0)

A ``Chain`` is a denoiser on a diffusion's levels: the prior. A posterior is the *same* chain with a
``Kernel`` that tilts each step and, if wanted, an ``InitialTilt`` of the law of ``x_N``; without
them its log-ratio to the prior is exactly zero. A ``Path`` records tensors only.
Paths are drawn in ``difftilt.chains.rollouts`` and scored in ``difftilt.chains.scoring``.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from difftilt.denoisers import Denoiser, differentiable_prediction
from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Tilt, Transition
from difftilt.transitions.gaussian import GaussianTilt


class Kernel(nn.Module, ABC):
    """What a posterior adds to each step of its prior.

    A kernel stays in eval mode, so that its density is a function of the state alone.
    """

    @abstractmethod
    def forward(
        self,
        x: Shaped[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None,
    ) -> Tilt:
        """The tilt of step ``x_n -> x_{n-1}``.

        Arguments:
            x: states x_n, (B, *event).
            n: the step, one int or one per sample.
            prediction: the prior's clean prediction at x_n.
            condition: (B, ...) or None.
        """

    def planned(
        self, x: Tensor, n: int, condition: Tensor | None, diffusion: Diffusion, noise: Noise
    ) -> Tensor:
        """``x_n`` with what is decided of step n before the networks predict; the prior's way."""
        return diffusion.planned(x, n, noise, condition)

    def prepared(self, like: Tensor) -> "Kernel":
        """This kernel for one rollout; its tilts may lack a graph that ``recorded`` has."""
        return self

    def recorded(self) -> Tilt | None:
        """All tilts since ``prepared`` as one with a graph; None: each carried its own."""
        return None

    def on(self, diffusion: Diffusion) -> "Kernel":
        """The same networks with the steps of another diffusion.

        Raises:
            InputError: the kernel cannot change its steps.
        """
        raise InputError(
            f"{type(self).__name__} is bound to the steps it was made for, and this objective "
            "wants others; use a posterior that is a denoiser (FullCopy or LoRA)"
        )

    def train(self, mode: bool = True) -> Self:
        """Stay in eval mode: dropout would make the ratio of a path a random number."""
        return super().train(False)


class InitialTilt(nn.Module):
    """A learned shift and log-scale of the standardised ``x_N``, zero at the start.

    Arguments:
        event_shape: shape of one sample.
    """

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.zeros(tuple(event_shape)))
        self.log_scale = nn.Parameter(torch.zeros(tuple(event_shape)))

    def forward(self, batch: int) -> GaussianTilt:
        """The tilt for ``batch`` samples."""
        shape = (batch, *self.delta.shape)
        return GaussianTilt(self.delta.expand(shape), self.log_scale.expand(shape))


@dataclass
class NetworkCalls:
    """How many states each network has seen without and with a graph (one row, one call)."""

    prior: int = 0
    posterior: int = 0

    @property
    def total(self) -> int:
        """All calls."""
        return self.prior + self.posterior


@dataclass(frozen=True)
class Path:
    """A batch of paths: tensors only, detached (but see ``log_ratio``).

    Arguments:
        states: (N + 1, B, *event); ``states[n]`` is x_n, so ``states[0]`` is data.
        predictions: (N, B, *prediction), the prior's clean predictions at ``x_1 ... x_N``
            (``predictions[n - 1]``), or None where they were not kept.
        log_ratio: (B,) ``Λ`` under the chain that drew the path, or None where it is not known;
            it carries a gradient if ``rollout(..., ratio="differentiable")`` drew the path.
        condition: (B, ...) or None.
    """

    states: Shaped[Tensor, "levels B ..."]
    predictions: Tensor | None = None
    log_ratio: Float[Tensor, " B"] | None = None
    condition: Tensor | None = None

    @property
    def x_0(self) -> Shaped[Tensor, "B ..."]:
        """The ends of the paths, (B, *event)."""
        return self.states[0]

    @property
    def batch(self) -> int:
        """Number of paths B."""
        return self.states.shape[1]

    @property
    def ends(self) -> "Path":
        """The same without the states above x_0."""
        return replace(self, states=self.states[:1], predictions=None)

    def select(self, rows: Tensor) -> "Path":
        """The paths of some rows (an index tensor or mask over B)."""
        return Path(
            self.states[:, rows],
            None if self.predictions is None else self.predictions[:, rows],
            None if self.log_ratio is None else self.log_ratio[rows],
            None if self.condition is None else self.condition[rows],
        )

    @staticmethod
    def joined(paths: Sequence["Path"]) -> "Path":
        """Paths of several batches as one; a field is kept where every batch has it."""
        if len(paths) == 1:
            return paths[0]

        def join(values: list[Tensor | None], dim: int) -> Tensor | None:
            present = [v for v in values if v is not None]
            return torch.cat(present, dim) if len(present) == len(values) else None

        states = torch.cat([p.states for p in paths], 1)
        return Path(
            states,
            join([p.predictions for p in paths], 1),
            join([p.log_ratio for p in paths], 0),
            join([p.condition for p in paths], 0),
        )


@dataclass(frozen=True)
class Chain:
    """A prior (no kernel) or a posterior (a kernel on the same prior).

    Arguments:
        denoiser: the prior's.
        diffusion: levels and reverse kernels.
        event_shape: shape of one sample.
        kernel: the tilt of each step, or None for the prior.
        initial: the tilt of ``x_N``, or None to keep the prior's.
        condition: bound condition (B, ...), see ``given``.
    """

    denoiser: Denoiser
    diffusion: Diffusion
    event_shape: tuple[int, ...]
    kernel: Kernel | None = None
    initial: InitialTilt | None = None
    condition: Tensor | None = None
    like: Tensor = field(default_factory=lambda: torch.zeros(()))
    calls: NetworkCalls = field(default_factory=NetworkCalls, compare=False)

    @property
    def steps(self) -> int:
        """Number of steps N."""
        return self.diffusion.steps

    @property
    def gaussian(self) -> GaussianDiffusion:
        """The diffusion, for methods that need means, variances or gradients of states.

        Raises:
            InputError: the states are no vectors of numbers.
        """
        if not isinstance(self.diffusion, GaussianDiffusion):
            raise InputError(
                "this method moves continuous states, but the chain's are tokens; use an objective "
                "of path log-ratios (RTB) or of ends (RewardWeighted), or particles"
            )
        return self.diffusion

    @property
    def density_steps(self) -> list[int]:
        """The steps n that have a density; the others are maps shared by prior and posterior."""
        return [n for n in range(1, self.steps + 1) if self.diffusion.has_density(n)]

    @property
    def prior(self) -> "Chain":
        """This chain without its tilts."""
        return replace(self, kernel=None, initial=None)

    def tilted(self, kernel: Kernel, initial: InitialTilt | None = None) -> "Chain":
        """The posterior of this prior with the given tilts.

        Raises:
            InputError: no step of the chain has a density, so that none can be tilted.
        """
        if not self.density_steps:
            raise InputError(
                "this sampler has no stochastic step (a DDIM with eta = 0 or an ODE), so its steps "
                "have no density to tilt; use eta > 0, or tilt its noise with difftilt.latent(...)"
            )
        return replace(self, kernel=kernel, initial=initial)

    @property
    def leap(self) -> "Chain":
        """This chain with steps from ``x_n`` to ``x_0`` in one call (``Diffusion.leap``)."""
        leap = self.diffusion.leap
        kernel = None if self.kernel is None else self.kernel.on(leap)
        return replace(self, diffusion=leap, kernel=kernel)

    def given(self, condition: Tensor | None) -> "Chain":
        """This chain with a condition of shape (B, ...) bound to it."""
        return replace(self, condition=condition)

    def predict(
        self, x: Shaped[Tensor, "B ..."], n: int | Tensor, rows=None, gradients: bool = False
    ) -> Tensor:
        """The prior's clean prediction at ``x_n``.

        Arguments:
            x: states x_n.
            n: the step, one int or one per sample.
            rows: of the bound condition; default all.
            gradients: keep the graph to x. Ask ``torch.autograd.grad`` for derivatives by x: the
                prior is frozen, and ``backward`` would reach it where its owner forgot to.

        Raises:
            InputError: a gradient is wanted, and the network cuts the graph.
        """
        self.calls.prior += self.diffusion.calls(x, n)
        condition = self._condition_of(rows)
        denoiser = self.denoiser.given(condition)
        level = self.diffusion.level(n, x, condition)
        if gradients:
            with torch.enable_grad():
                return differentiable_prediction(denoiser, x, level)
        with torch.no_grad():
            return denoiser(x, level)

    def clean(self, prediction: Tensor, x: Tensor, n: int) -> Shaped[Tensor, "B ..."]:
        """The prior's guess of x_0 at ``x_n``; of tokens, by one more network call."""
        if self.diffusion.whole:
            return self.diffusion.clean(prediction, x, n)
        leap = self.prior.leap
        return leap.diffusion.clean(leap.predict(x, n), x, n)

    def base(self, batch: int) -> Transition:
        """The law of ``x_N`` of ``batch`` samples; a bound condition has as many rows."""
        return self.diffusion.base(self.empty(batch), self.condition)

    def law(self, prediction: Tensor, x: Shaped[Tensor, "B ..."], n: int | Tensor) -> Transition:
        """The prior's law of ``x_{n-1}`` from its prediction at ``x_n``."""
        return self.diffusion.reverse(prediction, x, n)

    def tilt(self, x: Tensor, n: int | Tensor, prediction: Tensor, rows=None) -> Tilt | None:
        """The posterior's tilt of step n, or None for a prior."""
        if self.kernel is None:
            return None
        self.calls.posterior += self.diffusion.calls(x, n)
        return self.kernel(x, n, prediction, self._condition_of(rows))

    def _condition_of(self, rows: Tensor | None) -> Tensor | None:
        return self.condition if rows is None or self.condition is None else self.condition[rows]

    def planned(self, x: Tensor, n: int, noise: Noise) -> Tensor:
        """``x_n`` with what is decided of step n before the networks predict."""
        if self.kernel is not None:
            return self.kernel.planned(x, n, self.condition, self.diffusion, noise)
        return self.diffusion.planned(x, n, noise, self.condition)

    def empty(self, batch: int) -> Shaped[Tensor, "B ..."]:
        """A tensor (B, *event) of the chain's dtype and device."""
        return self.like.new_zeros((batch, *self.event_shape))
