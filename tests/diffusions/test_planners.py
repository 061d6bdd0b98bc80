"""The planner of least entropy: one order per state, for whoever asks, and its bridges."""

from typing import Literal

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import log_ratio
from difftilt.diffusions.masked import GENERATED, canvas
from difftilt.diffusions.orders import LeastEntropy
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.noise import GeneratorNoise, StreamNoise
from difftilt.token_denoisers import TokenDenoiser
from token_chains import (
    LENGTH,
    TOKENS,
    Table,
    arbitrary,
    end_law,
    every_end,
    masked_chain,
    place_of,
)


def planned_chain(
    table: Table, surest: Literal["entropy", "margin"] = "entropy", chunk: int = 1024
) -> Chain:
    denoiser = TokenDenoiser(table).eval().requires_grad_(False)
    return masked_chain(table, LeastEntropy(denoiser, surest, chunk))


def posterior(chain: Chain, moved: float) -> Chain:
    kernel = FullCopy().kernel(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return chain.tilted(kernel)


def sureness(table: Table, ids: Tensor, surest: str) -> Tensor:
    """Of each position, from the table alone."""
    logits = table.hidden(ids, torch.zeros(len(ids)))[..., :TOKENS].detach().double()
    probs = torch.softmax(logits, 2)
    if surest == "entropy":
        return (probs * probs.log()).sum(2)
    ordered = probs.sort(2, descending=True).values
    return ordered[..., 0] - ordered[..., 1]


@pytest.mark.parametrize("surest", ["entropy", "margin"])
def test_the_surest_position_comes_next_in_both_chains(surest: Literal["entropy", "margin"]):
    table = arbitrary()
    chain = planned_chain(table, surest)
    for moved in (0.0, 1.0):
        path = rollout(posterior(chain, moved), 200, StreamNoise(1, range(200)))
        for n in range(1, LENGTH + 1):
            x = path.states[n]
            measured = sureness(table, x.clamp(max=TOKENS), surest)
            wanted = torch.where(x > TOKENS, measured, -torch.inf).argmax(1)
            assert torch.equal((x == TOKENS + n).long().argmax(1), wanted)
            assert torch.equal((x == TOKENS + n).sum(1), torch.ones(200, dtype=torch.long))


def test_the_two_measures_differ_on_a_tie_of_two_tokens():
    rows = torch.tensor([[0.49, 0.49, 0.02], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3]]).log()
    table = Table(rows.expand((TOKENS + 1) ** LENGTH, -1, -1))
    first = {}
    for surest in ("entropy", "margin"):
        top = rollout(planned_chain(table, surest), 1).states[LENGTH]
        first[surest] = int((top[0] == TOKENS + LENGTH).long().argmax())
    assert first == {"entropy": 0, "margin": 1}


def test_the_probabilities_may_be_held_in_pieces():
    table = arbitrary()
    whole = rollout(planned_chain(table), 30, StreamNoise(1, range(30))).states
    pieces = rollout(planned_chain(table, chunk=7), 30, StreamNoise(1, range(30))).states
    assert torch.equal(pieces, whole)


@pytest.mark.parametrize("surest", ["entropy", "margin"])
def test_a_bridge_follows_the_planner(surest: Literal["entropy", "margin"]):
    """The order is a function of the end, so the bridge of a path's own end is that path."""
    chain = planned_chain(arbitrary(), surest)
    path = rollout(chain, 100, StreamNoise(1, range(100)))
    through = bridge(chain, path.x_0, GeneratorNoise())
    assert torch.equal(through.states, path.states)
    assert torch.allclose(through.predictions, path.predictions)
    n = torch.arange(100) % LENGTH + 1
    x, landed = chain.diffusion.noised_pairs(path.x_0, n, GeneratorNoise())
    assert torch.equal(x, path.states[n, torch.arange(100)])
    assert torch.equal(landed, path.states[n - 1, torch.arange(100)])


def test_the_law_is_what_it_draws_and_the_ratio_starts_at_zero():
    """False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean)."""
    chain = planned_chain(arbitrary())
    top = chain.base(1).at(torch.full((1, LENGTH), chain.steps + 1))
    law, draws = end_law(chain, top), 40_000
    assert torch.allclose(law.sum(), torch.ones((), dtype=torch.float64), atol=1e-6)
    start = posterior(chain, 0.0)
    path = rollout(start, draws, GeneratorNoise(torch.Generator().manual_seed(1)))
    seen = torch.bincount(place_of(path.x_0), minlength=len(law)) / draws
    assert float((seen - law).abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5
    assert torch.equal(path.log_ratio, torch.zeros(draws))


@pytest.mark.usefixtures("unchecked")
def test_the_balance_is_reached_for_a_prior_whose_conditionals_disagree():
    prior = planned_chain(arbitrary())
    top = prior.base(1).at(torch.full((1, LENGTH), prior.steps + 1))
    log_r = 1.5 * torch.randn(TOKENS**LENGTH)
    target = end_law(prior, top) * log_r.double().exp()
    chain, paths = posterior(prior, 0.0), bridge(prior, every_end(), GeneratorNoise())
    log_z = torch.nn.Parameter(torch.zeros(()))
    optimiser = torch.optim.LBFGS(
        [*chain.kernel.parameters(), log_z], max_iter=400, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = (log_z + log_ratio(chain, paths) - log_r).square().mean()
        value.backward()
        return value

    optimiser.step(loss)
    reached = end_law(chain, top)
    assert float((reached - target / target.sum()).abs().sum() / 2) < 1e-3
    assert abs(log_z.item() - target.sum().log().item()) < 1e-3


def test_rows_of_fewer_masks_start_later_and_the_suffix_is_not_seen():
    table = arbitrary()
    chain = planned_chain(table)
    tokens = torch.tensor([[0, 1, 2], [0, 1, 2], [0, 1, 0], [2, 2, 2]])
    roles = torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 2], [0, 0, 0]])
    bound = chain.given(canvas(tokens, roles))
    path = rollout(bound, 4, StreamNoise(1, range(4)))
    generated = roles == GENERATED
    for n in range(1, LENGTH + 1):
        assert torch.equal((path.states[n] == TOKENS + n).sum(1), (generated.sum(1) >= n).long())
    assert torch.equal(path.states[:, ~generated], path.states[:1, ~generated].expand(4, -1))
    assert path.states[0, 2, 2] == TOKENS
    through = bridge(bound, path.x_0, GeneratorNoise())
    assert torch.equal(through.states, path.states)
    # The suffix may say anything.
    other = chain.given(canvas(tokens + torch.tensor([0, 0, 1]) * (roles == 2), roles))
    assert torch.equal(rollout(other, 4, StreamNoise(1, range(4))).states, path.states)


def test_a_return_keeps_the_order():
    chain = planned_chain(arbitrary())
    path = back_and_forth(chain, every_end(), 2, GeneratorNoise())
    assert torch.equal(bridge(chain, path.x_0, GeneratorNoise()).states, path.states)


@pytest.mark.usefixtures("unchecked")
def test_what_is_out_of_range_is_refused():
    denoiser = TokenDenoiser(arbitrary())
    with pytest.raises(InputError, match="'entropy' or 'margin'"):
        LeastEntropy(denoiser, "luck")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="at least 1 position"):
        LeastEntropy(denoiser, chunk=0)
