"""``difftilt``: train, sample, certify, report, export, doctor, bench, list.

stdout is data (paths, tables, certificates), stderr is talk (progress). A wrong input is one
sentence on stderr and exit code 2.
"""

import sys
from collections.abc import Callable, Sequence

COMMANDS = {
    "train": "train a posterior from a recipe; writes a run folder with report.html",
    "sample": "draw samples from a run, corrected if wanted",
    "certify": "say how near a run's posterior is to the true one",
    "report": "write report.html of a run folder again",
    "export": "write a run's posterior as an ordinary diffusers pipeline",
    "doctor": "check a recipe before training: reward, ratio = 1, seeds, cost per step",
    "bench": "print tables of accuracy on problems with a known answer, and of speed",
    "list": "list recipes, problems and methods, with one line each",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line; exits with 0, 2 (bad input) or 130 (interrupted)."""
    from difftilt.errors import DifftiltError

    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return
    if words[0] == "--version":
        import difftilt

        print(difftilt.__version__)
        return
    if words[0] not in COMMANDS:
        _fail(f"unknown command {words[0]!r}; choose one of {', '.join(COMMANDS)}")
    try:
        _command(words[0])(words[1:], ["difftilt", *words])
    except DifftiltError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        print("difftilt: interrupted", file=sys.stderr)
        raise SystemExit(130) from None


def _usage() -> str:
    lines = [f"  {name:<8} {summary}" for name, summary in COMMANDS.items()]
    return "\n".join(
        [
            "difftilt: samplers of p(x) r(x)^beta under a diffusion prior p, with a certificate",
            "",
            "usage: difftilt COMMAND [options]      difftilt COMMAND --help",
            "",
            *lines,
            "",
            "  difftilt train fashion --out runs/bag          the main job, on real images",
            "  difftilt train custom --prior FOLDER --reward reward.py:log_reward --out runs/mine",
        ]
    )


def _command(name: str) -> Callable[[list[str], list[str]], None]:
    from difftilt import commands

    return getattr(commands, name if name != "list" else "list_all")


def _fail(sentence: str) -> None:
    print(f"difftilt: error: {sentence}", file=sys.stderr)
    raise SystemExit(2)
