"""The population methods: unbiased where they say so, biased where they say so, and never silent.

Unbiasedness is a mean of 8,000 systems within 5 standard errors, once per method and problem: by
the normal law one of the 28 fails by chance once in 60,000 runs of the file.
"""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.kernels.networks import VectorKernel
from difftilt.models.mlp import Size
from difftilt.noise import GeneratorNoise, StreamNoise
from difftilt.sampling.draws import Tilted, sample
from difftilt.smc.methods import (
    SVDD,
    TDS,
    BestOfN,
    FKSteering,
    ImportanceResampling,
    ValueTwisted,
)
from difftilt.smc.population import Population
from difftilt.smc.potentials import Twist
from difftilt.tasks.exact import ExactProblem
from difftilt.tasks.exact.grid25 import gmm9of25
from difftilt.tasks.exact.linear_gaussian import linear_gaussian
from difftilt.values.functions import Value, VectorValue
from small_chains import moved, posterior_of, prior
from toys import Likelihood, end_law, gaussian_chain, linear_posterior

SYSTEMS = 8_000


def wrong_value(steps: int) -> Value:
    """A value that knows nothing of the reward."""
    value = VectorValue((2,), steps, Size(16, frequencies=2))
    moved(value)
    return value


def wrong_kernel(steps: int) -> VectorKernel:
    """A guidance that knows nothing of the reward."""
    kernel = VectorKernel((2,), steps, 2, size=Size(16, frequencies=2))
    moved(kernel, 0.05)
    return kernel


def consistent(steps: int) -> list[Population]:
    value = wrong_value(steps)
    return [
        ImportanceResampling(4),
        FKSteering(4, every=2, floor=1.0),
        FKSteering(4, "max", every=2, floor=1.0, scheme="systematic"),
        FKSteering(4, "sum", every=2, floor=0.5),
        FKSteering(3, "sum", every=3, floor=0.5, threshold=0.7, scheme="stratified"),
        TDS(4, floor=1.0),
        TDS(4, wrong_kernel(steps), floor=1.0),
        ValueTwisted(4, value),
        SVDD(4, floor=0.5),
        SVDD(3, value, floor=1.0),
    ]


METHODS = range(len(consistent(2)))


@pytest.fixture(scope="module", params=["linear", "modes"])
def problem(request: pytest.FixtureRequest) -> ExactProblem:
    return linear_gaussian(2, 6) if request.param == "linear" else gmm9of25(8)


def goal_of(problem: ExactProblem) -> Tilted:
    return Tilted(lambda x_0, condition: problem.log_reward(x_0), 1.0, problem.log_bound)


def noise(seed: int = 1) -> GeneratorNoise:
    return GeneratorNoise(torch.Generator().manual_seed(seed))


def assert_mean(values: Tensor, expected: float) -> None:
    error = float(values.std()) / math.sqrt(len(values))
    assert 0 < error < 0.1
    assert abs(float(values.mean()) - expected) < 5 * error


@pytest.mark.parametrize("number", METHODS)
def test_the_estimate_of_z_is_unbiased(problem: ExactProblem, number: int, unchecked: None):
    method = consistent(problem.chain.steps)[number]
    ends = method.draw(problem.chain, goal_of(problem), SYSTEMS, noise())
    assert ends.log_z is not None
    assert_mean((ends.log_z - problem.truth.log_z).exp(), 1.0)


@pytest.mark.parametrize("number", METHODS)
def test_weighted_ends_are_the_posterior(number: int, unchecked: None):
    """``E[Ẑ (f - E_π f)] = 0`` for the first coordinate and its square."""
    problem = linear_gaussian(2, 6)
    method = consistent(problem.chain.steps)[number]
    ends = method.draw(problem.chain, goal_of(problem), SYSTEMS, noise(2))
    assert ends.log_z is not None and problem.truth.mean is not None
    assert problem.truth.covariance is not None
    weight, x = (ends.log_z - problem.truth.log_z).exp(), ends.x_0[:, 0].double()
    mean = float(problem.truth.mean[0])
    assert_mean(weight * (x - mean), 0.0)
    assert_mean(weight * ((x - mean) ** 2 - problem.truth.covariance[0, 0]), 0.0)


