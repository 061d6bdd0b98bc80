"""What a masked language model says about hidden tokens.

A ``TokenNetwork`` is any network of tokens; ``TokenDenoiser`` makes a ``Denoiser`` of it: it puts
the network's own mask id where a state is masked, asks for the revealed positions alone, before the
vocabulary head, and gives normalised log-probabilities in float32 or wider. A posterior's may also
learn a temperature (``TemperedDenoiser``).
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from difftilt.denoisers import Denoiser
from difftilt.diffusions.masked import MaskedLevel, completed
from difftilt.errors import InputError
from difftilt.models.heads import ZeroLinear
from difftilt.transitions.categorical import Reveal, read


class TokenNetwork(nn.Module, ABC):
    """A network of tokens in two parts, so that the head sees few positions.

    Arguments:
        vocab_size: V, columns of the head; 0 ... V - 1 are the ids that it reads.
        mask_id: its id of a mask; -1 for a network without one (``diffusions.uniform``).
    """

    pad_id: int | None = None
    """An id that it hides from all positions, or None: then padding is cut off (``features``)."""

    def __init__(self, vocab_size: int, mask_id: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.mask_id = mask_id

    block_size: int | None = None
    """Positions per block, where a position sees its own block and those before it; None: all."""

    @abstractmethod
    def hidden(self, ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]) -> Float[Tensor, "B L d"]:
        """Features; row i is what the head needs to predict token i."""

    @abstractmethod
    def logits(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        """The head."""


class TokenDenoiser(Denoiser):
    """``(x_n, level) -> log-probabilities (B, P, V)`` of the tokens to be revealed.

    Arguments:
        network: the network.
        banned: ids that are never drawn, besides the mask.
        temperature: of the network's logits; a part of the model's definition.
        informed: whether it reads the suffix of a bound canvas, as posteriors do.

    Raises:
        InputError: a temperature that is not positive, or all ids are banned.
    """

    barred: Tensor

    def __init__(
        self,
        network: TokenNetwork,
        banned: Sequence[int] = (),
        temperature: float = 1.0,
        informed: bool = False,
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise InputError(
                f"temperature={temperature} must be positive: at 0 the chain has no density"
            )
        self.network = network
        self.temperature = temperature
        self.reads_suffix = informed
        self.condition: Tensor | None = None
        # In a tuple: its parameters belong to the ``TemperedDenoiser`` that lends it.
        self._sharpness: tuple[ZeroLinear, ...] = ()
        allowed = torch.ones(network.vocab_size, dtype=torch.bool)
        forbidden = [i for i in (*banned, network.mask_id) if 0 <= i < network.vocab_size]
        allowed[forbidden] = False
        if not bool(allowed.any()):
            raise InputError("every token is banned; leave at least one")
        barred = torch.zeros(network.vocab_size).masked_fill(~allowed, -torch.inf)
        self.register_buffer("barred", barred, persistent=False)

    @property
    def allowed(self) -> Bool[Tensor, " V"]:
        """Which tokens may be drawn."""
        return self.barred == 0

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.network.vocab_size

    def given(self, condition: Tensor | None) -> "TokenDenoiser":
        if not self.reads_suffix or condition is None:
            return self
        bound = copy.copy(self)
        bound.condition = condition
        return bound

    def informed(self) -> "TokenDenoiser":
        seeing = copy.copy(self)
        seeing.reads_suffix = True
        return seeing

    def sharpened(self, head: ZeroLinear) -> "TokenDenoiser":
        """The same network with its logits times ``exp(head(features))``."""
        other = copy.copy(self)
        other._sharpness = (head,)
        return other

    def ids(self, x: Int[Tensor, "B L"]) -> Int[Tensor, "B L"]:
        """States as the network reads them."""
        seen = read(completed(x, self.condition))
        return torch.where(seen < self.vocab_size, seen, self.network.mask_id)

    def features(self, x: Int[Tensor, "B L"], level: MaskedLevel) -> Float[Tensor, "B L d"]:
        """The network's features of whole states, anything at padding, which it does not see."""
        ids, pad_id = self.ids(x), self.network.pad_id
        if level.lengths is None:
            return self.network.hidden(ids, level.time)
        if pad_id is None:
            return self._cut_to(level.lengths, ids, level.time)
        place = torch.arange(ids.shape[1], device=ids.device)
        hidden = torch.where(place < level.lengths[:, None], ids, pad_id)
        return self.network.hidden(hidden, level.time)

    def log_probs(self, hidden: Float[Tensor, "... d"]) -> Float[Tensor, "... V"]:
        """Normalised log-probabilities from features, float32 or wider; -inf for what is banned."""
        logits = wide(self.network.logits(hidden))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        for head in self._sharpness:
            logits = logits * wide(head(hidden.to(head.weight.dtype))).exp()
        # Adding 0 or -inf is one pass over the vocabulary; a boolean fill is several.
        return (logits + self.barred.to(logits.dtype)).log_softmax(-1)

    def revealed(self, hidden: Float[Tensor, "B L d"], reveal: Reveal) -> Float[Tensor, "B P V"]:
        """Log-probabilities of the positions of a step, from features of whole states."""
        place = reveal.positions[..., None].expand(-1, -1, hidden.shape[-1])
        return self.log_probs(hidden.gather(1, place))

    def forward(self, x_t: Int[Tensor, "B L"], level: MaskedLevel) -> Float[Tensor, "B P V"]:
        busy = level.reveal.valid.any(1)
        if not bool(busy.all()):
            return self._of_some(x_t, level, busy.nonzero().flatten())
        return self.revealed(self.features(x_t, level), level.reveal)

    def _cut_to(
        self, lengths: Int[Tensor, " B"], ids: Int[Tensor, "B L"], time: Float[Tensor, " B"]
    ) -> Float[Tensor, "B L d"]:
        """Features of canvases without what lies behind their ends: one call for each length."""
        found, rows = [], []
        for length in lengths.unique().tolist():
            own = (lengths == length).nonzero().flatten()
            part = self.network.hidden(ids[own, :length], time[own])
            found.append(nn.functional.pad(part, (0, 0, 0, ids.shape[1] - length)))
            rows.append(own)
        return found[0] if len(found) == 1 else torch.cat(found)[torch.cat(rows).argsort()]

    def _of_some(
        self, x: Int[Tensor, "B L"], level: MaskedLevel, rows: Int[Tensor, " R"]
    ) -> Float[Tensor, "B P V"]:
        """The network sees only samples that reveal something; the others get anything."""
        if not len(rows):
            return anything(level.reveal, self.vocab_size)
        part = self.given(None if self.condition is None else self.condition[rows])
        found = part(x[rows], level.part(rows))
        return anything(level.reveal, self.vocab_size, found.dtype).index_copy(0, rows, found)


