"""From the numbers of a certificate to one sentence.

In this order:

1. *do not trust*: the prior paths find what the sampler's do not, or more than 30 % of the
   sampler's paths would have to move (total variation above 0.3).
2. *draws too few*: nothing was found wrong, and too much could be. With a known bound of the
   reward: the proven total variation is above 0.3. Without: so is the estimated upper end, or the
   reverse check cannot exclude that more than 20 % of the posterior is missed.
3. *TV ≤ x at 99 %*: proven, for a reward of known bound.
4. *estimate*: without a bound; what no prior path has shown is not in it.

An alarm of missed mass needs a size that matters (5 % of the mass) and either 4 standard errors,
which chance gives about once in 30,000 certificates, or an interval that lies above 5 % as a whole.
"""

import math
from typing import NamedTuple

from difftilt.diagnostics.findings import Findings
from difftilt.diagnostics.intervals import normal_quantile

ALARM_ERRORS = 4.0  # standard errors
ALARM_MASS = 0.05  # of the posterior
FAR = 0.3  # total variation that is far, or a bound that says little
MISSED = 0.2  # of the posterior: what may be missed unseen where no bound is known
SLACK = 0.05  # how far the paths that are asked for bring an upper end above its estimate
FEW_PRIOR = 10.0  # effective prior paths below which the prior's view of the posterior is void
FEW = 50.0  # effective paths of the mixture below which its standard error is


def percent(share: float) -> str:
    """``12 %``, ``0.4 %``, ``<0.1 %``."""
    if 0 < share < 0.001:
        return "<0.1 %"
    return f"{100 * share:.1f} %" if 0 < share < 0.0095 else f"{100 * share:.0f} %"


def confidence_text(confidence: float) -> str:
    """``99 %``, ``99.5 %``."""
    return f"{100 * confidence:.6g} %"


def round_up(value: float, digits: int = 2) -> str:
    """An upper bound as text, never below the bound itself."""
    scale = 10**digits
    return f"{min(1.0, math.ceil(value * scale - 1e-9) / scale):.{digits}f}"


def count_text(count: float) -> str:
    """One digit of a count: ``20,000``, ``3e+15``."""
    return f"{float(f'{count:.0e}'):,.0f}" if count < 1e7 else f"{count:.0e}"


def _log_z_text(found: Findings) -> str:
    return f"log Z {found.defensive.best}"


def _estimate_text(found: Findings) -> str:
    return f"TV ≈ {found.total_variation.value:.2f}; {_log_z_text(found)}"


def _missing_share(found: Findings) -> float:
    """Share that the reverse check finds missed, where its finding counts; else 0."""
    missing = found.reverse_missing
    if missing is None or found.effective_prior < FEW_PRIOR:
        return 0.0
    sure = missing.value > max(ALARM_MASS, ALARM_ERRORS * missing.standard_error)
    return missing.value if sure or missing.low > ALARM_MASS else 0.0


def _collapse(found: Findings) -> str | None:
    """What is wrong with the sampler, or None."""
    missing, unseen = _missing_share(found), found.unseen
    if missing:
        return f"the sampler misses what {percent(missing)} of weighted prior paths reach"
    if unseen.value > max(ALARM_MASS, ALARM_ERRORS * unseen.standard_error):
        return f"the sampler's own weights leave out {percent(unseen.value)} of the evidence Z"
    if found.total_variation.value > FAR:
        far = f"{found.total_variation.value:.2f}"
        return f"the sampler is far from the posterior (TV ≈ {far}); correct its draws"
    return None


def _slack(found: Findings) -> float:
    """How near its estimate the upper end of the total variation has to come."""
    return max(0.01, min(SLACK, FAR - found.total_variation.value))


def paths_to_prove(found: Findings) -> float:
    """About how many paths bring the bound within the slack of the total variation itself.

    The betting bound of Z lies ``(M / a Z) (ln(1 / error) + 2) / n`` above it where nothing is
    missed.
    """
    assert found.log_bound is not None
    log_m, error = found.beta * found.log_bound, (1 - found.confidence) / 2
    excess = log_m - math.log(found.share) - found.defensive.best.value
    return math.exp(min(excess, 600.0)) * (2 - math.log(error)) / _slack(found)


