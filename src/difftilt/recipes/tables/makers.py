"""How the benches make a sampler of a target, whatever the target is.

A ``Setting`` says what a method is given: the target, the form and the plan recommended for it
(with its budget), and how many samples will be drawn. A ``Maker`` makes a sampler of it: a chain,
or a population of particles. Trained makers change the plan or the form, so that methods differ in
what is named and in nothing else. None reads a truth.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from difftilt.chains.chain import Chain
from difftilt.forms import Form, LearnedGuidance
from difftilt.guidance.base import Guidance
from difftilt.objectives.base import Objective
from difftilt.posteriors import Sources, Target
from difftilt.rewards.wrappers import GaussianLikelihood
from difftilt.sampling.populations import PopulationSampler
from difftilt.smc.population import Population
from difftilt.training.loop import train
from difftilt.training.plan import RTB, BehaviourWeights, Training, suited


@dataclass(frozen=True)
class Setting:
    """What a method is given.

    Arguments:
        target: what is to be sampled.
        form: recommended to carry a posterior; None for the target's own default.
        plan: the recommended training, with its budget and seed.
        calls: network calls that a population may spend on all draws together.
        draws: how many samples will be drawn.
        likelihood: the reward as a Gaussian likelihood, or None.
        sources: what a training may draw besides paths (the conditions), or None.
    """

    target: Target
    form: Form | None
    plan: Training
    calls: int
    draws: int
    likelihood: GaussianLikelihood | None = None
    sources: Sources | None = None


Sampler = Chain | PopulationSampler
Maker = Callable[[Setting], Sampler]
Change = Callable[[Training], Training]
FormChange = Callable[[Form | None], Form | None]
Recommended = TypeVar("Recommended")

ON_POLICY = BehaviourWeights(on_policy=1.0, pool=0.0)
STRENGTH_RATE = 0.05


def unchanged(value: Recommended) -> Recommended:
    """The recommended plan or form."""
    return value


def trained(change: Change = unchanged, form: FormChange = unchanged) -> Callable[[Setting], Chain]:
    """The recommended training, its plan and its form changed; its moving average samples."""

    def make(setting: Setting) -> Chain:
        torch.manual_seed(setting.plan.seed)
        posterior = setting.target.posterior(form(setting.form))
        state = setting.target.state(posterior, change(setting.plan), setting.sources)
        for _ in train(state, None):
            pass
        state.use_average()
        return posterior.chain

    return make


def recommended(plan: Training, form: Form | None) -> Maker:
    """A recipe's own training, for the table's budget."""
    return trained(
        lambda given: replace(plan, network_calls=given.network_calls, seed=given.seed),
        lambda given: form,
    )


def on_own_paths(plan: Training) -> Training:
    """The plan without a warm start, on the posterior's own paths alone."""
    return replace(plan, warm_start=0.0, behaviour=ON_POLICY)


def with_objective(objective: Objective) -> Change:
    """The plan with another objective."""
    return lambda plan: replace(plan, objective=objective)


def by_itself(objective: Objective, form: FormChange = unchanged) -> Maker:
    """An objective on the paths that it asks for, without RTB's warm start."""

    def change(plan: Training) -> Training:
        own = replace(plan, **{"warm_start": 0.0, **suited(objective)}, objective=objective)
        if not objective.on_policy:
            return own
        # Gradients of a policy are too noisy for Muon's steps of fixed size.
        adam = replace(plan.optimisation, hidden_learning_rate=0.0)
        return replace(own, optimisation=adam)

    return trained(change, form)


def learned_strengths(along: Guidance, rate: float = STRENGTH_RATE) -> Maker:
    """RTB of how far to go along a training-free method, a number per step, on own paths."""

    def change(plan: Training) -> Training:
        optimisation = replace(
            plan.optimisation, learning_rate=rate, hidden_learning_rate=0.0, balance_scale=1.0
        )
        objective = RTB(log_z="batch")
        own = replace(on_own_paths(plan), subset=None, objective=objective)
        return replace(own, optimisation=optimisation)

    return trained(change, lambda form: LearnedGuidance(along=along))


def prior_alone(setting: Setting) -> Chain:
    """The prior, for importance weights."""
    return setting.target.prior.chain


def guided(guidance: Guidance) -> Maker:
    """A chain guided without training."""
    return lambda setting: setting.target.guided(guidance).chain


def populated(population: Callable[[int, Target], Population], calls_per_step: int = 1) -> Maker:
    """A population on the prior, of as many particles as the budget of network calls allows."""

    def make(setting: Setting) -> Sampler:
        per_path = setting.target.prior.chain.steps * calls_per_step
        particles = max(2, round(setting.calls / (setting.draws * per_path)))
        return setting.target.population(population(particles, setting.target))

    return make


def corrected(population: Population, trainer: Callable[[Setting], Chain]) -> Maker:
    """A population whose particles are moved by a trained posterior."""
    return lambda setting: setting.target.population(population, trainer(setting))
