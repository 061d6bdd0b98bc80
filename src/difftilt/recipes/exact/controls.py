"""Two controls grafted on a prior though no sample carries both labels: CTRL, with the answer.

    pairs (x, y_1) and, apart, pairs (x, y_2)  ->  two calibrated classifiers
    ->  log r(x, y) = log p̂_1(y_1 | x) + log p̂_2(y_2 | x)  ->  one posterior, amortised over y

The joint posterior of each pair of labels is then held against its truth (``TwoControls``).

Source of the scheme: Zhao et al. 2024 (arXiv 2406.12120).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftilt.diagnostics.distances import mode_total_variation
from difftilt.forms import Perceptron
from difftilt.objectives.balance import RTB
from difftilt.objectives.base import Objective
from difftilt.objectives.pathwise import KLControl, PathwiseObjective
from difftilt.objectives.policy import DDPO
from difftilt.posteriors import Posterior, Prior, Sources, Target
from difftilt.rewards.controls import ControlReward
from difftilt.tasks.controls import Fit, calibrated_classifier
from difftilt.tasks.exact.controls import PAIRS, TwoControls
from difftilt.training.plan import BehaviourWeights, Optimisation, Training

LABELS = (2, 2)
OFFLINE = 100_000
DRAWS = 20_000
PPO_PATHS = 32


@dataclass(frozen=True)
class PairJudgement:
    """One pair of labels against its truth.

    Arguments:
        pair: (y_1, y_2).
        mode_tv: total variation of the posterior's mode weights, from its raw samples.
        mode_tv_corrected: the same with importance weights.
        classifier_tv: of the exact posterior under the learned classifiers: the best that any
            sampler of their product can do.
        log_z_gap: ELBO minus the truth's log Z, nats.
    """

    pair: tuple[int, int]
    mode_tv: float
    mode_tv_corrected: float
    classifier_tv: float
    log_z_gap: float


def offline_target(
    problem: TwoControls, seed: int = 0, pairs: int = OFFLINE, fit: Fit | None = None
) -> Target:
    """The target whose reward is learned from two separate labelled sets."""
    classifiers, fit = [], Fit(seed=seed) if fit is None else fit
    for label in (0, 1):
        generator = torch.Generator().manual_seed(1000 * seed + label)
        labelled = problem.labelled(label, pairs, generator)
        classifiers.append(calibrated_classifier(labelled, 2, fit))
    return Prior(problem.chain, source="a ring of eight").tilt(ControlReward(classifiers))


def control_objectives() -> dict[str, Objective]:
    """The objectives of the controls' table by name; CTRL's are its KL control and PPO."""
    return {
        "rtb": RTB("batch", 4.0),
        "kl_control": KLControl(),
        "ppo_kl": DDPO(0.2, kl=True, updates=2),
    }


def any_pair(count: int, generator: torch.Generator) -> Tensor:
    """Conditions for training: each label uniform, (count, 2)."""
    return torch.randint(2, (count, 2), generator=generator)


def controls_plan(
    objective: Objective | None = None,
    updates: int = 1000,
    seconds: float | None = None,
    seed: int = 0,
) -> Training:
    """The training: on own paths for objectives that need it, else with a pooled warm start."""
    objective = KLControl() if objective is None else objective
    plan = Training(
        steps=updates,
        seconds=seconds,
        batch=256,
        chunk=32_768,
        optimisation=Optimisation(learning_rate=3e-3, hidden_learning_rate=0.01),
        seed=seed,
    )
    if objective.on_policy:
        own = BehaviourWeights(on_policy=1.0, pool=0.0)
        pathwise = isinstance(objective, PathwiseObjective)
        plan = replace(
            plan, warm_start=0.0, behaviour=own, paths_per_condition=1 if pathwise else PPO_PATHS
        )
        if not pathwise:
            # Gradients of a policy are too noisy for Muon's steps of fixed size.
            adam = replace(plan.optimisation, hidden_learning_rate=0.0)
            plan = replace(plan, optimisation=adam)
    else:
        plan = replace(plan, warm_start_subset=8)
    return replace(plan, objective=objective)


def controlled(target: Target, plan: Training) -> Posterior:
    """One posterior for all pairs of labels: one Gaussian per step where draws need a derivative,
    else a mixture of four.
    """
    form = Perceptron(components=4, labels=LABELS)
    if isinstance(plan.objective, PathwiseObjective):
        form = replace(form, components=1, learned_variance=not plan.objective.lean)
    torch.manual_seed(plan.seed)
    return target.fit(form=form, sources=Sources(conditions=any_pair), **vars(plan))


def two_controls(
    plan: Training | None = None,
    problem: TwoControls | None = None,
    offline: int = OFFLINE,
    draws: int = DRAWS,
    fit: Fit | None = None,
) -> tuple[Posterior, list[PairJudgement]]:
    """Learn both classifiers, train one posterior for all pairs of labels, and judge it.

    Arguments:
        plan: of the training; its seed is that of everything. Default ``controls_plan()``.
        problem: with its answer.
        offline: labelled samples for each classifier.
        draws: samples per pair of labels for the judgement.
        fit: of the classifiers; default ``Fit(seed=plan.seed)``.
    """
    plan = controls_plan() if plan is None else plan
    problem = TwoControls() if problem is None else problem
    posterior = controlled(offline_target(problem, plan.seed, offline, fit), plan)
    return posterior, [judge_pair(problem, posterior, pair, plan.seed, draws) for pair in PAIRS]


def judge_pair(
    problem: TwoControls,
    posterior: Posterior,
    pair: tuple[int, int],
    seed: int = 0,
    draws: int = DRAWS,
) -> PairJudgement:
    """Hold a posterior, given one pair of labels, against the truth."""
    truth = problem.truth(pair)
    assert truth.label_probabilities is not None and truth.label is not None
    labels = torch.tensor([pair])
    drawn = posterior.given(labels).draw(draws, seed + 17)
    assert drawn.log_w is not None
    zeros, cells = torch.zeros(8, dtype=torch.float64), truth.label(drawn.x_0)
    raw = zeros.index_add(0, cells, torch.ones(draws, dtype=torch.float64))
    weighted = zeros.index_add(0, cells, torch.softmax(drawn.log_w.double(), 0))
    points = problem.points.float()
    learned = posterior.target.score(points, labels.expand(len(points), 2)).double()
    exact = truth.label_probabilities
    return PairJudgement(
        pair,
        mode_total_variation(raw, exact),
        mode_total_variation(weighted, exact),
        mode_total_variation(problem.tilted_cells(learned), exact),
        float(drawn.log_w.double().mean()) - truth.log_z,
    )