def paths_to_look(found: Findings) -> float:
    """About how many paths let the reverse check either ring or exclude that much is missed."""
    missing, error = found.reverse_missing, (1 - found.confidence) / 2
    assert missing is not None
    none_missed = math.log(error) / math.log(1 - MISSED + SLACK) / found.effective_prior
    half = normal_quantile(found.confidence) * missing.standard_error
    room = max(MISSED - SLACK - missing.value, missing.value - ALARM_MASS)
    return found.n * max(none_missed, (half / room) ** 2)


def _unlooked(found: Findings) -> str | None:
    """Why the prior paths cannot show a missed mode, or None."""
    missing, bound = found.reverse_missing, found.total_variation
    only = f"only {found.effective_prior:.1f} effective prior paths reach the posterior"
    if missing is None:
        return f"{only} to look for missed modes"
    unsafe = bound.kind == "estimate" and missing.high > MISSED
    if not unsafe and found.effective_prior >= FEW_PRIOR:
        return None
    wanted, most = count_text(paths_to_look(found)), percent(missing.high)
    return f"{only}, so that {most} of it may be missed; about {wanted} paths would tell"


def _too_few(found: Findings) -> str | None:
    """Why the draws cannot support a claim, or None."""
    bound, defensive = found.total_variation, found.defensive
    if bound.kind == "bound" and bound.upper <= FAR:
        return None
    if unlooked := _unlooked(found):
        return unlooked
    if defensive.ess * found.n < FEW:
        return f"the weights are worth {defensive.ess * found.n:.0f} draws"
    if defensive.k_hat > found.k_threshold and found.log_bound is None:
        return f"the defensive weights are heavy-tailed (k-hat {defensive.k_hat:.2f})"
    if bound.upper <= FAR:
        return None
    if bound.kind == "bound":
        at = f"TV ≤ {round_up(bound.upper)} at {confidence_text(bound.confidence)} proves little"
        return f"{at}; about {count_text(paths_to_prove(found))} paths would do"
    wanted = found.n * ((bound.upper - bound.value) / _slack(found)) ** 2
    return f"TV may be {round_up(bound.upper)}; about {count_text(wanted)} paths would do"


def _cautions(found: Findings) -> list[str]:
    """What limits the certificate without overturning it."""
    cautions = []
    if found.k_hat > found.k_threshold:
        cautions.append(
            f"the sampler's own weights are heavy-tailed (k-hat {found.k_hat:.2f}, sound "
            f"below {found.k_threshold:.2f}): quote the defensive log Z, not the naive one"
        )
    unseen = found.unseen
    if abs(unseen.value) > ALARM_ERRORS * unseen.standard_error:
        cautions.append(f"naive and defensive Z differ by {percent(abs(unseen.value))} of Z")
    if found.effective_prior < FEW:
        cautions.append(
            f"the reverse check rests on {found.effective_prior:.1f} effective prior paths"
        )
    if found.reward_noise:
        cautions.append(
            f"the reward is noisy (sd {found.reward_noise:.2g} nats): log Z may read up to "
            f"{found.reward_noise**2 / 2:.2g} high, and the total variation is no bound"
        )
    return cautions + _bound_cautions(found)


def _bound_cautions(found: Findings) -> list[str]:
    if found.detection_limit is None:
        return [
            "r has no declared bound: intervals are asymptotic, a rare large reward may be unseen"
        ]
    if found.detection_limit >= 1:
        return ["a missed mode could go unseen whatever its size: add prior paths"]
    if found.detection_limit > ALARM_MASS:
        limit = percent(found.detection_limit)
        return [
            f"a missed mode of less than {limit} of the posterior could go unseen: add prior paths"
        ]
    return []


class Verdict(NamedTuple):
    """What is said of a sampler.

    Arguments:
        verdict: one sentence.
        trust: it passed, and the draws suffice to say so.
        warnings: what else to know.
    """

    verdict: str
    trust: bool
    warnings: tuple[str, ...]


def judge(found: Findings) -> Verdict:
    """Verdict in words, whether to trust the sampler, and warnings."""
    said, trust = _said(found)
    return Verdict(said, trust, tuple(_cautions(found)))


def _said(found: Findings) -> tuple[str, bool]:
    collapse, too_few = _collapse(found), _too_few(found)
    if collapse:
        return f"do not trust: {collapse}; {_log_z_text(found)}", False
    if too_few:
        return f"draws too few: {too_few}; estimate: {_estimate_text(found)}", False
    bound = found.total_variation
    if bound.kind == "estimate":
        return f"estimate, not a bound: {_estimate_text(found)}", True
    at = confidence_text(bound.confidence)
    return f"TV ≤ {round_up(bound.upper)} at {at}; {_log_z_text(found)}", True
