"""The certificate's part of the page: verdict, bounds of log Z, every number with its meaning."""

import math
from collections.abc import Mapping
from typing import Any

from difftilt.diagnostics.intervals import decimals
from difftilt.diagnostics.verdict import confidence_text, percent, round_up
from difftilt.report.figures import Interval, interval_figure
from difftilt.report.markup import Html, join, raw, tag
from difftilt.report.run_folder import RunRecord, number
from difftilt.report.tables import ABSENT, Cell, html_table, minus

Certificate = Mapping[str, Any]
QUOTED = "log Z"  # the estimate to quote, as the figure and the table call it


def confidence_of(certificate: Certificate) -> str:
    """``99 %``, of every interval and bound."""
    confidence = number(certificate, "confidence")
    return "its confidence" if confidence is None else confidence_text(confidence)


def _places(record: Certificate, *path: str) -> int:
    error = number(record, *path, "standard_error")
    return decimals(math.nan if error is None else error)


def estimate_text(record: Certificate, *path: str) -> str:
    """``0.125 ± 0.004``, or a dash where it is not finite."""
    value, error = number(record, *path, "value"), number(record, *path, "standard_error")
    if value is None:
        return ABSENT
    places = _places(record, *path)
    return f"{value:.{places}f}" + ("" if error is None else f" ± {error:.{places}f}")


def interval_text(record: Certificate, *path: str) -> str:
    """``[0.113, 0.137]`` with the digits of the estimate, or a dash."""
    low, high = number(record, *path, "low"), number(record, *path, "high")
    if low is None or high is None:
        return ABSENT
    places = _places(record, *path)
    return f"[{low:.{places}f}, {high:.{places}f}]"


def _share_text(record: Certificate, *path: str) -> str:
    share = number(record, *path)
    return ABSENT if share is None else percent(share)


def _number_text(record: Certificate, places: int, *path: str) -> str:
    value = number(record, *path)
    return ABSENT if value is None else f"{value:,.{places}f}"


def best_path(certificate: Certificate) -> tuple[str, str]:
    """Where the log Z to quote lies: the proven interval where there is one."""
    proven = number(certificate, "defensive", "betting", "value") is not None
    return ("defensive", "betting" if proven else "clt")


def _proven(certificate: Certificate) -> bool:
    """Whether the total variation is a bound rather than an estimate."""
    distance = certificate.get("total_variation")
    return isinstance(distance, Mapping) and distance.get("kind") == "bound"


def verdict(run: RunRecord) -> Html:
    """Chip, the one sentence, and what it means in plain words."""
    certificate = run.certificate
    if certificate is None:
        words = "no certificate yet: nothing is claimed about these samples"
        return _verdict("none", "? Not certified", words, "")
    words = str(certificate.get("verdict") or "the certificate holds no verdict")
    if certificate.get("trust") is True:
        return _verdict("trust", "✓ Trust", words, _plain_words(certificate))
    meaning = "Do not rely on these samples as draws of the posterior; the certificate says why."
    return _verdict("doubt", "✕ Do not trust", words, meaning)


def _verdict(kind: str, chip: str, words: str, meaning: str) -> Html:
    # The mark repeats the colour for the eye; a screen reader hears the words alone.
    mark, _, label = chip.partition(" ")
    name = tag("span", tag("span", mark, aria_hidden="true"), f" {label}", class_=f"chip {kind}")
    plain = tag("p", meaning, class_="meaning") if meaning else raw("")
    return tag("div", name, tag("p", words, class_="verdict"), plain)


def _plain_words(certificate: Certificate) -> str:
    upper = number(certificate, "total_variation", "upper")
    if upper is None:
        return ""
    off = f"the probability of any event is off by at most {round_up(upper, 3)}"
    if _proven(certificate):
        return f"In plain words: with {confidence_of(certificate)} confidence, {off}."
    return f"In plain words: as far as these draws can tell, {off}. This is estimated, not proven."


