"""Every path of a small masked chain, for losses and laws without sampling noise."""

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.diffusions.orders import Order
from difftilt.marginals import words
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork


def token_chain(network: TokenNetwork, length: int, order: Order) -> Chain:
    """The chain of a frozen network; every position is generated."""
    diffusion = MaskedDiffusion(network.vocab_size, length, order)
    like = next(network.parameters()).detach().new_zeros(())
    return Chain(TokenDenoiser(network).requires_grad_(False), diffusion, (length,), like=like)


def every_path(chain: Chain) -> tuple[Path, Tensor]:
    """All orders times all words, one position per step, and each path's log-probability.

    The paths of an order that the chain never takes are left out.
    """
    diffusion, length = chain.diffusion, chain.event_shape[0]
    assert isinstance(diffusion, MaskedDiffusion)
    ends = words(diffusion.vocab_size, length)
    ranks = torch.tensor(list(itertools.permutations(range(1, length + 1))))
    x_0, ranks = ends.repeat(len(ranks), 1), ranks.repeat_interleave(len(ends), 0)
    orders = _log_orders(diffusion, x_0, ranks)
    taken = orders.isfinite()
    x_0, ranks, orders = x_0[taken], ranks[taken], orders[taken]
    states = torch.stack([_state(diffusion, x_0, ranks, n) for n in range(length + 1)])
    predictions = []
    for n in range(1, length + 1):
        prediction = chain.predict(states[n], n)
        law = chain.law(prediction, states[n], n)
        predictions.append(diffusion.kept(prediction, law, states[n - 1]))
    path = Path(states, torch.stack(predictions))
    return path, torch.stack(predictions).sum(0) + orders


def _state(diffusion: MaskedDiffusion, x_0: Tensor, ranks: Tensor, n: int) -> Tensor:
    codes = diffusion.vocab_size + ranks
    if diffusion.order.stepwise:
        codes = torch.where(ranks == n, codes, diffusion.undecided)
    return torch.where(ranks <= n, codes, x_0)


def _log_orders(diffusion: MaskedDiffusion, x_0: Tensor, ranks: Tensor) -> Tensor:
    """Log-probability that each path's states are taken in its order."""
    total = torch.zeros(len(ranks), dtype=torch.float64)
    every = torch.ones_like(ranks, dtype=torch.bool)
    for n in range(ranks.shape[1], 0, -1):
        x = _state(diffusion, x_0, ranks, n)
        each = diffusion.order.log_next(ranks <= n, every, x, diffusion.level(n, x))
        total += each.gather(1, (ranks == n).long().argmax(1, keepdim=True))[:, 0]
    return total


def law_of(path: Path, log_p: Tensor, vocab_size: int) -> Tensor:
    """Probabilities of the ends of paths, by summing over the paths that lead to each."""
    place = vocab_size ** torch.arange(path.x_0.shape[1] - 1, -1, -1)
    zeros = log_p.new_zeros(vocab_size ** path.x_0.shape[1])
    return zeros.index_add(0, (path.x_0 * place).sum(1), log_p.exp())


def bare(path: Path) -> Path:
    """A path that has to ask the prior again."""
    return replace(path, predictions=None)
