"""The house rules that a machine can check: sizes, names, docstrings, exports, and no pickle."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import difftilt
from scripts import size

MODULES = sorted(size.PACKAGE.rglob("*.py"))
VAGUE_NAME = re.compile(r"utils?|helpers?|managers?")
PICKLING = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def test_files_are_short():
    too_long = {name: n for name, n in size.source_files().items() if n > size.FILE_LIMIT}
    assert not too_long


def test_functions_are_short():
    lines = [function.lines for function in size.functions()]
    assert size.median(lines) <= size.MEDIAN_LIMIT
    assert size.ninetieth(lines) <= size.NINETIETH_LIMIT


def test_functions_take_few_parameters():
    greedy = [each for each in size.functions() if each.parameters > size.PARAMETER_LIMIT]
    assert not greedy


def test_size_counts_bodies_and_parameters(tmp_path: Path):
    source = '''
def declared(x): ...
def documented(a, /, b, *rest, c, **others):
    """One.

    Two."""

    # Why.
    if a:
        return b
class Box:
    def __init__(self, a): self.a = a
    @staticmethod
    def made(a):
        def inner(): return 1
        return inner
'''
    (tmp_path / "sample.py").write_text(source)
    counted = {each.where.split()[1]: each for each in size.functions(tmp_path)}
    assert {name: (each.lines, each.parameters) for name, each in counted.items()} == {
        "documented": (4, 5),
        "__init__": (1, 1),
        "made": (2, 1),
        "inner": (1, 0),
    }
    assert size.ninetieth(range(1, 11)) == 9


def test_module_names_say_what_is_inside():
    vague = [
        path.as_posix()
        for path in (each.relative_to(size.PACKAGE) for each in MODULES)
        for word in re.split(r"[/_.]", path.as_posix())
        if VAGUE_NAME.fullmatch(word)
    ]
    assert not vague


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(size.PACKAGE)))
def test_public_names_have_docstrings(path: Path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert not tree.body or ast.get_docstring(tree), "the module has no docstring"
    public = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert not [node.name for node in public if not ast.get_docstring(node)]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(size.PACKAGE)))
def test_nothing_is_pickled(path: Path):
    assert not list(_pickling(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import dump",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(state, path)",
        "from torch import load",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_pickling_is_seen(line: str):
    assert list(_pickling(ast.parse(line)))


def test_exports_are_sorted_and_resolve():
    exported = getattr(difftilt, "__all__", [])
    assert list(exported) == sorted(exported)
    assert not [name for name in exported if not hasattr(difftilt, name)]


def test_nothing_is_public_by_accident():
    public = {
        name
        for name, value in vars(difftilt).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert public <= set(getattr(difftilt, "__all__", []))


def _tensors_alone(node: ast.AST) -> bool:
    """``torch.load(..., weights_only=True)`` reads tensors of foreign files and runs nothing."""
    if not isinstance(node, ast.Call):
        return False
    only = [k.value for k in node.keywords if k.arg == "weights_only"]
    return bool(only) and isinstance(only[0], ast.Constant) and only[0].value is True


def _pickling(tree: ast.AST) -> Iterator[str]:
    harmless = {id(n.func) for n in ast.walk(tree) if isinstance(n, ast.Call) and _tensors_alone(n)}
    for node in ast.walk(tree):
        if id(node) in harmless:
            continue
        match node:
            case ast.Import(names=names):
                yield from (each.name for each in names if each.name.split(".")[0] in PICKLING)
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in PICKLING:
                yield module
            case ast.ImportFrom(module="torch", names=names):
                yield from (each.name for each in names if each.name in {"load", "save"})
            case ast.Attribute(value=ast.Name(id="torch"), attr="load" | "save"):
                yield f"torch.{node.attr}"
            case ast.keyword(arg="allow_pickle", value=ast.Constant(value=True)):
                yield "allow_pickle"
