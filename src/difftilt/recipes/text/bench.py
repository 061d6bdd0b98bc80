"""The text table: samplers of missing sentences beside each other on held-out stories.

Every trained method gets a full copy of the prior's network, which starts as the prior's own with
the ending shown to it, and the same number of network calls. Scores are of the first draws, none
chosen, and their intervals are over stories.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from difftilt.diffusions.masked import GENERATED, completed
from difftilt.errors import InputError
from difftilt.objectives.base import Objective
from difftilt.objectives.ddpp import DDPP
from difftilt.objectives.group_policy import GroupPolicyGradient
from difftilt.objectives.policy import Reinforce
from difftilt.objectives.supervised import Supervised
from difftilt.objectives.wake import Wake
from difftilt.posteriors import Posterior, Sources
from difftilt.recipes.base import Job
from difftilt.recipes.tables.cells import Cell, Cells, cells_of
from difftilt.recipes.tables.pairs import BY_STORY, story_means
from difftilt.recipes.text.infill import Infill, prompted, residual_spread
from difftilt.recipes.text.sets import DataName
from difftilt.recipes.text.similarity import story_similarity
from difftilt.sampling.draws import Samples
from difftilt.smc.methods import SVDD, FKSteering
from difftilt.smc.population import Population
from difftilt.tasks import text_metrics
from difftilt.training.loop import train
from difftilt.training.plan import BehaviourWeights, Training

ROUNDS = 5
AMONG = 8
MOST_AMONG = 512
DATA = 2048


@dataclass(frozen=True)
class TextTask:
    """What a method gets.

    Arguments:
        recipe: the infilling recipe.
        job: prior, target, held-out contexts.
        calls: network calls of a training.
        seed: of all that is drawn.
    """

    recipe: Infill
    job: Job
    calls: int
    seed: int


Draw = Callable[[TextTask], tuple[Samples, Posterior | None]]


@dataclass(frozen=True)
class TextMethod:
    """A way to fill in sentences.

    Arguments:
        summary: one line.
        draw: ``ROUNDS`` samples of every held-out context, the contexts in turn, and the sampler
            where it is a chain.
        among: how many draws each sample is the best of, or particles it is one of.
    """

    summary: str
    draw: Draw
    among: Callable[[TextTask], int] = lambda task: 1


def _samples(task: TextTask, posterior: Posterior, rounds: int = ROUNDS) -> Samples:
    assert task.job.contexts is not None
    return task.job.draw(posterior, rounds * len(task.job.contexts), task.seed + 1)


def _prior(task: TextTask) -> Posterior:
    return replace(task.job.posterior, chain=task.job.target.prior.chain)


def _prompted(task: TextTask) -> Posterior:
    return prompted(task.job)


def _untrained(start: Callable[[TextTask], Posterior]) -> Draw:
    def draw(task: TextTask) -> tuple[Samples, Posterior]:
        sampler = start(task)
        return _samples(task, sampler), sampler

    return draw


def _best_of(
    summary: str,
    start: Callable[[TextTask], Posterior],
    among: Callable[[TextTask], int] = lambda task: AMONG,
) -> TextMethod:
    """The most rewarded of several draws."""

    def draw(task: TextTask) -> tuple[Samples, None]:
        assert task.job.contexts is not None
        contexts, several = len(task.job.contexts), among(task)
        drawn = _samples(task, start(task), ROUNDS * several)
        assert drawn.log_r is not None
        shape = (ROUNDS, several, contexts)
        best = drawn.log_r.unflatten(0, shape).argmax(1)
        rows = torch.arange(ROUNDS * several * contexts).unflatten(0, shape)
        chosen = rows.gather(1, best[:, None])[:, 0].flatten()
        return Samples(drawn.x_0[chosen], drawn.log_r[chosen]), None

    return TextMethod(summary, draw, among)


def _populated(summary: str, method: Population) -> TextMethod:
    """One draw of each of as many systems of particles of the prior."""

    def draw(task: TextTask) -> tuple[Samples, None]:
        assert task.job.contexts is not None
        count = ROUNDS * len(task.job.contexts)
        condition = task.job.context_of(count)
        assert condition is not None
        return task.job.target.population(method).given(condition).draw(count, task.seed + 1), None

    return TextMethod(summary, draw, lambda task: method.size)


def equal_calls(task: TextTask) -> int:
    """How many draws a sample may be the best of, for as many network calls as a training has.

    A training serves every context there is. Here its calls are spread over the ``ROUNDS`` samples
    of the held-out contexts alone; a draw costs a call for each token. At most ``MOST_AMONG``, so
    that all draws fit into memory.
    """
    assert task.job.contexts is not None
    per_round = int((task.job.contexts[:, 1] == GENERATED).sum())
    return max(1, min(MOST_AMONG, task.calls // (ROUNDS * per_round)))


def _trained(change: Callable[[TextTask, Training], Training], data: bool = False) -> Draw:
    """The recipe's training with a change, as many network calls long as the others."""

    def draw(task: TextTask) -> tuple[Samples, Posterior]:
        torch.manual_seed(task.seed)
        plan = replace(task.recipe.training, network_calls=task.calls, seed=task.seed)
        form = task.recipe.form.build()
        posterior = task.job.target.posterior(form)
        sources = _data(task) if data else task.job.sources
        state = task.job.target.state(posterior, change(task, plan), sources)
        for _ in train(state, None):
            pass
        state.use_average()
        return _samples(task, posterior), posterior

    return draw


