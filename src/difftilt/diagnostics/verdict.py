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
from typing import TYPE_CHECKING

from difftilt.diagnostics.intervals import normal_quantile

if TYPE_CHECKING:
    from difftilt.diagnostics.certificate import Certificate

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


def _log_z_text(certificate: "Certificate") -> str:
    return f"log Z {certificate.defensive.best}"


def _estimate_text(certificate: "Certificate") -> str:
    return f"TV ≈ {certificate.total_variation.value:.2f}; {_log_z_text(certificate)}"


def _missing_share(certificate: "Certificate") -> float:
    """Share that the reverse check finds missed, where its finding counts; else 0."""
    missing = certificate.reverse_missing
    if missing is None or certificate.effective_prior < FEW_PRIOR:
        return 0.0
    sure = missing.value > max(ALARM_MASS, ALARM_ERRORS * missing.standard_error)
    return missing.value if sure or missing.low > ALARM_MASS else 0.0


def _collapse(certificate: "Certificate") -> str | None:
    """What is wrong with the sampler, or None."""
    missing, unseen = _missing_share(certificate), certificate.unseen
    if missing:
        return f"the sampler misses what {percent(missing)} of weighted prior paths reach"
    if unseen.value > max(ALARM_MASS, ALARM_ERRORS * unseen.standard_error):
        return f"the sampler's own weights leave out {percent(unseen.value)} of the evidence Z"
    if certificate.total_variation.value > FAR:
        far = f"{certificate.total_variation.value:.2f}"
        return f"the sampler is far from the posterior (TV ≈ {far}); correct its draws"
    return None


def _slack(certificate: "Certificate") -> float:
    """How near its estimate the upper end of the total variation has to come."""
    return max(0.01, min(SLACK, FAR - certificate.total_variation.value))


def paths_to_prove(certificate: "Certificate") -> float:
    """About how many paths bring the bound within the slack of the total variation itself.

    The betting bound of Z lies ``(M / a Z) (ln(1 / error) + 2) / n`` above it where nothing is
    missed.
    """
    assert certificate.log_bound is not None
    log_m, error = certificate.beta * certificate.log_bound, (1 - certificate.confidence) / 2
    excess = log_m - math.log(certificate.share) - certificate.defensive.best.value
    return math.exp(min(excess, 600.0)) * (2 - math.log(error)) / _slack(certificate)


def paths_to_look(certificate: "Certificate") -> float:
    """About how many paths let the reverse check either ring or exclude that much is missed."""
    missing, error = certificate.reverse_missing, (1 - certificate.confidence) / 2
    assert missing is not None
    none_missed = math.log(error) / math.log(1 - MISSED + SLACK) / certificate.effective_prior
    half = normal_quantile(certificate.confidence) * missing.standard_error
    room = max(MISSED - SLACK - missing.value, missing.value - ALARM_MASS)
    return certificate.n * max(none_missed, (half / room) ** 2)


def _unlooked(certificate: "Certificate") -> str | None:
    """Why the prior paths cannot show a missed mode, or None."""
    missing, bound = certificate.reverse_missing, certificate.total_variation
    only = f"only {certificate.effective_prior:.1f} effective prior paths reach the posterior"
    if missing is None:
        return f"{only} to look for missed modes"
    unsafe = bound.kind == "estimate" and missing.high > MISSED
    if not unsafe and certificate.effective_prior >= FEW_PRIOR:
        return None
    wanted, most = count_text(paths_to_look(certificate)), percent(missing.high)
    return f"{only}, so that {most} of it may be missed; about {wanted} paths would tell"


def _too_few(certificate: "Certificate") -> str | None:
    """Why the draws cannot support a claim, or None."""
    bound, defensive = certificate.total_variation, certificate.defensive
    if bound.kind == "bound" and bound.upper <= FAR:
        return None
    if unlooked := _unlooked(certificate):
        return unlooked
    if defensive.ess * certificate.n < FEW:
        return f"the weights are worth {defensive.ess * certificate.n:.0f} draws"
    if defensive.k_hat > certificate.k_threshold and certificate.log_bound is None:
        return f"the defensive weights are heavy-tailed (k-hat {defensive.k_hat:.2f})"
    if bound.upper <= FAR:
        return None
    if bound.kind == "bound":
        at = f"TV ≤ {round_up(bound.upper)} at {confidence_text(bound.confidence)} proves little"
        return f"{at}; about {count_text(paths_to_prove(certificate))} paths would do"
    wanted = certificate.n * ((bound.upper - bound.value) / _slack(certificate)) ** 2
    return f"TV may be {round_up(bound.upper)}; about {count_text(wanted)} paths would do"


def _cautions(certificate: "Certificate") -> list[str]:
    """What limits the certificate without overturning it."""
    cautions = []
    if certificate.k_hat > certificate.k_threshold:
        cautions.append(
            f"the sampler's own weights are heavy-tailed (k-hat {certificate.k_hat:.2f}, sound "
            f"below {certificate.k_threshold:.2f}): quote the defensive log Z, not the naive one"
        )
    unseen = certificate.unseen
    if abs(unseen.value) > ALARM_ERRORS * unseen.standard_error:
        cautions.append(f"naive and defensive Z differ by {percent(abs(unseen.value))} of Z")
    if certificate.effective_prior < FEW:
        cautions.append(
            f"the reverse check rests on {certificate.effective_prior:.1f} effective prior paths"
        )
    if certificate.reward_noise:
        cautions.append(
            f"the reward is noisy (sd {certificate.reward_noise:.2g} nats): log Z may read up to "
            f"{certificate.reward_noise**2 / 2:.2g} high, and the total variation is no bound"
        )
    return cautions + _bound_cautions(certificate)


def _bound_cautions(certificate: "Certificate") -> list[str]:
    if certificate.detection_limit is None:
        return [
            "r has no declared bound: intervals are asymptotic, a rare large reward may be unseen"
        ]
    if certificate.detection_limit >= 1:
        return ["a missed mode could go unseen whatever its size: add prior paths"]
    if certificate.detection_limit > ALARM_MASS:
        limit = percent(certificate.detection_limit)
        return [
            f"a missed mode of less than {limit} of the posterior could go unseen: add prior paths"
        ]
    return []


def judge(certificate: "Certificate") -> tuple[str, bool, tuple[str, ...]]:
    """Verdict in words, whether to trust the sampler, and warnings."""
    cautions = tuple(_cautions(certificate))
    collapse, too_few = _collapse(certificate), _too_few(certificate)
    if collapse:
        return f"do not trust: {collapse}; {_log_z_text(certificate)}", False, cautions
    if too_few:
        return f"draws too few: {too_few}; estimate: {_estimate_text(certificate)}", False, cautions
    bound = certificate.total_variation
    if bound.kind == "estimate":
        return f"estimate, not a bound: {_estimate_text(certificate)}", True, cautions
    at = confidence_text(bound.confidence)
    return f"TV ≤ {round_up(bound.upper)} at {at}; {_log_z_text(certificate)}", True, cautions
