"""How long the files and functions of the package are, and which pass the house's limits.

    python scripts/size.py [FOLDER]

A function counts from the first line after its docstring to its last line, blank lines and comments
included; a body of `...` or of a docstring alone is a declaration and does not count. The limits
below are enforced by `tests/surface/test_layout.py`.
"""

import ast
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "src" / "difftilt"

FILE_GOAL = 300
FILE_LIMIT = 500
MEDIAN_LIMIT = 10
NINETIETH_LIMIT = 35
PARAMETER_LIMIT = 6


@dataclass(frozen=True)
class Function:
    """One function or method, nested ones included."""

    where: str
    lines: int
    parameters: int


def source_files(folder: Path = PACKAGE) -> dict[str, int]:
    """Return the number of lines of each Python file, by its path below `folder`."""
    return {
        path.relative_to(folder).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in sorted(folder.rglob("*.py"))
    }


def functions(folder: Path = PACKAGE) -> list[Function]:
    """Return every function with a body in the Python files below `folder`."""
    found = []
    for name in source_files(folder):
        tree = ast.parse((folder / name).read_text(encoding="utf-8"))
        for node, is_method in _definitions(tree):
            lines = _body_lines(node)
            if lines:
                where = f"{name}:{node.lineno} {node.name}"
                found.append(Function(where, lines, _parameters(node, is_method)))
    return found


def ninetieth(values: Sequence[int]) -> int:
    """Return the least value that nine tenths of `values` do not exceed (0 if there are none)."""
    ordered = sorted(values)
    return ordered[math.ceil(0.9 * len(ordered)) - 1] if ordered else 0


def median(values: Sequence[int]) -> float:
    """Return the median of `values` (0 if there are none)."""
    return statistics.median(values) if values else 0


def _definitions(
    tree: ast.AST, in_class: bool = False
) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, bool]]:
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child, in_class
        yield from _definitions(child, isinstance(child, ast.ClassDef))


def _body_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = node.body[1:] if ast.get_docstring(node, clean=False) is not None else node.body
    if not body or (len(body) == 1 and ast.unparse(body[0]) == "..."):
        return 0
    before = node.body[0].end_lineno if body is not node.body else body[0].lineno - 1
    return (body[-1].end_lineno or 0) - (before or 0)


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef, is_method: bool) -> int:
    arguments = node.args
    named = len(arguments.posonlyargs) + len(arguments.args) + len(arguments.kwonlyargs)
    gathered = (arguments.vararg is not None) + (arguments.kwarg is not None)
    is_static = any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
    return named + gathered - (is_method and not is_static)


def _table(folder: Path) -> Iterator[str]:
    files, every = source_files(folder), functions(folder)
    lines = [function.lines for function in every]
    yield f"{len(files)} files, {sum(files.values())} lines, {len(every)} functions"
    yield f"function body: median {median(lines):g} (limit {MEDIAN_LIMIT}), " + (
        f"90 % within {ninetieth(lines)} (limit {NINETIETH_LIMIT})"
    )
    for name, length in files.items():
        if length > FILE_GOAL:
            yield f"{name}: {length} lines (goal {FILE_GOAL}, limit {FILE_LIMIT})"
    for function in sorted(every, key=lambda each: -each.lines):
        if function.lines > NINETIETH_LIMIT or function.parameters > PARAMETER_LIMIT:
            yield f"{function.where}: {function.lines} lines, {function.parameters} parameters"


if __name__ == "__main__":
    print("\n".join(_table(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGE)))
