"""Canvases: templates as conditions of a masked chain, (C, 2, L), and back to passages.

    [CLS] She opened the door. | ? ? ? ? | Then she ran. [SEP] | pad pad
    given                      generated   suffix        given   padding

Every template, and every choice of the lengths of its slots, is one canvas; all are padded to one
length, so that a batch may mix them. No model sees that padding: one that hides an id of its own
does so (``TokenNetwork.pad_id``), another is given each canvas without it, those of one length in
one call. So the law of a template is what it is alone, whatever others are in the list.

Lengths of a slot ``[5-12]``:

* ``"padding"``: the slot holds 12 positions, and the model itself says where the text ends: what is
  behind its end are pads. Fillings with pads elsewhere, or too short, are not ``well_formed``.
* a law of lengths: the length is drawn first, and the canvas is that much shorter.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from difftilt.diffusions.masked import GENERATED, PADDING, canvas, completed
from difftilt.errors import InputError
from difftilt.text.codecs import Codec
from difftilt.text.layouts import (
    Layout,
    Lengths,
    Passage,
    SuffixUse,
    check_words,
    laid_out,
    read_back,
)
from difftilt.text.templates import Template


class Canvases:
    """The canvases of some templates. Made by ``canvases_of``.

    Arguments:
        layouts: of all templates, in their order.
        codec: between strings and ids.

    Raises:
        InputError: two templates give the same canvas.
    """

    def __init__(self, layouts: Sequence[Layout], codec: Codec) -> None:
        self.layouts = tuple(layouts)
        self.codec = codec
        self.length = max(len(layout.tokens) for layout in layouts)
        tokens = [self._padded(layout.tokens, codec.pad_id) for layout in layouts]
        roles = [self._padded(layout.roles, PADDING) for layout in layouts]
        self.conditions = canvas(torch.tensor(tokens), torch.tensor(roles))
        self._by_key: dict[bytes, Layout] = {}
        for key, layout in zip(_keys(self.conditions), self.layouts, strict=True):
            twin = self._by_key.setdefault(key, layout)
            if twin is not layout:
                raise InputError(
                    f"templates {twin.context} and {layout.context} give the same canvas, so that "
                    "no posterior can tell them apart; drop one, or show the suffix"
                )

    @property
    def contexts(self) -> int:
        """Number of templates."""
        return self.layouts[-1].context + 1

    @property
    def generated(self) -> int:
        """Most positions to generate in any canvas."""
        return int((self.conditions[:, 1] == GENERATED).sum(1).max())

    @property
    def variable(self) -> bool:
        """Whether some slot may hold more or fewer tokens."""
        slots = [slot for layout in self.layouts for slot in layout.template.slots]
        return any(slot.least < slot.most for slot in slots)

    def of(self, context: int) -> tuple[Int[Tensor, "c 2 L"], list[float]]:
        """The canvases of a template, and the probability of each.

        Raises:
            InputError: there is no such template.
        """
        if not 0 <= context < self.contexts:
            raise InputError(f"context={context} is none of the {self.contexts} templates (from 0)")
        rows = [i for i, layout in enumerate(self.layouts) if layout.context == context]
        return self.conditions[rows], [self.layouts[i].probability for i in rows]

    def drawn(self, count: int, generator: torch.Generator) -> Int[Tensor, "count 2 L"]:
        """Canvases of templates drawn uniformly and lengths drawn by their law."""
        weights = torch.tensor([layout.probability for layout in self.layouts])
        rows = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.conditions[rows]

    def layouts_of(self, condition: Int[Tensor, "B 2 L"]) -> list[Layout]:
        """The layout of each of a batch of canvases."""
        return [self._by_key[key] for key in _keys(condition)]

    def filled(
        self, x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"]
    ) -> Iterator[tuple[Layout, list[int]]]:
        """Layout and ids, without the padding behind them, of each filled canvas."""
        rows = completed(x_0, condition).tolist()
        for layout, ids in zip(self.layouts_of(condition), rows, strict=True):
            yield layout, ids[: len(layout.tokens)]

    def passages(self, x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"]) -> list[Passage]:
        """Filled canvases as text."""
        return [layout.passage(ids, self.codec) for layout, ids in self.filled(x_0, condition)]

    def well_formed(
        self, x_0: Int[Tensor, "B L"], condition: Int[Tensor, "B 2 L"]
    ) -> Bool[Tensor, " B"]:
        """Whether pads are at the ends of slots alone, and no slot is too short."""
        pad_id = self.codec.pad_id
        fine = [layout.well_formed(ids, pad_id) for layout, ids in self.filled(x_0, condition)]
        return torch.tensor(fine, device=x_0.device)

    def _padded(self, values: tuple[int, ...], fill: int) -> list[int]:
        return [*values, *[fill] * (self.length - len(values))]


def _keys(condition: Int[Tensor, "B 2 L"]) -> list[bytes]:
    """What tells canvases apart: their tokens, the places of their slots, and their ends."""
    roles = condition[:, 1:]
    known = torch.cat([condition[:, :1], roles == GENERATED, roles == PADDING], 1).cpu()
    return [row.numpy().tobytes() for row in known]


def canvases_of(
    templates: Sequence[Template],
    codec: Codec,
    lengths: Lengths = "padding",
    suffix: SuffixUse | None = None,
    max_length: int | None = None,
) -> Canvases:
    """The canvases of templates.

    Arguments:
        templates: at least one.
        codec: of the model.
        lengths: how a slot's length is found.
        suffix: who sees it; None: the posterior, where there is one.
        max_length: longest canvas that the model reads, or None.

    Raises:
        InputError: no template, an unknown choice of lengths or suffix, a suffix that is asked for
            and absent, a canvas longer than the model's context, or too many choices of lengths.
    """
    check_words(lengths, suffix)
    if not templates:
        raise InputError("there is no template to fill; give at least one")
    layouts: list[Layout] = []
    for context, template in enumerate(templates):
        if suffix in ("posterior", "both") and not template.suffix.strip():
            raise InputError(
                f"suffix={suffix!r} but no text follows the last slot of template {context}, "
                f"{str(template)!r}; write one, or leave suffix out"
            )
        layouts += laid_out(context, template, codec, lengths, suffix or "posterior")
        _check_size(layouts, max_length)
    return Canvases(layouts, codec)


def given_canvases(conditions: Int[Tensor, "C 2 L"], codec: Codec) -> Canvases:
    """Canvases that were made elsewhere; a slot is a run of generated positions.

    A slot may hold any number of tokens up to its width, pads behind them. What fills up a canvas
    to the length of the others is ``PADDING``; pads that are ``GIVEN`` are text to a model that
    hides none.
    """
    rows = enumerate(conditions.tolist())
    return Canvases([read_back(i, tokens, roles, codec) for i, (tokens, roles) in rows], codec)


def _check_size(layouts: list[Layout], max_length: int | None) -> None:
    longest, last = max(len(layout.tokens) for layout in layouts), layouts[-1]
    if max_length is not None and longest > max_length:
        raise InputError(
            f"template {last.context} needs {longest} tokens, but the model reads at most "
            f"{max_length}; shorten its text or its slots"
        )
