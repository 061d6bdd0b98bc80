"""Masked (absorbing) diffusion on tokens: noise is a mask, a reverse step reveals positions.

A state is (B, L) integers that also say what will be revealed when, so that it is Markov and every
step knows its positions:

| code | meaning |
|---|---|
| 0 ... V - 1 | a token |
| V | a mask that stays: a position that the prior is not shown and nobody generates |
| V + n | a mask that step n reveals, 1 <= n <= N |
| V + N + 1 | a mask whose step is not decided yet (``Order.stepwise``) |
| -1 - v | a token v that this step masks again (``Remasking``) |

The condition of an infilling is a *canvas*, (B, 2, L): tokens, and roles (``GIVEN`` to both,
``GENERATED``, ``SUFFIX``: shown to the posterior alone, or ``PADDING``: behind the end, where no
network looks). Without one every position is generated. Which position is revealed when has no
parameter, so the log-ratio of a path is the sum of ``log q - log p`` of the revealed tokens alone.

Sources: Austin et al. 2021 (D3PM, arXiv 2107.03006); Sahoo et al. 2024 (MDLM, arXiv 2406.07524).
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from difftilt.diffusions.base import Diffusion
from difftilt.diffusions.orders import AnyOrder, Order
from difftilt.diffusions.remasking import Remasking
from difftilt.errors import InputError
from difftilt.noise import Noise
from difftilt.transitions.base import Transition
from difftilt.transitions.categorical import Categorical, CategoricalTilt, Placing, Reveal, read

GIVEN, GENERATED, SUFFIX, PADDING = 0, 1, 2, 3
"""Roles of a canvas's positions."""


@dataclass(frozen=True)
class MaskedLevel:
    """One step of a masked chain, as denoisers see it.

    Arguments:
        reveal: the positions that the step reveals.
        time: (B,) expected share of masks, in (0, 1].
        lengths: (B,) positions in front of the padding; None: there is none.
    """

    reveal: Reveal
    time: Tensor
    lengths: Tensor | None = None

    def part(self, rows: Int[Tensor, " R"]) -> "MaskedLevel":
        """That of some of the samples."""
        lengths = None if self.lengths is None else self.lengths[rows]
        return MaskedLevel(self.reveal.part(rows), self.time[rows], lengths)


def canvas(tokens: Int[Tensor, "B L"], roles: Int[Tensor, "B L"]) -> Int[Tensor, "B 2 L"]:
    """The condition of an infilling.

    Arguments:
        tokens: ids; anything where a position is generated.
        roles: ``GIVEN``, ``GENERATED``, ``SUFFIX`` or, at the end, ``PADDING``.

    Raises:
        InputError: shapes differ, a role that is none of the four, or padding before other roles.
    """
    if tokens.shape != roles.shape or tokens.ndim != 2:
        raise InputError(
            f"a canvas wants tokens and roles of one shape (B, L), got {tuple(tokens.shape)} and "
            f"{tuple(roles.shape)}"
        )
    if not bool(((roles >= GIVEN) & (roles <= PADDING)).all()):
        raise InputError(
            "roles are 0 (given), 1 (generated), 2 (shown to the posterior alone) or 3 (padding)"
        )
    padding = roles == PADDING
    if bool((padding[:, :-1] & ~padding[:, 1:]).any()):
        raise InputError("padding (role 3) stands at the end of a canvas alone; move it there")
    return torch.stack([tokens, roles], 1)


def completed(
    x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"] | None
) -> Int[Tensor, "B L"]:
    """Ends with the tokens of the suffix put in: what a reward reads."""
    if condition is None:
        return x_0
    return torch.where(condition[:, 1] == SUFFIX, condition[:, 0], x_0)


