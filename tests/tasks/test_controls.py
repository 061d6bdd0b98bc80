"""Two controls whose joint posterior is known, learned from sets that carry one label each."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from difftilt.diagnostics.distances import mode_total_variation
from difftilt.errors import InputError
from difftilt.forms import Perceptron
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.objectives.pathwise import AdjointMatching, KLControl
from difftilt.objectives.policy import DDPO
from difftilt.posteriors import Target
from difftilt.recipes.exact.controls import (
    any_pair,
    controlled,
    controls_plan,
    judge_pair,
    offline_target,
    two_controls,
)
from difftilt.tasks.controls import (
    Classifier,
    Fit,
    LabelledSet,
    calibrated_classifier,
    held_out_temperature,
)
from difftilt.tasks.exact.controls import PAIRS, TwoControls

pytestmark = pytest.mark.usefixtures("unchecked")
PROBLEM = TwoControls(fineness=3.0)
SHORT = TwoControls(steps=8, fineness=3.0)


@pytest.mark.parametrize("pair", PAIRS)
def test_quadrature_agrees_with_the_closed_form(pair: tuple[int, int]):
    """The chain of 20 steps is near the clean mixture, whose weights are bivariate orthants."""
    truth = PROBLEM.truth(pair)
    assert float(truth.label_probabilities.sum()) == pytest.approx(1, abs=1e-9)
    assert mode_total_variation(truth.label_probabilities, PROBLEM.clean_mode_weights(pair)) < 0.01


def test_the_pairs_share_the_prior():
    """``Σ_y p(y) p(x | y) = p(x)``: each of the eight modes holds an eighth."""
    truths = [PROBLEM.truth(pair) for pair in PAIRS]
    shares = torch.tensor([truth.log_z for truth in truths], dtype=torch.float64).exp()
    assert float(shares.sum()) == pytest.approx(1, abs=1e-5)
    joined = sum(s * t.label_probabilities for s, t in zip(shares, truths, strict=True))
    assert torch.allclose(joined, torch.full((8,), 0.125, dtype=torch.float64), atol=1e-4)


def test_rejection_agrees_with_quadrature(generator):
    """5 standard errors on each of the mode weights, for one pair."""
    truth = PROBLEM.truth((1, 0))
    n = 4000
    cells = truth.label(truth.sample(n, generator))
    found = torch.bincount(cells, minlength=8) / n
    error = (truth.label_probabilities * (1 - truth.label_probabilities) / n).sqrt()
    assert float(((found - truth.label_probabilities).abs() / error).max()) < 5


def test_a_set_carries_one_kind_of_label(generator):
    pairs = PROBLEM.labelled(1, 4000, generator)
    p = PROBLEM.log_probability(pairs.x, 1, torch.ones(4000)).exp()
    assert pairs.x.shape == (4000, 2) and pairs.y.shape == (4000,)
    gap = (pairs.y - p).sum() / (p * (1 - p)).sum().sqrt()
    assert abs(float(gap)) < 5
    with pytest.raises(InputError, match="label=2"):
        PROBLEM.labelled(2, 10, generator)


def test_a_classifier_learns_the_probabilities(generator):
    pairs = PROBLEM.labelled(0, 10_000, generator)
    classifier = calibrated_classifier(pairs, 2, Fit(updates=200, width=16))
    assert not any(p.requires_grad for p in classifier.parameters()) and not classifier.training
    x = PROBLEM.labelled(0, 4000, generator).x
    with torch.no_grad():
        learned = classifier(x).softmax(1)[:, 1]
    truth = PROBLEM.log_probability(x, 0, torch.ones(4000)).exp()
    assert float((learned - truth).abs().mean()) < 0.03
    assert float((learned - truth).mean().abs()) < 0.02


def test_a_seed_gives_the_same_classifier(generator):
    pairs = PROBLEM.labelled(0, 500, generator)
    fit = Fit(updates=5, seed=3)
    first, again = (calibrated_classifier(pairs, 2, fit) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.buffers(), again.buffers(), strict=True))
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)
    )


@pytest.mark.parametrize("overconfident", [0.5, 3.0])
def test_the_temperature_undoes_overconfidence(overconfident: float, generator):
    """Logits that are true but for a factor get it back, whatever temperature was set before."""
    x = torch.randn(20_000, 1, generator=generator)
    y = (torch.rand(20_000, generator=generator) < torch.sigmoid(2 * x[:, 0])).long()
    classifier = Classifier(1, 2)
    classifier.layers = nn.Sequential(nn.Linear(1, 2, bias=False))
    with torch.no_grad():
        classifier.layers[0].weight.copy_(torch.tensor([[-1.0], [1.0]]) * overconfident)
    classifier.temperature.fill_(7.0)
    found = held_out_temperature(classifier, LabelledSet(x, y))
    assert float(found) == pytest.approx(overconfident, rel=0.05)


def test_sets_that_cannot_be_learned_from():
    x = torch.zeros(10, 2)
    with pytest.raises(InputError, match="10 samples with 9 labels"):
        LabelledSet(x, torch.zeros(9, dtype=torch.long))
    pairs = LabelledSet(x, torch.arange(10) % 3)
    with pytest.raises(InputError, match="labels span 0 to 2; with classes=2"):
        calibrated_classifier(pairs, 2)
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="leaves a part without pairs"):
            pairs.split(share)


@pytest.fixture(scope="module")
def target() -> Target:
    return offline_target(SHORT, 0, 10_000, Fit(updates=200))


def test_the_learned_reward_has_nearly_the_true_posterior(target: Target):
    """What the classifiers cost, for a small set of pairs: total variation of the mode weights."""
    x = SHORT.points.float()
    for pair in PAIRS:
        labels = torch.tensor([pair]).expand(len(x), 2)
        learned = SHORT.tilted_cells(target.score(x, labels).double())
        exact = SHORT.truth(pair).label_probabilities
        assert mode_total_variation(learned, exact) < 0.05


def test_plans_by_objective(generator):
    own = controls_plan(KLControl(), 7)
    assert own.warm_start == 0 and own.behaviour.pool == 0 and own.steps == 7
    assert controls_plan(RTB(), 7, seed=3).warm_start > 0
    drawn = any_pair(4000, generator)
    assert sorted(map(tuple, drawn.unique(dim=0).tolist())) == sorted(PAIRS)


def test_a_short_training_brings_the_pairs_apart(target: Target):
    """Far too short to converge: an untrained posterior is 0.5 or more from every pair."""
    plan = controls_plan(KLControl(), 100)
    optimisation = replace(plan.optimisation, learning_rate=1e-2, ema=0.0, decay_from=1.0)
    posterior = controlled(target, replace(plan, batch=128, optimisation=optimisation))
    judged = [judge_pair(SHORT, posterior, pair, draws=500) for pair in PAIRS]
    assert max(each.mode_tv for each in judged) < 0.35


@pytest.mark.parametrize(
    ("objective", "form"),
    [
        (AdjointMatching(), Perceptron(1, learned_variance=False, labels=(2, 2))),
        (RTB(), Perceptron(4, labels=(2, 2))),
        (DDPO(0.2, kl=True, updates=2), Perceptron(4, labels=(2, 2))),
    ],
)
def test_from_labels_to_judgements(objective: Objective, form: Perceptron):
    """The whole way, with an update or two: what comes back."""
    plan = replace(controls_plan(objective, 2), batch=64)
    posterior, judged = two_controls(plan, SHORT, 1000, 500, Fit(updates=50, width=16))
    assert posterior.form == form
    assert [each.pair for each in judged] == list(PAIRS)
    for each in judged:
        assert 0.3 < each.mode_tv <= 1 and each.log_z_gap < -0.5
        assert each.mode_tv_corrected < 0.25 and each.classifier_tv < 0.2
