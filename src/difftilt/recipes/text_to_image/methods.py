"""The methods of the text-to-image table, on the shipped prior.

Every trained method gets the same low-rank adapters, prompts and number of network calls, but two
that learn how far to go along directions that are there, one number per step: the pipeline's own
guidance (``rtb_guidance``), and beside it the reward's gradient (``rtb_slope``). Methods without
training spend the calls on particles when they draw. None reads a truth.
"""

from collections.abc import Callable
from dataclasses import replace

from difftilt.chains.chain import Chain
from difftilt.forms import LearnedGuidance, LoRA
from difftilt.guidance.reconstruction import DPS
from difftilt.objectives.base import Objective
from difftilt.objectives.negative_aware import NegativeAware
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO
from difftilt.recipes.tables.makers import (
    ON_POLICY,
    STRENGTH_RATE,
    Change,
    Maker,
    Setting,
    populated,
    prior_alone,
    trained,
)
from difftilt.smc.methods import BestOfN, FKSteering, ImportanceResampling
from difftilt.text_to_image import TextToImage
from difftilt.training.plan import RTB, Optimisation, Replaying, Training, suited

FORM = LoRA(rank=16, targets="all")
RTB_RATE = 1.5e-4
POLICY_RATE = 3e-4
DENOISING_RATE = 5e-4
GUIDANCE_AND_SLOPE = LearnedGuidance(LearnedGuidance(), along=DPS())
NETWORK_CALLS = 30_000
# What is drawn from RTB's samplers and the prior, which is the posterior of β = 0.
RTB_FAMILY = ("rtb", "rtb_guidance", "rtb_slope", "prior")
DEFAULTS = (
    "rtb",
    "rtb_guidance",
    "rtb_slope",
    "ddpo",
    "ddpo_kl",
    "dpok",
    "align_prop",
    "best_of_n",
    "prior",
)


def picture_plan(network_calls: int | None = None, seed: int = 0) -> Training:
    """The training that is recommended for RTB on the shipped prior: own paths, every step.

    A warm start by denoising, which larger networks need, took it further away here
    (``docs/log.md``).

    Arguments:
        network_calls: stop after this many states seen by a network; None: after 150 updates.
        seed: of the training.
    """
    return Training(
        steps=150,
        network_calls=network_calls,
        batch=32,
        paths_per_condition=8,
        warm_start=0.0,
        chunk=64,
        objective=RTB(log_z="batch"),
        behaviour=ON_POLICY,
        optimisation=Optimisation(learning_rate=RTB_RATE, decay_from=0.5, ema=0.98),
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
    """Another objective on the posterior's own paths."""

    def change(plan: Training) -> Training:
        optimisation = replace(plan.optimisation, learning_rate=learning_rate)
        return replace(plan, optimisation=optimisation, objective=objective)

    return change


def denoising(plan: Training) -> Training:
    """Ends of the prior, resampled by their reward, are denoised; steps are held to the prior."""
    return replace(
        plan,
        warm_start=1.0,
        warm_start_loss="denoising",
        warm_start_subset=4,
        anchor=0.01,
        replaying=Replaying(pool_capacity=1024, pool_fresh=16, pool_effective=0.02),
        optimisation=replace(plan.optimisation, learning_rate=DENOISING_RATE),
    )


def negative_aware(plan: Training) -> Training:
    """Noised ends of the prior, as of the published loss in its first round."""
    objective = NegativeAware()
    optimisation = replace(plan.optimisation, learning_rate=DENOISING_RATE)
    return replace(plan, **suited(objective), optimisation=optimisation, objective=objective)


def strengths_alone(plan: Training) -> Training:
    """All steps fit into one pass: only numbers of the steps have a graph."""
    optimisation = Optimisation(learning_rate=STRENGTH_RATE, decay_from=0.3, ema=0.9)
    return replace(plan, chunk=plan.batch * 1000, optimisation=optimisation)


def trained_picture_methods() -> dict[str, Callable[[Setting], Chain]]:
    """Those that are trained, by name."""
    return {
        "rtb": trained(),
        "rtb_guidance": trained(strengths_alone, lambda form: LearnedGuidance()),
        "rtb_slope": trained(strengths_alone, lambda form: GUIDANCE_AND_SLOPE),
        "reward_weighted": trained(denoising),
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
