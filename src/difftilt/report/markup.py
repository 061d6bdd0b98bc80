"""HTML that cannot be forgotten to escape: only ``tag`` and ``raw`` make ``Html``.

A plain string given to ``tag`` is text and is escaped; ``Html`` is markup and is kept.
"""

from html import escape
from typing import final

VOID = frozenset({"meta", "link", "img", "source", "br", "hr"})


@final
class Html(str):
    """Markup: text in it is escaped already."""


def raw(markup: str) -> Html:
    """Declare that a string is well-formed markup from a source of our own."""
    return Html(markup)


def tag(name: str, /, *children: str, **attributes: str | None) -> Html:
    """``<name attributes>children</name>``, everything escaped that is not ``Html``.

    Arguments:
        name: of the element.
        children: text, or markup.
        attributes: a last underscore is dropped (``class_``), others become hyphens
            (``aria_label``); one that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{''.join(map(_inner, children))}</{name}>")


def join(*pieces: Html) -> Html:
    """Markup after markup, one piece a line."""
    return Html("\n".join(piece for piece in pieces if piece))


def _inner(child: str) -> str:
    return child if isinstance(child, Html) else escape(child)
