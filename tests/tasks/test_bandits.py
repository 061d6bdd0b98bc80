"""Bandits in many states: their quadratures against closed forms, draws and each other."""

import math
from dataclasses import replace

import pytest
import torch

from difftilt.chains.rollouts import rollout
from difftilt.denoisers import Level
from difftilt.diagnostics.distances import mode_total_variation
from difftilt.errors import InputError
from difftilt.forms import Perceptron
from difftilt.kernels.networks import VectorKernel
from difftilt.noise import GeneratorNoise
from difftilt.tasks.bandits import Bandit, BestOf, LineLaw, distances, line_law, optimal
from difftilt.tasks.bandits.counts import PlaneTruth, counted, counting_floor, marginals
from difftilt.tasks.bandits.line import best_of
from difftilt.tasks.bandits.mixtures import ContextualDenoiser
from difftilt.tasks.bandits.problems import COMPONENTS, DIMENSION, plane_axes
from difftilt.tasks.bandits.truth import (
    behaviour,
    log_partition,
    mode_weights,
    values_at,
)
from difftilt.tasks.bandits.two_step import clean_goal_law, draw_actions

pytestmark = pytest.mark.usefixtures("unchecked")
STATE = torch.tensor([[0.4, -0.6]])
SHORT = Bandit(steps=6)
SHORT_GOAL = Bandit("line", "goal", 6)


def clean_law(bandit: Bandit, beta: float, x: torch.Tensor) -> torch.Tensor:
    """Masses of the clean "goal" policy on a grid."""
    weights, means, variance, _ = clean_goal_law(bandit, STATE.double(), beta)
    density = torch.exp(-0.5 * (x[:, None] - means[0, :, 0]) ** 2 / variance) @ weights[0]
    return density / density.sum()


@pytest.mark.parametrize("beta", [0.0, 3.0, 10.0])
def test_a_long_chains_optimal_policy_is_the_mixtures(beta: float):
    """The discrete chain tends to the clean mixture: TV falls as 1/N, to below 0.02 at N = 60."""
    found = []
    for steps in (15, 60):
        law = optimal(Bandit("line", "goal", steps), STATE, beta)
        assert isinstance(law, LineLaw)
        found.append(0.5 * float((law.mass - clean_law(SHORT_GOAL, beta, law.x)).abs().sum()))
    assert found[1] < 0.35 * found[0] and found[1] < 0.02


def test_quadrature_of_a_tilted_chain_agrees_with_its_own_draws(generator):
    """Cell counts of 40,000 draws; chi-square of 9 cells, false alarm below 1e-4."""
    kernel = Perceptron(3, width=16, numbers=(1.0, 1.0)).kernel(SHORT.chain)
    assert isinstance(kernel, VectorKernel)
    torch.nn.init.normal_(kernel.network.last.weight, std=0.2, generator=generator)
    chain, n = SHORT.chain.tilted(kernel), 40_000
    law = line_law(chain.given(STATE))
    # Edges between grid points, so that a cell is a sum of masses.
    edges = 0.03 * torch.arange(-40, 41, 10, dtype=torch.float64) + 0.015
    expected = n * torch.zeros(10).double().index_add(0, torch.bucketize(law.x, edges), law.mass)
    x = rollout(chain.given(STATE.expand(n, 2)), n, GeneratorNoise(generator), record=False).x_0
    counts = torch.bincount(torch.bucketize(x[:, 0].double(), edges), minlength=10)
    assert float(expected.min()) > 20
    assert float(((counts - expected) ** 2 / expected).sum()) < 35


def test_a_finer_grid_says_the_same():
    coarse, fine = (line_law(SHORT.chain.given(STATE), h, reach=3.9) for h in (0.03, 0.015))
    assert float((coarse.x - fine.x[::2]).abs().max()) < 1e-6
    assert float((coarse.mass / 0.03 - fine.mass[::2] / 0.015).abs().max()) < 1e-5


def test_quadrature_refuses_what_it_cannot_do():
    with pytest.raises(InputError, match="of states \\(B, 1\\)"):
        line_law(Bandit("ring").chain.given(STATE))
    with pytest.raises(InputError, match="got 2; bind one"):
        line_law(SHORT.chain.given(STATE.expand(2, 2)))


