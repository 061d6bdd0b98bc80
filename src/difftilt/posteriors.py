"""The face of the package: ``tilt`` a prior, ``fit`` a posterior, ``certify`` it.

    prior = load("folder-of-a-diffusers-pipeline", steps=50)
    target = prior.tilt(log_reward, beta=1.0)              # p(x) r(x)^β
    posterior = target.fit(RTB(), steps=2000, form=LoRA(rank=16))
    x = posterior.sample(64)
    print(posterior.certify(4096))
    posterior.export("cat")                                # loads in plain diffusers

Everything here delegates: to chains, training, sampling and adapters.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from difftilt.chains.chain import Chain, InitialTilt
from difftilt.chains.fingerprints import chain_record, described
from difftilt.diagnostics.certificate import Certificate
from difftilt.diagnostics.conditional import ConditionalCertificate
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.errors import InputError
from difftilt.forms import Form, FullCopy, Perceptron
from difftilt.guidance.base import Guidance
from difftilt.kernels.networks import VectorKernel
from difftilt.objectives.base import Objective
from difftilt.ranges import finite_number
from difftilt.rewards.contract import CheckedReward, as_reward, reward_bound
from difftilt.sampling.draws import (
    Correction,
    Samples,
    Tilted,
    certify,
    corrected_sample,
    sample,
    weighted_sample,
)
from difftilt.sampling.populations import PopulationSampler
from difftilt.smc.population import Population
from difftilt.training.fits import fit_in, load_fit
from difftilt.training.loop import train
from difftilt.training.plan import Training, suited
from difftilt.training.state import TrainingState
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel


@dataclass(frozen=True)
class Prior:
    """A pre-trained diffusion model, as a chain.

    Arguments:
        chain: its chain.
        decode: from the chain's x_0 to what the reward sees (a generator of the latent chain).
        source: where it came from, for the record.
        pipeline: the adapter's record of a diffusers pipeline, or None.
    """

    chain: Chain
    decode: Callable[[Tensor], Tensor] | None = None
    source: str = "a live model"
    pipeline: Any = None

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the weights where the source has them, else the name of the source."""
        return self.source if self.pipeline is None else self.pipeline.fingerprint

    @property
    def record(self) -> dict[str, Any]:
        """What a run keeps of it, as JSON: source, fingerprint, and the chain in a few numbers."""
        chain = chain_record(self.chain, weights=self.pipeline is None)
        return {"source": self.source, "fingerprint": self.fingerprint, "chain": chain}

    def sample(self, n: int, seed: int = 0, batch: int = 1024) -> Shaped[Tensor, "n ..."]:
        """``n`` independent samples (decoded), one stream per sample."""
        return self.decoded(sample(self.chain, n, seed, batch).x_0)

    def tilt(
        self,
        log_reward: Callable[..., Any],
        beta: float = 1.0,
        log_bound: float | None = None,
    ) -> "Target":
        """The posterior ``p(x) r(x)^β / Z``.

        Arguments:
            log_reward: ``x_0 (B, *event) -> log r (B,)`` in nats, or ``(x_0, condition) -> log r``.
            beta: β > 0.
            log_bound: an upper bound of log r if there is one, checked on every call; default the
                reward's own ``bound``.

        Raises:
            InputError: β is not a positive finite number, or the bound is not a finite one.
        """
        if not isinstance(beta, numbers.Real) or not 0 < beta < math.inf:
            raise InputError(f"beta must be a positive finite number, got {beta!r}")
        if log_bound is None:
            return Target(self, as_reward(log_reward), beta, reward_bound(log_reward))
        log_bound = finite_number("log_bound", log_bound)
        name = log_reward.name if isinstance(log_reward, CheckedReward) else None
        # A wrong bound is found on the first batch, not by the certificate of a finished training.
        checked = CheckedReward(log_reward, name=name, bound=log_bound)
        return Target(self, checked, beta, log_bound)

    def decoded(self, x: Tensor) -> Tensor:
        """What the reward sees of the chain's ``x_0``."""
        return x if self.decode is None else self.decode(x)


