"""How one template, with its lengths chosen, lies on a canvas; and a filled canvas as text.

A *layout* has the tokens and roles of every position, and knows the places of its slots. A
*passage* is a filled canvas as text: what stands before the first slot, the middle, and the suffix.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from difftilt.diffusions.masked import GENERATED, GIVEN, PADDING, SUFFIX
from difftilt.errors import InputError
from difftilt.text.codecs import Codec, plain_ids
from difftilt.text.templates import Slot, Template

NamedLengths = Literal["padding", "uniform"]
Lengths = NamedLengths | Callable[[int], float]
"""How the length of a slot is found: "padding", or the law that it is drawn from."""
SuffixUse = Literal["posterior", "both", "none"]
"""Who sees the suffix: the posterior alone, prior and posterior, or nobody but the reward."""

MOST_LENGTHS = 1024
"""Most choices of lengths that one template may have."""


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

    def passage(self, ids: Sequence[int], codec: Codec) -> Passage:
        """A filled canvas as text: given text as it was written, slots as their tokens spell them.

        Tokens also say where white space is at the seams: a filling that ends within a word is
        joined to the text behind it.
        """
        parts = self.template.parts
        texts = codec.spelled([self._piece(i, ids, codec) for i in range(len(parts))])
        slots = [i for i, part in enumerate(parts) if isinstance(part, Slot)]
        for i, slot in zip(slots, self.template.slots, strict=True):
            if texts[i][:1].isspace() and slot.lead and not codec.spells(slot.lead):
                texts[i] = slot.lead + texts[i].lstrip()
        return Passage(*self.template.filled(texts), tuple(texts[i].strip() for i in slots))

    def _piece(self, part: int, ids: Sequence[int], codec: Codec) -> Sequence[int]:
        """The ids of a part of the template."""
        parts = self.template.parts
        slot = sum(isinstance(before, Slot) for before in parts[:part])
        if isinstance(parts[part], Slot):
            return ids[self.places[slot].start : self.places[slot].stop]
        start = self.places[slot - 1].stop if slot else 0
        if slot < len(self.places):
            return ids[start : self.places[slot].start]
        # A suffix that is not on the canvas is read all the same.
        on_canvas = len(ids) - start > len(codec.closing)
        return ids[start:] if on_canvas else plain_ids(codec.tokenizer, self.template.suffix)

    def well_formed(self, ids: Sequence[int], pad_id: int) -> bool:
        """Whether each slot is filled from its start, and far enough."""
        for slot, place in zip(self.template.slots, self.places, strict=True):
            is_pad = [ids[i] == pad_id for i in place]
            least = min(slot.least, len(place))
            if is_pad != sorted(is_pad) or is_pad.count(False) < least:
                return False
        return True


def check_words(lengths: Lengths, suffix: SuffixUse | None) -> None:
    """Refuse words that name nothing: a typo would stand for another target.

    Raises:
        InputError: lengths or suffix is none of its choices.
    """
    if suffix is not None and suffix not in get_args(SuffixUse):
        raise InputError(
            f"suffix={suffix!r} says nothing; choose one of {', '.join(get_args(SuffixUse))}"
        )
    if not callable(lengths) and lengths not in get_args(NamedLengths):
        raise InputError(
            f"lengths={lengths!r} is no law of lengths; choose one of "
            f"{', '.join(get_args(NamedLengths))}, or give a function of the length"
        )


def laid_out(
    context: int, template: Template, codec: Codec, lengths: Lengths, suffix: SuffixUse
) -> Iterator[Layout]:
    """One layout for every choice of lengths that has a positive probability.

    Arguments:
        context: number of the template.
        template: what is laid out.
        codec: of the model.
        lengths: how a slot's length is found.
        suffix: who sees it.

    Raises:
        InputError: the law of lengths is none, there are too many choices of them, or the tokenizer
            has no token for some word.
    """
    laws = [_law(slot, lengths) for slot in template.slots]
    count = math.prod(map(len, laws))
    if count > MOST_LENGTHS:
        raise InputError(
            f"template {context} has {count} choices of lengths, more than {MOST_LENGTHS}; use "
            "lengths='padding', or fewer slots of variable length"
        )
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


def read_back(context: int, tokens: list[int], roles: list[int], codec: Codec) -> Layout:
    """The layout of a canvas that was made elsewhere: a slot is a run of generated positions."""
    while roles and roles[-1] == PADDING:
        tokens, roles = tokens[:-1], roles[:-1]
    parts: list[str | Slot] = []
    runs, places, start = [], [], 0
    for is_slot, run in itertools.groupby(roles, key=lambda role: role == GENERATED):
        runs.append((is_slot, range(start, start := start + len(list(run)))))
        if is_slot:
            place = runs[-1][1]
            places.append(place)
            tokens[place.start : place.stop] = [codec.pad_id] * len(place)
    texts = codec.spelled([tokens[place.start : place.stop] for _, place in runs])
    for (is_slot, place), text in zip(runs, texts, strict=True):
        if is_slot:
            parts.append(Slot(0, len(place), " " if parts else ""))
        elif text:
            # At the start of a text no space is spelled, but a filling will stand there.
            spaced = len(parts) == 1 and not codec.spells(" ")
            parts.append(f" {text}" if spaced else text)
    template = Template(tuple(parts))
    return Layout(context, template, tuple(tokens), tuple(roles), tuple(places), 1.0)