def test_the_evidence_is_that_of_prior_draws(generator):
    """5 standard errors of the mean of ``exp(β Q)`` over 20,000 draws."""
    n, beta = 20_000, 3.0
    states = STATE.expand(n, 2)
    x = rollout(SHORT.chain.given(states), n, GeneratorNoise(generator), record=False).x_0
    r = (beta * SHORT.log_reward(x, states)).double().exp()
    z = math.exp(log_partition(SHORT, STATE, beta))
    assert abs(float(r.mean()) - z) < 5 * float(r.std()) / math.sqrt(n)


@pytest.mark.parametrize("geometry", ["line", "ring"])
def test_the_best_actions_are_rare(geometry):
    bandit = Bandit(geometry, "rare", 8)
    usual = mode_weights(bandit, STATE, behaviour(bandit, STATE))
    wanted = mode_weights(bandit, STATE, optimal(bandit, STATE, 10.0))
    assert float(usual[-1]) < 0.1 and float(wanted[-1]) > 0.8
    assert float(usual.sum()) == pytest.approx(1) and float(wanted.sum()) == pytest.approx(1)


@pytest.mark.parametrize("critic", ["rare", "goal"])
def test_in_six_dimensions_the_plane_is_exact(critic, generator):
    """Importance-weighted draws of R^6 against the plane's quadrature, 5 standard errors each."""
    bandit, n, beta = Bandit("space", critic, 8), 20_000, 2.0
    states = STATE.expand(n, 2)
    x = rollout(bandit.chain.given(states), n, GeneratorNoise(generator), record=False).x_0
    weight = (beta * bandit.log_reward(x, states)).double().softmax(0)
    nearest = bandit.mixture.nearest(states, x)
    hits = torch.nn.functional.one_hot(nearest, 6).double()
    found = weight @ hits
    error = (weight[:, None] ** 2 * (hits - found) ** 2).sum(0).sqrt()
    exact = mode_weights(bandit, STATE, optimal(bandit, STATE, beta))
    assert float(((found - exact).abs() / error.clamp(min=1e-3)).max()) < 5


def test_the_planes_axes_are_orthonormal():
    for d in (2, 6):
        axes = plane_axes(d, torch.zeros(1, dtype=torch.float64))
        assert torch.allclose(axes.T @ axes, torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("geometry", list(DIMENSION))
def test_the_denoiser_is_the_posterior_mean(geometry, generator):
    """``E[a | a_t]`` by importance weights of 200,000 draws of the mixture, 5 standard errors."""
    bandit, n = Bandit(geometry), 200_000
    clean = draw_actions(bandit.mixture, STATE.expand(n, 2), generator)
    level = Level(0.5, 0.8, 0.6)
    x_t = 0.8 * bandit.mixture.means(STATE)[:, 1] + 0.2
    weight = (-(x_t - 0.8 * clean).square().sum(1) / (2 * 0.6**2)).double().softmax(0)
    mean = weight @ clean.double()
    error = (weight[:, None] ** 2 * (clean - mean) ** 2).sum(0).sqrt()
    found = bandit.chain.denoiser.given(STATE)(x_t, level)[0]
    assert float(((found - mean).abs() / error).max()) < 5


def test_best_of_a_few_is_enumerated():
    """Three actions, two draws: the best of each of the nine pairs."""
    mass, worth = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([1.0, 3.0, 2.0]).double()
    expected = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            expected[i if worth[i] > worth[j] else j] += mass[i] * mass[j]
    assert torch.allclose(best_of(mass, worth, 2), expected)
    assert torch.allclose(best_of(mass, worth, 1), mass)


def test_the_behaviour_is_optimal_at_beta_zero_alone():
    states = SHORT.states(2, torch.Generator().manual_seed(1))
    found = distances(SHORT, lambda s, beta: SHORT.chain.given(s), states, (0.0, 3.0))
    assert float(found.tv[:, 0].max()) < 1e-9 and float(found.tv[:, 1].min()) > 0.05
    assert found.to_dict()["mean_0"] < 1e-9 and found.to_dict()["within"] == 0.5
    one = distances(SHORT, lambda s, beta: BestOf(1), states, (0.0,))
    assert float(one.tv.max()) < 1e-9


def test_counts_of_the_truth_are_as_far_off_as_stated(generator):
    """Mean TV of 400 multinomial counts against its large-n formula; 5 standard errors."""
    masses, n = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64), 4000
    each = []
    for _ in range(400):
        drawn = torch.multinomial(masses, n, replacement=True, generator=generator)
        counts = torch.bincount(drawn, minlength=4).double()
        each.append(mode_total_variation(counts, masses))
    found = torch.tensor(each, dtype=torch.float64)
    assert abs(float(found.mean()) - counting_floor(masses, n)) < 5 * float(found.std()) / 20


