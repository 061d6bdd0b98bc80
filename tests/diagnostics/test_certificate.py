"""The certificate on a discrete problem whose truth is known by enumeration."""

import dataclasses
import json
import math

import pytest
import torch

from difftilt.diagnostics.certificate import (
    Certificate,
    Expense,
    PathScores,
    certify_weights,
)
from difftilt.errors import InputError

# Eight equally likely modes, reward at most 1. The collapsed sampler is perfect on the modes it
# kept, so that its own weights are equal: 45 % of the posterior is gone and ESS = 1.
P = torch.full((8,), 1 / 8, dtype=torch.float64)
R = torch.tensor([1, 0.9, 0.5, 0.3, 0.1, 0.05, 0.02, 0.01], dtype=torch.float64)
Z = (P * R).sum().item()
POSTERIOR = P * R / Z
GOOD = POSTERIOR * torch.tensor([1.05, 0.95, 1, 1.1, 0.9, 1, 1, 1]) + 0.001
COLLAPSED = POSTERIOR.clone()
COLLAPSED[[1, 3]] = 1e-7
SAMPLERS = {
    "good": GOOD / GOOD.sum(),
    "exact": POSTERIOR,
    "collapsed": COLLAPSED / COLLAPSED.sum(),
    "prior": P,
}


def scores(
    law: torch.Tensor, q: torch.Tensor, n: int, generator: torch.Generator, beta: float = 1.0
) -> PathScores:
    index = torch.multinomial(law, n, True, generator=generator)
    return PathScores((q / P).log()[index].float(), (R.log() / beta)[index].float())


