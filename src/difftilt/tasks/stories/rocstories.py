"""Five-sentence stories in the format of ROCStories (Mostafazadeh et al. 2016, arXiv 1604.01696).

The official file is a csv with the columns ``storyid, storytitle, sentence1 ... sentence5``. It is
handed out by its authors on request and cannot be shipped: get it from them and give its path. The
infilling of Venkatraman et al. 2024 (arXiv 2405.20971, appendix F.1) reads its rows 0-99 as the
test set and 100-999 as the training set. ``write_grammar_stories`` makes a file of the same format
from our own grammar, to try things out.
"""

import csv
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from difftilt.errors import InputError
from difftilt.tasks.stories.grammar import story

COLUMNS = ("storyid", "storytitle", *(f"sentence{number}" for number in range(1, 6)))
"""The header of the csv."""

Split = Literal["test", "train", "all"]
ROWS: dict[Split, slice] = {
    "test": slice(0, 100),
    "train": slice(100, 1000),
    "all": slice(None),
}
"""Which rows each split reads."""


@dataclass(frozen=True)
class TitledStory:
    """One row.

    Arguments:
        identifier: its id.
        title: its title.
        sentences: the five.
    """

    identifier: str
    title: str
    sentences: tuple[str, ...]


def read_stories(path: Path, split: Split = "all") -> list[TitledStory]:
    """The stories of a csv in the official format.

    Arguments:
        path: the file.
        split: ``test`` (rows 0-99), ``train`` (rows 100-999) or ``all``.

    Raises:
        InputError: no such split or file, other columns, an empty sentence, or no row in the split.
    """
    if split not in ROWS:
        raise InputError(f"no split is called {split!r}; choose one of {', '.join(ROWS)}")
    if not path.is_file():
        raise InputError(f"{path} is no file; give the path of the ROCStories csv")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            _checked_header(path, reader.fieldnames)
            stories = [_parsed(path, reader.line_num, row) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path} is no csv in UTF-8 ({error}); give the official file") from error
    chosen = stories[ROWS[split]]
    if not chosen:
        raise InputError(
            f"{path} has {len(stories)} stories, none of them in the split {split!r}; give a file "
            "of 1,000 or more, or split='all'"
        )
    return chosen


def write_grammar_stories(path: Path, count: int = 1000, seed: int = 0) -> None:
    """Stories of our grammar in the same format; the title is the hero's name.

    Arguments:
        path: the csv to be written.
        count: how many, at least 1.
        seed: of the draws.

    Raises:
        InputError: no stories are asked for.
    """
    if count < 1:
        raise InputError(f"count={count} must be at least 1")
    generator = random.Random(seed)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for number in range(count):
            drawn = story(generator)
            lines = [" ".join(s) for s in (*drawn.context, drawn.middle, drawn.ending)]
            written = [f"{line[0].upper()}{line[1:]}." for line in lines]
            writer.writerow((f"grammar-{number}", drawn.context[0][0].capitalize(), *written))


def _checked_header(path: Path, header: object) -> None:
    found = [str(name) for name in header] if isinstance(header, list | tuple) else []
    missing = [name for name in COLUMNS if name not in found]
    if missing:
        raise InputError(
            f"{path} lacks the columns {', '.join(missing)}; the official csv begins with "
            f"{','.join(COLUMNS)}"
        )


def _parsed(path: Path, line: int, row: dict[str, str | None]) -> TitledStory:
    fields = [(row[name] or "").strip() for name in COLUMNS]
    if not all(fields[2:]):
        raise InputError(f"{path}, line {line}: a sentence is empty; each row needs all five")
    return TitledStory(fields[0], fields[1], tuple(fields[2:]))
