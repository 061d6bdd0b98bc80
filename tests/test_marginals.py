"""Marginals of masked chains against sums over every path, one by one."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.scoring import log_ratio
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, canvas
from difftilt.diffusions.orders import (
    AnyOrder,
    Blocks,
    LeastEntropy,
    LeftToRight,
    Order,
    Parallel,
    Stepwise,
)
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.kernels.networks import DenoiserKernel
from difftilt.kernels.order import OrderKernel
from difftilt.marginals import (
    completion_law,
    completions,
    marginal_log_prob,
    terminal_residual,
    words,
)
from difftilt.tasks.tokens.networks import (
    TabularNetwork,
    TransformerNetwork,
    arbitrary_table,
    consistent_table,
    random_joint,
    random_transformer,
)
from difftilt.token_denoisers import TokenDenoiser
from token_paths import every_path, law_of, token_chain
from toys import gaussian_chain

V, L = 2, 4
EVERY = canvas(torch.zeros(1, L, dtype=torch.long), torch.full((1, L), GENERATED))


def moved(prior: Chain, learned_order: bool) -> Chain:
    """A posterior some way from its prior."""
    kernel = FullCopy(learned_order=learned_order).kernel(prior)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return prior.tilted(kernel)


def prior_of(order: Order) -> Chain:
    return token_chain(table(), L, order)


def table() -> TabularNetwork:
    return arbitrary_table(V, L, torch.Generator().manual_seed(0))


ORDERS = [AnyOrder(), LeftToRight(), Blocks(size=2), Stepwise()]
SUREST = LeastEntropy(TokenDenoiser(table()))
CASES = [*((order, False) for order in (*ORDERS, SUREST)), (Stepwise(), True)]


@pytest.mark.parametrize(
    ("order", "learned_order"), CASES, ids=[f"{type(o).__name__}-{own}" for o, own in CASES]
)
def test_a_law_is_the_sum_over_all_paths(order: Order, learned_order: bool):
    prior = prior_of(order)
    posterior = moved(prior, learned_order)
    path, log_p = every_path(prior)
    log_q = log_p + log_ratio(posterior, path)
    for chain, log_prob in ((prior, log_p), (posterior, log_q)):
        summed = law_of(path, log_prob.detach(), V)
        assert summed.sum() == pytest.approx(1.0, abs=1e-12)
        assert torch.allclose(completion_law(chain, EVERY)[0], summed, atol=1e-12)
        single = marginal_log_prob(chain, words(V, L))
        assert torch.allclose(single.exp(), summed, atol=1e-12)
    assert isinstance(posterior.kernel, OrderKernel) == learned_order


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)
def test_conditionals_of_one_joint_give_it_back_in_any_order(order: Order):
    joint = random_joint(3, 3, torch.Generator().manual_seed(1))
    chain = token_chain(consistent_table(joint, 3), 3, order)
    every = canvas(torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), GENERATED))
    assert torch.allclose(completion_law(chain, every)[0], joint, atol=1e-12)


def test_chunks_change_nothing():
    posterior = moved(prior_of(Stepwise()), True)
    whole = marginal_log_prob(posterior, words(V, L), chunk=10_000)
    for chunk in (1, 7):
        parts = marginal_log_prob(posterior, words(V, L)[:3], chunk=chunk)
        assert torch.allclose(parts, whole[:3], atol=1e-12)


def test_canvases_of_several_lengths_and_given_tokens():
    joint = random_joint(V, L, torch.Generator().manual_seed(2))
    chain = token_chain(consistent_table(joint, L), L, AnyOrder())
    roles = torch.tensor([[GIVEN, 1, 1, 1], [1, GIVEN, GIVEN, 1], [GIVEN] * 4, [1, 1, 1, 1]])
    x_0 = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1], [1, 1, 0, 0], [1, 0, 0, 1]])
    found = marginal_log_prob(chain, x_0, canvas(x_0, roles))
    shape = joint.reshape([V] * L)
    for row, role, log_p in zip(x_0.tolist(), roles.tolist(), found.tolist(), strict=True):
        given = tuple(v if r == GIVEN else slice(None) for v, r in zip(row, role, strict=True))
        wanted = shape[tuple(row)] / shape[given].sum()
        assert log_p == pytest.approx(math.log(wanted), abs=1e-12)


def test_a_suffix_is_seen_by_the_posterior_alone():
    chain = token_chain(random_transformer(3, 4, 0), 4, LeftToRight())
    posterior = chain.tilted(FullCopy().kernel(chain))
    tokens = torch.tensor([[2, 0, 0, 1]])
    shown = canvas(tokens, torch.tensor([[GIVEN, 1, 1, SUFFIX]]))
    given = canvas(tokens, torch.tensor([[GIVEN, 1, 1, GIVEN]]))
    other = canvas(torch.tensor([[2, 0, 0, 2]]), torch.tensor([[GIVEN, 1, 1, SUFFIX]]))
    law = completion_law(posterior, shown)
    assert torch.allclose(law, completion_law(chain, given), atol=1e-6)
    assert not torch.allclose(law, completion_law(chain, shown), atol=1e-3)
    assert torch.equal(completion_law(chain, shown), completion_law(chain, other))
    ends = completions(3, shown)[0]
    single = marginal_log_prob(posterior, ends, shown.expand(len(ends), -1, -1))
    assert torch.allclose(single.exp(), law[0], atol=1e-6)


def test_the_terminal_residual_of_an_exact_posterior_is_minus_log_z():
    joint = random_joint(V, L, torch.Generator().manual_seed(3))
    log_r, beta = torch.randn(V**L, dtype=torch.float64), 0.7
    tilted = joint * (beta * log_r).exp()
    prior = token_chain(consistent_table(joint, L), L, AnyOrder())
    posterior = prior.tilted(FullCopy().kernel(prior))
    exact = consistent_table(tilted / tilted.sum(), L)
    assert isinstance(posterior.kernel, DenoiserKernel)
    assert isinstance(posterior.kernel.denoiser, TokenDenoiser)
    posterior.kernel.denoiser.network.load_state_dict(exact.state_dict())
    residual = terminal_residual(posterior, prior, words(V, L), log_r, beta)
    assert torch.allclose(residual, -tilted.sum().log().expand(V**L), atol=1e-10)
    unmoved = terminal_residual(prior, prior, words(V, L), log_r, beta)
    assert torch.allclose(unmoved, -beta * log_r, atol=1e-12)


def test_a_transformer_asked_about_equal_states_at_once_or_one_by_one():
    network = TransformerNetwork(3, 4).eval()
    ids = torch.randint(4, (50, 4))
    together = network.hidden(ids, torch.ones(50))
    for row, found in zip(ids, together, strict=True):
        alone = network.network.hidden(row[None])[0]
        assert torch.allclose(found, alone, atol=1e-5)
    together.square().sum().backward()
    shared = [p.grad.clone() for p in network.parameters() if p.grad is not None]
    network.zero_grad()
    network.network.hidden(ids).square().sum().backward()
    plain = [p.grad for p in network.parameters() if p.grad is not None]
    for a, b in zip(shared, plain, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


def pair(first: list[int], second: list[int]) -> Tensor:
    roles = torch.tensor([first, second])
    return canvas(torch.zeros_like(roles), roles)


@pytest.mark.parametrize(
    ("ask", "words_of_the_error"),
    [
        (lambda: completion_law(prior_of(AnyOrder(2)), EVERY), "one position per step"),
        (lambda: completion_law(prior_of(Parallel(3)), EVERY), "one position per step"),
        (lambda: marginal_log_prob(gaussian_chain(), torch.zeros(1, 2).long()), "masked chains"),
        (
            lambda: completion_law(prior_of(AnyOrder()), pair([1, 1, 1, 1], [0, 1, 1, 1])),
            "between 3 and 4",
        ),
        (
            lambda: marginal_log_prob(
                token_chain(TransformerNetwork(2, 30), 30, AnyOrder()),
                torch.zeros(1, 30, dtype=torch.long),
            ),
            "partial states",
        ),
    ],
)
def test_what_has_no_marginal_says_so(ask: Callable[[], Tensor], words_of_the_error: str):
    with pytest.raises(InputError, match=words_of_the_error):
        ask()
