"""Every method of the field on one problem: the table of the exact bench.

Trained methods share the network's size, the batch and the budget; what differs is the objective,
the kernel that it can train, and where its paths come from. None reads the truth.
"""

from dataclasses import dataclass, replace

from difftilt.errors import InputError
from difftilt.forms import Form, Perceptron, ValueGuided
from difftilt.guidance.pseudoinverse import PiGDM
from difftilt.guidance.reconstruction import DPS, LGDMC
from difftilt.objectives.base import Objective
from difftilt.objectives.contrastive import CEP
from difftilt.objectives.forward import AdvantageWeighted
from difftilt.objectives.negative_aware import NegativeAware
from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
from difftilt.objectives.payoff import RGDM, RewardWeighted
from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO, Reinforce
from difftilt.objectives.subtrajectory import (
    DetailedBalance,
    PathConsistency,
    SubTrajectoryBalance,
)
from difftilt.posteriors import Target
from difftilt.recipes.tables.label_guidance import classifier_free, classifier_guided
from difftilt.recipes.tables.makers import (
    ON_POLICY,
    Maker,
    Sampler,
    Setting,
    by_itself,
    corrected,
    guided,
    learned_strengths,
    on_own_paths,
    populated,
    prior_alone,
    trained,
    with_objective,
)
from difftilt.smc.methods import SVDD, TDS, BestOfN, FKSteering, ImportanceResampling
from difftilt.smc.population import Population
from difftilt.training.plan import RTB, BehaviourWeights, Optimisation


@dataclass(frozen=True)
class Method:
    """A way to make a sampler of a problem.

    Arguments:
        summary: one line.
        make: ``setting -> sampler``.
        consistent: whether it aims at the posterior itself.
        ablation: whether it is another method with one part taken away.
    """

    summary: str
    make: Maker
    consistent: bool = True
    ablation: bool = False


def _gaussian(form: Form | None) -> Form | None:
    """One Gaussian per step; what is no perceptron (of tokens) stays as it is."""
    return replace(form, components=1) if isinstance(form, Perceptron) else form


def _shifted(form: Form | None) -> Form | None:
    plain = _gaussian(form)
    return replace(plain, learned_variance=False) if isinstance(plain, Perceptron) else plain


def _value_guided(form: Form | None) -> ValueGuided:
    if not isinstance(form, Perceptron):
        return ValueGuided()
    return ValueGuided(width=form.width, depth=form.depth, frequencies=form.frequencies)


def _balanced(objective: Objective) -> Maker:
    return trained(with_objective(objective))


def _cold(behaviour: BehaviourWeights) -> Maker:
    return trained(lambda plan: replace(plan, warm_start=0.0, behaviour=behaviour))


def _pseudoinverse(setting: Setting) -> Sampler:
    if setting.likelihood is None:
        name = setting.target.prior.source
        raise InputError(f"pigdm needs a Gaussian likelihood, which {name} has not")
    return guided(PiGDM(setting.likelihood))(setting)


def _twisted_diffusion(particles: int, target: Target) -> Population:
    return TDS(particles, DPS(0.5).kernel(target.prior.chain, target.log_reward))


def _ablations() -> dict[str, Method]:
    found = {
        "rtb_learned_variance": (
            "the same with one Gaussian, its variance learned",
            trained(form=_gaussian),
        ),
        "rtb_prior_variance": (
            "the same with one Gaussian of the prior's variance",
            trained(form=_shifted),
        ),
        "rtb_no_warm_start": (
            "the recipe without the weighted-likelihood warm start",
            trained(lambda plan: replace(plan, warm_start=0.0)),
        ),
        "rtb_no_pool": (
            "warm start, then on-policy paths alone",
            trained(lambda plan: replace(plan, behaviour=ON_POLICY)),
        ),
        "rtb_prior_paths": (
            "no warm start; half of the paths are the prior's",
            _cold(replace(ON_POLICY, on_policy=0.5, prior=0.5)),
        ),
        "rtb_on_policy": ("on-policy paths alone, no warm start", trained(on_own_paths)),
        "rtb_adam": (
            "the recipe with Adam for every parameter",
            trained(lambda plan: replace(plan, optimisation=Optimisation())),
        ),
        "rtb_learned_log_z": (
            "the recipe with a learned log Z",
            _balanced(RTB("learned", 4.0)),
        ),
    }
    return {name: Method(text, make, ablation=True) for name, (text, make) in found.items()}


