"""Masked chains against enumerations: laws, ratios, bridges, canvases and gradients."""

import math

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import back_and_forth, bridge, rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.diffusions.masked import (
    GENERATED,
    SUFFIX,
    MaskedDiffusion,
    canvas,
    completed,
)
from difftilt.diffusions.orders import AnyOrder, Blocks, LeftToRight, Order, Parallel, Stepwise
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.noise import GeneratorNoise, StreamNoise
from token_chains import (
    LENGTH,
    TOKENS,
    Table,
    arbitrary,
    consistent,
    end_law,
    every_end,
    every_path,
    masked_chain,
    permutations,
    place_of,
    random_joint,
)

ONE_BY_ONE: dict[str, tuple[Order, Tensor]] = {
    "any": (AnyOrder(), permutations()),
    "left to right": (LeftToRight(), torch.tensor([[3, 2, 1]])),
    "blocks": (Blocks(size=2), torch.tensor([[3, 2, 1], [2, 3, 1]])),
    "stepwise": (Stepwise(), torch.full((1, LENGTH), LENGTH + 1)),
}
"""Orders of one position per step, with their ranks, equally likely."""

ORDERS: dict[str, tuple[Order, Tensor]] = ONE_BY_ONE | {
    "any, in pairs": (AnyOrder(2), torch.tensor([[1, 1, 2], [1, 2, 1], [2, 1, 1]])),
    "parallel": (Parallel(4), torch.cartesian_prod(*[torch.arange(1, 5)] * LENGTH)),
}


def chain_of(name: str, table: Table) -> tuple[Chain, Tensor]:
    """A prior and all its ``x_N``, equally likely."""
    order, ranks = ORDERS[name]
    return masked_chain(table, order), TOKENS + ranks


