"""Sentences of the World English Bible, from Debian's package sword-text-web."""

import re
import struct
import sys
import zlib
from pathlib import Path

HELD_OUT_BOOKS = ("Ruth", "Tob", "Jdt", "Jonah", "John", "Acts")

Sentences = dict[str, list[str]]
"""Of each book."""


def blocks(folder: Path, testament: str) -> list[str]:
    """The compressed blocks of a SWORD zText module, in order."""
    index = (folder / f"{testament}.bzs").read_bytes()
    packed = (folder / f"{testament}.bzz").read_bytes()
    entries = [struct.unpack_from("<III", index, at) for at in range(0, len(index), 12)]
    return [zlib.decompress(packed[at : at + size]).decode() for at, size, _ in entries if size]


def books(folder: Path) -> dict[str, str]:
    """Plain text of each book, without prefaces, headings and notes."""
    if not (folder / "ot.bzs").exists():
        sys.exit(f"no SWORD module in {folder}; unpack Debian's sword-text-web and give --data")
    marked = "".join(part for testament in ("ot", "nt") for part in blocks(folder, testament))
    pieces = re.split(r'<div[^>]*osisID="(\w+)" sID="\w+" type="book"/>', marked)
    return {name: plain(text) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)}


def plain(marked: str) -> str:
    """The words of a book's OSIS markup, lower case and without quotation marks."""
    text = marked[max(0, marked.find("<chapter")) :]
    text = re.sub(r"<(note|title)\b.*?</\1>", " ", text, flags=re.DOTALL)
    text = re.sub(r"</?w\b[^>]*>", "", text)
    text = re.sub(r"<[^>]+>|[“”\"‘()\[\]]", " ", text).replace("’", "'").replace("—", " , ")
    text = re.sub(r"(?<![a-z])'|'(?![a-z])", " ", text.lower())
    return re.sub(r"\s+([.,;:!?])", r"\1", re.sub(r"\s+", " ", text)).strip()


def sentences(text: str) -> list[str]:
    """Split after a full stop, a question mark or an exclamation mark."""
    return [part for part in re.split(r"(?<=[.!?]) ", text) if re.search("[a-z]", part)]


def split_books(folder: Path) -> tuple[Sentences, Sentences, Sentences]:
    """Sentences of the prior's books, of the reader's and of the held-out ones, by book."""
    every = {name: sentences(text) for name, text in books(folder).items()}
    held_out = {name: every.pop(name) for name in HELD_OUT_BOOKS}
    names = list(every)
    prior, reader = names[0::2], names[1::2]
    return {n: every[n] for n in prior}, {n: every[n] for n in reader}, held_out