@pytest.mark.parametrize("number", [n for n in METHODS if consistent(2)[n].has_conditional])
def test_systems_around_exact_paths_are_the_weighted_ones(number: int, unchecked: None):
    """``E[1/Ẑ] = 1/Z`` and ``ELBO ≤ log Z ≤ EUBO``, from exact paths of π."""
    problem = linear_gaussian(2, 6)
    assert problem.truth.sample_paths is not None
    method, goal = consistent(problem.chain.steps)[number], goal_of(problem)
    path = problem.truth.sample_paths(SYSTEMS, torch.Generator().manual_seed(5))
    log_z, _ = method.conditional(problem.chain, goal, path, noise(3))
    assert_mean((problem.truth.log_z - log_z).exp(), 1.0)
    ends = method.draw(problem.chain, goal, SYSTEMS, noise(4))
    assert ends.log_z is not None
    assert float(ends.log_z.mean()) < problem.truth.log_z < float(log_z.mean())


def test_a_trained_proposal_is_weighed_against_the_prior(unchecked: None):
    """A moved kernel and a moved law of ``x_N``, in every kind of method; 5 standard errors."""
    reward, chain = Likelihood(), linear_posterior(2)
    assert chain.kernel is not None and chain.initial is not None
    moved(chain.kernel, 0.05)
    moved(chain.initial)
    goal = Tilted(lambda x_0, condition: reward(x_0), 2.0)
    for method in (ImportanceResampling(3), FKSteering(3), FKSteering(3, "max"), SVDD(3)):
        ends = method.draw(chain, goal, SYSTEMS, noise())
        assert ends.log_z is not None
        assert_mean((ends.log_z - reward.log_z(chain, beta=2.0)).exp(), 1.0)


class ExactValue(Value):
    """``log h`` of ``Likelihood((1.2,), sigma)`` on a chain whose steps are linear."""

    def __init__(self, chain: Chain, sigma: float) -> None:
        super().__init__()
        self.sigma, self.laws = sigma, {}
        offset, slope, variance = 0.0, 1.0, 0.0
        ends = torch.tensor([[0.0], [1.0]])
        for n in range(1, chain.steps + 1):
            law = chain.law(chain.predict(ends, n), ends, n)
            first, gain = float(law.mean[0, 0]), float(law.mean[1, 0] - law.mean[0, 0])
            variance += slope**2 * float(law.std) ** 2
            offset, slope = offset + slope * first, slope * gain
            self.laws[n] = offset, slope, variance

    def forward(self, x, n, prediction, condition=None, beta=1.0):
        offset, slope, variance = self.laws[int(n)]
        total = variance + self.sigma**2
        residual = 1.2 - (offset + slope * x)
        return (-0.5 * residual**2 / total - 0.5 * math.log(2 * math.pi * total)).sum(1)


def test_the_true_value_lowers_the_variance(unchecked: None):
    """Sharp reward, prior proposals: spread of log Ẑ with ``log h``, and by weights alone."""
    chain, reward = gaussian_chain(2, steps=10), Likelihood((1.2,), 0.15)
    goal, spread = Tilted(lambda x_0, condition: reward(x_0)), []
    for method in (ValueTwisted(32, ExactValue(chain, 0.15)), ImportanceResampling(32)):
        log_z = method.draw(chain, goal, 1_000, noise()).log_z
        assert log_z is not None
        spread.append(float((log_z - reward.log_z(chain)).std()))
    assert spread[0] < 0.5 * spread[1]


