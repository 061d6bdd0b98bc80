"""Words of the small text-to-image world: a colour and a thing make a picture's caption.

A picture is an emoji tinted with one of eight named colours, so that a caption such as
``"a green rabbit"`` says all that a judge can ask of it. A quarter of the (colour, thing) pairs is
held out: the shipped prior has seen both words of such a pair, and never together. The held-out
pairs follow one rule (`is_held_out`), so that nothing about them was chosen by looking.

An index of a pair is ``colour + 8 · thing`` in the order of `COLOURS` and `THINGS`.
"""

from typing import Literal, get_args

from difftilt.errors import InputError

Colour = Literal["red", "orange", "yellow", "green", "blue", "purple", "pink", "grey"]
COLOURS: tuple[Colour, ...] = get_args(Colour)

_ANIMALS = (
    "rabbit cat dog mouse pig frog horse penguin bird owl elephant turtle butterfly crab fish snake"
)
_OTHERS = (
    "pear strawberry banana mushroom carrot car bus airplane rocket sailboat "
    "key bell umbrella star house cactus"
)
THINGS: tuple[str, ...] = (*_ANIMALS.split(), *_OTHERS.split())

TEMPLATES: tuple[str, ...] = (
    "a {colour} {thing}",
    "{colour} {thing}",
    "a picture of a {colour} {thing}",
    "a {thing} in {colour}",
    "the {thing} is {colour}",
)

PAIRS: tuple[tuple[Colour, str], ...] = tuple((c, thing) for thing in THINGS for c in COLOURS)
"""Every (colour, thing), in the order of the pairs' indices."""


def is_held_out(colour: Colour, thing: str) -> bool:
    """Whether the prior has never seen a pair: every fourth diagonal of the table of pairs."""
    return (COLOURS.index(colour) + THINGS.index(thing)) % 4 == COLOURS.index("green") % 4


def caption(colour: Colour, thing: str, template: int = 0) -> str:
    """A pair in words, such as ``"a green rabbit"``."""
    return TEMPLATES[template].format(colour=colour, thing=thing)


def pair_of(prompt: str) -> tuple[Colour, str]:
    """The one colour and the one thing that a prompt names.

    Raises:
        InputError: it does not name exactly one of each.
    """
    words = set(prompt.lower().replace(",", " ").split())
    colours: list[Colour] = [c for c in COLOURS if c in words]
    things = [t for t in THINGS if t in words]
    if len(colours) != 1 or len(things) != 1:
        raise InputError(
            f"the prompt {prompt!r} must name one of the colours {', '.join(COLOURS)} and one "
            "thing of difftilt.tasks.emoji_words.THINGS, such as 'a green rabbit'"
        )
    return colours[0], things[0]


def index_of(prompt: str) -> int:
    """The index of the pair that a prompt names."""
    return PAIRS.index(pair_of(prompt))
