"""Guidance learned from labels, for the benches: a noisy classifier, and classifier-free guidance.

Both are given half of the budget's network calls as samples of the prior, which the black box
labels: wanted with chance ``r / M``. The other half goes into their training.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.forms import Form, FullCopy, Perceptron
from difftilt.guidance.classifier_free import ClassifierFreeKernel
from difftilt.guidance.learned import ClassifierGuidance
from difftilt.objectives.supervised import Supervised
from difftilt.posteriors import Posterior, Sources
from difftilt.recipes.tables.makers import Maker, Setting
from difftilt.training.loop import train
from difftilt.training.noisy_classifier import ClassifierFit, fit_noisy_classifier
from difftilt.training.plan import BehaviourWeights

WANTED, NULL = 1, 2
LABELS = 3
DROPPED = 0.2
BATCH = 256
PATHS = 32
MOST = 200_000


@dataclass(frozen=True)
class LabelledEnds:
    """Samples of the prior and how likely each is wanted.

    Arguments:
        x_0: (n, *event).
        chance: (n,) ``r / M``, M the reward's bound or, without one, the largest reward seen.
    """

    x_0: Tensor
    chance: Tensor


def labelled_ends(setting: Setting) -> LabelledEnds:
    """Prior samples for half of the budget, each scored once.

    Raises:
        InputError: the chain is of tokens, or no sample has a positive reward.
    """
    target = setting.target
    steps = target.prior.chain.gaussian.steps
    count = min(MOST, max(2, setting.calls // 2 // steps))
    drawn = Posterior(target, target.prior.chain).draw(count, setting.plan.seed + 70_001)
    assert drawn.log_r is not None
    highest = target.log_bound
    highest = float(drawn.log_r.max()) if highest is None else highest
    if highest == -math.inf:
        raise InputError(f"none of {count} prior samples is wanted; raise the network calls")
    return LabelledEnds(drawn.x_0, (drawn.log_r - highest).exp().clamp(max=1))


def classifier_guided(scale: float = 1.0) -> Maker:
    """A noisy classifier's slope times a scale; 1 is right for Bayes' classifier at β = 1."""

    def make(setting: Setting) -> Chain:
        ends, chain = labelled_ends(setting), setting.target.prior.chain
        updates = max(1, (setting.calls - setting.calls // 2) // BATCH)
        fit = ClassifierFit(updates, BATCH, seed=setting.plan.seed)
        classifier = fit_noisy_classifier(chain, ends.x_0, ends.chance, fit)
        return setting.target.guided(ClassifierGuidance(classifier, WANTED, scale)).chain

    return make


def classifier_free(scale: float = 1.0) -> Maker:
    """A class-conditional model of labelled prior samples, some of whose labels were dropped."""

    def make(setting: Setting) -> Chain:
        ends = labelled_ends(setting)
        generator = torch.Generator().manual_seed(setting.plan.seed)
        torch.manual_seed(setting.plan.seed)
        posterior = setting.target.posterior(_labelled(setting.form))
        sources = Sources(data=ends.x_0, data_conditions=drawn_labels(ends.chance, generator))
        plan = replace(
            setting.plan,
            objective=Supervised(),
            # A bridge of an end costs N calls, and many updates matter more than large ones.
            batch=min(PATHS, setting.plan.batch),
            warm_start=0.0,
            behaviour=BehaviourWeights(on_policy=0, pool=0, data=1),
            optimisation=replace(setting.plan.optimisation, balance_scale=1.0),
            network_calls=max(1, setting.calls - setting.calls // 2),
        )
        state = setting.target.state(posterior, plan, sources)
        for _ in train(state, None):
            pass
        state.use_average()
        assert posterior.chain.kernel is not None
        kernel = ClassifierFreeKernel(posterior.chain.kernel, WANTED, NULL, scale)
        return setting.target.prior.chain.tilted(kernel)

    return make


def drawn_labels(chance: Tensor, generator: torch.Generator) -> Tensor:
    """``WANTED`` with each sample's chance, else 0; a share ``DROPPED`` is ``NULL`` instead."""
    wanted = torch.rand(len(chance), generator=generator) < chance
    dropped = torch.rand(len(chance), generator=generator) < DROPPED
    return torch.where(dropped, NULL, wanted.long() * WANTED)


def _labelled(form: Form | None) -> Form:
    """The form with a label to read: one Gaussian of the prior's variance per step."""
    if isinstance(form, Perceptron):
        return replace(form, components=1, learned_variance=False, labels=(LABELS,))
    return FullCopy(labels=LABELS)
