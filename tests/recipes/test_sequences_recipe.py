"""The sequence recipe: its target, its truths, and what a training gains, at smoke size."""

from dataclasses import replace

import pytest
import torch

from difftilt.chains.chain import Chain
from difftilt.diffusions.masked import MaskedDiffusion
from difftilt.errors import InputError
from difftilt.forms import FullCopy
from difftilt.posteriors import Prior, Sources
from difftilt.recipes.base import from_config, to_config
from difftilt.recipes.sequences.parts import (
    Drawings,
    Wanted,
    chain_distance,
    control_canvases,
    distance,
    drawn_pairs,
    every_pair,
    joint_law,
    learned_law,
    of_sequences,
    pair_accuracy,
    resampled,
    true_drawings,
)
from difftilt.recipes.sequences.recipe import Sequences
from difftilt.tasks.exact.controls import PAIRS
from difftilt.tasks.sequences import dna
from difftilt.tasks.sequences.network import CONTROLS, SequenceNetwork
from difftilt.tasks.sequences.sets import sequence_set
from difftilt.tasks.tokens.laws import exact_law
from difftilt.token_denoisers import TokenDenoiser
from difftilt.training.loop import train
from difftilt.training.plan import RTB, Alarm, BehaviourWeights, Optimisation, Training
from difftilt.training.steps import training_step

SHORT = 3


@pytest.fixture(scope="module")
def recipe():
    return Sequences(data="dna")


@pytest.fixture(scope="module")
def job(recipe):
    return recipe.job()


def short_target():
    """Three bases under an untrained network whose head is sharpened, and exact activities of AT
    and GA.
    """
    torch.manual_seed(0)
    network = SequenceNetwork(4, SHORT)
    with torch.no_grad():
        network.network.last.weight *= 3.0
    diffusion = MaskedDiffusion(4, SHORT)
    denoiser = TokenDenoiser(network.eval()).requires_grad_(False)
    chain = Chain(denoiser, diffusion, (SHORT + CONTROLS,))
    reward = of_sequences(short_log_reward, SHORT, "two activities")
    return Prior(chain).tilt(reward, log_bound=0.0)


def short_log_reward(ids, labels):
    found = [dna.Activity(motif, slope=3.0, threshold=1.5)(ids) for motif in ("AT", "GA")]
    p = torch.stack(found, 1)
    return torch.where(labels == 1, p, 1 - p).log().sum(1)


def test_one_posterior_learns_both_controls_at_once(unchecked):
    """Total variation to the exact joint posterior, by enumeration, for every pair of labels."""
    target = short_target()
    conditions = every_pair(SHORT)
    law = learned_law(target.score, target.prior.chain, conditions)
    plan = Training(
        steps=200,
        batch=64,
        warm_start=0.0,
        paths_per_condition=16,
        objective=RTB(residual_clip=4.0),
        optimisation=Optimisation(5e-3, 0.02, head_learning_rate=0.05, decay_from=0.3, ema=0.95),
        behaviour=BehaviourWeights(on_policy=0.75, prior=0.25, pool=0.0),
    )
    torch.manual_seed(0)
    posterior = target.posterior(FullCopy(learned_temperature=True))
    start = chain_distance(posterior.chain, conditions, law)
    assert torch.allclose(start, chain_distance(target.prior.chain, conditions, law))
    state = target.state(posterior, plan, Sources(conditions=drawn_pairs(SHORT)))
    for _ in train(state, None):
        pass
    state.use_average()
    found = chain_distance(posterior.chain, conditions, law)
    assert float(start.max()) > 0.5
    assert float(found.max()) < 0.15 and float(found.mean()) < 0.25 * float(start.mean())


def test_the_joint_laws_add_up_to_the_prior(recipe, job):
    """``Σ_y p(y) p(x | y) = p(x)``: the judge's posteriors of all pairs of labels."""
    prior = job.target.prior.chain
    law = joint_law(recipe.found, prior, job.contexts)
    of_prior = exact_law(prior, job.contexts)[0]
    assert torch.allclose(law.sum(1), torch.ones(4).double())
    ids = torch.cartesian_prod(*[torch.arange(4)] * dna.LENGTH)
    p = dna.activities(ids).double()
    labels = torch.tensor(PAIRS)[:, None]
    share = (of_prior * torch.where(labels == 1, p, 1 - p).prod(2)).sum(1)
    assert torch.allclose((share[:, None] * law).sum(0), of_prior, atol=1e-9)


def test_true_drawings_have_the_learned_law(job):
    """The share of each first base, within five standard errors of the sum over the law."""
    draws = true_drawings(job.target.prior.chain, job.target.score, job.contexts, 2000, 0)
    law = learned_law(job.target.score, job.target.prior.chain, job.contexts)
    first = law.unflatten(1, (4, -1)).sum(2)
    for ids, expected in zip(draws.ids, first, strict=True):
        assert len(ids) >= 10
        found = torch.bincount(ids[:, 0], minlength=4) / len(ids)
        error = (expected * (1 - expected) / len(ids)).sqrt()
        assert bool(((found - expected).abs() < 5 * error).all())


