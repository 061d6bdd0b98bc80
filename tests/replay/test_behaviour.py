import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.scoring import log_ratio
from difftilt.errors import InputError
from difftilt.replay.behaviour import (
    Behaviour,
    DataBridges,
    LocalSearch,
    OnPolicy,
    Pooled,
    PriorPaths,
    Replay,
    Situation,
)
from difftilt.replay.buffer import ReplayBuffer
from difftilt.training.state import trainable
from tests.toys import Likelihood, end_law, gaussian_chain, linear_posterior

COUNT = 24
DATA = torch.linspace(-1, 2, 40)[:, None]
BEHAVIOURS: dict[str, Behaviour] = {
    "own": OnPolicy(),
    "widened": OnPolicy(1.5),
    "prior": PriorPaths(),
    "pool": Pooled(100, fresh=10, prior_share=0.5),
    "replay": Replay(),
    "data": DataBridges(DATA),
    "search": LocalSearch(),
}


def situation(generator: torch.Generator, labels: int = 1, steps: int = 3) -> Situation:
    chain = linear_posterior(steps=steps, labels=labels)
    with torch.no_grad():
        for parameter in trainable(chain):
            parameter.normal_(std=0.2, generator=generator)
    reward, buffer = Likelihood(tuple(0.5 * k for k in range(labels))), ReplayBuffer(100)
    condition = None
    if labels > 1:
        condition = torch.randint(0, labels, (COUNT,), generator=generator)
        chain = chain.given(condition)
    kept = None if condition is None else condition[:20]
    buffer.add(DATA[:20], reward(DATA[:20], kept), torch.zeros(20), kept)
    return Situation(chain, reward, 1.0, generator, buffer, chunk=7)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("name", BEHAVIOURS)
def test_paths_are_whole_and_scored(name: str, labels: int, generator: torch.Generator):
    here = situation(generator, labels)
    behaviour = BEHAVIOURS[name] if name != "pool" else Pooled(60, fresh=10, prior_share=0.5)
    for _ in range(4):  # the pool is full after three
        found = behaviour.draw(here, COUNT)
        assert found.path.states.shape == (4, COUNT, 1)
        torch.testing.assert_close(
            found.log_r, here.log_reward(found.path.x_0, found.path.condition)
        )
        for n in (1, 2, 3):
            assert found.path.predictions is not None
            expected = here.chain.predict(found.path.states[n], n)
            torch.testing.assert_close(found.path.predictions[n - 1], expected)
        if found.path.log_ratio is not None:
            with torch.no_grad():
                torch.testing.assert_close(found.path.log_ratio, log_ratio(here.chain, found.path))
        if labels > 1:
            assert found.path.condition is not None and len(found.path.condition) == COUNT


def test_a_pool_larger_than_the_batch_has_a_condition_for_each_path(generator: torch.Generator):
    pooled = Pooled(200, fresh=2 * COUNT + 1, prior_share=0.5)
    here = situation(generator, labels=3)
    for _ in range(6):
        found = pooled.draw(here, COUNT)
    path = pooled.pool.path
    assert path is not None and path.condition is not None and len(path.condition) == 200
    torch.testing.assert_close(pooled.pool.log_r, here.log_reward(path.x_0, path.condition))
    torch.testing.assert_close(found.log_r, here.log_reward(found.path.x_0, found.path.condition))


def test_replay_names_its_rows(generator: torch.Generator):
    here = situation(generator)
    found = Replay().draw(here, COUNT)
    assert found.replayed is not None
    assert torch.equal(found.path.x_0, here.buffer.x_0[found.replayed])


def test_local_search_leaves_the_buffer_to_the_training(generator: torch.Generator):
    here = situation(generator)
    before = here.buffer.state()
    found = LocalSearch().draw(here, COUNT)
    assert found.replayed is None
    assert all(torch.equal(before[k], v) for k, v in here.buffer.state().items())


def test_local_search_on_a_chain_of_one_step(generator: torch.Generator):
    found = LocalSearch().draw(situation(generator, steps=1), COUNT)
    assert found.path.states.shape == (2, COUNT, 1)


def test_widened_paths_spread_more_and_keep_their_own_ratio(generator: torch.Generator):
    chain = gaussian_chain().tilted(linear_posterior().kernel)
    here = Situation(chain, Likelihood(), 1.0, generator, ReplayBuffer())
    wide = OnPolicy(1.5).draw(here, 4000).path
    _, variance = end_law(chain)
    assert float(wide.x_0.var()) > 1.5 * variance
    assert wide.log_ratio is not None and not bool(wide.log_ratio.any())


def test_a_pool_waits_for_the_first_reward(generator: torch.Generator):
    def rare(x_0: Tensor, condition: Tensor | None) -> Tensor:
        return torch.where(x_0[:, 0] > 2.0, 0.0, -math.inf)  # about one path in 130

    here = Situation(linear_posterior(), rare, 1.0, generator, ReplayBuffer())
    found = Pooled(20_000, fresh=8).draw(here, 8)
    assert bool((found.path.x_0 > 2.0).all())


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_pool_needs_prior_paths(share: float):
    with pytest.raises(InputError, match="prior_share must lie in"):
        Pooled(prior_share=share)


def test_given_ends_alone_cost_no_network_call(generator: torch.Generator):
    here = replace(situation(generator, labels=3), ends=True)
    for behaviour in (DataBridges(DATA, torch.arange(40) % 3), Replay()):
        before = here.chain.calls.total
        found = behaviour.draw(here, COUNT)
        assert here.chain.calls.total == before
        assert found.path.states.shape == (1, COUNT, 1)
        assert found.path.predictions is None
        assert found.path.condition is not None
        expected = here.log_reward(found.path.x_0, found.path.condition)
        torch.testing.assert_close(found.log_r, expected)
