"""Methods on any prior that is a network, by name: a copy of it trained, guidance, particles.

Every trained method gets a full copy of the prior's network, or, where a learned ``log h`` is what
guides, a network for that; and all get the same number of network calls.
"""

from dataclasses import replace

from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.objectives.payoff import RGDM
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO
from difftilt.posteriors import Target
from difftilt.recipes.tables.makers import (
    Change,
    FormChange,
    Maker,
    guided,
    learned_strengths,
    on_own_paths,
    populated,
    prior_alone,
    trained,
    unchanged,
)
from difftilt.smc.methods import SVDD, TDS, BestOfN, FKSteering, ImportanceResampling
from difftilt.smc.population import Population
from difftilt.training.plan import Training, suited

PATHWISE_RATE = 3e-4


def _on_policy(objective: Objective, learning_rate: float = 1e-4) -> Change:
    """The posterior's own paths, every step of them, and no warm start."""

    def change(plan: Training) -> Training:
        optimisation = replace(plan.optimisation, learning_rate=learning_rate, balance_scale=1.0)
        return replace(
            on_own_paths(plan), subset=None, optimisation=optimisation, objective=objective
        )

    return change


def _pathwise(objective: Objective) -> Maker:
    """At the rate of RTB's own phase: these gradients are much less noisy than a policy's."""
    return trained(_on_policy(objective, PATHWISE_RATE))


def _by_itself(objective: Objective, form: FormChange = unchanged) -> Maker:
    """An objective of noised ends for the whole time, on the paths that it asks for."""

    def change(plan: Training) -> Training:
        optimisation = replace(plan.optimisation, balance_scale=1.0)
        found = {"behaviour": plan.behaviour, **suited(objective), "warm_start": 0.0}
        return replace(plan, optimisation=optimisation, objective=objective, **found)

    return trained(change, form)


def _twisted_diffusion(particles: int, target: Target) -> Population:
    return TDS(particles, DPS().kernel(target.prior.chain, target.log_reward))


def network_methods(value: FormChange) -> dict[str, Maker]:
    """Methods that train a copy of any prior's network, or a value that guides it, by name.

    Arguments:
        value: the form of a learned ``log h`` that suits the prior's states.
    """
    return {
        "rtb": trained(),
        "rtb_guidance": learned_strengths(DPS()),
        "reward_weighted": trained(lambda plan: replace(plan, warm_start=1.0)),
        "weighted_likelihood": trained(
            lambda plan: replace(plan, warm_start=1.0, warm_start_loss="likelihood")
        ),
        "ddpo": trained(_on_policy(DDPO(0.2, updates=2))),
        "ppo_kl": trained(_on_policy(DDPO(0.2, kl=True, updates=2))),
        "dpok": trained(_on_policy(DPOK())),
        "flow_grpo": trained(_on_policy(FlowGRPO(updates=2))),
        "kl_control": _pathwise(KLControl()),
        "adjoint_matching": _pathwise(AdjointMatching()),
        "align_prop": _pathwise(AlignProp()),
        "draft": _pathwise(DRaFT(1)),
        "cep": _by_itself(CEP(), value),
        "cep_paper": _by_itself(CEP("self_normalised", contrast=16), value),
        "rgdm": _by_itself(RGDM("value", candidates=4)),
        "rgdm_paper": _by_itself(RGDM("reward", candidates=4)),
        "advantage_weighted": trained(_on_policy(AdvantageWeighted(states="chain"))),
    }


def training_free_methods() -> dict[str, Maker]:
    """Guidance, and particles on the prior, by name."""
    return {
        "dps": guided(DPS()),
        "lgdmc": guided(LGDMC(4)),
        "fk_steering": populated(lambda k, target: FKSteering(k, every=4)),
        "tds": populated(_twisted_diffusion, calls_per_step=2),
        "svdd": populated(lambda k, target: SVDD(k)),
        "svdd_argmax": populated(lambda k, target: SVDD(k, argmax=True)),
        "best_of_n": populated(lambda k, target: BestOfN(k)),
        "importance_resampling": populated(lambda k, target: ImportanceResampling(k)),
        "importance": prior_alone,
    }
