"""The methods of the text-to-image table, on the shipped prior.

Every trained method gets the same low-rank adapters, prompts and number of network calls; methods
without training spend the calls on particles when they draw. None reads a truth.
"""

from collections.abc import Callable
from dataclasses import replace

from difftilt.chains import Chain
from difftilt.forms import LearnedGuidance, LoRA
from difftilt.objectives.base import Objective
from difftilt.objectives.negative_aware import NegativeAware
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO
from difftilt.recipes.fine_tuning import fine_tuning
from difftilt.recipes.makers import (
    Change,
    Maker,
    Setting,
    on_own_paths,
    populated,
    prior_alone,
    trained,
)
from difftilt.smc.methods import BestOfN, FKSteering, ImportanceResampling
from difftilt.text_to_image import TextToImage
from difftilt.training.plan import Optimisation, Replaying, Training, suited

FORM = LoRA(rank=16, targets="all")
POLICY_RATE = 3e-4
STRENGTH_RATE = 0.05
NETWORK_CALLS = 30_000
DEFAULTS = ("rtb", "rtb_guidance", "ddpo", "ddpo_kl", "dpok", "align_prop", "best_of_n", "prior")


def picture_plan(network_calls: int | None = None, seed: int = 0) -> Training:
    """The training that is recommended for RTB on the shipped prior.

    Arguments:
        network_calls: stop after this many states seen by a network; None: after 150 updates.
        seed: of the training.
    """
    return fine_tuning(
        Replaying(pool_capacity=1024, pool_fresh=16, pool_effective=0.02),
        rate=5e-4,
        steps=150,
        network_calls=network_calls,
        batch=32,
        paths_per_condition=8,
        warm_start=0.5,
        anchor=0.01,
        chunk=64,
        subset=4,
        warm_start_subset=4,
        seed=seed,
    )


def picture_setting(task: TextToImage, calls: int, draws: int, seed: int) -> Setting:
    """What the table gives every method on a task.

    Arguments:
        task: prompts, prior and reward.
        calls: network calls of a training, or of a population for all draws.
        draws: pictures that will be drawn, of all prompts together.
        seed: of the training.
    """
    plan = picture_plan(calls, seed)
    return Setting(task.target, FORM, plan, calls, draws, sources=task.sources)


def on_policy(objective: Objective, learning_rate: float = POLICY_RATE) -> Change:
    """The posterior's own paths, every step of them, and no warm start."""

    def change(plan: Training) -> Training:
        optimisation = replace(plan.optimisation, learning_rate=learning_rate, balance_scale=1.0)
        own = replace(on_own_paths(plan), anchor=0.0, subset=None)
        return replace(own, optimisation=optimisation, objective=objective)

    return change


def negative_aware(plan: Training) -> Training:
    """Noised ends of the prior, as of the published loss in its first round."""
    objective = NegativeAware()
    optimisation = replace(plan.optimisation, balance_scale=1.0)
    own = replace(plan, **{"warm_start": 0.0, **suited(objective)}, anchor=0.0)
    return replace(own, optimisation=optimisation, objective=objective)


def strengths_alone(plan: Training) -> Training:
    """Own paths, all of whose steps fit into one pass: only numbers of the steps have a graph."""
    optimisation = Optimisation(learning_rate=STRENGTH_RATE, decay_from=0.3, ema=0.9)
    own = replace(on_own_paths(plan), anchor=0.0, subset=None, chunk=plan.batch * 1000)
    return replace(own, optimisation=optimisation)


def trained_picture_methods() -> dict[str, Callable[[Setting], Chain]]:
    """Those that are trained, by name."""
    return {
        "rtb": trained(),
        "rtb_guidance": trained(strengths_alone, lambda form: LearnedGuidance()),
        "reward_weighted": trained(lambda plan: replace(plan, warm_start=1.0)),
        "ddpo": trained(on_policy(DDPO(0.2, updates=2))),
        "ddpo_kl": trained(on_policy(DDPO(0.2, kl=True, updates=2))),
        "dpok": trained(on_policy(DPOK())),
        "flow_grpo": trained(on_policy(FlowGRPO(updates=2))),
        "kl_control": trained(on_policy(KLControl())),
        "align_prop": trained(on_policy(AlignProp())),
        "draft": trained(on_policy(DRaFT(1))),
        "adjoint_matching": trained(on_policy(AdjointMatching())),
        "negative_aware": trained(negative_aware),
    }


def picture_methods() -> dict[str, Maker]:
    """The table's methods by name."""
    untrained: dict[str, Maker] = {
        "best_of_n": populated(lambda k, target: BestOfN(k)),
        "fk_steering": populated(lambda k, target: FKSteering(k, every=4)),
        "importance_resampling": populated(lambda k, target: ImportanceResampling(k)),
        "prior": prior_alone,
    }
    return {**trained_picture_methods(), **untrained}
