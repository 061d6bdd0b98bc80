"""One posterior for many conditions: the recipe of every garment, and calibration of a trained one.

Statistical tests have fixed seeds; each says its false-alarm rate.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.rollouts import rollout
from difftilt.diagnostics.calibration import Calibration, calibration
from difftilt.errors import InputError
from difftilt.forms import Perceptron
from difftilt.noise import GeneratorNoise
from difftilt.objectives.balance import RTB
from difftilt.posteriors import Posterior, Prior, Sources
from difftilt.recipes.base import Drawn
from difftilt.recipes.form import FormChoice
from difftilt.recipes.images.fashion import CLASSES, Fashion
from difftilt.rewards.wrappers import ClassifierReward
from difftilt.training.plan import BehaviourWeights, Optimisation, Training
from difftilt.training.steps import training_step
from toys import gaussian_chain

PAIRS, DRAWS = 400, 19
OWN = BehaviourWeights(on_policy=1, pool=0)


def any_label(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(2, (count,), generator=generator)


def logits(x: Tensor) -> Tensor:
    """``p(y = 1 given x)`` is a sigmoid of ``4 x - 2``."""
    return torch.cat([torch.zeros_like(x), 4 * x - 2], 1)


def labelled() -> Posterior:
    """The untrained posterior of a Gaussian's two labels."""
    target = Prior(gaussian_chain(1, 4)).tilt(ClassifierReward(logits))
    return target.posterior(Perceptron(2, width=32, depth=2, frequencies=2, labels=(2,)), True)


def calibrated(posterior: Posterior) -> Calibration:
    """Ranks of ``x* ~ p`` among draws for ``y ~ p(y given x*)``, upwards for 1, downwards for 0.

    A rank by x alone is blind to a sampler that ignores y: the prior's is uniform (Modrák et al.
    2023, arXiv 2211.02383), so the statistic has to know y.
    """
    generator = torch.Generator().manual_seed(7)
    chain = posterior.target.prior.chain
    x = rollout(chain, PAIRS, GeneratorNoise(generator), record=False).x_0
    y = (torch.rand(PAIRS, generator=generator) < torch.sigmoid(4 * x[:, 0] - 2)).long()
    drawn = posterior.given(y.repeat_interleave(DRAWS)).draw(PAIRS * DRAWS, 8).x_0
    sign = 2.0 * y - 1
    return calibration(sign * x[:, 0], sign[:, None] * drawn.reshape(PAIRS, DRAWS))


def test_a_trained_sampler_of_two_labels_is_calibrated_and_its_prior_is_not(unchecked):
    """False-alarm rate 1e-3 for the ranks, and below 1e-6 for each coverage."""
    before = labelled()
    assert calibrated(before).p_value < 1e-6
    posterior = before.target.fit(
        RTB(),
        form=before.form,
        initial=True,
        sources=Sources(conditions=any_label, labels=2),
        steps=150,
        batch=128,
        paths_per_condition=32,
        warm_start=0.0,
        behaviour=OWN,
        optimisation=Optimisation(learning_rate=1e-2, ema=0.95),
    )
    found = calibrated(posterior)
    assert found.p_value > 1e-3
    for level in (0.5, 0.9):
        error = (level * (1 - level) / PAIRS) ** 0.5
        # Ranks among 19 draws know a level up to one part in 20.
        assert abs(found.coverage(level) - level) < 5 * error + 0.5 / (DRAWS + 1)


def small() -> Fashion:
    plan = Training(batch=8, warm_start=0.0, chunk=64, objective=RTB(), behaviour=OWN)
    return Fashion(garment="every", steps=3, training=plan)


def test_one_posterior_of_every_garment_is_trained_certified_and_judged_by_class(unchecked):
    recipe = small()
    job = recipe.job()
    assert job.training.paths_per_condition == 4
    state = job.target.state(job.posterior, job.training, job.sources)
    assert training_step(state).loss > 0
    certificate = replace(job.posterior.certify_each(job.contexts, 8), names=job.names)
    assert len(certificate.each) == CLASSES and "bag" in str(certificate)
    prior = replace(job.posterior, chain=job.target.prior.chain)
    samples = job.draw(prior, 20, 0), job.draw(job.posterior, 20, 1)
    table = recipe.evaluation(job, Drawn(*samples, None, certificate))
    rows = {row["name"]: row for row in table["rows"]}
    log_r = job.target.score(samples[0].x_0, torch.full((20,), 8))
    assert rows["log Z of bag"]["truth"] == pytest.approx(float(log_r.double().exp().mean().log()))
    shares = [row["posterior"] for name, row in rows.items() if name.startswith("share of ")]
    assert shares[0] == pytest.approx(sum(shares[1:]) / CLASSES)


def test_every_garment_needs_a_full_copy():
    with pytest.raises(InputError, match=r"got form\.kind='lora'; use full_copy"):
        replace(small(), form=FormChoice("lora")).job()
