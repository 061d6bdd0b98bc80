"""The csv of ROCStories: what is read, what is refused, and files made from the grammar."""

import csv
from pathlib import Path

import pytest

from difftilt.errors import InputError
from difftilt.tasks.stories import grammar
from difftilt.tasks.stories.rocstories import COLUMNS, read_stories, write_grammar_stories


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rocstories") / "stories.csv"
    write_grammar_stories(path, count=1005, seed=3)
    return path


def a_file(folder: Path, text: str) -> Path:
    path = folder / "stories.csv"
    path.write_text(text, encoding="utf-8")
    return path


def test_splits_are_the_rows_of_the_paper(made):
    every = read_stories(made)
    assert len(every) == 1005
    assert read_stories(made, "test") == every[:100]
    assert read_stories(made, "train") == every[100:1000]


def test_generated_rows_are_stories_of_the_grammar(made):
    for row in read_stories(made, "test"):
        first, second, third, middle, ending = (
            tuple(sentence.rstrip(".").lower().split()) for sentence in row.sentences
        )
        situation = grammar.situation_of((first, second, third))
        assert row.title.lower() == situation.hero
        assert middle in grammar.middles(situation)
        assert ending in grammar.endings(situation)


def test_generation_is_seeded(made, tmp_path):
    again, other = tmp_path / "again.csv", tmp_path / "other.csv"
    write_grammar_stories(again, count=1005, seed=3)
    write_grammar_stories(other, count=1005, seed=4)
    assert again.read_bytes() == made.read_bytes() != other.read_bytes()


def test_columns_in_any_order_quotes_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "stories.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(("extra", *reversed(COLUMNS)))
        writer.writerow(("x", "five", "four", "three", 'He said, "two".', "one", "title", "id"))
    (story,) = read_stories(path)
    assert (story.identifier, story.title) == ("id", "title")
    assert story.sentences == ("one", 'He said, "two".', "three", "four", "five")


def test_refusals_say_what_is_wrong(tmp_path, made, unchecked):
    header = ",".join(COLUMNS)
    with pytest.raises(InputError, match="is no file"):
        read_stories(tmp_path / "absent.csv")
    with pytest.raises(InputError, match="no split is called 'dev'"):
        read_stories(made, "dev")
    with pytest.raises(InputError, match="lacks the columns sentence5"):
        read_stories(a_file(tmp_path, header.replace(",sentence5", "") + "\na,b,c,d,e,f\n"))
    with pytest.raises(InputError, match="lacks the columns storyid"):
        read_stories(a_file(tmp_path, ""))
    with pytest.raises(InputError, match="line 2: a sentence is empty"):
        read_stories(a_file(tmp_path, f"{header}\na,b,c,d,,f,g\n"))
    with pytest.raises(InputError, match="line 2: a sentence is empty"):
        read_stories(a_file(tmp_path, f"{header}\na,b,c,d\n"))
    with pytest.raises(InputError, match="none of them in the split 'train'"):
        read_stories(a_file(tmp_path, f"{header}\na,b,c,d,e,f,g\n"), "train")
    with pytest.raises(InputError, match="at least 1"):
        write_grammar_stories(tmp_path / "none.csv", count=0)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "stories.csv"
    path.write_bytes(b"\xff\xfe\x00\x80" * 10)
    with pytest.raises(InputError, match="no csv in UTF-8"):
        read_stories(path)
