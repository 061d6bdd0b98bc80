"""Templates: what the grammar reads, what it writes back, and what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from difftilt.errors import InputError
from difftilt.text.templates import Slot, parsed


def test_white_space_goes_to_what_follows_it():
    template = parsed("She opened the door. [30] Then she ran.")
    assert template.parts == ("She opened the door.", Slot(30, 30, " "), " Then she ran.")
    assert template.suffix == " Then she ran."


def test_several_slots_of_any_length_and_escapes():
    template = parsed(r"[3] or [5-12]\[1\]\\, and [2]")
    assert template.slots == (Slot(3, 3), Slot(5, 12, " "), Slot(2, 2, " "))
    assert template.parts[1] == " or" and template.parts[3] == r"[1]\, and"
    assert template.suffix == ""


def test_touching_slots_stay_two():
    assert parsed("a [1][2]  [3]").parts == ("a", Slot(1, 1, " "), Slot(2, 2), Slot(3, 3, "  "))


def test_a_filled_template_reads_as_running_text():
    template = parsed("I saw [2], then [1-3] again.")
    spelled = ["i saw", " a dog", " , then", " ran", " again ."]
    assert template.filled(spelled) == ("I saw", " a dog, then ran", " again.")
    spelled[3:] = ["", " again."]
    assert template.filled(spelled) == ("I saw", " a dog, then", " again.")
    assert parsed("[1] saw").filled(["Ann", " saw"]) == ("", "Ann", " saw")
    assert parsed("[1] saw").filled(["Ann", "saw"]) == ("", "Ann", "saw")
    assert parsed("[1]saw").filled(["Ann", " saw"]) == ("", "Ann", " saw")


@given(st.text("ab []\\\n", max_size=12), st.integers(1, 99), st.text("cd []\\\n", max_size=12))
def test_what_is_written_is_read_back(before: str, length: int, after: str):
    def escaped(text: str) -> str:
        return "".join(f"\\{c}" if c in "[]\\" else c for c in text)

    template = parsed(f"{escaped(before)}[{length}]{escaped(after)}")
    assert parsed(str(template)) == template
    spelled = [part if isinstance(part, str) else f"{part.lead}x" for part in template.parts]
    assert "".join(template.filled(spelled)) == f"{before}x{after}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing to fill", "has no slot"),
        (r"\[30\]", "has no slot"),
        ("", "has no slot"),
        ("[0]", "can hold nothing"),
        ("[7-3]", "can hold nothing"),
        ("a [MASK] b", "is no slot"),
        ("open [3", "is no slot"),
    ],
)
def test_what_is_no_template_is_refused(text: str, words: str):
    with pytest.raises(InputError, match=words):
        parsed(text)
