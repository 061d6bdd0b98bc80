"""Prompts as conditions: integer rows of a table of what the network is told.

A chain's condition is a row (B,). The text encoders run once per different prompt, in batches, when
a prompt is first heard of; steps, replay and certificates carry integers. Row 0 is what the
unconditional half of classifier-free guidance is told. Rows are only ever added, so that a
posterior trained on some prompts can be asked for others.
"""

import copy
import warnings
from collections.abc import Iterable, Sequence
from operator import itemgetter

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.adapters.arithmetic import autocast, calculating
from difftilt.adapters.text_to_image.base import Call, Family, Inputs
from difftilt.denoisers import Denoiser, Level, NetworkDenoiser
from difftilt.errors import InputError

NULL_ROW = 0
ENCODED_AT_ONCE = 64


class PromptTable:
    """Prompts, and what the network is told of them.

    Arguments:
        family: encodes.
        dtype: of real numbers in the table: what the network calculates in.
    """

    def __init__(self, family: Family, dtype: torch.dtype) -> None:
        self.family = family
        self.dtype = dtype
        self.prompts: list[str] = [""]
        self.inputs = self._kept(family.null)
        self._row: dict[str, int] = {}

    def rows(self, prompts: Sequence[str]) -> Int[Tensor, " P"]:
        """The row of each prompt; new prompts are encoded.

        Raises:
            InputError: no prompts, or something that is no text.
        """
        if isinstance(prompts, str) or not prompts:
            raise InputError('prompts are a list of at least one text, like ["a green rabbit"]')
        wrong = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if wrong:
            raise InputError(f"prompts are texts, and {wrong[0]!r} is none")
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._row]
        for start in range(0, len(new), ENCODED_AT_ONCE):
            self._add(new[start : start + ENCODED_AT_ONCE])
        return torch.tensor([self._row[prompt] for prompt in prompts])

    def of(self, rows: Int[Tensor, " B"]) -> Inputs:
        """What the network is told of some rows."""
        return {name: value[rows.to(value.device)] for name, value in self.inputs.items()}

    def texts(self, rows: Iterable[int]) -> list[str]:
        """The prompts of some rows."""
        return [self.prompts[row] for row in rows]

    def __len__(self) -> int:
        return len(self.prompts)

    def __deepcopy__(self, memo: dict[int, object]) -> "PromptTable":
        """The table itself: a copied posterior hears the same prompts."""
        return self

    def _add(self, prompts: list[str]) -> None:
        self._warn_of_long(prompts)
        new = self._kept(lambda: self.family.inputs(prompts))
        self.inputs = {k: torch.cat([value, new[k]]) for k, value in self.inputs.items()}
        for prompt in prompts:
            self._row[prompt] = len(self.prompts)
            self.prompts.append(prompt)

    @torch.no_grad()
    def _kept(self, encode) -> Inputs:
        found: Inputs = encode()
        return {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in found.items()}

    def _warn_of_long(self, prompts: list[str]) -> None:
        readers = self.family.readers()
        if not readers:
            return
        tokenizer, longest = max(readers, key=lambda reader: reader[1])
        for prompt in prompts:
            length = len(tokenizer(prompt, truncation=False, verbose=False).input_ids)
            if length > longest:
                warnings.warn(
                    f"the prompt {prompt[:40]!r}... has {length} tokens, of which the network is "
                    f"told the first {longest}; shorten it",
                    stacklevel=4,
                )


class PromptedDenoiser(Denoiser):
    """A network that is told prompts, given as rows of a table.

    A network of 16 bits calculates in float32 (``adapters.arithmetic``) unless its options say
    ``autocast``; a copy that is trained is of 32. Where no gradient is wanted it sees
    ``PictureOptions.network_batch`` states at once, however many a certificate or a correction
    hands over.

    Arguments:
        base: the network, and what its output means.
        call: how it is called.
        table: of prompts.
        rows: (B,) or (1,) integers, or None until bound.
    """

    def __init__(
        self,
        base: NetworkDenoiser,
        call: Call,
        table: PromptTable,
        rows: Int[Tensor, " B"] | None = None,
    ) -> None:
        super().__init__()
        self.base = base
        self.call = call
        self.table = table
        self.rows = rows

    @property
    def network(self) -> nn.Module:
        """What denoises."""
        return self.base.network

    def forward(self, x_t: Float[Tensor, "B C H W"], level: Level) -> Float[Tensor, "B C H W"]:
        if self.rows is None:
            raise InputError(
                "a text-to-image chain wants a prompt for each sample, and none is bound; bind "
                "rows with chain.given(prior.rows([prompt]))"
            )
        rows = self.rows.expand(len(x_t))
        at_once = self.table.family.options.network_batch
        if torch.is_grad_enabled() or len(x_t) <= at_once:
            return self._predicted(x_t, level, rows)
        parts = [slice(start, start + at_once) for start in range(0, len(x_t), at_once)]
        return torch.cat(
            [self._predicted(x_t[p], level.each(itemgetter(p)), rows[p]) for p in parts]
        )

    def _predicted(self, x_t: Tensor, level: Level, rows: Tensor) -> Tensor:
        inputs = self.table.of(rows)
        rounded = self.table.family.options.autocast

        def call(network: nn.Module, x: Tensor, time: Tensor) -> Tensor:
            with autocast(network) if rounded else calculating(network):
                return self.call(network, x.to(self.table.dtype), time, inputs).to(x.dtype)

        return self.base.calling(call)(x_t, level)

    def make_trainable(self) -> None:
        nn.Module.to(self.network, self.table.dtype)

    def unconditional(self) -> tuple[Denoiser, Tensor] | None:
        return self, torch.tensor(NULL_ROW)

    def given(self, condition: Tensor | None) -> "PromptedDenoiser":
        bound = copy.copy(self)
        bound.rows = condition
        return bound