def tilted(chain: Chain, moved: float = 0.7) -> Chain:
    kernel = FullCopy().kernel(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += moved * torch.randn(parameter.shape)
    return chain.tilted(kernel)


def counted(x_0: Tensor) -> Tensor:
    return torch.bincount(place_of(x_0), minlength=TOKENS ** x_0.shape[1]) / len(x_0)


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_a_consistent_prior_gives_its_joint_law_in_every_order(name: str):
    joint = random_joint()
    law = end_law(*chain_of(name, consistent(joint)))
    assert torch.allclose(law, joint.flatten(), atol=1e-6)


@pytest.mark.parametrize("name", ["any, in pairs", "parallel"])
def test_several_tokens_at_once_are_another_law(name: str):
    joint = random_joint()
    law = end_law(*chain_of(name, consistent(joint)))
    assert torch.allclose(law.sum(), torch.ones((), dtype=torch.float64), atol=1e-6)
    assert float((law - joint.flatten()).abs().sum() / 2) > 0.02


@pytest.mark.parametrize("name", ORDERS)
@pytest.mark.parametrize("posterior", [False, True])
def test_a_chain_draws_its_law(name: str, posterior: bool):
    """False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean)."""
    chain, tops = chain_of(name, arbitrary())
    chain = tilted(chain) if posterior else chain
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    draws, law = 30_000, end_law(chain, tops)
    distance = counted(rollout(chain, draws, noise, record=False).x_0) - law
    assert float(distance.abs().sum() / 2) < 1.5 * (len(law) / draws) ** 0.5


@pytest.mark.parametrize("name", ORDERS)
def test_the_ratio_starts_at_zero(name: str):
    chain = tilted(chain_of(name, arbitrary())[0], moved=0.0)
    path = rollout(chain, 50, StreamNoise(1, range(50)))
    assert torch.equal(path.log_ratio, torch.zeros(50))
    through = bridge(chain, every_end(), GeneratorNoise(torch.Generator().manual_seed(1)))
    again = log_ratio(chain, through)
    assert torch.equal(again, torch.zeros_like(again))


@pytest.mark.parametrize("name", ["any", "stepwise"])
def test_the_ratio_is_that_of_enumerated_paths(name: str):
    """``Σ p e^Λ`` and ``Σ p`` over all paths are 1, and Λ is what the two tables say."""
    chain = tilted(chain_of(name, arbitrary())[0])
    assert chain.kernel is not None
    paths = every_path(chain)
    logs = [log_prob(d.network, paths.states) for d in (chain.kernel.denoiser, chain.denoiser)]
    found = log_ratio(chain, paths, chunk=50).detach().double()
    assert torch.allclose(found, logs[0] - logs[1], atol=1e-5)
    one = torch.ones((), dtype=torch.float64)
    assert torch.allclose(logs[1].exp().sum() / len(permutations()), one, atol=1e-6)
    assert torch.allclose((logs[1] + found).exp().sum() / len(permutations()), one, atol=1e-5)


def log_prob(table: Table, states: Tensor) -> Tensor:
    """Of the tokens of paths that reveal one position per step."""
    total = torch.zeros(states.shape[1], dtype=torch.float64)
    for n in range(1, len(states)):
        ids = states[n].clamp(max=TOKENS)
        logits = table.hidden(ids, torch.zeros(len(ids)))[..., :TOKENS].detach().double()
        token = states[n - 1].clamp(max=TOKENS - 1)[..., None]
        each = logits.log_softmax(2).gather(2, token)[..., 0]
        total += torch.where(states[n] == TOKENS + n, each, 0).sum(1)
    return total


@pytest.mark.parametrize("name", ORDERS)
def test_stored_predictions_do_not_change_the_ratio(name: str):
    chain = tilted(chain_of(name, arbitrary())[0])
    path = rollout(chain, 60, StreamNoise(1, range(60)))
    assert path.log_ratio is not None and path.predictions is not None
    assert path.predictions.shape == (chain.steps, 60)
    bare = type(path)(path.states)
    for other in (log_ratio(chain, path, chunk=13), log_ratio(chain, bare)):
        assert torch.allclose(path.log_ratio, other, atol=1e-5)


@pytest.mark.parametrize("name", ["any", "stepwise"])
def test_a_bridge_has_the_law_of_paths_given_their_end(name: str):
    """Of a consistent prior any order leads to an end equally often: all paths of an end are alike.

    False-alarm rate under 1e-20 (McDiarmid: the total variation is 2 means above its mean).
    """
    chain, draws = chain_of(name, consistent(random_joint()))[0], 20_000
    paths, ends = every_path(chain), every_end()
    each = log_prob(chain.denoiser.network, paths.states).exp()
    total = torch.zeros(len(ends)).double().index_add(0, place_of(paths.x_0), each)
    share = each / total[place_of(paths.x_0)]
    assert torch.allclose(share, torch.full_like(share, 1 / len(permutations())), atol=1e-5)
    x_0 = ends[7].expand(draws, -1)
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    states = bridge(chain, x_0, noise).states
    mine = paths.states[:, place_of(paths.x_0) == 7]
    hits = (states[:, :, None] == mine[:, None]).all(3).all(0)
    assert bool((hits.sum(1) == 1).all())
    seen = hits.double().mean(0)
    assert float((seen - 1 / len(seen)).abs().sum() / 2) < 1.5 * (len(seen) / draws) ** 0.5
    n = torch.arange(draws) % LENGTH + 1
    x, landed = chain.diffusion.noised_pairs(x_0, n, noise)
    assert torch.equal((x >= TOKENS).sum(1), n)
    assert torch.equal(torch.where(x == TOKENS + n[:, None], x_0, -1).amax(1) >= 0, n > 0)
    assert bool((mine[n, :] == x[:, None]).all(2).any(1).all())
    assert bool((mine[n - 1, :] == landed[:, None]).all(2).any(1).all())


@pytest.mark.parametrize("name", ORDERS)
def test_a_return_is_a_path_through_the_state(name: str):
    chain = tilted(chain_of(name, arbitrary())[0])
    noise = GeneratorNoise(torch.Generator().manual_seed(1))
    level = chain.steps - 1
    path = back_and_forth(chain, every_end(), level, noise)
    kept = path.states[level] < TOKENS
    assert torch.equal(path.x_0[kept], every_end()[kept])
    assert not torch.equal(path.x_0, every_end())
    bare = type(path)(path.states)
    assert torch.allclose(log_ratio(chain, path), log_ratio(chain, bare), atol=1e-5)


ROLES = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 1], [1, 2, 1], [2, 1, 0], [0, 0, 0]])


