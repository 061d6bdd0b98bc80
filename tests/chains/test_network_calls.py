"""A training step asks its networks exactly what its algorithm needs, counted in states.

Forward hooks count, not the package: how many states each call of each network saw, and whether a
graph was recorded.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.denoisers import NetworkDenoiser
from difftilt.diffusions.gaussian import GaussianDiffusion
from difftilt.kernels.networks import full_copy
from difftilt.schedules import VariancePreserving
from difftilt.training.plan import RTB, BehaviourWeights, Replaying, Training
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step

STEPS, BATCH, CHUNK, POOL = 6, 8, 5, 32
# DDPM's last step is a map: it costs a prior call and no posterior one.
STOCHASTIC = STEPS - 1
ON_POLICY = BehaviourWeights(on_policy=1.0, pool=0.0)
POOLED = BehaviourWeights(on_policy=0.0, pool=1.0)
MIXED = BehaviourWeights(on_policy=0.5, pool=0.5)


@dataclass
class Seen:
    """States per call of one network, without and with a graph."""

    bare: list[int] = field(default_factory=list)
    graphed: list[int] = field(default_factory=list)

    def clear(self) -> None:
        self.bare.clear()
        self.graphed.clear()

    @property
    def totals(self) -> tuple[int, int]:
        return sum(self.bare), sum(self.graphed)

    @property
    def largest(self) -> int:
        return max([*self.bare, *self.graphed])


class Small(nn.Module):
    """``(x (B, 2), time (B,)) -> (B, 2)``."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.layer(torch.cat([x, time[:, None]], 1))


def counted(network: nn.Module) -> Seen:
    seen = Seen()

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        (seen.graphed if output.requires_grad else seen.bare).append(len(inputs[0]))

    network.register_forward_hook(note)
    return seen


Counted = tuple[TrainingState, Seen, Seen]


@pytest.fixture
def counting() -> Callable[..., Counted]:
    """``(behaviour, **plan) -> state, what the prior saw, what the posterior saw``."""

    def build(behaviour: BehaviourWeights, **plan) -> Counted:
        torch.manual_seed(0)
        network = Small().requires_grad_(False)
        diffusion = GaussianDiffusion(VariancePreserving().levels(STEPS))
        prior = Chain(NetworkDenoiser(network, "v_prediction"), diffusion, (2,))
        kernel = full_copy(prior)
        assert isinstance(kernel.denoiser, NetworkDenoiser)
        options: dict = {"batch": BATCH, "chunk": CHUNK, "warm_start": 0.0} | plan
        training = Training(
            behaviour=behaviour,
            replaying=Replaying(pool_capacity=POOL, pool_fresh=0),
            **options,
        )
        state = TrainingState(
            prior.tilted(kernel), lambda x_0, condition: -x_0.square().sum(1), 1.0, training
        )
        return state, counted(network), counted(kernel.denoiser.network)

    return build


def one_update(state: TrainingState, *networks: Seen) -> None:
    """One update with a full pool, seen from its start."""
    for _ in range(2 * POOL // BATCH + 1):
        training_step(state)
    for seen in networks:
        seen.clear()
    training_step(state)


@pytest.mark.parametrize("log_z", ["batch", "learned"])
def test_on_policy_paths_cost_one_pass_and_one_gradient(counting, log_z):
    state, prior, posterior = counting(ON_POLICY, objective=RTB(log_z))
    one_update(state, prior, posterior)
    assert prior.totals == (STEPS * BATCH, 0)
    assert posterior.totals == (STOCHASTIC * BATCH, STOCHASTIC * BATCH)


@pytest.mark.parametrize("log_z", ["batch", "learned"])
def test_a_gradient_in_one_chunk_needs_no_pass_before_it(counting, log_z):
    state, prior, posterior = counting(ON_POLICY, chunk=1000, objective=RTB(log_z))
    one_update(state, prior, posterior)
    assert prior.totals == (STEPS * BATCH, 0)
    assert posterior.totals == (0, STOCHASTIC * BATCH)


def test_new_and_pooled_paths_in_one_chunk_are_visited_together(counting):
    state, prior, posterior = counting(MIXED, chunk=1000)
    one_update(state, prior, posterior)
    own = BATCH // 2
    assert prior.totals == (STEPS * own, 0)
    assert posterior.totals == (STOCHASTIC * own, STOCHASTIC * BATCH)
    assert posterior.graphed == [STOCHASTIC * BATCH]


def test_pooled_paths_never_ask_the_prior(counting):
    state, prior, posterior = counting(POOLED, chunk=1000)
    one_update(state, prior, posterior)
    assert prior.totals == (0, 0)
    assert posterior.totals == (0, STOCHASTIC * BATCH)


def test_a_chunked_gradient_first_asks_for_the_ratios_of_pooled_paths_alone(counting):
    state, prior, posterior = counting(MIXED)
    one_update(state, prior, posterior)
    own, pooled = BATCH // 2, BATCH // 2
    assert prior.totals == (STEPS * own, 0)
    assert posterior.totals == (STOCHASTIC * (own + pooled), STOCHASTIC * BATCH)


def test_the_warm_start_costs_the_gradient_alone(counting):
    state, prior, posterior = counting(ON_POLICY, warm_start=1.0)
    one_update(state, prior, posterior)
    assert prior.totals == (0, 0)
    assert posterior.totals == (0, STOCHASTIC * BATCH)


def test_a_subset_costs_its_share_of_the_gradient(counting):
    state, prior, posterior = counting(ON_POLICY, subset=2)
    one_update(state, prior, posterior)
    assert prior.totals == (STEPS * BATCH, 0)
    assert posterior.totals == (STOCHASTIC * BATCH, 2 * BATCH)


@pytest.mark.parametrize("behaviour", [POOLED, MIXED])
def test_no_call_with_a_graph_is_larger_than_the_chunk(counting, behaviour):
    state, prior, posterior = counting(behaviour)
    one_update(state, prior, posterior)
    assert max(posterior.graphed) == CHUNK
    assert posterior.largest <= CHUNK
    assert not prior.graphed
