"""One posterior for every β, and kernels and values that read numbers of a condition."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.betas import BetaBlind, BetaReward, joined_beta, split_beta, with_beta
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import log_ratio
from difftilt.denoisers import Level
from difftilt.errors import InputError
from difftilt.forms import Perceptron, ValueGuided
from difftilt.kernels.networks import VectorKernel
from difftilt.models.mlp import Size
from difftilt.models.numbers import Numbers
from difftilt.noise import GeneratorNoise
from difftilt.objectives.balance import RTB
from difftilt.posteriors import Prior, Sources
from difftilt.rewards.wrappers import Bounded
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.bandits import Bandit, ContextualDenoiser, ContextualMixture, line_law
from difftilt.tasks.exact.vectors import vector_chain
from difftilt.training.plan import BehaviourWeights, Optimisation
from difftilt.transitions.gaussian import GaussianTilt
from difftilt.values.functions import VectorValue

pytestmark = pytest.mark.usefixtures("unchecked")
STATES = torch.tensor([[0.5, -1.0], [0.0, 0.25], [1.0, 1.0]])
BETAS = torch.tensor([[0.0], [2.0], [10.0]])


def half_square(x: Tensor, condition: Tensor) -> Tensor:
    return -0.5 * (x - condition[:, :1]).square().sum(1)


def test_the_reward_is_raised_to_each_samples_own_beta():
    x = torch.tensor([[1.0], [2.0], [-1.0]])
    reward = BetaReward(Bounded(half_square, 0.0))
    expected = BETAS[:, 0] * half_square(x, STATES)
    assert torch.allclose(reward(x, joined_beta(STATES, BETAS)), expected)
    assert reward.bound == 0 and BetaReward(half_square).bound is None


def test_a_forbidden_sample_counts_as_one_at_beta_zero():
    reward = BetaReward(lambda x: torch.full((len(x),), -math.inf))
    found = reward(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))
    assert found.tolist() == [0.0, -math.inf]


def test_the_reward_keeps_its_gradient():
    x = torch.tensor([[1.0], [2.0], [-1.0]], requires_grad=True)
    (slope,) = torch.autograd.grad(BetaReward(half_square)(x, joined_beta(STATES, BETAS)).sum(), x)
    assert torch.allclose(slope, -BETAS * (x.detach() - STATES[:, :1]))


def test_the_prior_does_not_see_beta():
    denoiser = ContextualDenoiser(Bandit().mixture)
    x, level = torch.randn(3, 1), Level(0.5, 0.8, 0.6)
    blind = BetaBlind(denoiser).given(joined_beta(STATES, BETAS))
    assert torch.equal(blind(x, level), denoiser.given(STATES)(x, level))


def test_conditions_for_training_have_every_beta(generator):
    drawn = with_beta(lambda n, g: torch.zeros(n, 2), 10.0)(20_000, generator)
    beta = drawn[:, 2]
    assert drawn.shape == (20_000, 3) and float(beta.min()) >= 0 and float(beta.max()) <= 10
    # 5 standard errors of a uniform's mean.
    assert abs(float(beta.mean()) - 5) < 5 * 10 / math.sqrt(12 * 20_000)
    with pytest.raises(InputError, match="largest_beta must be positive"):
        with_beta(lambda n, g: torch.zeros(n, 2), 0.0)


@pytest.mark.parametrize("condition", [None, torch.zeros(3), torch.zeros(3, 2).long()])
def test_no_beta_to_be_found(condition: Tensor | None):
    with pytest.raises(InputError, match="last number of a condition of floats"):
        split_beta(condition)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (None, r"reads 3 numbers of a condition and none is bound"),
        (torch.zeros(2, 3).long(), r"shape \(2, 3\), floats, and got int64"),
        (torch.zeros(2, 2), r"of shape \(2, 3\)"),
        (torch.tensor([[0.0, 0.0, 11.0]]).expand(2, 3), r"β in \[0, 10.0\], got 11 to 11"),
    ],
)
def test_conditions_that_are_no_such_numbers(condition: Tensor | None, message: str):
    with pytest.raises(InputError, match=message):
        Numbers((1.0, 1.0), 10.0).code(condition, torch.zeros(2, 1))


def test_numbers_out_of_range():
    for scales, largest in (((), None), ((0.0,), None), ((1.0,), -1.0), ((math.inf,), None)):
        with pytest.raises(InputError, match="each positive and finite"):
            Numbers(scales, largest)
    with pytest.raises(InputError, match="labels or numbers"):
        Perceptron(labels=(2,), numbers=(1.0,))


@pytest.mark.parametrize("components", [1, 3])
def test_a_kernel_is_the_prior_at_beta_zero_whatever_it_has_learned(components: int, generator):
    bandit = Bandit(steps=4)
    form = Perceptron(components, width=16, numbers=(1.0, 1.0), largest_beta=10.0)
    kernel = form.kernel(bandit.chain)
    assert isinstance(kernel, VectorKernel)
    torch.nn.init.normal_(kernel.network.last.weight, generator=generator)
    for beta, moved in ((0.0, False), (5.0, True)):
        bound = bandit.chain.given(joined_beta(STATES, beta))
        path = rollout(bound, 3, GeneratorNoise(generator))
        ratio = log_ratio(bound.tilted(kernel), path).detach()
        assert bool((ratio.abs() > 1e-3).all()) == moved
        assert moved or bool((ratio == 0).all())


def test_a_kernel_reads_each_rows_own_numbers(generator):
    kernel = VectorKernel((1,), 3, size=Size(16), reads=Numbers((1.0, 2.0)))
    torch.nn.init.normal_(kernel.network.last.weight, generator=generator)
    x = torch.zeros(3, 1)
    together = kernel(x, 2, x, STATES)
    alone = [kernel(x[:1], 2, x[:1], state[None]) for state in STATES]
    assert isinstance(together, GaussianTilt)
    assert torch.allclose(together.delta, torch.cat([a.delta for a in alone]), atol=1e-6)
    assert float(together.delta.detach().std()) > 1e-3


def test_a_value_reads_state_and_beta(generator):
    value = VectorValue((1,), 3, Size(16), 10.0, Numbers((1.0, 1.0)))
    torch.nn.init.normal_(value.network.last.weight, generator=generator)
    x = torch.zeros(3, 1)
    found = value(x, 2, x, STATES, torch.tensor([0.0, 5.0, 5.0])).tolist()
    assert found[0] == 0 and found[1] != found[2]


def test_two_betas_of_a_gaussian_are_learned_at_once(generator):
    """``N(0, 1)`` tilted by ``-β (a - s)²/2``: means to 5 % of the prior's std, by quadrature."""
    mixture = ContextualMixture(
        1, 1, lambda s: torch.zeros(len(s), 1), lambda s: torch.zeros(len(s), 1, 1), 1.0
    )
    chain = vector_chain(ContextualDenoiser(mixture), quantile_log_snr(5, clean=3.0), 1)
    target = Prior(chain).tilt(BetaReward(half_square))
    draw = with_beta(lambda n, g: 2 * torch.rand(n, 1, generator=g) - 1, 4.0)
    torch.manual_seed(0)
    posterior = target.fit(
        RTB("batch"),
        form=Perceptron(1, width=24, depth=2, frequencies=0, numbers=(1.0,), largest_beta=4.0),
        sources=Sources(conditions=draw),
        steps=250,
        batch=256,
        warm_start=0.0,
        behaviour=BehaviourWeights(on_policy=1.0, pool=0.0),
        optimisation=Optimisation(learning_rate=1e-2, decay_from=0.3, ema=0.9),
    )
    for beta in (0.0, 1.0, 4.0):
        state = torch.tensor([[0.8]])
        law = line_law(posterior.given(joined_beta(state, beta)).chain)
        behaviour = line_law(chain.given(state))
        exact = behaviour.tilted(-0.5 * beta * (behaviour.x - 0.8) ** 2)
        gap = float((law.mass - exact.mass) @ law.x)
        assert abs(gap) < 0.05, f"β = {beta}: mean is off by {gap}"
    assert isinstance(ValueGuided(numbers=(1.0,)).kernel(chain).value, VectorValue)


def test_numbers_are_read_from_their_centre_and_beta_from_zero():
    condition = torch.tensor([[3.0, 10.0, 4.0]])
    read = Numbers((2.0, 5.0), 8.0, centres=(1.0, 10.0)).code(condition, torch.zeros(1, 1))
    assert read.tolist() == [[1.0, 0.0, 0.5]]
    with pytest.raises(InputError, match="2 scales and 1 centres"):
        Numbers((1.0, 1.0), centres=(0.0,))