def key_figures(run: RunRecord) -> Html:
    """Four numbers to remember, in large type."""
    if run.certificate is None:
        return raw("")
    record = run.certificate
    if isinstance(record.get("each"), Mapping):
        return _figure_list(_average_figures(record))
    upper = number(record, "total_variation", "upper")
    figures = [
        ("log Z, nats", estimate_text(record, *best_path(record))),
        ("total variation, at most", ABSENT if upper is None else round_up(upper, 3)),
        ("effective sample size, share", _number_text(record, 3, "ess")),
        ("Pareto k-hat", _number_text(record, 2, "k_hat")),
    ]
    return _figure_list(figures)


def _figure_list(figures: list[tuple[str, str]]) -> Html:
    pairs = [tag("div", tag("dt", name), tag("dd", minus(value))) for name, value in figures]
    return tag("dl", *pairs, class_="key")


def _average_figures(record: Certificate) -> list[tuple[str, str]]:
    """What holds on average over several conditions."""
    upper, each = number(record, "average", "total_variation"), record["each"]
    trusted = sum(one.get("trust") is True for one in each.values())
    return [
        ("conditions to be trusted", f"{trusted} of {len(each)}"),
        ("total variation, mean of the bounds", ABSENT if upper is None else round_up(upper, 3)),
        ("effective sample size, mean share", _number_text(record, 3, "average", "ess")),
    ]


def _by_condition(record: Certificate) -> Html:
    """A row for each condition."""
    rows: list[dict[str, Cell]] = [
        {
            "condition": name,
            "ESS": _number_text(one, 3, "ess"),
            "log Z": minus(estimate_text(one, *best_path(one))),
            "Pareto k-hat": _number_text(one, 2, "k_hat"),
            "verdict": str(one.get("verdict") or ""),
        }
        for name, one in record["each"].items()
    ]
    caption = "A certificate for each of some conditions."
    return html_table(["condition", "ESS", "log Z", "Pareto k-hat", "verdict"], rows, caption)


def certificate_section(run: RunRecord) -> Html:
    """Bounds as a figure, numbers as a table with their meaning, the block of text."""
    if run.certificate is None:
        return tag(
            "p",
            "There is no certificate yet. ",
            tag("code", f"difftilt certify {run.folder}"),
            " writes one.",
            class_="absent",
        )
    text = run.certificate.get("text")
    block = tag("pre", text, tabindex="0") if isinstance(text, str) else raw("")
    block = tag("details", tag("summary", "The certificate as text"), block) if block else block
    if isinstance(run.certificate.get("each"), Mapping):
        return join(_by_condition(run.certificate), block)
    return join(_bounds(run.certificate), _numbers(run.certificate), block)


def _bounds(certificate: Certificate) -> Html:
    """ELBO ≤ log Z ≤ EUBO as intervals on one axis."""
    wanted = [
        ("ELBO", ("elbo",)),
        (QUOTED, best_path(certificate)),
        ("log Z, naive", ("log_z",)),
        ("EUBO", ("eubo",)),
    ]
    rows = [row for name, path in wanted if (row := _interval(certificate, name, *path))]
    if not rows:
        return tag("p", "No bound of log Z is finite, so there is no figure.", class_="absent")
    described = "; ".join(f"{row.name} {row.value:.4g}" for row in rows)
    caption = (
        "ELBO ≤ log Z ≤ EUBO, up to the error of each: the nearer the two, the nearer the sampler. "
        f"Dots are estimates, bars intervals at {confidence_of(certificate)}, the band that of the "
        "log Z to quote."
    )
    missing = [name for name, path in wanted if not _interval(certificate, name, *path)]
    if missing:
        caption += f" Not finite, hence not drawn: {', '.join(missing)}."
    picture = interval_figure(rows, QUOTED, f"Bounds of log Z in nats: {described}")
    return tag("figure", picture, tag("figcaption", caption), class_="middle")


def _interval(certificate: Certificate, name: str, *path: str) -> Interval | None:
    value = number(certificate, *path, "value")
    if value is None:
        return None
    ends = [number(certificate, *path, end) for end in ("low", "high")]
    return Interval(name, value, *ends)


