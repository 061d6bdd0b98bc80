"""Infilling problems of a few tokens: the first is given, the others are to be generated.

Conditions are the V values of the first token. The posterior of every condition, and log Z, are
sums over all completions under the law of the prior's own chain (``tasks.tokens.laws``), so that
the distance of any sampler of tokens from the truth has no sampling noise.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED, GIVEN, MaskedDiffusion, canvas
from difftilt.diffusions.orders import AnyOrder, Order, Stepwise
from difftilt.marginals import completions, words
from difftilt.tasks.exact.base import ExactProblem, Truth
from difftilt.tasks.tokens.laws import exact_law
from difftilt.tasks.tokens.networks import (
    arbitrary_table,
    consistent_table,
    random_joint,
    random_transformer,
    trained_transformer,
)
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork

ODD = math.log(1e-3)
TRAINED = "tokens_trained.safetensors"


@dataclass(frozen=True)
class Couplings:
    """``log r = scale Σ_{a<b} J_ab[x_a, x_b] / sqrt(L)``, and what parity and an offset add.

    Arguments:
        table: J, (L, L, V, V); pairs a < b alone are read.
        scale: of the couplings.
        parity: add log 0.001 where the sum of the tokens is odd.
        offset: added everywhere: it changes log Z alone.
    """

    table: Float[Tensor, "L L V V"]
    scale: float = 1.5
    parity: bool = False
    offset: float = 0.0

    def __call__(self, x_0: Int[Tensor, "B L"]) -> Float[Tensor, " B"]:
        length = x_0.shape[1]
        first, second = torch.triu_indices(length, length, 1)
        pairs = self.table[first, second, x_0[:, first], x_0[:, second]]
        log_r = self.scale * pairs.sum(1) / math.sqrt(length) + self.offset
        return log_r + ODD * (x_0.sum(1) % 2) if self.parity else log_r


def random_couplings(vocab_size: int, length: int, seed: int, scale: float = 1.5) -> Couplings:
    """Independent standard normal couplings."""
    generator = torch.Generator().manual_seed(seed)
    shape = (length, length, vocab_size, vocab_size)
    return Couplings(torch.randn(shape, generator=generator), scale)


@dataclass(frozen=True)
class TokenProblem(ExactProblem):
    """A prior chain of tokens, a reward, canvases, and the posterior of each.

    Arguments:
        conditions: the canvases.
        law: posterior probabilities of their completions, float64.
        log_z: ``log E_p[r]`` of each, nats; ``truth.log_z`` is their mean.
        learned_order: whether a posterior has to choose the positions to reach the truth.
    """

    conditions: Int[Tensor, "C 2 L"] = field(default_factory=lambda: torch.zeros(0, 2, 0).long())
    law: Float[Tensor, "C completions"] = field(default_factory=lambda: torch.zeros(0, 0))
    log_z: Float[Tensor, " C"] = field(default_factory=lambda: torch.zeros(0))
    learned_order: bool = False


def first_token_canvases(vocab_size: int, length: int) -> Int[Tensor, "V 2 L"]:
    """The V canvases whose first token is given."""
    tokens = torch.zeros(vocab_size, length, dtype=torch.long)
    tokens[:, 0] = torch.arange(vocab_size)
    roles = torch.full_like(tokens, GENERATED)
    roles[:, 0] = GIVEN
    return canvas(tokens, roles)


def token_problem(
    name: str, summary: str, network: TokenNetwork, log_reward: Couplings, order: Order
) -> TokenProblem:
    """The problem of a network and a reward, its first token given; its truth is computed here.

    Arguments:
        name: of the problem.
        summary: one line.
        network: the prior's; it is frozen.
        log_reward: of whole words.
        order: of revealing; ``Stepwise()`` lets the posterior choose.
    """
    vocab_size, length = network.vocab_size, log_reward.table.shape[0]
    network = network.requires_grad_(False).eval()
    diffusion = MaskedDiffusion(vocab_size, length - 1, order)
    chain = Chain(TokenDenoiser(network), diffusion, (length,))
    conditions = first_token_canvases(vocab_size, length)
    law, log_z = posterior_law(chain, log_reward, conditions)
    bound = float(log_reward(words(vocab_size, length)).max()) + 1e-4
    return TokenProblem(
        name,
        summary,
        chain,
        log_reward,
        bound,
        Truth(float(log_z.mean())),
        conditions=conditions,
        law=law,
        log_z=log_z,
        learned_order=isinstance(order, Stepwise),
    )


def posterior_law(
    chain: Chain,
    log_reward: Callable[[Tensor], Tensor],
    conditions: Int[Tensor, "C 2 L"],
) -> tuple[Float[Tensor, "C completions"], Float[Tensor, " C"]]:
    """``p(x_0) r(x_0) / Z`` of all completions of each canvas, and log Z."""
    assert isinstance(chain.diffusion, MaskedDiffusion)
    every = completions(chain.diffusion.vocab_size, conditions)
    log_r = log_reward(every.flatten(0, 1)).double().reshape(every.shape[:2])
    joint = exact_law(chain, conditions).log() + log_r
    log_z = joint.logsumexp(1)
    return (joint - log_z[:, None]).exp(), log_z


def _seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random_network(
    name: str, vocab_size: int, generated: int, scale: float, parity: bool = False
) -> TokenProblem:
    length = generated + 1
    coupled = random_couplings(vocab_size, length, 1, scale)
    summary = f"an untrained transformer, V = {vocab_size}, {generated} tokens, pairwise couplings"
    return token_problem(
        name,
        summary + (" and a parity" if parity else ""),
        random_transformer(vocab_size, length, 0),
        Couplings(coupled.table, scale, parity),
        Stepwise(),
    )


def _trained_network(name: str) -> TokenProblem:
    weights = files("difftilt.tasks.tokens").joinpath("data", TRAINED).read_bytes()
    network = trained_transformer(4, 6, weights)
    summary = "a transformer trained on a random law of 6 tokens of 4, pairwise couplings"
    return token_problem(name, summary, network, random_couplings(4, 6, 1, 2.0), Stepwise())


def _consistent(name: str) -> TokenProblem:
    network = consistent_table(random_joint(3, 5, _seeded(0)), 5).float()
    summary = "a table of one joint law's conditionals, any order, pairwise couplings"
    return token_problem(name, summary, network, random_couplings(3, 5, 1), AnyOrder())


def _arbitrary(name: str, order: Order) -> TokenProblem:
    network = arbitrary_table(3, 5, _seeded(0)).float()
    told = "chosen by the posterior" if isinstance(order, Stepwise) else "uniform: it has a floor"
    summary = f"a table that belongs to no joint law, the order {told}"
    return token_problem(name, summary, network, random_couplings(3, 5, 1), order)


def token_problems() -> dict[str, Callable[[], TokenProblem]]:
    """Builders of every token problem, by name; each is built (and its truth summed) on call."""
    builders: dict[str, Callable[..., TokenProblem]] = {
        "tokens_v3n4": partial(_random_network, vocab_size=3, generated=4, scale=1.5),
        "tokens_v4n5": partial(_random_network, vocab_size=4, generated=5, scale=2.0),
        "tokens_parity": partial(
            _random_network, vocab_size=3, generated=4, scale=1.5, parity=True
        ),
        "tokens_trained": _trained_network,
        "tokens_table": _consistent,
        "tokens_arbitrary": partial(_arbitrary, order=Stepwise()),
        "tokens_arbitrary_uniform": partial(_arbitrary, order=AnyOrder()),
    }
    return {name: partial(build, name) for name, build in builders.items()}
