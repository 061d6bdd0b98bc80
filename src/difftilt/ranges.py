"""What the fields of a record of options may be, and the one sentence that refuses the rest."""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from difftilt.errors import InputError


@dataclass(frozen=True)
class Range:
    """Values that a field may have.

    Arguments:
        wanted: in words, as in "must be ...".
        holds: whether a real number is one of them; NaN never is.
        whole: numbers have to be integers.
        optional: None is one of them too.
    """

    wanted: str
    holds: Callable[[Any], bool]
    whole: bool = False
    optional: bool = False

    def has(self, value: Any) -> bool:
        """Whether a value is one of them."""
        if value is None:
            return self.optional
        kind = numbers.Integral if self.whole else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool) and self.holds(value)

    @property
    def or_none(self) -> "Range":
        """The same values, and None."""
        return Range(f"{self.wanted}, or None", self.holds, self.whole, True)


POSITIVE = Range("a finite number above 0", lambda v: 0 < v < math.inf)
NOT_NEGATIVE = Range("a finite number of 0 or more", lambda v: 0 <= v < math.inf)
SHARE = Range("a share from 0 to 1", lambda v: 0 <= v <= 1)
POSITIVE_SHARE = Range("a share above 0, at most 1", lambda v: 0 < v <= 1)
DECAY = Range("a number from 0 to below 1", lambda v: 0 <= v < 1)
AT_LEAST_ONE = Range("a finite number of at least 1", lambda v: 1 <= v < math.inf)
COUNT = Range("a whole number of at least 1", lambda v: v >= 1, whole=True)
WHOLE = Range("a whole number of 0 or more", lambda v: v >= 0, whole=True)
SEED = Range("a whole number between -2**62 and 2**62", lambda v: abs(v) < 2**62, whole=True)


def check_ranges(record: object, **ranges: Range) -> None:
    """Refuse a record of options of which a field is out of its range.

    Arguments:
        record: has the fields.
        **ranges: of each field, by its name.

    Raises:
        InputError: names the first such field, its value and what it may be.
    """
    for name, allowed in ranges.items():
        value = getattr(record, name)
        if not allowed.has(value):
            raise InputError(f"{name}={value!r} is out of range: it must be {allowed.wanted}")


def check_choices(record: object, **choices: tuple[str, ...]) -> None:
    """Refuse a record of options of which a field is none of the words that it may be.

    Raises:
        InputError: names the first such field, its value and the words.
    """
    for name, words in choices.items():
        value = getattr(record, name)
        if value not in words:
            raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(words)}")


def finite_number(what: str, value: Any, *, positive: bool = False) -> float:
    """A value as a float, if it is a finite number (above 0).

    Raises:
        InputError: it is not; calls it ``what``.
    """
    is_number = isinstance(value, numbers.Real) and math.isfinite(value)
    if not is_number or (positive and value <= 0.0):
        raise InputError(f"{what} is {value!r}; give a finite number{' above 0' * positive}")
    return float(value)
