"""The law of a small masked chain's completions, by summation over every partial state."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import GENERATED, MaskedDiffusion, MaskedLevel
from difftilt.diffusions.orders import Parallel
from difftilt.errors import InputError
from difftilt.marginals import completion_law, step_denoiser, words
from difftilt.transitions.categorical import Reveal


def exact_law(chain: Chain, condition: Int[Tensor, "C 2 L"]) -> Float[Tensor, "C completions"]:
    """The probability of every completion of canvases under a prior or posterior, float64.

    Arguments:
        chain: of a small vocabulary; its order reveals one position per step, or is ``Parallel``.
        condition: canvases of equally many generated positions.

    Raises:
        InputError: another order, or too many states.
    """
    diffusion = chain.diffusion
    if isinstance(diffusion, MaskedDiffusion) and isinstance(diffusion.order, Parallel):
        return torch.stack([_parallel_law(chain, diffusion, row[None]) for row in condition])
    return completion_law(chain, condition)


def total_variation(
    law: Float[Tensor, "C completions"], other: Float[Tensor, "C completions"]
) -> Float[Tensor, " C"]:
    """Half the sum of absolute differences, of each canvas."""
    return 0.5 * (law - other).abs().sum(1)


@torch.no_grad()
def _parallel_law(
    chain: Chain, diffusion: MaskedDiffusion, condition: Int[Tensor, "1 2 L"]
) -> Float[Tensor, " completions"]:
    """By the whole transition matrix of each step: its positions are independent given a state."""
    place = (condition[0, 1] == GENERATED).nonzero()[:, 0]
    vocab_size, n = diffusion.vocab_size, len(place)
    if (vocab_size + 1) ** (2 * n) > 20_000_000:
        raise InputError(f"{vocab_size} tokens at {n} positions are too many for whole matrices")
    digits = words(vocab_size + 1, n)
    x = diffusion.base(chain.empty(1).long(), condition).canvas.repeat(len(digits), 1)
    x[:, place] = torch.where(digits == vocab_size, diffusion.undecided, digits)
    p = torch.zeros(len(digits), dtype=torch.float64)
    p[-1] = 1.0
    denoiser = step_denoiser(chain).given(condition.expand(len(digits), -1, -1))
    reveal = Reveal(place.expand(len(digits), -1), digits == vocab_size)
    for step in range(diffusion.steps, 0, -1):
        time = torch.full((len(digits),), step / diffusion.steps)
        probs = denoiser(x, MaskedLevel(reveal, time)).double().exp()
        p = p @ _transition(probs, digits, 1 / step)
    return p[(digits < vocab_size).all(1)]


def _transition(
    probs: Float[Tensor, "S n V"], digits: Int[Tensor, "S n"], rate: float
) -> Float[Tensor, "S S"]:
    """A masked position is revealed with probability ``rate``; the others stay as they are."""
    vocab_size = probs.shape[2]
    stays = torch.nn.functional.one_hot(digits, vocab_size + 1).double()
    moves = torch.cat([rate * probs, torch.full_like(probs[..., :1], 1 - rate)], 2)
    each = torch.where((digits == vocab_size)[..., None], moves, stays)
    joint = each[:, 0]
    for i in range(1, digits.shape[1]):
        joint = (joint[:, :, None] * each[:, i, None]).flatten(1)
    return joint