def test_ends_to_start_from_have_the_learned_law(job):
    """The share of each first base among rows of each pair, within five standard errors.

    Resampling draws a row of weight W about ``n W`` times: the error is that of the n draws.
    """
    chain, n = job.target.prior.chain, 4000
    ends, asked = resampled(chain, job.target.score, job.contexts, n, 0)
    assert ends.shape == (4 * n, dna.LENGTH + CONTROLS) and asked.shape == (4 * n, 2, 8)
    assert torch.equal(ends[:, dna.LENGTH :], asked[:, 0, dna.LENGTH :])
    law = learned_law(job.target.score, chain, job.contexts)
    first = law.unflatten(1, (4, -1)).sum(2)
    for c, expected in enumerate(first):
        rows = ends[c * n : (c + 1) * n]
        assert torch.equal(asked[c * n], job.contexts[c])
        found = torch.bincount(rows[:, 0], minlength=4) / n
        # Equal rows count once: no more draws than there are different sequences stand behind them.
        different = len(torch.unique(rows, dim=0))
        error = (expected * (1 - expected) / different).sqrt()
        assert bool(((found - expected).abs() < 5 * error).all())


def test_ends_are_made_when_a_training_begins():
    target, made = short_target(), []
    conditions = every_pair(SHORT)

    def ends():
        made.append(1)
        return resampled(target.prior.chain, target.score, conditions, 64, 0)

    sources = Sources(conditions=drawn_pairs(SHORT), ends=ends)
    assert not made
    plan = Training(steps=2, batch=8, warm_start=1.0, warm_start_from="data", alarm=Alarm(0.0))
    state = target.state(target.posterior(FullCopy()), plan, sources)
    assert made == [1] and state.data is not None and len(state.data) == 4 * 64
    assert training_step(state).phase == "warm start"


def test_the_reward_reads_the_labels_and_the_prior_does_not(recipe, job):
    x_0 = control_canvases(dna.LENGTH, torch.tensor([[0, 0]]))[:, 0]
    conditions = every_pair(dna.LENGTH)
    log_r = job.target.score(x_0.expand(4, -1), conditions)
    classifiers = recipe.found.classifiers(recipe.training.seed)
    log_p = [each(x_0[:, : dna.LENGTH]).log_softmax(1)[0] for each in classifiers]
    wanted = [log_p[0][a] + log_p[1][b] for a, b in PAIRS]
    assert torch.allclose(log_r, torch.stack(wanted), atol=1e-5)
    assert float(log_r.exp().sum()) == pytest.approx(1.0, abs=1e-5)
    laws = exact_law(job.target.prior.chain, conditions)
    assert torch.equal(laws[0], laws[3])


def test_accuracy_and_distance_of_what_is_known():
    found = sequence_set("dna")
    active = torch.tensor([[dna.BASES.index(base) for base in "GATGAC"]]).expand(8, -1)
    idle = torch.tensor([[dna.BASES.index(base) for base in "CCCCCC"]]).expand(8, -1)
    right = pair_accuracy(found, Drawings((idle, idle, idle, active)))
    p = dna.activities(torch.cat([idle[:1], active[:1]]))
    assert right[0] == pytest.approx(float((1 - p[0]).prod()))
    assert right[3] == pytest.approx(float(p[1].prod()))
    assert distance(found, Drawings((active,)), Drawings((active,))) == pytest.approx(0.0)
    assert distance(found, Drawings((active,)), Drawings((idle,))) > 1


@pytest.mark.parametrize("data", ["peptides", "selfies"])
def test_an_update_on_real_sequences(data, unchecked, monkeypatch):
    monkeypatch.setattr("difftilt.recipes.sequences.recipe.PRIOR_DRAWS", 64)
    recipe = Sequences(data=data)
    plan = replace(recipe.training, batch=8, paths_per_condition=4, steps=2, warm_start=0.0)
    job = recipe.job()
    metrics = training_step(job.target.state(job.posterior, plan, job.sources))
    assert metrics.log_r < 0
    lines = recipe.readable(job, job.draw(job.posterior, 4, 0))
    assert len(lines) == 4 and any(lines)


def test_molecules_can_be_asked_for_a_property(unchecked):
    recipe = Sequences(data="selfies", wanted=Wanted("qed", 0.5, 0.05))
    job = recipe.job()
    drawn = job.draw(job.posterior, 4, 0)
    assert drawn.log_r is not None and bool((drawn.log_r <= 0).all())
    assert job.names == ("qed",)
    again = from_config(Sequences, to_config(recipe))
    assert again == recipe
    with pytest.raises(InputError, match="selfies"):
        Sequences(data="dna", wanted=Wanted("qed")).job()
