"""Templates: a text with slots, written as a string.

| written | meaning |
|---|---|
| ``[30]`` | a slot of 30 tokens |
| ``[5-12]`` | a slot of 5 to 12 tokens |
| ``\\[`` ``\\]`` ``\\\\`` | a bracket or backslash of the text itself |

White space before a slot belongs to the slot, and white space after it to the text that follows:
each piece is tokenised by itself with the space in front of it, as in running text, and the ids
are kept. What stands after the last slot is the *suffix*.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from difftilt.errors import InputError

_TOKEN = re.compile(r"\\[\[\]\\]|\[(\d+)(?:-(\d+))?\]|.", re.DOTALL)


@dataclass(frozen=True)
class Slot:
    """A place to fill.

    Arguments:
        least: fewest tokens, at least 0.
        most: most tokens, at least 1 and not below ``least``.
        lead: white space of the template before it.
    """

    least: int
    most: int
    lead: str = ""

    @property
    def written(self) -> str:
        """The slot as the template writes it."""
        return f"[{self.least}]" if self.least == self.most else f"[{self.least}-{self.most}]"


@dataclass(frozen=True)
class Template:
    """A text with slots. Made by ``parsed``.

    Arguments:
        parts: pieces of text and slots in order; the last is text if there is a suffix.
    """

    parts: tuple[str | Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """The slots in order."""
        return tuple(part for part in self.parts if isinstance(part, Slot))

    @property
    def suffix(self) -> str:
        """The text after the last slot; "" where there is none."""
        last = self.parts[-1]
        return last if isinstance(last, str) else ""

    @property
    def without_suffix(self) -> tuple[str | Slot, ...]:
        """The parts up to the last slot."""
        return self.parts[:-1] if self.suffix else self.parts

    def filled(self, spelled: Sequence[str]) -> tuple[str, str, str]:
        """The text before the first slot, from it to the end of the last, and the suffix.

        Arguments:
            spelled: each part as its tokens spell it, with the white space in front of it. Given
                text stays as it was written, but for white space in front of a word behind a slot.
        """
        before, *behind = self.parts if isinstance(self.parts[0], str) else ("", *self.parts)
        assert isinstance(before, str)
        pairs = zip(behind, spelled[-len(behind) :], strict=True)
        texts = [
            _behind_slot(part, text) if isinstance(part, str) else text for part, text in pairs
        ]
        after = texts.pop() if self.suffix else ""
        return before, "".join(texts), after

    def __str__(self) -> str:
        """The template with its brackets escaped, as it was written."""
        return "".join(
            re.sub(r"([\[\]\\])", r"\\\1", part)
            if isinstance(part, str)
            else part.lead + part.written
            for part in self.parts
        )


def _behind_slot(written: str, spelled: str) -> str:
    """Given text as it was written, but joined to what is filled in, or apart, as it is spelled."""
    words = written.lstrip()
    # Tokenizers space punctuation in ways of their own, whatever stands before it.
    if not words[:1].isalnum() or written[:1].isspace() == spelled[:1].isspace():
        return written
    return spelled[: len(spelled) - len(spelled.lstrip())] + words


def parsed(text: str) -> Template:
    """The template that a string writes.

    Raises:
        InputError: no slot, a slot that can hold nothing, or a bracket that is neither a slot nor
            escaped.
    """
    parts: list[str | Slot] = []
    for match in _TOKEN.finditer(text):
        if match.group(1) is not None:
            parts.append(_slot(match, _lead_taken(parts)))
        else:
            _append(parts, text, match)
    if not any(isinstance(part, Slot) for part in parts):
        raise InputError(f"the template {text!r} has no slot; write one as [30] or [5-12] tokens")
    return Template(tuple(parts))


def _slot(match: re.Match[str], lead: str) -> Slot:
    least, most = int(match.group(1)), int(match.group(2) or match.group(1))
    if most < 1 or least > most:
        raise InputError(
            f"the slot {match.group()} can hold nothing; write [n] or [least-most] with "
            "least <= most and at least 1 token"
        )
    return Slot(least, most, lead)


def _lead_taken(parts: list[str | Slot]) -> str:
    """The white space at the end of the text so far, which moves to the slot."""
    if not parts or isinstance(parts[-1], Slot):
        return ""
    text = parts.pop()
    assert isinstance(text, str)
    kept = text.rstrip()
    if kept:
        parts.append(kept)
    return text[len(kept) :]


def _append(parts: list[str | Slot], text: str, match: re.Match[str]) -> None:
    character = match.group()
    if character == "[":
        around = text[match.start() : match.start() + 20]
        raise InputError(
            f"{around!r} in the template is no slot; write [30] or [5-12], or \\[ for a bracket"
        )
    character = character[-1]
    if parts and isinstance(parts[-1], str):
        parts[-1] += character
    else:
        parts.append(character)
