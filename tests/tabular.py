"""Masked chains over a few tokens whose network is a table, so that every law is enumerated."""

import itertools

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.diffusions.orders import Order
from difftilt.kernels.networks import DenoiserKernel
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
from difftilt.values.functions import Value

K, LENGTH = 3, 3
ENDS = torch.tensor(list(itertools.product(range(K), repeat=LENGTH)))
STATES = torch.tensor(list(itertools.product(range(K + 1), repeat=LENGTH)))
COUPLINGS = torch.randn(LENGTH, LENGTH, K, K, generator=torch.Generator().manual_seed(7))


def coupled(x: Tensor, condition: Tensor | None = None) -> Tensor:
    """A log-reward that couples every pair of positions."""
    pairs = itertools.combinations(range(x.shape[1]), 2)
    return 0.8 * sum(COUPLINGS[a, b][x[:, a], x[:, b]] for a, b in pairs)  # type: ignore[return-value]


class Table(TokenNetwork):
    """One row of logits per masked state and position."""

    place: Tensor

    def __init__(self, logits: Tensor) -> None:
        """``logits`` (states, L, K), states in the order of ``STATES``."""
        super().__init__(logits.shape[2], logits.shape[2])
        length = logits.shape[1]
        self.register_buffer("place", (self.mask_id + 1) ** torch.arange(length - 1, -1, -1))
        self.table = nn.Parameter(logits)

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        assert len(time) == len(ids)
        return self.table[(ids * self.place).sum(1)]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class TableValue(Value):
    """One number per masked state, zero at the start."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(len(STATES)))

    def forward(self, x: Tensor, n, prediction: Tensor, condition=None, beta=1.0) -> Tensor:
        return self.table[state_codes(x)]


def state_codes(x: Tensor) -> Tensor:
    """The index of each state in ``STATES``, whatever the steps of its masks."""
    return (x.clamp(max=K) * (K + 1) ** torch.arange(LENGTH - 1, -1, -1)).sum(1)


def joint(seed: int = 0) -> Tensor:
    """A random law of the ends, (K^L,)."""
    generator = torch.Generator().manual_seed(seed)
    return (1.5 * torch.randn(len(ENDS), generator=generator).double()).softmax(0)


def product(seed: int = 0) -> Tensor:
    """A random law of the ends with independent positions."""
    generator = torch.Generator().manual_seed(seed)
    each = torch.randn(LENGTH, K, generator=generator).double().softmax(1)
    return torch.stack([each[i, ENDS[:, i]] for i in range(LENGTH)]).prod(0)


def conditionals(law: Tensor) -> Tensor:
    """Logits of the exact conditionals of a law of the ends."""
    agree = ((STATES[:, None] == K) | (STATES[:, None] == ENDS)).all(2).double()
    tokens = nn.functional.one_hot(ENDS, K).double()
    masses = torch.einsum("se,e,eik->sik", agree, law, tokens)
    return masses.clamp(min=1e-30).log().log_softmax(2).float()


def arbitrary(seed: int = 0) -> Tensor:
    """Logits that are the conditionals of no law."""
    shape = (len(STATES), LENGTH, K)
    return 1.5 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def token_chain(logits: Tensor, order: Order | None = None) -> Chain:
    """The frozen prior."""
    denoiser = TokenDenoiser(Table(logits)).requires_grad_(False)
    return Chain(denoiser, MaskedDiffusion(K, LENGTH, order), (LENGTH,))


def any_order_law(denoiser: TokenDenoiser) -> Tensor:
    """The law of the ends of a uniform order, one position at a time; float64, (K^L,)."""
    with torch.no_grad():
        level = MaskedDiffusion(K, LENGTH).leap.level(1, STATES)
        probs = denoiser.log_probs(denoiser.features(STATES, level)).double().exp()
    index = {tuple(s.tolist()): i for i, s in enumerate(STATES)}
    mass = torch.zeros(len(STATES), dtype=torch.float64)
    mass[index[(K,) * LENGTH]] = 1.0
    for masks in range(LENGTH, 0, -1):
        for state, row in index.items():
            if state.count(K) != masks:
                continue
            for i in (i for i in range(LENGTH) if state[i] == K):
                for v in range(K):
                    after = index[(*state[:i], v, *state[i + 1 :])]
                    mass[after] += mass[row] * probs[row, i, v] / masks
    return mass[[index[tuple(e.tolist())] for e in ENDS]]


def ends_law(chain: Chain) -> Tensor:
    """The law of the ends of a prior or of a posterior that is a denoiser, in any order."""
    denoiser = chain.denoiser
    if chain.kernel is not None:
        assert isinstance(chain.kernel, DenoiserKernel)
        denoiser = chain.kernel.denoiser
    assert isinstance(denoiser, TokenDenoiser)
    return any_order_law(denoiser)


def tilted(law: Tensor, beta: float = 1.0) -> tuple[Tensor, float]:
    """The exact posterior of ``coupled``, and log Z."""
    weighted = law * (beta * coupled(ENDS)).double().exp()
    return weighted / weighted.sum(), float(weighted.sum().log())


def distance(p: Tensor, q: Tensor) -> float:
    """Total variation."""
    return float(0.5 * (p - q).abs().sum())


def codes(x: Tensor) -> Tensor:
    """The index of each end in ``ENDS``."""
    return (x * K ** torch.arange(LENGTH - 1, -1, -1)).sum(1)