@pytest.mark.parametrize(
    "method", [*(m for m in consistent(5) if m.size == 4), BestOfN(4), SVDD(4, argmax=True)]
)
@pytest.mark.parametrize("form", [None, "mixture"])
def test_one_particle_is_a_rollout(method: Population, form: str | None):
    """The same states from the same random numbers, and ``log Ẑ = β log r - Λ``."""
    size = {"candidates": 1} if isinstance(method, SVDD) else {"particles": 1}
    method = replace(method, **size)  # type: ignore[type-var]
    if isinstance(method, TDS):
        method = replace(method, kernel=None)
    if isinstance(method, (ValueTwisted, SVDD)) and method.value is not None:
        method.value.double()
    chain = prior() if form is None else posterior_of(prior(), form)
    goal = Tilted(lambda x_0, condition: -x_0.square().sum(1), 1.5)
    ends, path = method.draw(chain, goal, 6, noise()), rollout(chain, 6, noise())
    assert torch.equal(ends.x_0, path.x_0)
    torch.testing.assert_close(ends.log_r, -path.x_0.square().sum(1))
    assert path.log_ratio is not None
    if ends.log_z is not None:
        torch.testing.assert_close(ends.log_z, 1.5 * ends.log_r - path.log_ratio)


def test_streams_make_one_particle_the_chains_own_sample():
    chain = gaussian_chain(2)
    goal = Tilted(lambda x_0, condition: x_0[:, 0])
    ends = TDS(1).draw(chain, goal, 5, StreamNoise(9, range(5)))
    assert torch.equal(ends.x_0, sample(chain, 5, seed=9).x_0)


def mode_distance(method: Population, systems: int = 2_000) -> float:
    """Total variation of the nine mode weights of the drawn ends."""
    problem = gmm9of25(8)
    ends = method.draw(problem.chain, goal_of(problem), systems, noise())
    label, truth = problem.truth.label, problem.truth.label_probabilities
    assert label is not None and truth is not None
    share = torch.bincount(label(ends.x_0), minlength=len(truth)) / systems
    return float(0.5 * (share - truth).abs().sum())


def test_importance_resampling_tends_to_the_posterior(unchecked: None):
    distances = [mode_distance(ImportanceResampling(k)) for k in (1, 8, 128)]
    assert distances[0] > 0.5
    assert distances[1] < 0.7 * distances[0]
    # 25 frequencies of 2,000 exact draws are off by about 0.03 in total variation.
    assert distances[2] < 0.06


def test_best_of_n_and_argmax_do_not(unchecked: None):
    """The more particles, the further: the mode of the highest reward takes over."""
    few, many = mode_distance(BestOfN(8)), mode_distance(BestOfN(128))
    assert many > 0.4
    assert many > few
    assert mode_distance(SVDD(16, argmax=True)) > 0.4
    for method in (BestOfN(4), SVDD(4, argmax=True)):
        assert not method.consistent
        problem = linear_gaussian(2, 6)
        assert method.draw(problem.chain, goal_of(problem), 3, noise()).log_z is None