def _data(task: TextTask) -> Sources:
    """Stories with their true middle, of the law that contexts are trained on."""
    generator = torch.Generator().manual_seed(task.seed)
    drawn = task.recipe.texts.drawn(DATA, generator)
    return Sources(data=drawn[:, 0], data_conditions=drawn)


def _on_policy(objective: Objective) -> Draw:
    behaviour = BehaviourWeights(on_policy=1.0, pool=0.0)
    return _trained(lambda task, plan: replace(plan, objective=objective, behaviour=behaviour))


def _supervised(task: TextTask, plan: Training) -> Training:
    behaviour = BehaviourWeights(on_policy=0.0, pool=0.0, data=1.0)
    return replace(plan, objective=Supervised(), behaviour=behaviour)


def text_methods() -> dict[str, TextMethod]:
    """The text table's methods by name."""
    return {
        "prior": TextMethod("the prior, shown x", _untrained(_prior)),
        "prompted": TextMethod("the prior's network, shown x and y", _untrained(_prompted)),
        "best_of_8": _best_of("the best of 8 of the prior", _prior),
        "prompted_best_of_8": _best_of("the best of 8 of the prompted", _prompted),
        "best_of_equal_calls": _best_of(
            "the best of as many of the prior as a training's calls pay for", _prior, equal_calls
        ),
        "prompted_best_of_equal_calls": _best_of(
            "the best of as many of the prompted", _prompted, equal_calls
        ),
        "fk_steering": _populated("FK steering, 8 particles of the prior", FKSteering(AMONG)),
        "svdd": _populated("SVDD, one of 8 candidates per token, by value", SVDD(AMONG)),
        "rtb": TextMethod("RTB, log-variance form", _trained(lambda task, plan: plan)),
        "wake": TextMethod("weighted likelihood of own ends", _on_policy(Wake())),
        "reinforce": TextMethod("KL-regularised REINFORCE", _on_policy(Reinforce())),
        "mean_field": TextMethod(
            "group policy gradient with one-call likelihoods", _on_policy(GroupPolicyGradient())
        ),
        "ddpp": TextMethod("DDPP-LB, one-call likelihoods", _on_policy(DDPP(6.0))),
        "supervised": TextMethod(
            "fine-tuned on true middles: what data would give", _trained(_supervised, data=True)
        ),
    }


@dataclass(frozen=True)
class TextBench:
    """What the text table runs.

    Arguments:
        data: which set.
        methods: by name.
        seeds: of the trainings.
        calls: network calls of each training.
        contexts: held-out pairs (x, y).

    Raises:
        InputError: an unknown method.
    """

    data: DataName
    methods: list[str]
    seeds: list[int]
    calls: int
    contexts: int

    def __post_init__(self) -> None:
        known = text_methods()
        for name in self.methods:
            if name not in known:
                raise InputError(f"unknown method {name!r}; choose one of {', '.join(known)}")

    def cells(self) -> Cells:
        """One per method and seed."""
        names = cells_of(problem=[self.data], method=self.methods, seed=self.seeds)
        return Cells(names, {"calls": self.calls, "contexts": self.contexts}, self._rows_of)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per method and seed."""
        return self.cells().rows()

    def _rows_of(self, cell: Cell) -> list[dict[str, Any]]:
        recipe = Infill(data=self.data, contexts=self.contexts)
        return [text_row(TextTask(recipe, recipe.job(), self.calls, cell["seed"]), cell["method"])]


def text_row(task: TextTask, method: str) -> dict[str, Any]:
    """Make one sampler and score it."""
    chain, start = task.job.target.prior.chain, time.perf_counter()
    drawn, sampler = text_methods()[method].draw(task)
    seconds, spent = time.perf_counter() - start, chain.calls.total
    residual = None
    if sampler is not None and sampler.chain.kernel is not None:
        residual = residual_spread(task.job, sampler, task.seed + 2)
    return {
        "problem": task.recipe.data,
        "method": method,
        "seed": task.seed,
        **_scores(task, drawn),
        "residual": residual,
        "ess": None if drawn.log_w is None else _ess_by_context(task, drawn.log_w),
        "among": text_methods()[method].among(task),
        "network_calls": spent,
        "seconds": seconds,
    }


def _scores(task: TextTask, drawn: Samples) -> dict[str, Any]:
    texts, condition = task.recipe.texts, task.job.context_of(len(drawn.x_0))
    assert condition is not None and drawn.log_r is not None and task.job.contexts is not None
    contexts = len(task.job.contexts)
    ids = completed(drawn.x_0, condition)
    table = [[texts.middle(row) for row in ids[c::contexts]] for c in range(contexts)]
    written = [texts.middle(row) for row in task.job.contexts[:, 0]]
    found = {
        "log_r": drawn.log_r.double().unflatten(0, (ROUNDS, contexts)).T,
        "bleu": text_metrics.bleu(table, written),
        "gleu": text_metrics.gleu(table, written),
        "similarity": story_similarity(texts.model.network, ids, task.job.contexts),
    }
    scores: dict[str, Any] = {}
    for name, each in found.items():
        summary = text_metrics.protocol(each)
        scores |= {name: summary.mean, f"{name}_low": summary.low, f"{name}_high": summary.high}
    return {
        **scores,
        BY_STORY: story_means(found),
        "distinct": float(text_metrics.distinct(table, 2).mean()),
        **texts.shares(ids),
    }


def _ess_by_context(task: TextTask, log_w: Tensor) -> float:
    """Mean effective sample size, a share, of the draws of a context."""
    assert task.job.contexts is not None
    weights = torch.softmax(log_w.unflatten(0, (-1, len(task.job.contexts))).double(), 0)
    return float((1 / (weights**2).sum(0)).mean() / len(weights))