@dataclass(frozen=True)
class Sources:
    """What a training is given besides paths.

    Arguments:
        data: (n, *event) for the "data" behaviour, or None.
        data_conditions: (n, ...) the condition of each row of the data, or None.
        conditions: draws conditions ``(count, generator) -> (count, ...)``, or None.
        labels: number of values of integer conditions, counted from 0, for a learned log Z or
            log h; one number, or one for each of several labels; else 0.
        ends: makes the data and their conditions when a training begins, in the place of these two;
            or None.
        value: a ``log h`` to go on with, e.g. another posterior's ``value``, for objectives that
            learn one beside the posterior; None for a new one.
    """

    data: Tensor | None = None
    conditions: Callable[[int, torch.Generator], Tensor] | None = None
    labels: int | tuple[int, ...] = 0
    data_conditions: Tensor | None = None
    ends: Callable[[], tuple[Tensor, Tensor]] | None = None
    value: Value | None = None


@dataclass(frozen=True)
class Target:
    """A posterior to be sampled: prior, reward and β. Made by ``Prior.tilt``."""

    prior: Prior
    log_reward: CheckedReward
    beta: float
    log_bound: float | None

    @property
    def tilted(self) -> Tilted:
        """What corrections and certificates read."""
        return Tilted(self.score, self.beta, self.log_bound)

    @property
    def _checked(self) -> CheckedReward:
        """The reward of the chain's own ends."""
        return CheckedReward(self.score, name=self.log_reward.name, bound=self.log_bound)

    def score(self, x_0: Shaped[Tensor, "B ..."], condition: Tensor | None = None) -> Tensor:
        """``log r`` of the chain's ends, decoded first where the prior decodes.

        Detached, except where x_0 asks for a gradient.
        """
        ask = self.log_reward.differentiable if x_0.requires_grad else self.log_reward
        return ask(self.prior.decoded(x_0), condition)

    def guided(self, method: Guidance) -> "Posterior":
        """A sampler without training: the prior, guided at every step.

        Arguments:
            method: e.g. ``DPS()``.

        Raises:
            InputError: the prior has no stochastic step, or the method does not fit the reward.
        """
        kernel = method.kernel(self.prior.chain, self._checked, self.beta)
        return Posterior(self, self.prior.chain.tilted(kernel), method)

    def sample(
        self,
        n: int,
        seed: int = 0,
        *,
        method: Guidance,
        correct: Correction | None = None,
        effort: int = 4,
    ) -> Shaped[Tensor, "n ..."]:
        """``n`` samples (decoded) without training: ``guided(method).sample(n, ...)``."""
        return self.guided(method).sample(n, seed, correct, effort)

    def posterior(self, form: Form | None = None, initial: bool = False) -> "Posterior":
        """The untrained posterior of a form: equal to the prior, to the bit.

        Arguments:
            form: default a ``Perceptron`` for vectors of at most 64 numbers, else ``FullCopy``.
            initial: also learn a shift and scale of ``x_N``.

        Raises:
            InputError: the prior has no stochastic step.
        """
        chain = self.prior.chain
        if form is None:
            continuous = isinstance(chain.diffusion, GaussianDiffusion)
            small = len(chain.event_shape) == 1 and chain.event_shape[0] <= 64
            is_small_vector = continuous and small
            form = Perceptron() if is_small_vector else FullCopy()
        if initial and not isinstance(chain.diffusion, GaussianDiffusion):
            raise InputError("a chain of tokens starts from masks alone; fit with initial=False")
        first = InitialTilt(chain.event_shape) if initial else None
        if not chain.density_steps:
            chain.tilted(VectorKernel((1,), 1), None)  # raises the sentence about ODE samplers
        kernel = form.kernel_for(chain, self._checked, self.beta)
        if isinstance(kernel, ValueKernel):
            kernel = kernel.at(self.beta)
        return Posterior(self, chain.tilted(kernel, first), form)

    def population(self, method: Population, chain: Chain | None = None) -> PopulationSampler:
        """A sampler of this target by systems of particles, with no training.

        Arguments:
            method: e.g. ``FKSteering(16)``.
            chain: what moves the particles, e.g. a posterior's chain; None for the prior.
        """
        proposal = self.prior.chain if chain is None else chain
        return PopulationSampler(method, proposal, self.tilted, self.prior.decoded)

    def state(
        self,
        posterior: "Posterior",
        plan: Training,
        sources: "Sources | None" = None,
    ) -> TrainingState:
        """The training of a posterior, before its first update."""
        found = Sources() if sources is None else sources
        data, conditions = found.data, found.data_conditions
        if found.ends is not None:
            data, conditions = found.ends()
        return TrainingState(
            posterior.chain,
            self.score,
            self.beta,
            plan,
            found.conditions,
            found.labels,
            data,
            conditions,
            found.value,
        )

    def fit(
        self,
        objective: Objective | None = None,
        *,
        form: Form | None = None,
        initial: bool = False,
        out: str | FilePath | None = None,
        sources: "Sources | None" = None,
        **options: Any,
    ) -> "Posterior":
        """Train a posterior.

        Arguments:
            objective: default ``RTB()``.
            form: what carries the posterior; see ``posterior``.
            initial: also learn the law of ``x_N``.
            out: a run folder to write, from which ``Posterior.load`` reads the posterior; None
                keeps everything in memory.
            sources: data for bridges, conditions to amortise over, a ``log h`` to go on with.
            **options: fields of ``Training``, e.g. ``steps=2000, batch=256, seed=1``; warm start
                and behaviour are, if not given, what the objective asks for. And ``resume=True``:
                continue the training in ``out`` bit for bit. It is refused with another prior, β,
                form, plan, reward function or data; what other objects hold is not compared.

        Raises:
            InputError: unknown field, or one out of range; ``resume`` without ``out``.
            CheckpointError: ``out`` holds another run, or there is none to resume.
            KeyboardInterrupt: a signal came; with ``out`` the training is saved first.
            TrainingError: a loss became non-finite.
        """
        resume = options.pop("resume", False)
        plan = _plan(objective, options)
        posterior = self.posterior(form, initial)
        state = self.state(posterior, plan, sources)
        if out is not None:
            fit_in(FilePath(out), state, self._fit_record(posterior, state), resume)
            return replace(posterior, value=state.value)
        if resume:
            raise InputError("resume=True continues a run folder; name it with out=...")
        for _ in train(state):
            pass
        state.use_average()
        return replace(posterior, value=state.value)

    def record(self, posterior: "Posterior") -> dict[str, Any]:
        """What a run folder keeps of this target and of the form of a posterior of it, as JSON."""
        config = {
            "beta": self.beta,
            "log_bound": self.log_bound,
            "form": described(posterior.form),
            "initial": posterior.chain.initial is not None,
        }
        found = {"config": config, "prior": self.prior.record}
        code = self.log_reward.code_digest
        return found if code is None else {**found, "reward": {"sha256": code}}

    def _fit_record(self, posterior: "Posterior", state: TrainingState) -> dict[str, Any]:
        """The same with what only a training has."""
        found = self.record(posterior)
        given = {"data": state.data, "labels": state.labels}
        own = {"training": described(state.plan), "sources": described(given)}
        return {**found, "config": {**found["config"], **own}}