Row = tuple[str, str, str, str]
HEADINGS = ("number", "value", "interval", "what it means")


def _numbers(certificate: Certificate) -> Html:
    """Every number, its interval and one line on what it means."""
    entries = [*_evidence(certificate), *_distance(certificate), *_weights(certificate)]
    rows: list[dict[str, Cell]] = [
        dict(zip(HEADINGS, (name, minus(value), minus(interval), meaning), strict=True))
        for name, value, interval, meaning in entries
        if value != ABSENT
    ]
    caption = (
        f"± is one standard error; intervals and upper ends hold at {confidence_of(certificate)}, "
        "each by itself."
    )
    return tag("div", html_table(HEADINGS, rows, caption), class_="meanings")


def _evidence(certificate: Certificate) -> list[Row]:
    best = best_path(certificate)
    proven = best[1] == "betting" and _proven(certificate)
    how = "holds for every n" if proven else "holds for large n"
    meanings = [
        ("ELBO", ("elbo",), "Lower bound of log Z; the gap is KL(sampler ‖ posterior) of paths."),
        (QUOTED, best, f"Log of the normaliser, prior paths included; its interval {how}."),
        ("log Z, naive", ("log_z",), "From the sampler's paths alone; blind to a mode it misses."),
        ("EUBO", ("eubo",), "Upper bound of log Z; the gap is KL(posterior ‖ sampler) of paths."),
    ]
    return [
        (name, estimate_text(certificate, *path), interval_text(certificate, *path), meaning)
        for name, path, meaning in meanings
    ]


def _distance(certificate: Certificate) -> list[Row]:
    upper = number(certificate, "total_variation", "upper")
    kind = "proven" if _proven(certificate) else "estimated"
    missing = _share_text(certificate, "reverse_missing", "value")
    return [
        (
            "total variation",
            estimate_text(certificate, "total_variation"),
            ABSENT if upper is None else f"≤ {round_up(upper, 3)}, {kind}",
            "Largest error of the probability of any event, of whole paths; of x_0 at most that.",
        ),
        (
            "missed by the sampler",
            missing,
            f"≤ {_share_text(certificate, 'reverse_missing', 'high')}",
            "Share of reward-weighted prior paths that the sampler makes 20 times too rarely.",
        ),
        (
            "detection limit",
            _share_text(certificate, "detection_limit"),
            "",
            "Smallest share of the posterior whose absence these draws would have shown.",
        ),
    ]


def _weights(certificate: Certificate) -> list[Row]:
    return [
        (
            "effective sample size",
            _number_text(certificate, 3, "ess"),
            "",
            "How many equally weighted draws a draw of the sampler is worth; 1 is perfect.",
        ),
        (
            "Pareto k-hat",
            _number_text(certificate, 2, "k_hat"),
            f"sound below {_number_text(certificate, 2, 'k_threshold')}",
            "Heaviness of the weights' tail; above the limit, naive estimates mislead.",
        ),
        (
            "paths",
            _number_text(certificate, 0, "n"),
            f"{_number_text(certificate, 0, 'n_prior')} of the prior",
            "Independent draws that the certificate rests on.",
        ),
    ]


def not_claimed(certificate: Certificate | None) -> list[str]:
    """Sentences on what the certificate does not say."""
    if certificate is None:
        return ["Nothing is claimed: there is no certificate."]
    if isinstance(certificate.get("each"), Mapping):
        first = next(iter(certificate["each"].values()))
        return ["Conditions that were not certified are not spoken of.", *not_claimed(first)]
    warnings = certificate.get("warnings")
    sentences = [str(each) for each in warnings] if isinstance(warnings, list) else []
    if not _proven(certificate):
        sentences.append("the total variation is an estimate, not a proven bound")
    return [
        *(each[:1].upper() + each[1:].rstrip(".") + "." for each in sentences),
        f"Each interval holds at {confidence_of(certificate)} by itself, not all of them together.",
        "The posterior meant is that of the prior's own discrete steps and of the reward as given; "
        "whether these describe the world is not examined.",
    ]
