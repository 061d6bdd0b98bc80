"""Masked chains of a few tokens whose laws can be enumerated, every state and every path.

``Table`` holds a row of logits for each partly masked state, either those of a joint law (then the
prior is order-consistent) or arbitrary ones. ``end_law`` pushes the probability of every state
through a chain's steps, without a draw.
"""

import itertools

import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.diffusions.orders import Order
from difftilt.noise import GeneratorNoise
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
from difftilt.transitions.categorical import CategoricalTilt

TOKENS, LENGTH, EXTRA = 3, 3, 4


class Table(TokenNetwork):
    """Logits of each position in each state; ``EXTRA`` more features per position for a head."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__(TOKENS, mask_id=TOKENS)
        self.table = torch.nn.Parameter(logits.float())
        self.more = torch.nn.Parameter(torch.randn(*logits.shape[:2], EXTRA))
        length = logits.shape[1]
        self.register_buffer("place", (TOKENS + 1) ** torch.arange(length - 1, -1, -1))

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        row = (ids * self.get_buffer("place")).sum(1)
        return torch.cat([self.table[row], self.more[row]], 2)

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden[..., :TOKENS]


class Linear(TokenNetwork):
    """A perceptron of one-hot tokens, with layers that adapters fit on."""

    def __init__(self, length: int = LENGTH, width: int = 8) -> None:
        super().__init__(TOKENS, mask_id=TOKENS)
        self.first = torch.nn.Linear(length * (TOKENS + 1), length * width)
        self.head = torch.nn.Linear(width, TOKENS)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        code = torch.nn.functional.one_hot(ids, TOKENS + 1).float().flatten(1)
        return torch.tanh(2 * self.first(code)).unflatten(1, (ids.shape[1], -1))

    def logits(self, hidden: Tensor) -> Tensor:
        return 3 * self.head(hidden)


def arbitrary(length: int = LENGTH, scale: float = 1.5) -> Table:
    """Conditionals of no joint law."""
    return Table(scale * torch.randn((TOKENS + 1) ** length, length, TOKENS))


def random_joint(length: int = LENGTH) -> Tensor:
    """A joint law of ``length`` tokens, (TOKENS,) * length."""
    return (
        torch.randn([TOKENS] * length)
        .mul(1.5)
        .double()
        .flatten()
        .softmax(0)
        .reshape([TOKENS] * length)
    )


def consistent(joint: Tensor) -> Table:
    """The conditionals of a joint law."""
    length = joint.ndim
    logits = torch.zeros((TOKENS + 1) ** length, length, TOKENS)
    for row, state in enumerate(itertools.product(range(TOKENS + 1), repeat=length)):
        seen = joint[tuple(slice(None) if v == TOKENS else slice(v, v + 1) for v in state)]
        for i in (i for i, v in enumerate(state) if v == TOKENS):
            logits[row, i] = seen.movedim(i, 0).flatten(1).sum(1).log()
    return Table(logits)


def masked_chain(network: TokenNetwork, order: Order, length: int = LENGTH) -> Chain:
    """The prior of a network."""
    denoiser = TokenDenoiser(network).eval().requires_grad_(False)
    return Chain(denoiser, MaskedDiffusion(TOKENS, length, order), (length,))


def every_end(length: int = LENGTH) -> Tensor:
    """All sequences of tokens, in the order of a flattened joint law."""
    return torch.tensor(list(itertools.product(range(TOKENS), repeat=length)))


def place_of(x_0: Tensor) -> Tensor:
    """The row of ``every_end`` of each sequence."""
    return (x_0 * TOKENS ** torch.arange(x_0.shape[1] - 1, -1, -1)).sum(1)


def permutations(length: int = LENGTH) -> Tensor:
    """All ranks of one position per step, (length!, length)."""
    return torch.tensor(list(itertools.permutations(range(1, length + 1))))


def path_of(chain: Chain, x_0: Tensor, ranks: Tensor) -> Path:
    """Paths that reveal the positions of ``x_0`` at given steps (0: never masked)."""
    diffusion = chain.diffusion
    assert isinstance(diffusion, MaskedDiffusion)
    states = [x_0]
    for n in range(1, diffusion.steps + 1):
        codes = TOKENS + ranks
        if diffusion.order.stepwise:
            codes = torch.where(ranks == n, codes, diffusion.undecided)
        states.append(torch.where((ranks > 0) & (ranks <= n), codes, x_0))
    return Path(torch.stack(states), condition=chain.condition)


def every_path(chain: Chain) -> Path:
    """A path for each end and each order of the positions."""
    length = chain.event_shape[0]
    ends, ranks = every_end(length), permutations(length)
    rows = torch.cartesian_prod(torch.arange(len(ends)), torch.arange(len(ranks)))
    return path_of(chain, ends[rows[:, 0]], ranks[rows[:, 1]])


@torch.no_grad()
def end_law(chain: Chain, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """The law of ``x_0``, (TOKENS ** length,), pushed through all steps from weighted ``x_N``.

    The position of a stepwise order is drawn uniformly, or as the posterior's tilt says; that of a
    planner is its own.
    """
    share = torch.ones(len(starts)) / len(starts) if weights is None else weights
    x, share = starts, share.double()
    for n in range(chain.steps, 0, -1):
        x, share = _planned(chain, x, share, n)
        prediction = chain.predict(x, n)
        tilt = chain.tilt(x, n, prediction)
        log_probs = prediction
        if tilt is not None:
            assert isinstance(tilt, CategoricalTilt)
            log_probs = tilt.log_probs
            share = share if tilt.order is None else share * tilt.order.double().exp()
        x, share = _revealed(chain, x, share, log_probs, n)
        x, row = torch.unique(x, dim=0, return_inverse=True)
        share = share.new_zeros(len(x)).index_add(0, row, share)
    return share.new_zeros(TOKENS ** x.shape[1]).index_add(0, place_of(x), share)


def _planned(chain: Chain, x: Tensor, share: Tensor, n: int) -> tuple[Tensor, Tensor]:
    diffusion = chain.diffusion
    assert isinstance(diffusion, MaskedDiffusion)
    undecided = x == diffusion.undecided
    if not bool(undecided.any()):
        return x, share
    if diffusion.order.follows_state:
        return diffusion.planned(x, n, GeneratorNoise()), share
    assert bool((undecided.sum(1) == n).all())
    row, position = undecided.nonzero().unbind(1)
    return diffusion.placed(x[row], position, n), share[row] / n


def _revealed(
    chain: Chain, x: Tensor, share: Tensor, log_probs: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """Every way to fill the positions of step n; one that does not count takes token 0."""
    width = log_probs.shape[1]
    combinations = torch.tensor(list(itertools.product(range(TOKENS), repeat=width)))
    copies = torch.arange(len(x)).repeat_interleave(len(combinations))
    tokens = combinations.repeat(len(x), 1)
    reveal = chain.diffusion.level(n, x).reveal.part(copies)
    probs = log_probs.double().exp()[copies].gather(2, tokens[..., None])[..., 0]
    chances = torch.where(reveal.valid, probs, (tokens == 0).double()).prod(1)
    return reveal.filled(x[copies], tokens), share[copies] * chances
