"""The certificate as a block of plain text, at most 100 columns wide."""

import math
import textwrap
from collections.abc import Sequence

from difftilt.diagnostics.findings import Findings
from difftilt.diagnostics.intervals import Estimate, decimals
from difftilt.diagnostics.verdict import confidence_text, percent, round_up

WIDTH = 100
LABEL = 24


def _number(value: float, places: int = 3) -> str:
    return f"{value:.{places}f}" if math.isfinite(value) else str(value)


def _ends(estimate: Estimate) -> str:
    places = decimals(estimate.standard_error)
    return f"[{_number(estimate.low, places)}, {_number(estimate.high, places)}]"


def _interval(estimate: Estimate) -> str:
    """``0.125 ± 0.004   [0.113, 0.137]``."""
    return f"{estimate!s:<18} {_ends(estimate)}"


def _gap(bound: Estimate, log_z: float) -> str:
    if bound.value == -math.inf:
        return "-inf: some of the sampler's paths have no reward"
    if not math.isfinite(bound.value):
        return "inf: the sampler cannot make some of the posterior's paths"
    return f"{bound!s:<18} gap {abs(bound.value - log_z):.3f} nats"


def _evidence(found: Findings) -> list[tuple[str, str]]:
    defensive = found.defensive
    rows = [("log Z, defensive", f"{_interval(defensive.clt)} for large n")]
    if defensive.betting is not None:
        rows.append(("", f"{'':<18} {_ends(defensive.betting)} for every n, as r ≤ M"))
    return [
        *rows,
        ("log Z, naive", f"{_interval(found.log_z)} blind to missed modes"),
        ("ELBO", _gap(found.elbo, defensive.best.value)),
        ("EUBO", _gap(found.eubo, defensive.best.value)),
    ]


def _distance(found: Findings) -> list[tuple[str, str]]:
    tv, missing = found.total_variation, found.reverse_missing
    sign = "≤" if tv.kind == "bound" else "about ≤"
    value = f"{tv.value:.3f} ± {tv.standard_error:.3f}"
    upper = f"{sign} {round_up(tv.upper, 3)} at {confidence_text(tv.confidence)} ({tv.kind})"
    rows = [("total variation", f"{value:<18} {upper}"), ("reverse check", _found(missing))]
    limit = found.detection_limit
    if limit is not None:
        seen = f"a missed mode of {percent(limit)} of the posterior would show"
        none = "no missed mode would surely show: too few prior paths"
        rows.append(("detection limit", seen if limit < 1 else none))
    return rows


def _found(missing: Estimate | None) -> str:
    if missing is None:
        return "not made: no prior path has a positive reward"
    most = percent(missing.high)
    return f"{percent(missing.value)} of weighted prior paths missed (at most {most})"


def _weights(found: Findings) -> list[tuple[str, str]]:
    defensive, limit = found.defensive, f"sound below {found.k_threshold:.2f}"
    k_hats = f"{_number(found.k_hat, 2)} sampler, {_number(defensive.k_hat, 2)} defensive"
    return [
        ("effective sample size", f"{found.ess:.3f} sampler, {defensive.ess:.3f} defensive"),
        ("Pareto k-hat", f"{k_hats}; {limit}"),
    ]


def _cost(found: Findings) -> list[tuple[str, str]]:
    counts = [
        (found.network_calls, "network calls"),
        (found.reward_calls, "reward calls"),
    ]
    known = [f"{count:,} {what}" for count, what in counts if count is not None]
    return [("cost", ", ".join(known))] if known else []


def _heading(found: Findings) -> str:
    n_sampler = found.n - found.n_prior
    bound = "unknown" if found.log_bound is None else f"{found.log_bound:.4g}"
    return (
        f"Certificate from {n_sampler:,} paths of the sampler and {found.n_prior:,} of the "
        f"prior; β = {found.beta:g}, bound of log r: {bound}"
    )


def render(found: Findings, verdict: str, cautions: Sequence[str]) -> str:
    """Heading, verdict, numbers in groups, warnings.

    ``±`` is one standard error; brackets and bounds hold at the certificate's confidence.
    """
    groups = [_evidence, _distance, _weights, _cost]
    rows = [[f"  {label:<{LABEL}}{text}" for label, text in group(found)] for group in groups]
    blocks = [[_heading(found)], _wrapped("  => ", verdict), *rows]
    warnings = [line for text in cautions for line in _wrapped("  ! ", text)]
    at = confidence_text(found.confidence)
    notes = [
        f"± is one standard error; intervals and bounds hold at {at}, each by itself.",
        "TV is that of whole paths: the TV of x_0 is at most that.",
    ]
    blocks += [warnings, [f"  {note}" for note in notes]]
    return "\n\n".join("\n".join(block) for block in blocks if block)


def _wrapped(lead: str, text: str) -> list[str]:
    return textwrap.wrap(lead + text, WIDTH, subsequent_indent=" " * len(lead)) or [lead]
