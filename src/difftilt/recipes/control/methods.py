"""The methods of offline control on one prior and one critic.

What is trained differs in the objective, in where its paths come from, and in what carries the
posterior: a copy of the behaviour's network, or a value whose gradient guides the behaviour. Every
posterior starts at the behaviour. The objectives are the package's own; none knows of control.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from difftilt.chains.chain import Chain
from difftilt.forms import Form, FullCopy
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.pathwise import KLControl
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.objectives.policy import DDPO
from difftilt.recipes.control.parts import ControlSetting
from difftilt.recipes.tables.makers import Change, Setting, trained
from difftilt.tasks.control.acting import BestActor, ChainActor, MeanActor, acting
from difftilt.tasks.control.behaviour import fit_behaviour, fit_gaussian
from difftilt.tasks.control.evaluation import Policy
from difftilt.tasks.control.guidance import StateGuided
from difftilt.training.plan import BehaviourWeights, Optimisation, Training

BEST_SHARE = 0.1
CANDIDATES = 32
SUPPORT = 16
# Compared within a state, as in its paper: over all states, one of a large Q is the whole sum.
QGPO = CEP("self_normalised", contrast=SUPPORT, per_sample_time=False, states="forward")
WEIGHT_LIMIT = 100.0
OWN = BehaviourWeights(on_policy=1.0, pool=0.0)
GIVEN = BehaviourWeights(on_policy=0.0, pool=0.0, data=1.0)
MIXED = BehaviourWeights(on_policy=0.5, pool=0.0, data=0.5)


def control_plan(updates: int = 3000, seed: int = 0) -> Training:
    """RTB's training: 16 states, 16 of the posterior's own paths in each."""
    return Training(
        steps=updates,
        batch=256,
        warm_start=0.0,
        paths_per_condition=16,
        objective=RTB("batch", residual_clip=4.0),
        optimisation=Optimisation(learning_rate=1e-3, hidden_learning_rate=0.003, ema=0.995),
        behaviour=OWN,
        seed=seed,
    )


@dataclass(frozen=True)
class TrainedMethod:
    """A posterior that ``Training`` trains.

    Arguments:
        summary: one line.
        change: from RTB's plan to its own.
        form: what carries it, for a policy.
        consistent: whether it aims at the tilted behaviour itself.
    """

    summary: str
    change: Change
    form: Callable[[ControlSetting], Form]
    consistent: bool = True

    def chain(self, setting: ControlSetting, plan: Training) -> Chain:
        """Train a posterior."""
        made = Setting(setting.target, self.form(setting), plan, 0, 0, sources=setting.sources)
        return trained(self.change)(made)

    def make(self, setting: ControlSetting, plan: Training) -> Policy:
        """Train a posterior; it acts in its cheapest form."""
        return player(setting, self.chain(setting, plan))


@dataclass(frozen=True)
class OtherMethod:
    """A policy that is made without tilting the behaviour's chain.

    Arguments:
        summary: one line.
        make: from what is given and RTB's plan to a policy.
    """

    summary: str
    make: Callable[[ControlSetting, Training], Policy]
    consistent: bool = False


def _copy(setting: ControlSetting) -> Form:
    return FullCopy()


def _guided(setting: ControlSetting) -> StateGuided:
    return StateGuided(setting.parts.size)


def _with(
    objective: Objective, behaviour: BehaviourWeights, paths: int = 1, subset: int | None = None
) -> Change:
    """The plan with an objective, and the paths that it is trained on; Adam for all weights."""

    def change(plan: Training) -> Training:
        return replace(
            plan,
            optimisation=replace(plan.optimisation, hidden_learning_rate=0.0),
            objective=objective,
            behaviour=behaviour,
            paths_per_condition=paths,
            subset=subset,
        )

    return change


def trained_methods() -> dict[str, TrainedMethod]:
    """The methods that ``difftilt train control`` knows."""
    return {
        "rtb": TrainedMethod(
            "RTB, log-variance per state, on own paths",
            lambda plan: plan,
            _copy,
        ),
        "rtb_mixed": TrainedMethod(
            "the same, half of the paths noised actions of the support",
            lambda plan: replace(plan, behaviour=MIXED),
            _copy,
        ),
        "qgpo": TrainedMethod(
            "QGPO: guidance by a learned log h, contrastive on each state's support actions",
            _with(QGPO, GIVEN, paths=SUPPORT, subset=4),
            _guided,
        ),
        "diffusion_ql": TrainedMethod(
            "Diffusion-QL: the critic's gradient through the chain, held by KL to the behaviour",
            _with(KLControl(), OWN),
            _copy,
        ),
        "ppo_kl": TrainedMethod(
            "PPO's clipped ratio (DDPO) with KL to the behaviour",
            _with(DDPO(0.2, kl=True, updates=2), OWN, paths=16),
            _copy,
        ),
        "awr": TrainedMethod(
            "advantage-weighted regression of each state's support actions, denoising them",
            _with(RewardWeighted(contrast=SUPPORT), GIVEN, paths=SUPPORT, subset=4),
            _copy,
        ),
        "rgdm": TrainedMethod(
            "RGDM, paper-like: landings moved within a radius, paid at the noisy action",
            _with(RGDM("reward"), GIVEN, subset=4),
            _copy,
            consistent=False,
        ),
    }


def player(setting: ControlSetting, chain: Chain) -> ChainActor:
    """How a diffusion policy of the table is played."""
    return acting(chain, setting.policy.decode, draws=setting.parts.draws)


def control_methods() -> dict[str, TrainedMethod | OtherMethod]:
    """Every method of ``difftilt bench control`` by name."""
    return {
        **trained_methods(),
        "idql": OtherMethod(
            f"IDQL: the best of {CANDIDATES} of the behaviour, by Q", _best_of(CANDIDATES)
        ),
        "idql_2": OtherMethod("the same of 2, which costs .19 nats", _best_of(2)),
        "iql": OtherMethod("IQL: the mean of a Gaussian by advantage-weighted regression", _iql),
        "bc": OtherMethod("the behaviour itself: a cloned diffusion policy", _behaviour),
        "filtered_bc": OtherMethod(
            f"the same of the best {BEST_SHARE:.0%} of the episodes", _filtered
        ),
        "gaussian_bc": OtherMethod("one Gaussian per state, cloned; its mean is played", _gaussian),
    }


def _best_of(count: int) -> Callable[[ControlSetting, Training], Policy]:
    def make(setting: ControlSetting, plan: Training) -> Policy:
        actor = acting(setting.target.prior.chain, setting.policy.decode)
        return BestActor(actor, setting.critic, count)

    return make


def _behaviour(setting: ControlSetting, plan: Training) -> Policy:
    return player(setting, setting.target.prior.chain)


def _filtered(setting: ControlSetting, plan: Training) -> Policy:
    fit = replace(setting.parts.cloning, seed=plan.seed)
    policy = fit_behaviour(setting.data.best(BEST_SHARE), setting.policy.config, fit)
    return player(setting, policy.chain(setting.parts.steps))


def _gaussian(setting: ControlSetting, plan: Training) -> Policy:
    fit = replace(setting.parts.cloning, seed=plan.seed)
    return MeanActor(fit_gaussian(setting.data, fit))


def _iql(setting: ControlSetting, plan: Training) -> Policy:
    beta = setting.target.beta

    def weight(states: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            gain = beta * setting.critic.advantage(states, actions)
        return gain.exp().clamp(max=WEIGHT_LIMIT)

    fit = replace(setting.parts.cloning, seed=plan.seed)
    return MeanActor(fit_gaussian(setting.data, fit, weight=weight))