def test_a_reward_of_zeros_kills_its_systems_alone():
    """Half of the plane has no reward; Ẑ stays unbiased (5 standard errors), dead ones are -inf."""
    chain = gaussian_chain(1)
    mean, variance = end_law(chain)
    share = 0.5 * math.erfc((0.5 - mean) / math.sqrt(2 * variance))

    def half(x_0: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(x_0[:, 0] > 0.5, 0.0, -math.inf)

    for method in (ImportanceResampling(2), FKSteering(2), FKSteering(2, "max"), TDS(2), SVDD(2)):
        ends = method.draw(chain, Tilted(half), SYSTEMS, noise())
        assert ends.log_z is not None
        dead = ends.log_z == -math.inf
        assert 0 < int(dead.sum()) < SYSTEMS
        assert bool((ends.log_r[dead] == -math.inf).all())
        assert bool((ends.log_r[~dead] == 0).all())
        assert_mean(ends.log_z.exp(), share)


def test_each_system_has_its_own_condition():
    """Two labels with likelihoods far apart, and a condition per system."""
    reward = Likelihood((-3.0, 3.0), 0.3)
    labels = torch.tensor([0, 1] * 50)
    chain = gaussian_chain(1).given(labels)
    ends = FKSteering(8).draw(chain, Tilted(reward), 100, noise())
    torch.testing.assert_close(ends.log_r, reward(ends.x_0, labels).double())
    assert float(ends.x_0[labels == 0].mean()) < -0.5 < 1.0 < float(ends.x_0[labels == 1].mean())
    one = gaussian_chain(1).given(labels[:1])
    assert float(FKSteering(8).draw(one, Tilted(reward), 100, noise()).x_0.mean()) < -0.5


def test_calls_are_counted_per_particle():
    """The prior at N levels; the reward at the end, and wherever a twist looks."""
    chain = gaussian_chain(2, steps=6)
    goal = Tilted(lambda x_0, condition: x_0[:, 0])
    value = VectorValue((2,), 6, Size(8))
    counts = {
        ImportanceResampling(4): (6, 0, 1),
        FKSteering(4): (6, 0, 7),
        FKSteering(4, every=3): (6, 0, 3),
        TDS(4, VectorKernel((2,), 6)): (6, 6, 7),
        ValueTwisted(4, value): (6, 6, 1),
        SVDD(4): (6, 0, 7),
    }
    for method, (network, posterior, reward) in counts.items():
        chain.calls.prior = chain.calls.posterior = 0
        ends = method.draw(chain, goal, 5, noise())
        assert (chain.calls.prior, chain.calls.posterior) == (20 * network, 20 * posterior)
        assert ends.reward_calls == 20 * reward


def test_options_out_of_range_are_refused(unchecked: None):
    value = VectorValue((2,), 3, Size(8))
    for make in (ImportanceResampling, BestOfN, FKSteering, TDS):
        with pytest.raises(InputError, match="particles must be at least 1, got 0"):
            make(0)
    with pytest.raises(InputError, match="candidates must be at least 1"):
        SVDD(0)
    with pytest.raises(InputError, match="threshold = nan"):
        ValueTwisted(2, value, threshold=math.nan)
    with pytest.raises(InputError, match="scheme 'residual' is not one of multinomial"):
        TDS(2, scheme="residual")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="every must be at least 1"):
        FKSteering(2, every=0)
    with pytest.raises(InputError, match="floor must be positive and finite, got inf"):
        Twist(floor=math.inf)
    with pytest.raises(InputError, match="floor must be positive"):
        SVDD(2, floor=-1.0)


def test_an_unknown_potential_is_refused(unchecked: None):
    with pytest.raises(InputError, match="'mean' is not one of difference, max, sum"):
        FKSteering(2, "mean")  # type: ignore[arg-type]


def test_systems_that_cannot_be_run_are_refused():
    chain, goal = gaussian_chain(1), Tilted(lambda x_0, condition: x_0[:, 0])
    with pytest.raises(InputError, match="at least 1 system, got 0"):
        TDS(2).draw(chain, goal, 0, noise())
    with pytest.raises(InputError, match="3 conditions are bound for 2 systems"):
        TDS(2).draw(chain.given(torch.zeros(3)), goal, 2, noise())
    path = rollout(chain, 3, noise())
    with pytest.raises(InputError, match="BestOfN has no unbiased estimate"):
        BestOfN(2).conditional(chain, goal, path, noise())
    with pytest.raises(InputError, match="FKSteering with systematic resampling"):
        FKSteering(2, scheme="systematic").conditional(chain, goal, path, noise())
    with pytest.raises(InputError, match="whole paths of 4 states, got 1"):
        ends = rollout(chain, 3, noise(), record=False)
        TDS(2).conditional(chain, goal, ends, noise())
