"""What each command of the command line does (argument parsing by tyro)."""

import contextlib
import functools
import io
import itertools
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from difftilt.errors import InputError
from difftilt.objectives.base import kinds
from difftilt.recipes import run as runs
from difftilt.recipes.catalogue import RECIPES, recipe_summaries
from difftilt.report.page import write_report
from difftilt.report.tables import render_table
from difftilt.training.plan import suited

Result = TypeVar("Result")
Run = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Number = Annotated[int, tyro.conf.arg(name="n", aliases=["-n"])]


def _talk(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _parse(function: Callable[..., Result], words: list[str], name: str) -> Result:
    """Call a function with its parameters read from words; a wrong word is one sentence."""

    @functools.wraps(function)
    def parsed(*given: Any, **named: Any) -> Callable[[], Result]:
        # The call itself is left for later: tyro takes every ValueError for a wrong word.
        return lambda: function(*given, **named)

    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            call = tyro.cli(parsed, prog=f"difftilt {name}", args=words)
    except SystemExit as end:
        if end.code == 0:
            raise
        remark = _sentence(complaint.getvalue())
        raise InputError(f"{remark}; see difftilt {name} --help") from None
    return call()


def _sentence(box: str) -> str:
    """What tyro says inside its box, without title and advice; the box may be drawn in ASCII."""
    lines = [line.strip("│|╭╮╰╯─-+ ") for line in box.splitlines()[1:]]
    said = itertools.takewhile(lambda line: not line.startswith("For full helptext"), lines)
    text = " ".join(line for line in said if line) or box.strip()
    return text.removeprefix("Error parsing recipe.").removesuffix(" (required)").rstrip(".")


def _recipe_type(words: list[str], command: str) -> tuple[type, list[str]]:
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: difftilt {command} RECIPE [options]   (difftilt {command} RECIPE --help)\n")
        print("\n".join(_recipe_lines()[1:]))
        raise SystemExit(0)
    if words[0] not in RECIPES:
        raise InputError(f"unknown recipe {words[0]!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[words[0]], words[1:]


def _with_objective(kind: type, words: list[str]) -> tuple[Any, list[str]]:
    """The recipe's defaults with the objective that ``--objective NAME`` names, and other words."""
    default = kind()
    if "--objective" not in words:
        return default, words
    where = words.index("--objective")
    known, name = kinds(), "".join(words[where + 1 : where + 2])
    if name not in known:
        raise InputError(f"unknown objective {name!r}; choose one of {', '.join(sorted(known))}")
    objective = known[name]()
    training = replace(default.training, **suited(objective), objective=objective)
    return replace(default, training=training), words[:where] + words[where + 2 :]


def train(words: list[str], command: list[str]) -> None:
    """``difftilt train RECIPE [--objective NAME] [--out FOLDER] [--resume] [--dry-run] ...``."""
    kind, rest = _recipe_type(words, "train")
    default, rest = _with_objective(kind, rest)

    def options(
        recipe: Annotated[kind, tyro.conf.arg(name="")] = default,  # type: ignore[valid-type]
        out: Path | None = None,
        resume: bool = False,
        dry_run: bool = False,
    ) -> tuple[Any, Path | None, bool, bool]:
        """Train a posterior from a recipe.

        --objective NAME (KLControl, CEP, ...) takes another objective than relative trajectory
        balance, with the paths that it asks for.

        Args:
            recipe: the recipe's own options.
            out: run folder; default runs/RECIPE.
            resume: continue the run in that folder, bit for bit.
            dry_run: print the resolved config and stop.
        """
        return recipe, out, resume, dry_run

    recipe, out, resume, dry_run = _parse(options, rest, f"train {words[0]}")
    if dry_run:
        print(runs.config_text(words[0], recipe))
        return
    folder = Path("runs") / words[0] if out is None else out
    again = shlex.join([*command, *(["--resume"] if not resume else [])])
    try:
        finished = runs.run(words[0], recipe, folder, resume=resume, command=command, talk=_talk)
    except KeyboardInterrupt:
        if not (folder / "config.json").exists():
            raise
        _talk(f"interrupted; continue from the last checkpoint with: {again}")
        raise SystemExit(130) from None
    page = write_report(folder)
    if not finished:
        _talk(f"interrupted and saved; continue with: {again}")
        raise SystemExit(130)
    print(runs.certificate_text(folder))
    print(page)


def sample(words: list[str], command: list[str]) -> None:
    """``difftilt sample RUN -n 64 --correct smc``."""

    def options(
        run: Run,
        n: Number = 64,
        seed: int = 0,
        correct: Literal["none", "snis", "mh", "smc"] = "none",
        effort: int = 4,
    ) -> Path:
        """Draw samples from a run.

        Args:
            run: folder written by difftilt train.
            n: number of samples.
            seed: of the draw; sample i does not depend on n.
            correct: exact correction: resampling, Metropolis-Hastings or particles.
            effort: proposals, steps (2 or more) or particles per corrected sample.
        """
        return runs.sample_run(run, n, seed, None if correct == "none" else correct, effort)

    print(_parse(options, words, "sample"))


def certify(words: list[str], command: list[str]) -> None:
    """``difftilt certify RUN``."""

    def options(run: Run, n: Number = 4096, seed: int = 1, confidence: float = 0.99) -> str:
        """Say how near a run's posterior is to the true one.

        Args:
            run: folder written by difftilt train.
            n: paths; a quarter of them are the prior's.
            seed: of the paths.
            confidence: of every interval and bound.
        """
        return runs.certify_run(run, n, seed, confidence)

    print(_parse(options, words, "certify"))


def report(words: list[str], command: list[str]) -> None:
    """``difftilt report RUN``."""

    def options(run: Run) -> Path:
        """Write report.html of a run folder again.

        Args:
            run: folder written by difftilt train.
        """
        return write_report(run)

    print(_parse(options, words, "report"))


def export(words: list[str], command: list[str]) -> None:
    """``difftilt export RUN FOLDER``."""

    def options(
        run: Run, folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    ) -> Path:
        """Write a run's posterior as an ordinary diffusers pipeline.

        Args:
            run: folder written by difftilt train.
            folder: where to write the pipeline.
        """
        return runs.load_run(run, scored=False)[1].posterior.export(folder)

    print(_parse(options, words, "export"))


def doctor(words: list[str], command: list[str]) -> None:
    """``difftilt doctor RECIPE [options]``."""
    kind, rest = _recipe_type(words, "doctor")

    def options(recipe: Annotated[kind, tyro.conf.arg(name="")]) -> Any:  # type: ignore[valid-type]
        """Check a recipe before training.

        Args:
            recipe: the recipe's own options.
        """
        return recipe

    rows = runs.examine(_parse(options, rest, f"doctor {words[0]}"))
    print(render_table(["check", "result", "remark"], rows))
    if any(row["result"] == "FAIL" for row in rows):
        raise SystemExit(1)


def bench(words: list[str], command: list[str]) -> None:
    """``difftilt bench exact``."""
    from difftilt import benches

    if not words or words[0] in ("-h", "--help"):
        print("usage: difftilt bench TABLE [options]\n")
        print("\n".join(_table_lines()[1:]))
        return
    if words[0] not in benches.TABLES:
        raise InputError(f"unknown table {words[0]!r}; choose one of {', '.join(benches.TABLES)}")
    found = _parse(benches.TABLES[words[0]].run, words[1:], f"bench {words[0]}")
    print(render_table(found.columns, found.shown))
    if found.pairs:
        print("\n" + render_table(found.pair_columns, found.pairs))
    _talk(found.legend)


def list_all(words: list[str], command: list[str]) -> None:
    """``difftilt list [recipes|tables|problems|methods|objectives]``."""
    lists = {
        "recipes": _recipe_lines,
        "tables": _table_lines,
        "problems": _problem_lines,
        "methods": _method_lines,
        "objectives": _objective_lines,
    }

    def options(
        what: Annotated[
            Literal["everything", "recipes", "tables", "problems", "methods", "objectives"],
            tyro.conf.Positional,
            tyro.conf.arg(metavar=f"[{'|'.join(lists)}]"),
        ] = "everything",
    ) -> list[str]:
        """List recipes, tables, problems, methods and objectives, with one line each.

        Args:
            what: one of the lists.
        """
        return [what] if what != "everything" else [*lists]

    chosen = _parse(options, words, "list")
    print("\n\n".join("\n".join(lists[name]()) for name in chosen))


def _listed(title: str, summaries: dict[str, str]) -> list[str]:
    return [title, *(f"  {name:<30} {summary}" for name, summary in summaries.items())]


def _recipe_lines() -> list[str]:
    return _listed("Recipes (difftilt train RECIPE)", recipe_summaries())


def _table_lines() -> list[str]:
    from difftilt.benches import TABLES

    summaries = {name: table.summary for name, table in TABLES.items()}
    return _listed("Tables (difftilt bench TABLE)", summaries)


def _problem_lines() -> list[str]:
    from difftilt.recipes.exact.recipe import problem_summaries

    where = "difftilt bench exact --problem NAME; difftilt train exact --problem NAME"
    return _listed(f"Exact problems ({where})", problem_summaries())


def _method_lines() -> list[str]:
    from difftilt.recipes.exact.methods import methods

    summaries = {name: method.summary for name, method in methods().items()}
    return _listed("Methods (difftilt bench exact --method NAME)", summaries)


def _objective_lines() -> list[str]:
    summaries = {name: _first_line(kind) for name, kind in sorted(kinds().items())}
    return _listed("Objectives (difftilt train RECIPE --objective NAME)", summaries)


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").strip().splitlines()[0].replace("`", "")