@pytest.mark.parametrize("name", ORDERS)
def test_canvases_of_different_numbers_of_masks(name: str):
    """Given tokens stay, the prior is shown no suffix, and steps with nothing to do are free."""
    chain = tilted(chain_of(name, arbitrary())[0])
    tokens = torch.randint(0, TOKENS, ROLES.shape)
    bound = chain.given(canvas(tokens, ROLES))
    path = rollout(bound, len(ROLES), StreamNoise(1, range(len(ROLES))))
    assert path.log_ratio is not None
    shown = torch.where(ROLES == SUFFIX, TOKENS, tokens)
    fixed = ROLES != GENERATED
    assert torch.equal(path.states[:, fixed], shown[fixed].expand(len(path.states), -1))
    assert bool((path.x_0[~fixed] < TOKENS).all())
    reveals = [(path.states[n] == TOKENS + n).any(1).sum() for n in range(1, chain.steps + 1)]
    assert chain.calls.prior == chain.calls.posterior == int(sum(reveals))
    if name in ONE_BY_ONE:
        assert chain.calls.prior == int((~fixed).sum())
    assert float(path.log_ratio[5]) == 0.0
    assert torch.allclose(path.log_ratio, log_ratio(bound, path, chunk=5), atol=1e-5)
    through = bridge(bound, path.x_0, GeneratorNoise())
    assert torch.equal(through.states[:, fixed], path.states[:, fixed])
    assert bool(torch.isfinite(log_ratio(bound, through)).all())


@pytest.mark.parametrize("name", ORDERS)
def test_the_posterior_alone_reads_the_suffix(name: str):
    chain = tilted(chain_of(name, arbitrary())[0])
    roles, tokens = torch.tensor([[1, 1, 2]]), torch.tensor([[0, 0, 0]])
    paths = {}
    for token in (0, 1):
        bound = chain.given(canvas(tokens + token, roles).expand(200, -1, -1))
        own = rollout(bound, 200, StreamNoise(1, range(200)))
        prior = rollout(bound.prior, 200, StreamNoise(1, range(200)))
        paths[token] = own.x_0, prior.x_0
        read = completed(own.x_0, bound.condition)
        assert torch.equal(read[:, 2], torch.full((200,), token))
    assert torch.equal(paths[0][1], paths[1][1])
    assert not torch.equal(paths[0][0], paths[1][0])


@pytest.mark.parametrize("name", ["any", "stepwise"])
@pytest.mark.parametrize("subset", [1, 2])
def test_the_gradient_of_random_steps_is_unbiased(name: str, subset: int):
    """Every subset of steps is met; all are equally likely, and their mean is the gradient."""
    chain = tilted(chain_of(name, arbitrary())[0])
    path, coefficient = rollout(chain, 1, StreamNoise(2, [0])), torch.tensor([1.7])
    assert chain.kernel is not None
    table = chain.kernel.denoiser.network.table

    def gradient(subset: int | None, seed: int) -> Tensor:
        table.grad = None
        backward(chain, path, coefficient, None, subset, torch.Generator().manual_seed(seed))
        return table.grad.clone()

    whole = gradient(None, 0)
    found = {}
    for seed in range(40):
        drawn = gradient(subset, seed)
        # Each step visits a state, and so a row of the table, of its own.
        found[tuple(drawn.flatten(1).abs().sum(1).nonzero().flatten().tolist())] = drawn
    assert len(found) == math.comb(LENGTH, subset) and all(len(rows) == subset for rows in found)
    assert torch.allclose(torch.stack(list(found.values())).mean(0), whole, atol=1e-6)


@pytest.mark.parametrize("name", ORDERS)
def test_draws_do_not_depend_on_the_batch(name: str):
    chain = tilted(chain_of(name, arbitrary())[0])
    many = rollout(chain, 9, StreamNoise(3, range(9))).states
    assert torch.equal(rollout(chain, 2, StreamNoise(3, (4, 7))).states, many[:, [4, 7]])


def test_codes_say_which_step_reveals_what():
    diffusion = MaskedDiffusion(TOKENS, LENGTH)
    x = torch.tensor([[0, TOKENS + 2, TOKENS], [TOKENS + 1, TOKENS + 3, 2]])
    for n, wanted in ((1, [False, True]), (2, [True, False]), (3, [False, True])):
        reveal = diffusion.reveal(n, x)
        assert reveal.valid[:, 0].tolist() == wanted
        assert diffusion.calls(x, n) == 1
    filled = diffusion.reveal(torch.tensor([2, 3]), x).filled(x, torch.tensor([[1], [2]]))
    assert filled.tolist() == [[0, 1, TOKENS], [TOKENS + 1, 2, 2]]


@pytest.mark.parametrize(
    ("tokens", "roles", "sentence"),
    [((2, 3), (2, 4), "one shape"), ((3,), (3,), "one shape"), ((1, 2), (1, 2), "roles are 0")],
)
def test_a_wrong_canvas_is_refused(tokens, roles, sentence: str, unchecked: None):
    with pytest.raises(InputError, match=sentence):
        canvas(torch.zeros(tokens).long(), torch.full(roles, 4))


def test_nothing_to_generate_is_refused():
    with pytest.raises(InputError, match="at least 1 position"):
        MaskedDiffusion(TOKENS, 0)