def _trained_methods() -> dict[str, Method]:
    return {
        "rtb": Method(
            "RTB: mixtures and a pooled warm start; in many dimensions Gaussians, own paths",
            trained(),
        ),
        "rtb_gaussian": Method(
            "RTB on its own paths, one Gaussian per step (targets of one mode)",
            trained(on_own_paths, _gaussian),
        ),
        "rtb_guidance": Method(
            "RTB on its own paths of the strengths of DPS alone, one number per step",
            learned_strengths(DPS(), 0.1),
        ),
        "rtb_smc": Method(
            "RTB's posterior moves 16 particles, twisted by rewards of clean predictions",
            corrected(TDS(16), trained()),
        ),
        "weighted_likelihood": Method(
            "the warm start's objective for the whole time",
            trained(lambda plan: replace(plan, warm_start=1.0)),
        ),
        "detailed_balance": Method(
            "RTB's recipe with the balance of single steps", _balanced(DetailedBalance(4.0))
        ),
        "sub_trajectory_balance": Method(
            "RTB's recipe with every piece of a path", _balanced(SubTrajectoryBalance(0.9, 4.0))
        ),
        "path_consistency": Method(
            "RTB's recipe with windows of 5 steps (PCL)", _balanced(PathConsistency(5))
        ),
        "reinforce": Method(
            "KL-regularised REINFORCE, on-policy", by_itself(Reinforce(), _gaussian)
        ),
        "ppo_kl": Method(
            "PPO's clipped ratio with KL in the cost",
            by_itself(DDPO(0.2, kl=True, updates=2), _gaussian),
        ),
        "ddpo": Method(
            "DDPO: the reward alone, with PPO's clipped ratio",
            by_itself(DDPO(0.2, updates=2), _gaussian),
            consistent=False,
        ),
        "dpok": Method(
            "DPOK: reward and each step's KL at the visited states",
            by_itself(DPOK(), _gaussian),
            consistent=False,
        ),
        "flow_grpo": Method(
            "Flow-GRPO: PPO's ratio, advantages in units of their deviation, each step's KL",
            by_itself(FlowGRPO(updates=2), _gaussian),
            consistent=False,
        ),
    }


def _end_methods() -> dict[str, Method]:
    return {
        "cep": Method("CEP: guidance by a learned log h", by_itself(CEP(), _value_guided)),
        "cep_paper": Method(
            "CEP with the paper's self-normalised labels, K = 16",
            by_itself(CEP("self_normalised", contrast=16), _value_guided),
            False,
        ),
        "reward_weighted": Method(
            "reward-weighted likelihood of noised ends (RWR, RAML)",
            by_itself(RewardWeighted()),
        ),
        "rgdm_paper": Method(
            "RGDM, paper-like: a pay-off at the noisy state within a radius",
            by_itself(RGDM("reward"), _shifted),
            False,
        ),
        "rgdm": Method(
            "RGDM, consistent: landings weighted by a learned log h",
            by_itself(RGDM("value")),
        ),
        "advantage_weighted": Method(
            "advantage-weighted matching of own paths",
            by_itself(AdvantageWeighted(states="chain"), _gaussian),
            False,
        ),
        "negative_aware": Method(
            "negative-aware tuning of noised prior ends (DiffusionNFT's first round)",
            by_itself(NegativeAware(), _shifted),
            False,
        ),
    }


def _pathwise_methods() -> dict[str, Method]:
    return {
        "kl_control": Method(
            "KL control by back-propagation (CTRL)", by_itself(KLControl(), _gaussian)
        ),
        "kl_control_path": Method(
            "KL control without the score, whose noise stays at the optimum",
            by_itself(KLControl(path_derivative=True), _gaussian),
        ),
        "align_prop": Method(
            "AlignProp: the reward alone, randomly truncated",
            by_itself(AlignProp(), _shifted),
            False,
        ),
        "draft": Method(
            "DRaFT-1: the reward alone, the last step's gradient",
            by_itself(DRaFT(1), _shifted),
            False,
        ),
        "adjoint_matching": Method(
            "adjoint matching, the prior's variance", by_itself(AdjointMatching(), _shifted)
        ),
    }


def _label_methods() -> dict[str, Method]:
    return {
        "classifier_guidance": Method(
            "guidance by a noisy classifier of labelled prior samples",
            classifier_guided(),
        ),
        "cfg": Method(
            "a class-conditional model of labelled prior samples, w = 1", classifier_free(1.0)
        ),
        "cfg_2": Method(
            "classifier-free guidance: the same, extrapolated with w = 2",
            classifier_free(2.0),
            consistent=False,
        ),
    }


def _training_free_methods() -> dict[str, Method]:
    return {
        "dps": Method("DPS: the reward's slope at the clean prediction", guided(DPS()), False),
        "lgdmc": Method("LGD-MC: 16 draws around the clean prediction", guided(LGDMC(16)), False),
        "pigdm": Method(
            "ΠGDM: pseudoinverse guidance (Gaussian likelihoods)", _pseudoinverse, False
        ),
        "importance": Method("no training: prior paths and importance weights", prior_alone),
        "importance_resampling": Method(
            "one of K prior paths, by weight", populated(lambda k, target: ImportanceResampling(k))
        ),
        "best_of_n": Method(
            "the best of K prior paths", populated(lambda k, target: BestOfN(k)), False
        ),
        "fk_steering": Method(
            "FK steering: K particles twisted by rewards of clean predictions",
            populated(lambda k, target: FKSteering(k)),
        ),
        "tds": Method(
            "TDS: the same around DPS's drift", populated(_twisted_diffusion, calls_per_step=2)
        ),
        "svdd": Method(
            "SVDD: one of K candidates per step, by value", populated(lambda k, target: SVDD(k))
        ),
        "svdd_argmax": Method(
            "SVDD as published: the best candidate per step",
            populated(lambda k, target: SVDD(k, argmax=True)),
            False,
        ),
    }


def methods() -> dict[str, Method]:
    """Every method of the bench by name; ablations of the recipe last."""
    trained = _trained_methods() | _end_methods() | _pathwise_methods() | _label_methods()
    return trained | _training_free_methods() | _ablations()


def default_methods() -> list[str]:
    """Those that a bench runs if none is named."""
    return [name for name, method in methods().items() if not method.ablation]
