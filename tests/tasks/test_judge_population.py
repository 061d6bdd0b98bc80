"""The judge of populations: the chain's figures for one particle, fewer gaps for more."""

import pytest

from difftilt.errors import InputError
from difftilt.smc.methods import BestOfN, FKSteering, ImportanceResampling
from difftilt.tasks.exact.judge import Judgement, judge_population
from difftilt.tasks.exact.linear_gaussian import linear_gaussian
from difftilt.tasks.exact.toys import ring8


def figures(method, draws: int = 4_000) -> Judgement:
    problem = linear_gaussian(2, 6)
    return judge_population(problem, method, problem.chain, draws=draws)


def test_one_particle_of_the_prior_is_judged_as_the_prior(unchecked: None):
    """``KL(p ‖ π)`` and ``KL(π ‖ p)`` of the truth, within 5 standard errors of the draws."""
    problem, found = linear_gaussian(2, 6), figures(ImportanceResampling(1))
    assert problem.truth.kl_to_prior is not None and problem.truth.prior_ess is not None
    assert found.eubo_gap == pytest.approx(problem.truth.kl_to_prior, abs=0.1)
    assert found.ess == pytest.approx(problem.truth.prior_ess, abs=0.05)
    assert found.log_z_error == pytest.approx(0, abs=0.05)


def test_more_particles_close_the_gaps(unchecked: None):
    one, many = figures(ImportanceResampling(1)), figures(FKSteering(16))
    for name in ("elbo_gap", "eubo_gap", "energy_distance"):
        assert 0 < getattr(many, name) < 0.5 * getattr(one, name)
    assert many.ess is not None and many.ess > 0.9
    assert many.energy_p is not None and many.energy_p > 1e-3
    assert many.mode_tv_raw is None


def test_a_method_without_weights_is_judged_by_its_samples(unchecked: None):
    problem = ring8(3.0)
    found = judge_population(problem, BestOfN(32), problem.chain, draws=2_000)
    for name in ("log_z_error", "elbo_gap", "eubo_gap", "ess", "k_hat", "mode_tv_corrected"):
        assert getattr(found, name) is None
    assert found.mode_tv_raw is not None and found.mode_tv_raw > 0.1
    assert found.energy_p is not None and found.energy_p < 0.01
    systematic = FKSteering(4, scheme="systematic")
    found = judge_population(problem, systematic, problem.chain, draws=1_000)
    assert found.eubo_gap is None
    assert found.elbo_gap is not None


def test_too_few_draws_are_refused():
    with pytest.raises(InputError, match="at least 2 draws, got 1"):
        figures(BestOfN(2), draws=1)
