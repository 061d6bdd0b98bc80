"""Actors and forms of offline control: where they start, how they act, what β does."""

from dataclasses import replace

import pytest
import torch

from control_bandit import BETA, ENDS, PARTS, SIZE, Known, build_known, drawn_q, logged, plan_of
from difftilt.chains.rollouts import rollout
from difftilt.noise import GeneratorNoise
from difftilt.objectives.balance import RTB
from difftilt.objectives.payoff import RewardWeighted
from difftilt.recipes.control.methods import (
    GIVEN,
    TrainedMethod,
    control_methods,
    trained_methods,
)
from difftilt.tasks.control.acting import BestActor, MeanActor, acting, densest
from difftilt.tasks.control.behaviour import fit_gaussian
from difftilt.tasks.control.fitting import Fit
from difftilt.tasks.control.guidance import StateGuided
from difftilt.training.loop import train
from difftilt.training.paths import draw_paths

pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(scope="module")
def known() -> Known:
    return build_known()


@pytest.mark.parametrize("name", list(trained_methods()))
def test_every_posterior_starts_at_the_behaviour(known: Known, name: str):
    form = trained_methods()[name].form(known.setting)
    posterior = known.setting.target.posterior(form)
    path = rollout(posterior.chain.given(ENDS), 2, GeneratorNoise(torch.Generator().manual_seed(0)))
    assert path.log_ratio is not None and torch.equal(path.log_ratio, torch.zeros(2))


def test_best_of_many_and_a_best_action_is_the_best(known: Known):
    setting = known.setting
    actor = acting(setting.target.prior.chain, setting.policy.decode)
    best = BestActor(actor, setting.critic, 16)(ENDS, torch.Generator().manual_seed(4))
    offered = actor(ENDS.repeat_interleave(16, 0), torch.Generator().manual_seed(4)).view(2, 16)
    assert best[:, 0].tolist() == [float(offered[0].min()), float(offered[1].max())]


def test_what_is_played_lies_in_the_middle_of_the_larger_mode():
    some = torch.tensor([0.0, 0.05, 0.1, 0.9, 0.45, 0.5, 0.55, 0.58, 0.7]).view(1, 9, 1)
    assert torch.equal(densest(some), torch.tensor([[0.55]]))
    assert torch.equal(densest(some[:, :1]), some[:, 0])
    generator = torch.Generator().manual_seed(6)
    side = torch.randint(2, (400, 16, 1), generator=generator) - 0.5
    actions = side + 0.15 * torch.randn(400, 16, 3, generator=generator)
    played = densest(actions)
    larger = torch.where(side.mean(1) < 0, -0.5, 0.5).expand_as(played)
    uneven = side.sum(1)[:, 0].abs() >= 1
    # A draw is .12 away in each number, on average.
    assert float((played - larger)[uneven].abs().mean()) < 0.09


def test_other_methods_act_within_bounds(known: Known):
    """Cloning does not prefer any action; a weighted Gaussian and the best of many do."""
    methods = control_methods()
    others = [name for name, method in methods.items() if not isinstance(method, TrainedMethod)]
    assert others == ["idql", "idql_2", "iql", "bc", "filtered_bc", "gaussian_bc"]
    small = replace(known.setting, parts=replace(PARTS, cloning=Fit(120, 128, 4e-3), draws=1))
    states = ENDS.repeat_interleave(300, 0)
    for name in others:
        policy = methods[name].make(small, plan_of(name))
        actions = policy(states, torch.Generator().manual_seed(5))
        assert actions.shape == (600, 1) and float(actions.abs().max()) <= 1
        gain = float((states * actions).mean())
        if name in ("idql", "iql"):
            assert gain > known.before + 0.2
        elif name != "filtered_bc":
            assert abs(gain) < 0.25


def test_gaussian_baselines_play_their_mean(known: Known):
    """Of ±1/2 with equal chances the clone's mean is 0: a draw would be .5 away from it."""
    small = replace(known.setting, parts=replace(PARTS, cloning=Fit(150, 256, 5e-3, decays=True)))
    states = ENDS.repeat_interleave(50, 0)
    for name in ("gaussian_bc", "iql"):
        policy = control_methods()[name].make(small, plan_of(name))
        assert isinstance(policy, MeanActor)
        first, again = (policy(states, torch.Generator().manual_seed(i)) for i in (0, 1))
        assert torch.equal(first, again)
        assert torch.equal(first, policy.policy.moments(states)[0].clamp(-1, 1))
        if name == "gaussian_bc":
            assert first.abs().max() < 0.15


def test_gaussian_cloning_finds_the_moments():
    """Of ±1/2 with noise 0.15: mean 0, deviation sqrt(1/4 + 0.15²) = 0.522."""
    policy = fit_gaussian(logged(), Fit(150, 256, 5e-3, decays=True), width=32)
    mean, std = policy.moments(ENDS)
    assert mean.abs().max() < 0.12
    assert std.mean() == pytest.approx(0.522, abs=0.05)


def test_a_value_with_beta_serves_every_beta(known: Known):
    """One training; the kernel at a larger β tilts more, and near β = 0 not at all."""
    setting = known.setting
    posterior = setting.target.posterior(StateGuided(SIZE, largest_beta=BETA))
    plan = trained_methods()["qgpo"].change(plan_of("qgpo"))
    state = setting.target.state(posterior, plan, setting.sources)
    for _ in train(state):
        pass
    kernel = posterior.chain.kernel
    gains = []
    for beta in (1e-3, 1.0, BETA):
        chain = replace(posterior.chain, kernel=kernel.at(beta))  # type: ignore[union-attr]
        gains.append(float(drawn_q(setting, chain).mean()))
    assert gains[0] == pytest.approx(known.before, abs=0.03)
    assert gains[0] + 0.05 < gains[1] < gains[2]


def test_data_bridges_compare_actions_of_one_state(known: Known):
    """Each state's paths are of different actions, so that a balance reads their rewards."""
    setting = known.setting
    objectives = {"rtb": RTB("batch"), "awr": RewardWeighted(contrast=8)}
    for name, objective in objectives.items():
        plan = replace(plan_of(name), behaviour=GIVEN, objective=objective, paths_per_condition=8)
        posterior = setting.target.posterior()
        state = setting.target.state(posterior, plan, setting.sources)
        path = draw_paths(state, 1.0)["data"].path
        assert path.condition is not None
        assert len(torch.unique(path.condition)) == 8
        groups = path.x_0.view(8, 8)
        assert all(len(torch.unique(group)) == 8 for group in groups)
