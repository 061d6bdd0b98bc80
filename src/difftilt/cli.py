"""``difftilt``: train, sample, certify, report, export, doctor, bench, list.

stdout is data (paths, tables, certificates), stderr is talk (progress). A wrong input is one
sentence on stderr and exit code 2.
"""

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence

COMMANDS = {
    "train": "train a posterior from a recipe; writes a run folder with report.html",
    "sample": "draw samples from a run, corrected if wanted",
    "certify": "say how near a run's posterior is to the true one",
    "report": "write report.html of a run folder again",
    "export": "write a run's posterior as an ordinary diffusers pipeline",
    "doctor": "check a recipe before training: reward, ratio = 1, seeds, cost per step",
    "bench": "print tables of accuracy on problems with a known answer",
    "list": "list recipes, problems and methods, with one line each",
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the command line; exits with 0, 2 (bad input) or 130 (interrupted)."""
    from difftilt.errors import DifftiltError

    _show_what_can_be_shown()
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
        with _plain_warnings():
            _command(words[0])(words[1:], ["difftilt", *words])
    except DifftiltError as error:
        _fail(str(error))
    except BrokenPipeError:
        # Whoever read our output has gone, e.g. `head`; nothing is left to say, even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
    except OSError as error:
        _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
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


def _show_what_can_be_shown() -> None:
    """A terminal without β shows a question mark instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Warnings as sentences, without the line of our source that they come from."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"difftilt: warning: {message}", file=sys.stderr, flush=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def _fail(sentence: str) -> None:
    print(f"difftilt: error: {sentence}", file=sys.stderr)
    raise SystemExit(2)