def certificate(
    name: str, n: int, seed: int = 0, log_bound: float | None = 0.0, **settings: float
) -> Certificate:
    generator, q = torch.Generator().manual_seed(seed), SAMPLERS[name]
    own, prior = scores(q, q, n - n // 5, generator), scores(P, q, n // 5, generator)
    return certify_weights(own, prior, log_bound=log_bound, **settings)


def true_total_variation(name: str) -> float:
    return 0.5 * (SAMPLERS[name] - POSTERIOR).abs().sum().item()


@pytest.mark.parametrize("name", ["good", "exact"])
def test_a_good_sampler_is_certified(name: str):
    found = certificate(name, 10_000)
    bound = found.total_variation
    assert found.trust
    assert bound.kind == "bound"
    assert true_total_variation(name) <= bound.upper < true_total_variation(name) + 0.02
    best = found.defensive.best
    assert best is found.defensive.betting
    assert best.low <= math.log(Z) <= best.high
    assert abs(found.log_z.value - math.log(Z)) < 5 * found.log_z.standard_error + 1e-6
    rounded = math.ceil(bound.upper * 100) / 100
    assert found.verdict == f"TV ≤ {rounded:.2f} at 99 %; log Z {best}"


def test_every_number_agrees_with_enumeration():
    """Good sampler, 5 standard errors each."""
    found, q = certificate("good", 20_000), SAMPLERS["good"]
    log_w = (P * R / q).log()
    for estimate, truth in (
        (found.elbo, (q * log_w).sum().item()),
        (found.eubo, (POSTERIOR * log_w).sum().item()),
        (found.log_z, math.log(Z)),
        (found.defensive.clt, math.log(Z)),
        (found.unseen, 0.0),
    ):
        assert abs(estimate.value - truth) < 5 * estimate.standard_error
    tv = found.total_variation
    assert abs(tv.value - true_total_variation("good")) < 5 * tv.standard_error
    assert found.ess == pytest.approx(Z**2 / (q * log_w.exp() ** 2).sum().item(), abs=0.01)
    assert found.detection_limit == pytest.approx(5 / (4000 * Z), rel=0.05)
    assert (found.n, found.n_prior, found.share) == (20_000, 4000, 0.2)
    assert found.effective_prior == pytest.approx(4000 * Z**2 / (P * R**2).sum().item(), rel=0.1)


def test_a_collapsed_sampler_is_refused_however_good_its_own_weights_look():
    """20 repetitions: the naive interval never covers, the proven one and the bound always do."""
    for seed in range(20):
        found = certificate("collapsed", 1000, seed)
        best, missed = found.defensive.best, POSTERIOR[[1, 3]].sum().item()
        assert found.ess > 0.999
        assert found.log_z.high < math.log(Z) - 0.3
        assert best.low <= math.log(Z) <= best.high
        assert found.total_variation.upper >= true_total_variation("collapsed")
        assert found.reverse_missing is not None
        assert found.reverse_missing.low < missed < found.reverse_missing.high
        assert abs(found.unseen.value - missed) < 5 * found.unseen.standard_error
        assert not found.trust
        assert found.verdict.startswith("do not trust: the sampler misses what ")
        assert "% of weighted prior paths reach" in found.verdict


def test_a_collapsed_sampler_is_refused_without_a_bound_too():
    found = certificate("collapsed", 1000, log_bound=None)
    assert found.verdict.startswith("do not trust: the sampler misses what ")
    assert found.total_variation.kind == "estimate"


def test_a_good_sampler_rings_no_alarm():
    """The alarm has 4 standard errors: none in 60 certificates."""
    verdicts = [certificate("good", 500, seed, log_bound=None).verdict for seed in range(60)]
    assert not [text for text in verdicts if "do not trust" in text]


def test_a_sampler_that_is_far_is_refused():
    """No mode is missed, but half of the mass would have to move."""
    q = torch.full((8,), 0.05, dtype=torch.float64)
    q[7] = 0.65
    generator = torch.Generator().manual_seed(0)
    own, prior = scores(q, q, 4000, generator), scores(P, q, 1000, generator)
    found = certify_weights(own, prior, log_bound=0.0)
    assert found.verdict.startswith("do not trust: the sampler is far from the posterior (TV ≈ 0.")
    assert found.reverse_missing is not None and found.reverse_missing.value == 0


def test_without_a_bound_the_words_are_those_of_an_estimate():
    found = certificate("good", 10_000, log_bound=None)
    assert found.trust
    assert found.verdict.startswith("estimate, not a bound: TV ≈ 0.0")
    assert found.defensive.betting is None and found.detection_limit is None
    assert any("no declared bound" in text for text in found.warnings)


def test_few_draws_are_called_too_few():
    vacuous = certificate("good", 1000, log_bound=8.0)
    assert vacuous.verdict.startswith("draws too few: TV ≤ ")
    assert "proves little; about 6,000,000 paths would do; estimate: TV ≈" in vacuous.verdict
    assert not vacuous.trust
    few = certificate("good", 60, log_bound=None)
    assert few.verdict.startswith("draws too few: ")
    generator, q = torch.Generator().manual_seed(0), SAMPLERS["good"]
    own = scores(q, q, 800, generator)
    unreached = PathScores(torch.zeros(200), torch.full((200,), -math.inf))
    found = certify_weights(own, unreached)
    assert found.verdict.startswith("draws too few: only 0.0 effective prior paths")
    assert found.reverse_missing is None
    assert "not made: no prior path" in str(found)


def test_the_paths_it_asks_for_suffice():
    """What ``draws too few`` asks for brings the bound within 0.05 of the truth."""
    few = certificate("good", 250, log_bound=1.5)
    asked = int(few.verdict.split("about ")[1].split(" paths")[0].replace(",", ""))
    enough = certificate("good", asked, log_bound=1.5)
    assert enough.total_variation.upper < true_total_variation("good") + 0.06


def rare(missed: float, effective: float, n: int, seed: int, log_bound: float | None = None):
    """Of a posterior that few prior paths reach; its sampler is exact but for the missed share."""
    mass = 4 * effective / 4096
    prior = torch.tensor([1 - mass, (1 - missed) * mass, missed * mass], dtype=torch.float64)
    reward = torch.tensor([1e-9, 1.0, 1.0], dtype=torch.float64)
    q = prior * reward * torch.tensor([1.0, 1.0, 1e-9])
    log_ratio, generator = (q / q.sum() / prior).log(), torch.Generator().manual_seed(seed)
    own = torch.multinomial(q, n - n // 4, True, generator=generator)
    of_prior = torch.multinomial(prior, n // 4, True, generator=generator)
    sets = [PathScores(log_ratio[rows], reward.log()[rows]) for rows in (own, of_prior)]
    return certify_weights(*sets, log_bound=log_bound)


@pytest.mark.parametrize(("missed", "effective"), [(0.4, 20), (0.3, 31), (0.15, 10), (0.15, 31)])
def test_without_a_bound_a_sampler_that_misses_much_is_not_trusted(missed: float, effective: float):
    """None of 60: above 20 % at most 1 in 200 may be, of the two of 15 % about 0 and 1 in 150."""
    found = [rare(missed, effective, 4096, seed) for seed in range(60)]
    assert not any(one.trust for one in found)
    said = {one.verdict.split(":")[0] for one in found}
    assert said <= {"draws too few", "do not trust"}


def test_without_a_bound_a_sampler_that_covers_is_trusted():
    """The sampler that misses nothing, where some 40 prior paths count: 40 of 40."""
    assert all(rare(1e-6, 40, 4096, seed).trust for seed in range(40))


def test_the_prior_paths_it_asks_for_suffice():
    """More often than not: a dozen effective paths say how many are needed within a third."""
    few = rare(1e-6, 12, 4096, 0)
    assert few.verdict.startswith("draws too few: only ")
    asked = int(few.verdict.split("about ")[1].split(" paths")[0].replace(",", ""))
    assert sum(rare(1e-6, 12, asked, seed).trust for seed in range(20)) > 10


def test_little_missed_with_confidence_is_an_alarm():
    """A third of 40 effective paths is missed: fewer than 4 standard errors, and surely > 5 %."""
    found = rare(0.3, 40, 4096, 1)
    missing = found.reverse_missing
    assert missing is not None
    assert missing.low > 0.05
    assert found.verdict.startswith("do not trust: the sampler misses what ")


def test_a_bound_that_leaves_a_third_open_is_no_trust():
    """30 % missed and a bound declared: proven TV ≤ 0.3 in at most 1 of 100, here in 0 of 20."""
    found = [rare(0.3, 60, 4096, seed, log_bound=0.0) for seed in range(20)]
    assert all(one.total_variation.upper >= 0.3 for one in found)
    assert not any(one.trust for one in found)


def test_beta_is_a_power_of_the_reward():
    q = SAMPLERS["good"]
    found = []
    for beta in (1.0, 4.0):
        generator = torch.Generator().manual_seed(0)
        own = scores(q, q, 4000, generator, beta)
        prior = scores(P, q, 1000, generator, beta)
        found.append(certify_weights(own, prior, beta, log_bound=0.1 / beta))
    one, four = found
    assert four.defensive.best.high == pytest.approx(one.defensive.best.high, abs=1e-5)
    assert four.total_variation.upper == pytest.approx(one.total_variation.upper, abs=1e-5)
    assert four.log_bound == pytest.approx(0.025)


def test_a_noisy_reward_proves_no_total_variation():
    generator, q = torch.Generator().manual_seed(0), SAMPLERS["good"]
    own, prior = scores(q, q, 4000, generator), scores(P, q, 1000, generator)
    found = certify_weights(own, prior, log_bound=0.0, expense=Expense(1, 2, 0.3))
    assert found.total_variation.kind == "estimate"
    assert any("the reward is noisy" in text and "0.045 high" in text for text in found.warnings)
    assert (found.network_calls, found.reward_calls, found.reward_noise) == (1, 2, 0.3)


def test_heavy_tails_of_the_samplers_own_weights_are_named(generator):
    """r = 1 and log w normal with standard deviation 3: Z = 1, k-hat of the sampler above 0.7."""
    log_ratio = 3 * torch.randn(4000, generator=generator) + 4.5
    prior = PathScores(3 * torch.randn(1000, generator=generator) - 4.5, torch.zeros(1000))
    found = certify_weights(PathScores(log_ratio, torch.zeros(4000)), prior, log_bound=0.0)
    assert found.k_hat > found.k_threshold
    assert any("heavy-tailed" in text for text in found.warnings)
    assert not found.trust
    assert found.defensive.best.low <= 0 <= found.defensive.best.high


def test_the_dictionary_is_strict_json_with_stable_keys():
    found = certificate("good", 500)
    plain = found.to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == plain
    assert list(plain) == [field.name for field in dataclasses.fields(Certificate)]
    assert set(plain["defensive"]["betting"]) == {
        "value",
        "standard_error",
        "low",
        "high",
        "confidence",
    }
    assert set(plain["total_variation"]) >= {"value", "upper", "kind", "confidence"}
    blocked = PathScores(torch.zeros(50), torch.full((50,), -math.inf))
    reached = PathScores(torch.zeros(50), torch.zeros(50))
    nothing = certify_weights(blocked, reached)
    assert nothing.to_dict()["elbo"]["value"] is None
    assert json.dumps(nothing.to_dict(), allow_nan=False)


@pytest.mark.parametrize("name", ["good", "collapsed", "prior"])
def test_the_text_holds_what_was_found(name: str):
    found = certificate(name, 1000, expense=Expense(20_000, 1000))
    text = str(found)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert " ".join(found.verdict.split()) in " ".join(text.split())
    assert lines[0].startswith(
        "Certificate from 800 paths of the sampler and 200 of the prior; β = 1"
    )
    assert f"log Z, naive            {found.log_z}" in text
    assert "20,000 network calls, 1,000 reward calls" in text
    assert all(" ".join(warning.split()) in " ".join(text.split()) for warning in found.warnings)


def test_the_text_names_infinite_bounds():
    some = torch.tensor([0.0, -math.inf]).repeat(100)
    found = certify_weights(
        PathScores(torch.zeros(200), some), PathScores(some, torch.zeros(200)), log_bound=0.0
    )
    assert "ELBO                    -inf: some of the sampler's paths have no reward" in str(found)
    assert "EUBO                    inf: the sampler cannot make some" in str(found)


def test_bad_scores_are_refused():
    good, bad = PathScores(torch.zeros(9), torch.zeros(9)), torch.zeros(9)
    bad[4] = math.nan
    with pytest.raises(InputError, match=r"posterior paths: log_r\[4\] = nan"):
        certify_weights(PathScores(torch.zeros(9), bad), good)
    with pytest.raises(InputError, match=r"prior paths: log_ratio\[4\] = nan"):
        certify_weights(good, PathScores(bad, torch.zeros(9)))
    with pytest.raises(InputError, match="n ≥ 2"):
        certify_weights(good, PathScores(torch.zeros(1), torch.zeros(1)))
    with pytest.raises(InputError, match="beta = 0"):
        certify_weights(good, good, 0.0)
    with pytest.raises(InputError, match="log r reaches 0, above log_bound = -1"):
        certify_weights(good, good, log_bound=-1.0)
    nothing = PathScores(torch.zeros(9), torch.full((9,), -math.inf))
    with pytest.raises(InputError, match="no posterior to certify"):
        certify_weights(nothing, nothing)
    with pytest.raises(InputError, match="confidence = 99"):
        certify_weights(good, good, confidence=99)