def _plan(objective: Objective | None, options: dict[str, Any]) -> Training:
    """The plan of a call of ``Target.fit``."""
    known = {f.name for f in fields(Training)}
    unknown = set(options) - known
    if unknown:
        raise InputError(
            f"fit has no option {sorted(unknown)[0]!r}; options are "
            f"{', '.join(sorted({*known, 'resume'}))}"
        )
    if objective is not None:
        options = {**suited(objective), **options, "objective": objective}
    return Training(**options)


@dataclass(frozen=True)
class Posterior:
    """A sampler of a target. Made by ``Target.fit``, ``Target.posterior`` or ``Target.guided``.

    Arguments:
        target: what it aims at.
        chain: the tilted chain.
        form: what carries it: a trained form, or a method of guidance.
        value: the ``log h`` that its training learned, if its objective learns one. It also serves
            as guidance (``ValueGuidance``), as the twist of particles (``ValueTwisted``), as
            SVDD's value, and in another training (``Sources(value=...)``).
    """

    target: Target
    chain: Chain
    form: Form | Guidance = field(default_factory=FullCopy)
    value: Value | None = None

    def given(self, condition: Tensor) -> "Posterior":
        """This posterior with a condition (1, ...) or (n, ...) bound."""
        return replace(self, chain=self.chain.given(condition))

    def sample(
        self, n: int, seed: int = 0, correct: Correction | None = None, effort: int = 4
    ) -> Shaped[Tensor, "n ..."]:
        """``n`` samples (decoded): one pass each, or corrected towards the exact posterior.

        Arguments:
            n: number of samples.
            seed: of the draw; sample i does not depend on n.
            correct: None, "snis", "mh" or "smc" (see ``difftilt.sampling.draws.corrected_sample``).
            effort: proposals, steps or particles per corrected sample.
        """
        return self.target.prior.decoded(self.draw(n, seed, correct, effort).x_0)

    def draw(
        self, n: int, seed: int = 0, correct: Correction | None = None, effort: int = 4
    ) -> Samples:
        """Like ``sample``, undecoded, with ``log r`` and (uncorrected) log-weights."""
        if correct is None:
            return weighted_sample(self.chain, self.target.tilted, n, seed)
        return corrected_sample(self.chain, self.target.tilted, n, correct, seed, effort)

    def certify(self, n: int = 4096, **options: Any) -> Certificate:
        """How near this sampler is to the posterior; options of ``sampling.certify``."""
        return certify(self.chain, self.target.tilted, n, **options)

    def certify_each(
        self, conditions: Shaped[Tensor, "count ..."], n: int = 1024, **options: Any
    ) -> ConditionalCertificate:
        """The certificate of each condition, and their average.

        Arguments:
            conditions: (count, ...), one row each.
            n: paths per condition.
            **options: of ``sampling.certify``.
        """
        each = [self.given(condition[None]).certify(n, **options) for condition in conditions]
        return ConditionalCertificate(tuple(str(c.tolist()) for c in conditions), tuple(each))

    def load(self, folder: str | FilePath) -> "Posterior":
        """This posterior, its weights replaced by those that ``fit(..., out=folder)`` found.

            posterior = prior.tilt(log_reward).posterior(form).load("runs/mine")

        A ``value`` comes back where it guides the posterior; ``fit(..., out=folder, resume=True)``
        on a finished training brings back any other.

        Raises:
            CheckpointError: no finished training there, or one of another prior, β, reward function
                or form.
        """
        load_fit(self.chain, FilePath(folder), self.target.record(self))
        kernel = self.chain.kernel
        return replace(self, value=kernel.value) if isinstance(kernel, ValueKernel) else self

    def export(self, folder: str | FilePath) -> FilePath:
        """Write an ordinary diffusers pipeline that gives the same samples.

        Raises:
            InputError: the prior is no diffusers pipeline, or the form has no such equivalent.
        """
        if self.target.prior.pipeline is None or self.chain.kernel is None:
            raise InputError(
                "export writes a diffusers pipeline, but this prior was not loaded from one; keep "
                "the posterior with fit(..., out=FOLDER) and read it again with "
                "target.posterior(form).load(FOLDER)"
            )
        if self.chain.initial is not None:
            raise InputError(
                "a learned law of x_N has no place in a diffusers pipeline; fit with initial=False"
            )
        return self.target.prior.pipeline.export(self.chain.kernel, FilePath(folder))


def latent(
    generator: Callable[[Tensor], Tensor], event_shape: Sequence[int], steps: int = 20
) -> Prior:
    """A deterministic or few-step generator ``x = f(z)``, ``z ~ N(0, I)``, tilted in its noise.

    The posterior is over z: ``N(z; 0, I) r(f(z))^β``; samples are decoded.

    Arguments:
        generator: f, from (B, *event_shape) to anything the reward takes.
        event_shape: shape of one z.
        steps: N of the chain over z.

    Source: Venkatraman et al. 2025, Outsourced diffusion sampling (arXiv 2502.06999).
    """
    from difftilt.adapters.generators import latent_chain

    return Prior(latent_chain(tuple(event_shape), steps), decode=generator, source="a generator")
