"""The report of a run: one HTML file that needs nothing else, made from the run folder alone.

It loads nothing: pictures are part of the file, there is no script, and a content security policy
in its head makes the browser refuse both. Its parts stand in the order in which a reader asks:
may I trust it, what does it look like, how good is it, how was it made, what is not claimed.
"""

import os
from importlib.resources import files
from pathlib import Path
from typing import Any

from difftilt.errors import CheckpointError
from difftilt.report import certificate, sections
from difftilt.report.markup import Html, join, raw, tag
from difftilt.report.run_folder import RunRecord, number, read_run

POLICY = "; ".join(
    [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
)


def write_report(run: Path) -> Path:
    """Write ``report.html`` into a run folder.

    What the folder lacks is said in a sentence in its place. Equal folders give equal bytes.

    Arguments:
        run: folder of a run, finished or not.

    Returns:
        path of the page.

    Raises:
        CheckpointError: not a run folder, one of another format, or not writable.
        MissingPackage: matplotlib or pillow is not installed.
    """
    page = render_page(read_run(run))
    target = run / "report.html"
    draft = run / "report.html.part"
    try:
        draft.write_text(page, encoding="utf-8")
        os.replace(draft, target)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise CheckpointError(
            f"the report could not be written to {target}: {error.strerror or error}; "
            "make room or give the folder write permission"
        ) from error
    return target


def render_page(run: RunRecord) -> str:
    """The whole document."""
    return "<!doctype html>\n" + tag("html", _head(run), tag("body", _body(run)), lang="en") + "\n"


def _recipe(run: RunRecord) -> str:
    return str((run.config or {}).get("recipe") or run.folder.name or "run")


def _head(run: RunRecord) -> Html:
    style = files("difftilt.report").joinpath("style.css").read_text(encoding="utf-8")
    return tag(
        "head",
        tag("meta", charset="utf-8"),
        # Before anything that the policy governs.
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{_recipe(run)} – difftilt report"),
        tag("link", rel="icon", href="data:,"),
        tag("style", raw(style)),
    )


def _body(run: RunRecord) -> Html:
    parts = [
        ("Before and after", sections.samples_section(run)),
        ("Rewards", sections.rewards_section(run)),
        ("Evaluation", sections.evaluation_section(run)),
        ("Certificate", certificate.certificate_section(run)),
        ("Training", sections.curves_section(run)),
        ("Settings", sections.config_section(run)),
        ("Repeat it", sections.machine_section(run)),
        ("What is not claimed", _limits(run)),
    ]
    named = [tag("section", tag("h2", title), content) for title, content in parts]
    return join(_header(run), tag("main", *named))


def _header(run: RunRecord) -> Html:
    banner = [
        tag("p", text, class_="banner")
        for text in [*_unfinished(run), *_alarms(run), *run.problems]
    ]
    return tag(
        "header",
        tag("h1", _recipe(run)),
        _summary(run),
        certificate.verdict(run),
        certificate.key_figures(run),
        *banner,
    )


def _summary(run: RunRecord) -> Html:
    """``Samples of p(x) r(x)^β under the prior … · β = 1 · 2,000 updates · 4 min 12 s``."""
    prior = (run.config or {}).get("prior")
    source = prior.get("source") if isinstance(prior, dict) else None
    beta, step = number(run.certificate, "beta"), number(run.status, "step")
    facts = [
        f" under the prior {source}" if source else "",
        f" · β = {beta:g}" if beta is not None else "",
        f" · {step:,.0f} updates" if step is not None else "",
        f" · {took}" if (took := sections.duration(number(run.status, "seconds"))) else "",
    ]
    target = ["Samples of p(x) r(x)", tag("sup", "β")]
    return tag("p", *target, *facts, class_="summary")


def _unfinished(run: RunRecord) -> list[str]:
    """A sentence if the run did not come to its end."""
    status: Any = run.status or {}
    state, message = status.get("state"), str(status.get("message") or "")
    if state in (None, "finished"):
        return []
    step, of = number(status, "step"), number(status, "of")
    where = f" at update {step:,.0f} of {of:,.0f}" if step is not None and of is not None else ""
    words = {"running": "This run was still going", "failed": "This run failed"}
    sentence = words.get(str(state), f"This run was {state}") + where
    return [f"{sentence}{': ' + message if message else '.'}"]


def _alarms(run: RunRecord) -> list[str]:
    """What the training said of reward hacking."""
    said = [str(row["alarm"]) for row in run.metrics if row.get("alarm")]
    return [f"Alarm: {sentence}." for sentence in said]


def _limits(run: RunRecord) -> Html:
    return tag("ul", *(tag("li", each) for each in certificate.not_claimed(run.certificate)))
