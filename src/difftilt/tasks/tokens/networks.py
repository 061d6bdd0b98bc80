"""Networks of a few tokens: tables with a row per state, and a small transformer.

| prior | conditionals |
|---|---|
| ``consistent_table(joint)`` | those of one joint law: any order of revealing gives that law |
| ``arbitrary_table(...)`` | random in every state: no joint law has them |
| ``random_transformer(...)`` | an untrained transformer's with a sharpened head |
| ``trained_transformer(...)`` | those that the masked loss learns of a joint law |
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.models.token_transformer import TokenTransformer, TransformerSize
from difftilt.token_denoisers import TokenNetwork


class TabularNetwork(TokenNetwork):
    """Logits of their own for every state and position, float32 or float64.

    The table has a further number for each state and position, zero at first, which the head of
    tokens does not read: a head that chooses positions may.

    Arguments:
        logits: ((V + 1)^L, L, V), the states in the order of their words, the last position
            running fastest; V is the mask.
    """

    place: Tensor

    def __init__(self, logits: Float[Tensor, "states L V"]) -> None:
        vocab_size, length = logits.shape[2], logits.shape[1]
        super().__init__(vocab_size, vocab_size)
        self.register_buffer("place", _place_values(vocab_size + 1, length), persistent=False)
        self.table = nn.Parameter(torch.cat([logits, torch.zeros_like(logits[..., :1])], 2))

    def hidden(self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]) -> Float[Tensor, "B L d"]:
        return self.table[(ids * self.place).sum(1)]

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        return hidden[..., : self.vocab_size]


class TransformerNetwork(TokenNetwork):
    """A ``TokenTransformer``, told no time: the number of masks is in the state.

    A batch of paths holds few states many times, so that each is computed once.

    Arguments:
        vocab_size: V; the mask is id V.
        length: L.
        size: of the network.
    """

    place: Tensor

    def __init__(self, vocab_size: int, length: int, size: TransformerSize | None = None) -> None:
        super().__init__(vocab_size, vocab_size)
        self.register_buffer("place", _place_values(vocab_size + 1, length), persistent=False)
        self.network = TokenTransformer(vocab_size + 1, length, vocab_size, size)

    def hidden(self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]) -> Float[Tensor, "B L d"]:
        codes, row = (ids * self.place).sum(1).unique(return_inverse=True)
        different = codes[:, None] // self.place % (self.vocab_size + 1)
        return self.network.hidden(different)[row]

    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        return self.network.last(hidden)


def _place_values(base: int, length: int) -> Int[Tensor, " L"]:
    return base ** torch.arange(length - 1, -1, -1)


def words(base: int, length: int) -> Int[Tensor, "base^length length"]:
    """All words of so many letters, the last running fastest."""
    return torch.cartesian_prod(*[torch.arange(base)] * length).reshape(-1, length)


def random_joint(
    vocab_size: int, length: int, generator: torch.Generator, scale: float = 1.5
) -> Float[Tensor, " words"]:
    """A correlated law over all words, float64: normal logits of the given scale."""
    logits = torch.randn(vocab_size**length, generator=generator, dtype=torch.float64)
    return (scale * logits).softmax(0)


def consistent_table(joint: Float[Tensor, " words"], length: int) -> TabularNetwork:
    """The exact conditionals of a joint law, given over all words in their order."""
    vocab_size = round(len(joint) ** (1 / length))
    joint = joint.reshape([vocab_size] * length)
    logits = joint.new_zeros((vocab_size + 1) ** length, length, vocab_size)
    for row, state in enumerate(words(vocab_size + 1, length).tolist()):
        seen = tuple(slice(None) if v == vocab_size else slice(v, v + 1) for v in state)
        for i in (i for i in range(length) if state[i] == vocab_size):
            mass = joint[seen].movedim(i, 0).flatten(1).sum(1)
            logits[row, i] = (mass / mass.sum()).log()
    return TabularNetwork(logits)


def arbitrary_table(
    vocab_size: int, length: int, generator: torch.Generator, scale: float = 1.5
) -> TabularNetwork:
    """Normal logits of the given scale in every state: the worst prior for a fixed random order."""
    shape = ((vocab_size + 1) ** length, length, vocab_size)
    return TabularNetwork(scale * torch.randn(shape, generator=generator, dtype=torch.float64))


def random_transformer(vocab_size: int, length: int, seed: int) -> TransformerNetwork:
    """An untrained transformer, the weights of its head times 3 for peaked conditionals."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TransformerNetwork(vocab_size, length)
    with torch.no_grad():
        network.network.last.weight *= 3.0
    return network.eval()


def trained_transformer(
    joint: Float[Tensor, " words"],
    length: int,
    seed: int,
    steps: int = 400,
    batch: int = 256,
) -> TransformerNetwork:
    """A transformer after some updates of the masked loss on words of a joint law.

    Arguments:
        joint: over all words in their order.
        length: L.
        seed: of weights and draws.
        steps: Adam updates.
        batch: words per update.
    """
    vocab_size = round(len(joint) ** (1 / length))
    every = words(vocab_size, length)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = TransformerNetwork(vocab_size, length)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        drawn = every[torch.multinomial(joint, batch, replacement=True, generator=generator)]
        loss = _masked_loss(network, drawn, generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network.eval()


def _masked_loss(
    network: TransformerNetwork, tokens: Int[Tensor, "B L"], generator: torch.Generator
) -> Tensor:
    """Cross-entropy at masked positions, a uniform number of them masked at random.

    The mean over the masks of each word, times L: an unbiased bound of -log p (Ou et al. 2024,
    arXiv 2406.03736).
    """
    batch, length = tokens.shape
    count = torch.randint(1, length + 1, (batch, 1), generator=generator)
    keys = torch.rand(batch, length, generator=generator)
    masked = keys.argsort(1).argsort(1) < count
    ids = torch.where(masked, network.mask_id, tokens)
    log_probs = network.network(ids).log_softmax(2).gather(2, tokens[..., None])[..., 0]
    return -(torch.where(masked, log_probs, 0.0).sum(1) * length / count[:, 0]).mean()