def test_the_plane_counts_draws():
    bandit = Bandit("ring", "rare", 6)
    found = distances(bandit, lambda s, beta: bandit.chain.given(s), STATE, (0.0,), draws=4000)
    assert float(found.tv[0, 0]) < 3 * float(found.floor[0, 0]) < 0.05


def test_the_exact_policy_passes_its_own_column():
    """Four thousand draws of it had a floor of .013, and left .02 in one state of eight."""
    bandit = Bandit("ring", "rare", 4)
    states = bandit.states(3, torch.Generator().manual_seed(2))
    found = distances(bandit, lambda s, beta: bandit.chain.given(s), states, (0.0,)).to_dict()
    assert found["within"] == 1 and found["tv_max"] < 0.01 and found["floor"] < 0.003
    assert found["marginal"] < 2 / 100_000**0.5


def test_draws_of_a_tilted_law_pass_too(generator):
    """At β > 0, where no chain is exact, draws of the quadrature itself: 20,000 of them."""
    bandit, beta = Bandit("ring", "goal", 4), 3.0
    law = optimal(bandit, STATE, beta)
    truth = PlaneTruth(mode_weights(bandit, STATE, law), marginals(law))

    def draw(count: int):
        rows = torch.multinomial(law.mass, count, replacement=True, generator=generator)
        x = law.x[rows]
        return x, bandit.mixture.nearest(STATE.double().expand(count, -1), x)

    found = counted(truth, draw, 20_000)
    assert found.tv < 3 * found.floor < 0.02 and found.marginal < 2 / 20_000**0.5


@pytest.mark.parametrize("geometry", ["line", "ring", "space"])
def test_wrong_actions_in_right_modes_are_seen(geometry):
    """Modes half as wide again: their weights hardly move, and the marginals do."""
    bandit = Bandit(geometry, "rare", 6)
    wide = ContextualDenoiser(replace(bandit.mixture, std=1.5 * bandit.mixture.std))
    other = replace(bandit.chain, denoiser=wide)
    found = distances(bandit, lambda s, beta: other.given(s), STATE, (0.0,), draws=8000)
    assert float(found.marginal) > 0.03
    if geometry != "line":
        assert float(found.tv) < 0.03


def test_a_policy_that_is_plainly_off_is_not_drawn_from_on_and_on():
    drawn = []

    def draw(count: int):
        drawn.append(count)
        return torch.zeros(count, 2), torch.zeros(count, dtype=torch.long)

    bandit = Bandit("ring", "rare", 4)
    law = behaviour(bandit, STATE)
    found = counted(PlaneTruth(mode_weights(bandit, STATE, law), marginals(law)), draw, 10**9)
    assert drawn == [4000] and found.tv > 0.5 and found.marginal > 0.2
    with pytest.raises(InputError, match="draws=0"):
        distances(bandit, lambda s, beta: bandit.chain.given(s), STATE, draws=0)


def test_q_is_bounded_and_has_a_gradient():
    for geometry, count in COMPONENTS.items():
        for critic in ("rare", "goal"):
            bandit = Bandit(geometry, critic)
            actions = torch.randn(50, bandit.dimension, requires_grad=True)
            values = bandit.value(STATE.expand(50, 2), actions)
            (slope,) = torch.autograd.grad(values.sum(), actions)
            assert float(values.detach().max()) <= 0 and bool(torch.isfinite(slope).all())
        assert bandit.payoffs(STATE).shape == (1, count)


def test_what_is_wrong_is_said():
    with pytest.raises(InputError, match="there is no bandit 'cube'"):
        Bandit("cube")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="reads a state; bind one"):
        SHORT.log_reward(torch.zeros(2, 1))
    with pytest.raises(InputError, match=r"with or without β .* shape \(2, 4\)"):
        SHORT.chain.given(torch.zeros(2, 4)).predict(torch.zeros(2, 1), 1)
    with pytest.raises(InputError, match="this prior reads a state"):
        SHORT.chain.predict(torch.zeros(2, 1), 1)


def test_values_of_the_truth_are_those_of_the_reward():
    law = behaviour(SHORT, STATE)
    own = SHORT.log_reward(law.x.float()[:, None], STATE.expand(len(law.x), 2))
    assert torch.allclose(values_at(SHORT, STATE, law).float(), own, atol=1e-5)
