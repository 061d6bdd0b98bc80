"""Canvases: templates as conditions of a masked chain, (C, 2, L), and back to passages.

    [CLS] She opened the door. | ? ? ? ? | Then she ran. [SEP] | pad pad
    given                      generated   suffix        given   given

Every template, and every choice of the lengths of its slots, is one canvas; all are padded to one
length, so that a batch may mix them. A *passage* is a filled canvas as text: what stands before the
first slot, the middle, and the suffix ``after``.

Lengths of a slot ``[5-12]``:

* ``"padding"``: the slot holds 12 positions, and the model itself says where the text ends: what is
  behind its end are pads. Fillings with pads elsewhere, or too short, are not ``well_formed``.
* a law of lengths: the length is drawn first, and the canvas is that much shorter.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, canvas, completed
from difftilt.errors import InputError
from difftilt.text.codecs import Codec
from difftilt.text.templates import Slot, Template

Lengths = Literal["padding", "uniform"] | Callable[[int], float]
"""How the length of a slot is found: "padding", or the law that it is drawn from."""
SuffixUse = Literal["posterior", "both", "none"]
"""Who sees the suffix: the posterior alone, prior and posterior, or nobody but the reward."""

MOST_CANVASES = 4096


@dataclass(frozen=True)
class Passage:
    """A filled canvas as text.

    Arguments:
        before: up to the first slot.
        middle: from the first slot to the end of the last, with the white space in front.
        after: the suffix, with the white space in front.
        fillings: what each slot holds.
    """

    before: str
    middle: str
    after: str
    fillings: tuple[str, ...]

    @property
    def text(self) -> str:
        """The whole."""
        return self.before + self.middle + self.after


@dataclass(frozen=True)
class Layout:
    """One canvas, not yet padded.

    Arguments:
        context: number of the template.
        template: what it is made of.
        tokens: ids, those of a pad where something is to be generated.
        roles: of each position.
        places: of each slot.
        probability: of these lengths, given the template.
    """

    context: int
    template: Template
    tokens: tuple[int, ...]
    roles: tuple[int, ...]
    places: tuple[range, ...]
    probability: float

    def fillings(self, ids: Sequence[int], codec: Codec) -> tuple[str, ...]:
        """What each slot of a filled canvas holds."""
        return tuple(codec.text(ids[place.start : place.stop]) for place in self.places)

    def passage(self, ids: Sequence[int], codec: Codec) -> Passage:
        """A filled canvas as text."""
        fillings = self.fillings(ids, codec)
        return Passage(*self.template.filled(fillings), fillings)

    def well_formed(self, ids: Sequence[int], pad_id: int) -> bool:
        """Whether each slot is filled from its start, and far enough."""
        for slot, place in zip(self.template.slots, self.places, strict=True):
            is_pad = [ids[i] == pad_id for i in place]
            least = min(slot.least, len(place))
            if is_pad != sorted(is_pad) or is_pad.count(False) < least:
                return False
        return True


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
        roles = [self._padded(layout.roles, GIVEN) for layout in layouts]
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
    """What tells canvases apart: their tokens and the places of their slots."""
    generated = condition[:, 1:] == GENERATED
    known = torch.cat([condition[:, :1], generated.long()], 1).cpu()
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
        InputError: no template, a suffix that is asked for and absent, a canvas longer than the
            model's context, or too many choices of lengths.
    """
    if not templates:
        raise InputError("there is no template to fill; give at least one")
    layouts: list[Layout] = []
    for context, template in enumerate(templates):
        if suffix in ("posterior", "both") and not template.suffix.strip():
            raise InputError(
                f"suffix={suffix!r} but no text follows the last slot of template {context}, "
                f"{str(template)!r}; write one, or leave suffix out"
            )
        layouts += _layouts(context, template, codec, lengths, suffix or "posterior")
        _check_size(layouts, max_length)
    return Canvases(layouts, codec)


def _check_size(layouts: list[Layout], max_length: int | None) -> None:
    longest, last = max(len(layout.tokens) for layout in layouts), layouts[-1]
    if max_length is not None and longest > max_length:
        raise InputError(
            f"template {last.context} needs {longest} tokens, but the model reads at most "
            f"{max_length}; shorten its text or its slots"
        )
    if len(layouts) > MOST_CANVASES:
        raise InputError(
            f"the templates have more than {MOST_CANVASES} choices of lengths; use "
            "lengths='padding', or fewer slots of variable length"
        )


def _layouts(
    context: int, template: Template, codec: Codec, lengths: Lengths, suffix: SuffixUse
) -> Iterator[Layout]:
    """One layout for every choice of lengths that has a positive probability."""
    laws = [_law(slot, lengths) for slot in template.slots]
    for chosen in itertools.product(*(law.items() for law in laws)):
        wanted = [length for length, _ in chosen]
        probability = math.prod(share for _, share in chosen)
        yield _layout(context, template, codec, (wanted, probability), suffix)


def _law(slot: Slot, lengths: Lengths) -> dict[int, float]:
    """The probability of each length of a slot."""
    if lengths == "padding":
        return {slot.most: 1.0}
    possible = range(slot.least, slot.most + 1)
    if callable(lengths):
        weights = {length: float(lengths(length)) for length in possible}
    else:
        weights = {length: 1.0 for length in possible}
    total = sum(weights.values())
    if not (0 < total < math.inf) or min(weights.values()) < 0:
        raise InputError(
            f"the law of lengths gives {list(weights.values())} to the slot {slot.written}; its "
            "weights must be >= 0, finite and not all 0"
        )
    return {length: weight / total for length, weight in weights.items() if weight > 0}


def _layout(
    context: int,
    template: Template,
    codec: Codec,
    chosen: tuple[list[int], float],
    suffix: SuffixUse,
) -> Layout:
    tokens, places, (waiting, probability) = list(codec.opening), [], chosen
    roles, remaining = [GIVEN] * len(tokens), iter(waiting)
    for part in template.without_suffix:
        ids = codec.ids(part) if isinstance(part, str) else [codec.pad_id] * next(remaining)
        if isinstance(part, Slot):
            places.append(range(len(tokens), len(tokens) + len(ids)))
        roles += [GENERATED if isinstance(part, Slot) else GIVEN] * len(ids)
        tokens += ids
    if suffix != "none":
        ids = codec.ids(template.suffix)
        roles += [SUFFIX if suffix == "posterior" else GIVEN] * len(ids)
        tokens += ids
    tokens += codec.closing
    roles += [GIVEN] * len(codec.closing)
    return Layout(context, template, tuple(tokens), tuple(roles), tuple(places), probability)
