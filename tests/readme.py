"""The code of README.md and of the guides, as their readers copy it."""

import re
import shlex
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"
GUIDES = sorted((README.parent / "docs" / "guides").glob("*.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def python_blocks(page: Path = README) -> list[str]:
    """The python blocks of a page, in order."""
    return [code for language, code in FENCE.findall(page.read_text("utf-8")) if language]


def reward_file() -> str:
    """The block that shows reward.py."""
    (found,) = [code for code in python_blocks() if code.startswith("# reward.py\n")]
    return found


def command_lines(page: Path = README) -> list[list[str]]:
    """The words after ``difftilt`` of every command line that a page shows."""
    plain = [code for language, code in FENCE.findall(page.read_text("utf-8")) if not language]
    lines = [shlex.split(line, comments=True) for code in plain for line in code.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "difftilt"]
