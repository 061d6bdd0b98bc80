"""What every method of offline control starts from: the same prior, critic, β and paths.

    logged data -> behaviour μ (a diffusion policy) -> prior chain
                -> critic Q, V                      -> log r = Q(s, a) - V(s)
    held-out states, K actions of μ in each         -> β, by the divergence that it costs

**β is chosen before any policy is trained**, on states of held-out episodes: it is the one whose
tilted behaviour ``μ exp(β Q) / Z`` is on average ``nats`` away from μ, by the critic. No return of
the environment enters, and one number of nats serves all data sets, whatever the unit of their
rewards.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.adapters.actions import Bound, unbounded
from difftilt.adapters.foreign_policies import read_policy
from difftilt.adapters.policies import DiffusionPolicy
from difftilt.adapters.policy_config import PolicyConfig
from difftilt.errors import InputError
from difftilt.models.residual import ResidualSize
from difftilt.posteriors import Prior, Sources, Target
from difftilt.tasks.control.advantages import check_trace, fit_advantage
from difftilt.tasks.control.behaviour import fit_behaviour, support_of
from difftilt.tasks.control.critics import (
    Critic,
    CriticOptions,
    check_expectile,
    fit_in_support,
    fit_iql,
)
from difftilt.tasks.control.data import OfflineData
from difftilt.tasks.control.fitting import Fit
from difftilt.tasks.control.stored import data_digest, kept_critic, kept_policy
from difftilt.tasks.control.temperature import beta_of_divergence, check_nats

SOLVER_STEPS = 10
SPLIT_SEED = 0
BETA_STATES, BETA_ACTIONS = 256, 64
WORST_ERROR = 0.5
"""Of the noise at the last time, where the state is noise; predicting nothing errs by 1."""
CRITICS = ("advantage", "iql", "in_support")
NEEDED = {
    "steps": f"must be 1 to {PolicyConfig.training_steps}",
    "bound": f"is unknown; choose {' or '.join(get_args(Bound))}",
    "critic": f"is unknown; choose one of {', '.join(CRITICS)}",
    "backup_beta": "must be above 0",
    "beta": "must be positive and finite",
    "support": "must be at least 2: the logged action and one of the behaviour",
    "support_states": "must be at least 1",
    "held_out": "must lie in (0, 1)",
    "draws": "must be at least 1",
}


def _cloning() -> Fit:
    return Fit(updates=20_000, batch=256, learning_rate=1e-3, decays=True)


@dataclass(frozen=True)
class Parts:
    """How prior, critic and β are made; what all methods of a comparison share.

    Arguments:
        steps: N of the policy's chain.
        size: of the policy's network.
        bound: how actions are bounded.
        cloning: fit of the behaviour.
        policy: a ready behaviour instead of a cloned one: a folder of ``DiffusionPolicy.save``, or
            a file of another library's weights (``foreign_policy``); its size and bound are its
            own, its variances are measured on the data.
        critic: "advantage" (TD(λ) of the episodes), "iql", or "in_support" (QGPO's softmax over
            support actions).
        critic_options: how it learns.
        trace: λ of "advantage".
        expectile: of V of "iql"; .5 is the behaviour's own value.
        backup_beta: β of the in-support backup, per unit of scaled reward.
        nats: mean divergence from the behaviour that β is chosen by.
        beta: β itself, per unit of the critic; None: by ``nats``.
        support: K, actions of the behaviour per state.
        support_states: states whose support actions the methods may train on.
        held_out: share of the episodes that nothing is trained on.
        draws: of a diffusion policy in each state that it plays; it takes one in the middle of
            their largest mode. 1 plays a draw.
        seed: of everything here; both fits add it to a seed of their own.

    Raises:
        InputError: a number out of range, or an unknown critic or bound.
    """

    steps: int = 15
    size: ResidualSize = field(default_factory=ResidualSize)
    bound: Bound = "clip"
    cloning: Fit = field(default_factory=_cloning)
    policy: str | None = None
    critic: Literal["advantage", "iql", "in_support"] = "advantage"
    critic_options: CriticOptions = field(default_factory=CriticOptions)
    trace: float = 0.95
    expectile: float = 0.7
    backup_beta: float = 1.0
    nats: float = 0.25
    beta: float | None = None
    support: int = 16
    support_states: int = 8192
    held_out: float = 0.1
    draws: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check_trace(self.trace)
        check_expectile(self.expectile)
        if self.beta is None:
            check_nats(self.nats, BETA_ACTIONS)
        checks = {
            "steps": 1 <= self.steps <= PolicyConfig.training_steps,
            "bound": self.bound in get_args(Bound),
            "critic": self.critic in CRITICS,
            "backup_beta": self.backup_beta > 0,
            "beta": self.beta is None or 0 < self.beta < math.inf,
            "support": self.support >= 2,
            "support_states": self.support_states >= 1,
            "held_out": 0 < self.held_out < 1,
            "draws": self.draws >= 1,
        }
        for name, fine in checks.items():
            if not fine:
                raise InputError(f"{name}={getattr(self, name)!r} of the parts {NEEDED[name]}")

    def seeded(self) -> "Parts":
        """These parts, with the seed of each fit moved by theirs."""
        cloning, options = self.cloning, self.critic_options
        fit = replace(options.fit, seed=options.fit.seed + self.seed)
        moved = replace(cloning, seed=cloning.seed + self.seed)
        return replace(self, cloning=moved, critic_options=replace(options, fit=fit))


@dataclass(frozen=True)
class Advantage:
    """``log r(a, s) = Q(s, a) - V(s)``: the tilt by Q, with a log Z near 0 in every state.

    Arguments:
        critic: Q and V.
    """

    critic: Critic

    def __call__(
        self, actions: Float[Tensor, "B A"], condition: Float[Tensor, "B O"]
    ) -> Float[Tensor, " B"]:
        return self.critic.advantage(condition, actions)


@dataclass(frozen=True)
class ControlSetting:
    """What every method is given.

    Arguments:
        data: transitions to train on.
        held_out: transitions of other episodes.
        policy: the behaviour.
        critic: Q and V.
        target: the tilted behaviour.
        sources: support actions of the behaviour, with their states.
        parts: how all of it was made.
    """

    data: OfflineData
    held_out: OfflineData
    policy: DiffusionPolicy
    critic: Critic
    target: Target
    sources: Sources
    parts: Parts

    def held_out_states(self, count: int) -> Float[Tensor, "count O"]:
        """Random states of held-out episodes."""
        generator = torch.Generator().manual_seed(self.parts.seed + 11)
        rows = torch.randint(len(self.held_out), (count,), generator=generator)
        return self.held_out.observations[rows]


def build_setting(
    data: OfflineData, parts: Parts, talk: Callable[[str], None] | None = None
) -> ControlSetting:
    """Fit (or find in the cache) the behaviour and the critic, and choose β.

    Arguments:
        data: logged transitions.
        parts: how.
        talk: says what happens.

    Raises:
        InputError: an option out of range, or a ready policy that does not fit the data.
        TrainingError: a fit diverged.
    """
    say = (lambda _: None) if talk is None else talk
    seen, held_out = data.split(parts.held_out, SPLIT_SEED)
    made_by = {"data": data_digest(seen), "seed": parts.seed}
    fitted = parts.seeded()
    policy = _policy(seen, fitted, made_by, say)
    critic = _critic(seen, policy, fitted, made_by, say)
    beta = parts.beta
    if beta is None:
        beta = _chosen_beta(held_out, policy, critic, parts)
        say(f"beta = {beta:.4g}: {parts.nats:g} nats from the behaviour on held-out states")
    source = f"a diffusion policy of weights {policy.fingerprint[:16]}"
    prior = Prior(policy.chain(parts.steps), policy.decode, source)
    target = prior.tilt(Advantage(critic), beta)
    sources = support_sources(seen, policy, parts)
    return ControlSetting(seen, held_out, policy, critic, target, sources, parts)


def _policy(
    data: OfflineData, parts: Parts, made_by: dict, say: Callable[[str], None]
) -> DiffusionPolicy:
    if parts.policy is not None:
        return ready_policy(parts.policy, data, parts.seed)
    config = PolicyConfig(data.observation_width, data.action_width, parts.size, bound=parts.bound)

    def make() -> DiffusionPolicy:
        say(f"cloning the behaviour: {parts.cloning.updates} updates")
        return fit_behaviour(data, config, parts.cloning)

    return kept_policy({**made_by, "config": asdict(config), "fit": asdict(parts.cloning)}, make)


def ready_policy(source: str, data: OfflineData, seed: int = 0) -> DiffusionPolicy:
    """A policy that was trained elsewhere, its error measured on the data.

    Arguments:
        source: see ``Parts.policy``.
        data: logged transitions.
        seed: of the measurement.

    Raises:
        InputError: it is no policy, has other widths than the data, or does not know its noise.
    """
    policy = read_policy(source)
    widths = policy.config.observations, policy.config.actions
    if widths != (data.observation_width, data.action_width):
        raise InputError(
            f"the policy of {source} reads states of {widths[0]} numbers and makes actions of "
            f"{widths[1]}, and the data has {data.observation_width} and {data.action_width}; "
            "name a policy of this task"
        )
    x_0 = unbounded(data.actions, policy.config.bound)
    generator = torch.Generator().manual_seed(seed + 12)
    measured = policy.measured(data.observations, x_0, generator)
    assert measured.error is not None
    last = float(measured.error[-1])
    if not last < WORST_ERROR:
        raise InputError(
            f"the policy of {source} mistakes pure noise by {last:.2g} on this data (1: it knows "
            "nothing); give foreign_policy its schedule, unit_time and states, save that, and name "
            "the folder"
        )
    return measured


def _critic(
    data: OfflineData,
    policy: DiffusionPolicy,
    parts: Parts,
    made_by: dict,
    say: Callable[[str], None],
) -> Critic:
    options = parts.critic_options
    own = {**made_by, "options": asdict(options), "kind": parts.critic}
    if parts.critic != "in_support":
        fitted, number = {
            "advantage": (fit_advantage, parts.trace),
            "iql": (fit_iql, parts.expectile),
        }[parts.critic]

        def of_logged_actions() -> Critic:
            say(f"learning the critic ({parts.critic}): {options.fit.updates} updates")
            return fitted(data, options, number)

        return kept_critic({**own, "number": number}, of_logged_actions)

    def in_support() -> Critic:
        say(f"drawing {parts.support} support actions in each of {len(data)} next states")
        ends = support_of(policy, data.next_observations, parts.support, parts.seed, SOLVER_STEPS)
        say(f"learning the critic (in-support softmax): {options.fit.updates} updates")
        return fit_in_support(data, policy.decode(ends), options, parts.backup_beta)

    from_policy = {"policy": policy.fingerprint, "beta": parts.backup_beta, "k": parts.support}
    return kept_critic({**own, **from_policy}, in_support)


def _chosen_beta(
    held_out: OfflineData, policy: DiffusionPolicy, critic: Critic, parts: Parts
) -> float:
    generator = torch.Generator().manual_seed(parts.seed + 7)
    rows = torch.randint(len(held_out), (BETA_STATES,), generator=generator)
    states = held_out.observations[rows]
    actions = policy.decode(support_of(policy, states, BETA_ACTIONS, parts.seed + 8, SOLVER_STEPS))
    with torch.no_grad():
        return beta_of_divergence(critic.q_of_support(states, actions), parts.nats)


def support_sources(data: OfflineData, policy: DiffusionPolicy, parts: Parts) -> Sources:
    """In each of some states the logged action, and K - 1 of the behaviour."""
    generator = torch.Generator().manual_seed(parts.seed + 9)
    count = min(parts.support_states, len(data))
    rows = torch.randperm(len(data), generator=generator)[:count]
    states = data.observations[rows]
    logged = unbounded(data.actions[rows], policy.config.bound)[:, None]
    drawn = support_of(policy, states, parts.support - 1, parts.seed + 10, SOLVER_STEPS)
    ends = torch.cat([logged, drawn], 1)
    return Sources(
        data=ends.flatten(0, 1), data_conditions=states.repeat_interleave(parts.support, 0)
    )
