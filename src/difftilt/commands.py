"""What each command of the command line does (argument parsing by tyro)."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from difftilt.errors import InputError
from difftilt.recipes import run as runs
from difftilt.recipes.catalogue import RECIPES, recipe_summaries
from difftilt.report.page import write_report
from difftilt.report.tables import render_table

Positional = tyro.conf.Positional


def _talk(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _parse(function: Any, words: list[str], name: str) -> Any:
    return tyro.cli(
        function,
        prog=f"difftilt {name}",
        args=words,
        config=(tyro.conf.FlagCreatePairsOff,),
    )


def _recipe_type(words: list[str], command: str) -> tuple[type, list[str]]:
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: difftilt {command} RECIPE [options]   (difftilt {command} RECIPE --help)\n")
        for name, summary in recipe_summaries().items():
            print(f"  {name:<10} {summary}")
        raise SystemExit(0)
    if words[0] not in RECIPES:
        raise InputError(f"unknown recipe {words[0]!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[words[0]], words[1:]


def train(words: list[str], command: list[str]) -> None:
    """``difftilt train RECIPE [--out FOLDER] [--resume] [--dry-run] ...``."""
    kind, rest = _recipe_type(words, "train")

    def options(
        recipe: Annotated[kind, tyro.conf.arg(name="")],  # type: ignore[valid-type]
        out: Path | None = None,
        resume: bool = False,
        dry_run: bool = False,
    ) -> tuple[Any, Path | None, bool, bool]:
        """Train a posterior from a recipe.

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
    finished = runs.run(words[0], recipe, folder, resume=resume, command=command, talk=_talk)
    page = write_report(folder)
    if not finished:
        _talk(f"interrupted and saved; continue with: {' '.join(command)} --resume")
        raise SystemExit(130)
    print(runs.certificate_text(folder))
    print(page)


@dataclass(frozen=True)
class _Run:
    """A run folder.

    Args:
        run: folder written by difftilt train.
    """

    run: Positional[Path]


def sample(words: list[str], command: list[str]) -> None:
    """``difftilt sample RUN -n 64 --correct smc``."""

    def options(
        run: Positional[Path],
        n: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64,
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
            effort: proposals, steps or particles per corrected sample.
        """
        return runs.sample_run(run, n, seed, None if correct == "none" else correct, effort)

    print(_parse(options, words, "sample"))


def certify(words: list[str], command: list[str]) -> None:
    """``difftilt certify RUN``."""

    def options(
        run: Positional[Path], n: int = 4096, seed: int = 1, confidence: float = 0.99
    ) -> str:
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
    print(write_report(_parse(_Run, words, "report").run))


def export(words: list[str], command: list[str]) -> None:
    """``difftilt export RUN FOLDER``."""

    def options(run: Positional[Path], folder: Positional[Path]) -> Path:
        """Write a run's posterior as an ordinary diffusers pipeline.

        Args:
            run: folder written by difftilt train.
            folder: where to write the pipeline.
        """
        return runs.load_run(run)[1].posterior.export(folder)

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
    """``difftilt bench exact|speed|memory``."""
    from difftilt.recipes import bench as benches

    if not words or words[0] in ("-h", "--help"):
        print("usage: difftilt bench TABLE [options]\n")
        for name, (_, summary) in benches.TABLES.items():
            print(f"  {name:<10} {summary}")
        return
    if words[0] not in benches.TABLES:
        raise InputError(f"unknown table {words[0]!r}; choose one of {', '.join(benches.TABLES)}")
    function, _ = benches.TABLES[words[0]]
    result = _parse(function, words[1:], f"bench {words[0]}")
    print(render_table(list(result[0]), result))


def list_all(words: list[str], command: list[str]) -> None:
    """``difftilt list``."""
    from difftilt.recipes.exact import methods
    from difftilt.tasks.exact import problems

    print("Recipes (difftilt train RECIPE)")
    for name, summary in recipe_summaries().items():
        print(f"  {name:<22} {summary}")
    print("\nExact problems (difftilt bench exact --problem NAME; difftilt train exact)")
    for name in problems():
        print(f"  {name}")
    print("\nMethods (difftilt bench exact --method NAME)")
    for name, method in methods().items():
        print(f"  {name:<22} {method.summary}")
