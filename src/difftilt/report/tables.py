"""The same rows as aligned plain text and as an HTML table.

A cell is text, a whole number (kept in full), a float (three significant digits), a ``Spread``
(a value and its ±) or None (a dash). Text is set flush left; numbers are aligned at the point.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from difftilt.report.markup import Html, tag

ABSENT = "–"


@dataclass(frozen=True)
class Spread:
    """A value and how far it varies, in the same unit; the digits shown follow the spread."""

    value: float
    spread: float


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Arguments:
        key: under which a row holds the cell.
        title: heading; the key if empty.
        digits: significant digits of a float without a spread, ≥ 1.
    """

    key: str
    title: str = ""
    digits: int = 3

    @property
    def heading(self) -> str:
        """What stands above the column."""
        return self.title or self.key


class _Parts(NamedTuple):
    """A number cut where it is aligned: ``-1`` and ``.25 ± 0.04``."""

    whole: str
    rest: str


def format_number(value: float, digits: int = 3) -> str:
    """``0.0125``, ``12,345``, ``1.2e-05``: ``digits`` significant ones, whole parts in full."""
    if isinstance(value, int):
        return f"{value:,}"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    if not -4 <= exponent < 7:
        return f"{value:.{digits - 1}e}"
    return f"{value:,.{max(0, digits - 1 - exponent)}f}"


def format_spread(value: float, spread: float) -> str:
    """``0.125 ± 0.004``: one significant digit of the spread, two if it starts with 1."""
    if not (math.isfinite(value) and math.isfinite(spread) and spread > 0):
        return f"{format_number(value)} ± {format_number(spread)}"
    leading, _, exponent = f"{spread:.0e}".partition("e")
    places = -int(exponent) + (1 if leading == "1" else 0)
    if not 0 <= places <= 6:
        return f"{format_number(value)} ± {format_number(spread, 2)}"
    return f"{value:,.{places}f} ± {spread:,.{places}f}"


def format_cell(cell: Cell, digits: int = 3) -> str:
    """A cell as text."""
    if cell is None:
        return ABSENT
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Spread):
        return format_spread(float(cell.value), float(cell.spread))
    if isinstance(cell, bool):
        return "yes" if cell else "no"
    return format_number(cell, digits)


def _is_numeric(cells: Sequence[Cell]) -> bool:
    present = [cell for cell in cells if cell is not None]
    return bool(present) and not any(isinstance(cell, str) for cell in present)


def _parts(text: str) -> _Parts:
    """Cut before the decimal point of the value, or before its ``±``."""
    head, gap, spread = text.partition(" ±")
    whole, point, fraction = head.partition(".")
    return _Parts(whole, point + fraction + gap + spread)


def _aligned(texts: Sequence[str], filler: Callable[[str], str]) -> list[str]:
    """The texts with their points below each other; ``filler`` replaces what pads the right."""
    parts = [_parts(text) for text in texts]
    left = max(len(part.whole) for part in parts)
    longest = max((part.rest for part in parts), key=len)
    return [
        " " * (left - len(part.whole)) + part.whole + part.rest + filler(longest[len(part.rest) :])
        for part in parts
    ]


def _column_texts(
    column: Column, rows: Sequence[Mapping[str, Cell]], filler: Callable[[str], str]
) -> tuple[list[str], bool]:
    cells = [row.get(column.key) for row in rows]
    texts = [format_cell(cell, column.digits) for cell in cells]
    numeric = _is_numeric(cells)
    return (_aligned(texts, filler) if numeric else texts), numeric


def _blank(rest: str) -> str:
    return " " * len(rest)


def _figure_space(rest: str) -> str:
    """Spaces as wide as what they stand for, where digits have one width."""
    return "".join("\u2008" if character in ".," else "\u2007" for character in rest)


def render_table(columns: Sequence[Column | str], rows: Sequence[Mapping[str, Cell]]) -> str:
    """Rows as plain text with a ruled heading, no line ending in a blank.

    Arguments:
        columns: which cells, in this order; a string is a ``Column`` of this key.
        rows: cells by key; a missing one is shown as a dash, other keys are ignored.

    Returns:
        lines joined by newlines, without a last one.
    """
    blocks = [_text_block(_column(each), rows) for each in columns]
    return "\n".join("  ".join(line).rstrip() for line in zip(*blocks, strict=True))


def _column(column: Column | str) -> Column:
    return Column(column) if isinstance(column, str) else column


def _text_block(column: Column, rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    texts, numeric = _column_texts(column, rows, _blank)
    width = max(len(text) for text in [column.heading, *texts])
    justify = str.rjust if numeric else str.ljust
    return [
        justify(column.heading, width),
        "-" * width,
        *(justify(text, width) for text in texts),
    ]


def html_table(
    columns: Sequence[Column | str], rows: Sequence[Mapping[str, Cell]], caption: str = ""
) -> Html:
    """The rows of ``render_table`` as an HTML table; the first column heads its rows."""
    resolved = [_column(each) for each in columns]
    texts = [_column_texts(column, rows, _figure_space) for column in resolved]
    heads = [
        tag("th", column.heading, scope="col", class_="number" if numeric else None)
        for column, (_, numeric) in zip(resolved, texts, strict=True)
    ]
    body = [
        tag(
            "tr",
            *(_html_cell(block[i], numeric, j == 0) for j, (block, numeric) in enumerate(texts)),
        )
        for i in range(len(rows))
    ]
    label = caption or "Table"
    table = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *body), aria_label=label)
    # A wide table scrolls inside its box; the box takes the focus so that keys can scroll it.
    box = tag("div", table, class_="scroll", tabindex="0", role="group", aria_label=label)
    return tag("figure", tag("figcaption", caption), box, class_="table") if caption else box


def minus(text: str) -> str:
    """A number for the page: with a minus sign in the place of its hyphens."""
    return text.replace("-", "−")


def _html_cell(text: str, numeric: bool, first: bool) -> Html:
    shown = minus(text.strip(" ")) if numeric else text
    class_ = "number" if numeric else None
    return tag("th", shown, scope="row") if first else tag("td", shown, class_=class_)