class MaskedDiffusion(Diffusion):
    """Masks, and the order in which they are revealed.

    Arguments:
        vocab_size: V, the tokens that a denoiser gives probabilities of.
        length: most positions generated of any canvas.
        order: when which is revealed.

    Raises:
        InputError: nothing to generate.
    """

    whole = False

    def __init__(self, vocab_size: int, length: int, order: Order | None = None) -> None:
        if length < 1:
            raise InputError("a masked chain needs at least 1 position to generate")
        self.vocab_size = vocab_size
        self.length = length
        self.order = AnyOrder() if order is None else order
        self.leaps = False

    @property
    def steps(self) -> int:
        return self.order.steps(self.length)

    @property
    def undecided(self) -> int:
        """The code of a mask whose step is not decided yet."""
        return self.vocab_size + self.steps + 1

    def has_density(self, n: int) -> bool:
        return True

    def level(
        self, n: int | Tensor, x: Int[Tensor, "B L"], condition: Tensor | None = None
    ) -> MaskedLevel:
        step = torch.as_tensor(n, device=x.device).expand(len(x))
        return self.level_of(self.reveal(step, x), step, condition)

    def level_of(
        self, reveal: Reveal, step: Int[Tensor, " B"], condition: Int[Tensor, "B 2 L"] | None
    ) -> MaskedLevel:
        """A step that reveals given positions, with each canvas's own time and length."""
        if condition is None:
            return MaskedLevel(reveal, self.order.time(step, torch.full_like(step, self.length)))
        roles = condition[:, 1].expand(len(step), -1)
        time = self.order.time(step, (roles == GENERATED).sum(1))
        return MaskedLevel(reveal, time, (roles != PADDING).sum(1))

    def reveal(self, n: int | Tensor, x: Int[Tensor, "B L"]) -> Reveal:
        """The positions that step n reveals."""
        marked, most = self._marked(x, n), min(self.length, x.shape[1])
        width = most if self.leaps else self.order.at_once(most)
        if width == 1:
            place = marked.long().argmax(1, keepdim=True)
            return Reveal(place, marked.gather(1, place))
        place = marked.long().argsort(dim=1, descending=True, stable=True)[:, :width]
        return Reveal(place, marked.gather(1, place))

    def base(self, like: Tensor, condition: Int[Tensor, "B 2 L"] | None = None) -> Placing:
        shape = like.shape
        if condition is None:
            every = torch.ones(shape, dtype=torch.bool, device=like.device)
            return Placing(torch.zeros_like(every, dtype=torch.long), every, *self._placing)
        tokens, roles = condition.expand(shape[0], -1, -1).unbind(1)
        shown = torch.where(roles == SUFFIX, self.vocab_size, tokens)
        return Placing(shown, roles == GENERATED, *self._placing)

    def reverse(self, prediction: Tensor, x: Int[Tensor, "B L"], n: int | Tensor) -> Categorical:
        return Categorical(x, self.reveal(n, x), prediction)

    def tilt_between(
        self, other: Tensor, own: Tensor, x: Int[Tensor, "B L"], n: int | Tensor
    ) -> CategoricalTilt:
        return CategoricalTilt(self.reveal(n, x), other, own)

    def planned(
        self, x: Int[Tensor, "B L"], n: int, noise: Noise, condition: Tensor | None = None
    ) -> Int[Tensor, "B L"]:
        if not self.order.stepwise:
            return x
        # What the step before has masked again.
        x = torch.where(x < 0, self.undecided, x)
        masked = x == self.undecided
        if not isinstance(self.order, Remasking):
            level = self.level(n, x, condition)
            return self.placed(x, self.order.chosen(masked, x, level, noise), n)
        shown = (x < self.vocab_size) & self._generated(x, condition)
        revealed, forgotten = self.order.drawn(masked, shown, n, noise)
        return torch.where(forgotten, -1 - x, torch.where(revealed, self.vocab_size + n, x))

    def placed(
        self, x: Int[Tensor, "B L"], position: Int[Tensor, " B"], n: int
    ) -> Int[Tensor, "B L"]:
        """x with the chosen positions marked for step n, where as many masks are left as steps."""
        undecided = x == self.undecided
        due = undecided.sum(1, keepdim=True) >= n
        mark = torch.zeros_like(undecided).scatter(1, position[:, None], True)
        return torch.where(mark & undecided & due, self.vocab_size + n, x)

    def due(self, x: Int[Tensor, "B L"], n: int) -> Bool[Tensor, " B"]:
        """Which samples reveal something at step n, planned already or not."""
        return self._marked(x, n).any(1) | ((x == self.undecided).sum(1) >= n)

    def kept(self, prediction: Tensor, law: Transition, landed: Int[Tensor, "B L"]) -> Tensor:
        """The log-probability of the revealed tokens, (B,): all that a log-ratio needs."""
        return law.log_prob(landed)

    def calls(self, x: Int[Tensor, "B L"], n: int | Tensor) -> int:
        return int(self._marked(x, n).any(1).sum())

    def noised(
        self,
        x_0: Int[Tensor, "B L"],
        upto: int,
        noise: Noise,
        condition: Tensor | None = None,
    ) -> list[Tensor]:
        """States of ``x_0`` masked again in a random order of this chain's law."""
        x_0 = self._hidden(x_0, condition)
        if self.order.follows_state:
            return self._followed(x_0, noise, condition)[: upto + 1]
        ranks = self._drawn_ranks(x_0, noise, condition)
        return [x_0, *(self._masked(x_0, ranks, n) for n in range(1, upto + 1))]

    def noised_pairs(
        self,
        x_0: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        x_0, landed = self._hidden(x_0, condition), torch.zeros_like(n) if self.leaps else n - 1
        if self.order.follows_state:
            states = torch.stack(self._followed(x_0, noise, condition))
            rows = torch.arange(len(n), device=n.device)
            return states[n, rows], states[landed, rows]
        ranks = self._drawn_ranks(x_0, noise, condition)
        return self._masked(x_0, ranks, n[:, None]), self._masked(x_0, ranks, landed[:, None])

    @property
    def leap(self) -> "MaskedDiffusion":
        """Steps that reveal all masks at once: the mean-field law of ``x_0`` given ``x_n``."""
        leaping = copy.copy(self)
        leaping.leaps = True
        return leaping

    def clean(
        self, prediction: Tensor, x: Int[Tensor, "B L"], n: int | Tensor
    ) -> Int[Tensor, "B L"]:
        """x with the likeliest tokens where the step reveals."""
        return read(self.reveal(n, x).filled(x, prediction.argmax(2)))

    def denoising_pair(
        self,
        x_0: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
        noise: Noise,
        condition: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        return self.noised_pairs(x_0, n, noise, condition)

    def denoising_loss(
        self,
        prediction: Tensor,
        wanted: Int[Tensor, "R L"],
        x: Int[Tensor, "R L"],
        n: Int[Tensor, " R"],
    ) -> Float[Tensor, " R"]:
        """The cross-entropy of the tokens that the step reveals."""
        return -self.reverse(prediction, x, n).log_prob(wanted)

    @property
    def _placing(self) -> tuple[int, Callable[[Tensor, Noise], Tensor]]:
        if not self.order.stepwise:
            return self.vocab_size, self.order.ranks
        later = self.steps + 1
        return self.vocab_size, lambda generated, noise: torch.full_like(generated.long(), later)

    def _marked(self, x: Int[Tensor, "B L"], n: int | Tensor) -> Bool[Tensor, "B L"]:
        if self.leaps:
            return x > self.vocab_size
        step = n[:, None] if isinstance(n, Tensor) else n
        return x == self.vocab_size + step

    def _drawn_ranks(
        self, x_0: Int[Tensor, "B L"], noise: Noise, condition: Tensor | None
    ) -> Int[Tensor, "B L"]:
        generated = self._generated(x_0, condition)
        return torch.where(generated, self.order.ranks(generated, noise), 0)

    def _generated(self, x: Int[Tensor, "B L"], condition: Tensor | None) -> Bool[Tensor, "B L"]:
        """The positions that the chain generates."""
        if condition is None:
            return x != self.vocab_size
        return (condition[:, 1] == GENERATED).expand(x.shape)

    def _followed(
        self, x_0: Int[Tensor, "B L"], noise: Noise, condition: Tensor | None
    ) -> list[Tensor]:
        """States of the chain made to say ``x_0``: the order sees the states that it leads to."""
        x = torch.where(self._generated(x_0, condition), self.undecided, x_0)
        states = [x_0]
        for n in range(self.steps, 0, -1):
            x = self.planned(x, n, noise, condition)
            states.insert(1, x)
            x = torch.where(x == self.vocab_size + n, x_0, x)
        return states

    def _hidden(self, x_0: Int[Tensor, "B L"], condition: Tensor | None) -> Int[Tensor, "B L"]:
        """Ends as the prior sees them: given data may spell out the suffix."""
        if condition is None:
            return x_0
        return torch.where(condition[:, 1] == SUFFIX, self.vocab_size, x_0)

    def _masked(
        self, x_0: Int[Tensor, "B L"], ranks: Int[Tensor, "B L"], n: int | Tensor
    ) -> Int[Tensor, "B L"]:
        """``x_n``: the positions of rank up to n masked again."""
        codes = self.vocab_size + ranks
        if self.order.stepwise:
            codes = torch.where(ranks == n, codes, self.undecided)
        return torch.where((ranks > 0) & (ranks <= n), codes, x_0)