class TemperedDenoiser(Denoiser):
    """A denoiser of tokens whose logits are times ``exp(head(features))``, 1 at the start.

    A reward often asks for little more than a surer or a less sure network, here per state and
    position, which a head of a few hundred weights learns in a few updates and the network's own
    weights in many: what a learned variance is to Gaussians.

    Arguments:
        inner: a ``TokenDenoiser``, or one with adapters.
        head: from features to the log inverse temperature.
    """

    def __init__(self, inner: Denoiser, head: ZeroLinear) -> None:
        super().__init__()
        self.inner = inner
        self.head = head

    def given(self, condition: Tensor | None) -> "TemperedDenoiser":
        return TemperedDenoiser(self.inner.given(condition), self.head)

    @contextmanager
    def active(self) -> Iterator[TokenDenoiser]:
        with self.inner.active() as inner:
            assert isinstance(inner, TokenDenoiser)
            yield inner.sharpened(self.head)

    def forward(self, x_t: Int[Tensor, "B L"], level: MaskedLevel) -> Float[Tensor, "B P V"]:
        with self.active() as sharpened:
            return sharpened(x_t, level)


def anything(
    reveal: Reveal, vocab_size: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "B P V"]:
    """Log-probabilities for samples that reveal nothing: a law that nobody reads."""
    shape, device = (*reveal.positions.shape, vocab_size), reveal.positions.device
    return torch.full(shape, -math.log(vocab_size), device=device, dtype=dtype)


def wide(values: Tensor) -> Tensor:
    """Values in float32 at least: probabilities in half precision would not add up."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
