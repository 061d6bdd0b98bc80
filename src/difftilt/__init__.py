"""Samplers of the posterior ``p(x) r(x)^β`` under a pre-trained diffusion prior ``p``.

    prior = difftilt.load("folder-of-a-diffusers-pipeline", steps=50)
    target = prior.tilt(log_reward, beta=1.0)
    posterior = target.fit(difftilt.RTB(), steps=500, out="runs/mine")
    images = posterior.sample(64)
    print(posterior.certify(4096))

Everything is a chain with known kernels: see ``difftilt.chains.chain``.

The names below are imported when they are first asked for, so that ``import difftilt`` and
``difftilt --help`` do not wait for torch.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
    from difftilt.adapters.foreign_policies import foreign_policy, load_tensors
    from difftilt.adapters.image_rewards import (
        image_reward,
    )
    from difftilt.adapters.molecules import (
        AtomDenoiser,
        load_edm,
        molecule_chain,
    )
    from difftilt.adapters.point_clouds import (
        PointCloudModel,
        load_point_clouds,
    )
    from difftilt.adapters.pointwise import (
        pointwise_chain,
    )
    from difftilt.adapters.policies import DiffusionPolicy, new_policy
    from difftilt.adapters.policy_config import PolicyConfig
    from difftilt.adapters.text.base import TextModel, load_text_model
    from difftilt.adapters.text.export import export_text_model
    from difftilt.adapters.text.readers import load_reader
    from difftilt.adapters.text_rewards import ReadingReward, SimilarityReward, TextClassifierReward
    from difftilt.chains.chain import Chain, Path
    from difftilt.chains.rollouts import bridge, rollout
    from difftilt.chains.scoring import backward, log_ratio
    from difftilt.diagnostics.calibration import Calibration, calibration
    from difftilt.diagnostics.certificate import Certificate
    from difftilt.diagnostics.conditional import ConditionalCertificate
    from difftilt.diffusions.masked import MaskedDiffusion, canvas, completed
    from difftilt.diffusions.orders import (
        AnyOrder,
        Blocks,
        LeastEntropy,
        LeftToRight,
        Parallel,
        Stepwise,
    )
    from difftilt.diffusions.remasking import Remasking
    from difftilt.diffusions.uniform import UniformDiffusion
    from difftilt.errors import (
        CheckpointError,
        DifftiltError,
        InputError,
        MissingPackage,
        RewardError,
        TrainingError,
    )
    from difftilt.forms import DriftNet, FullCopy, LearnedGuidance, LoRA, Perceptron, ValueGuided
    from difftilt.guidance.base import Guidance
    from difftilt.guidance.classifier_free import ClassifierFreeGuidance, ClassifierFreeKernel
    from difftilt.guidance.learned import ClassifierGuidance, OracleGuidance, ValueGuidance
    from difftilt.guidance.pseudoinverse import PiGDM
    from difftilt.guidance.reconstruction import DPS, LGDMC
    from difftilt.infilling import Completion, Infilling, InfillingPosterior
    from difftilt.loading import (
        load,
    )
    from difftilt.marginals import marginal_log_prob, terminal_residual
    from difftilt.objectives.contrastive import CEP
    from difftilt.objectives.ddpp import DDPP
    from difftilt.objectives.forward import AdvantageWeighted
    from difftilt.objectives.group_policy import GroupPolicyGradient
    from difftilt.objectives.negative_aware import NegativeAware
    from difftilt.objectives.pathwise import AdjointMatching, AlignProp, DRaFT, KLControl
    from difftilt.objectives.payoff import RGDM, RewardWeighted
    from difftilt.objectives.policy import DDPO, DPOK, FlowGRPO, Reinforce
    from difftilt.objectives.subtrajectory import (
        DetailedBalance,
        PathConsistency,
        SubTrajectoryBalance,
    )
    from difftilt.objectives.supervised import Supervised
    from difftilt.objectives.wake import Wake
    from difftilt.posteriors import (
        Posterior,
        Prior,
        Sources,
        Target,
        latent,
    )
    from difftilt.rewards.controls import ControlReward
    from difftilt.rewards.isolation import isolated
    from difftilt.rewards.wrappers import (
        Bounded,
        ClassifierReward,
        Floored,
        GaussianLikelihood,
        Summed,
        Tempered,
    )
    from difftilt.sampling.populations import PopulationSampler
    from difftilt.schedules import RectifiedFlow, VarianceExploding, VariancePreserving
    from difftilt.smc.methods import (
        SVDD,
        TDS,
        BestOfN,
        FKSteering,
        ImportanceResampling,
        ValueTwisted,
    )
    from difftilt.smc.population import Population
    from difftilt.text.rewards import StringReward, TextReward
    from difftilt.text_priors import TextPrior, text_prior
    from difftilt.text_to_image import (
        TextToImage,
        TextToImagePopulation,
        TextToImagePosterior,
        TextToImagePrior,
    )
    from difftilt.token_denoisers import TokenDenoiser, TokenNetwork
    from difftilt.training.noisy_classifier import (
        ClassifierFit,
        NoisyClassifier,
        fit_noisy_classifier,
    )
    from difftilt.training.plan import (
        RTB,
        Alarm,
        BehaviourWeights,
        Optimisation,
        Replaying,
        Training,
    )
    from difftilt.values.functions import Value, VectorValue

__version__ = "0.1.0.dev0"

__all__ = [
    "AdjointMatching",
    "AdvantageWeighted",
    "Alarm",
    "AlignProp",
    "AnyOrder",
    "AtomDenoiser",
    "BehaviourWeights",
    "BestOfN",
    "Blocks",
    "Bounded",
    "CEP",
    "Calibration",
    "Certificate",
    "Chain",
    "CheckpointError",
    "ClassifierFit",
    "ClassifierFreeGuidance",
    "ClassifierFreeKernel",
    "ClassifierGuidance",
    "ClassifierReward",
    "Completion",
    "ConditionalCertificate",
    "ControlReward",
    "DDPO",
    "DDPP",
    "DPOK",
    "DPS",
    "DRaFT",
    "DetailedBalance",
    "DifftiltError",
    "DiffusionPolicy",
    "DriftNet",
    "FKSteering",
    "Floored",
    "FlowGRPO",
    "FullCopy",
    "GaussianLikelihood",
    "GroupPolicyGradient",
    "Guidance",
    "ImportanceResampling",
    "Infilling",
    "InfillingPosterior",
    "InputError",
    "KLControl",
    "LGDMC",
    "LearnedGuidance",
    "LeastEntropy",
    "LeftToRight",
    "LoRA",
    "MaskedDiffusion",
    "MissingPackage",
    "NegativeAware",
    "NoisyClassifier",
    "Optimisation",
    "OracleGuidance",
    "Parallel",
    "Path",
    "PathConsistency",
    "Perceptron",
    "PiGDM",
    "PointCloudModel",
    "PolicyConfig",
    "Population",
    "PopulationSampler",
    "Posterior",
    "Prior",
    "RGDM",
    "RTB",
    "ReadingReward",
    "RectifiedFlow",
    "Reinforce",
    "Remasking",
    "Replaying",
    "RewardError",
    "RewardWeighted",
    "SVDD",
    "SimilarityReward",
    "Sources",
    "Stepwise",
    "StringReward",
    "SubTrajectoryBalance",
    "Summed",
    "Supervised",
    "TDS",
    "Target",
    "Tempered",
    "TextClassifierReward",
    "TextModel",
    "TextPrior",
    "TextReward",
    "TextToImage",
    "TextToImagePopulation",
    "TextToImagePosterior",
    "TextToImagePrior",
    "TokenDenoiser",
    "TokenNetwork",
    "Training",
    "TrainingError",
    "UniformDiffusion",
    "Value",
    "ValueGuidance",
    "ValueGuided",
    "ValueTwisted",
    "VarianceExploding",
    "VariancePreserving",
    "VectorValue",
    "Wake",
    "backward",
    "bridge",
    "calibration",
    "canvas",
    "completed",
    "export_text_model",
    "fit_noisy_classifier",
    "foreign_policy",
    "image_reward",
    "isolated",
    "latent",
    "load",
    "load_edm",
    "load_point_clouds",
    "load_reader",
    "load_tensors",
    "load_text_model",
    "log_ratio",
    "marginal_log_prob",
    "molecule_chain",
    "new_policy",
    "pointwise_chain",
    "rollout",
    "terminal_residual",
    "text_prior",
]

# Where each name lives: the imports above, for ``__getattr__``.
_HOMES = {
    "difftilt.adapters.foreign_policies": ("foreign_policy", "load_tensors"),
    "difftilt.adapters.image_rewards": ("image_reward",),
    "difftilt.adapters.molecules": (
        "AtomDenoiser",
        "load_edm",
        "molecule_chain",
    ),
    "difftilt.adapters.point_clouds": (
        "PointCloudModel",
        "load_point_clouds",
    ),
    "difftilt.adapters.pointwise": ("pointwise_chain",),
    "difftilt.adapters.policies": (
        "DiffusionPolicy",
        "new_policy",
    ),
    "difftilt.adapters.policy_config": ("PolicyConfig",),
    "difftilt.adapters.text.base": (
        "TextModel",
        "load_text_model",
    ),
    "difftilt.adapters.text.export": ("export_text_model",),
    "difftilt.adapters.text.readers": ("load_reader",),
    "difftilt.adapters.text_rewards": (
        "ReadingReward",
        "SimilarityReward",
        "TextClassifierReward",
    ),
    "difftilt.chains.chain": (
        "Chain",
        "Path",
    ),
    "difftilt.rewards.controls": ("ControlReward",),
    "difftilt.diagnostics.calibration": (
        "Calibration",
        "calibration",
    ),
    "difftilt.diagnostics.certificate": ("Certificate",),
    "difftilt.diagnostics.conditional": ("ConditionalCertificate",),
    "difftilt.diffusions.masked": (
        "MaskedDiffusion",
        "canvas",
        "completed",
    ),
    "difftilt.diffusions.orders": (
        "AnyOrder",
        "Blocks",
        "LeastEntropy",
        "LeftToRight",
        "Parallel",
        "Stepwise",
    ),
    "difftilt.diffusions.remasking": ("Remasking",),
    "difftilt.diffusions.uniform": ("UniformDiffusion",),
    "difftilt.errors": (
        "CheckpointError",
        "DifftiltError",
        "InputError",
        "MissingPackage",
        "RewardError",
        "TrainingError",
    ),
    "difftilt.forms": (
        "DriftNet",
        "FullCopy",
        "LearnedGuidance",
        "LoRA",
        "Perceptron",
        "ValueGuided",
    ),
    "difftilt.guidance.base": ("Guidance",),
    "difftilt.guidance.classifier_free": (
        "ClassifierFreeGuidance",
        "ClassifierFreeKernel",
    ),
    "difftilt.guidance.learned": (
        "ClassifierGuidance",
        "OracleGuidance",
        "ValueGuidance",
    ),
    "difftilt.guidance.pseudoinverse": ("PiGDM",),
    "difftilt.guidance.reconstruction": (
        "DPS",
        "LGDMC",
    ),
    "difftilt.infilling": (
        "Completion",
        "Infilling",
        "InfillingPosterior",
    ),
    "difftilt.rewards.isolation": ("isolated",),
    "difftilt.loading": ("load",),
    "difftilt.marginals": (
        "marginal_log_prob",
        "terminal_residual",
    ),
    "difftilt.objectives.contrastive": ("CEP",),
    "difftilt.objectives.ddpp": ("DDPP",),
    "difftilt.objectives.forward": ("AdvantageWeighted",),
    "difftilt.objectives.group_policy": ("GroupPolicyGradient",),
    "difftilt.objectives.negative_aware": ("NegativeAware",),
    "difftilt.objectives.pathwise": (
        "AdjointMatching",
        "AlignProp",
        "DRaFT",
        "KLControl",
    ),
    "difftilt.objectives.payoff": (
        "RGDM",
        "RewardWeighted",
    ),
    "difftilt.objectives.policy": (
        "DDPO",
        "DPOK",
        "FlowGRPO",
        "Reinforce",
    ),
    "difftilt.objectives.subtrajectory": (
        "DetailedBalance",
        "PathConsistency",
        "SubTrajectoryBalance",
    ),
    "difftilt.objectives.supervised": ("Supervised",),
    "difftilt.objectives.wake": ("Wake",),
    "difftilt.sampling.populations": ("PopulationSampler",),
    "difftilt.posteriors": (
        "Posterior",
        "Prior",
        "Sources",
        "Target",
        "latent",
    ),
    "difftilt.rewards.wrappers": (
        "Bounded",
        "ClassifierReward",
        "Floored",
        "GaussianLikelihood",
        "Summed",
        "Tempered",
    ),
    "difftilt.chains.rollouts": (
        "bridge",
        "rollout",
    ),
    "difftilt.schedules": (
        "RectifiedFlow",
        "VarianceExploding",
        "VariancePreserving",
    ),
    "difftilt.chains.scoring": (
        "backward",
        "log_ratio",
    ),
    "difftilt.smc.methods": (
        "BestOfN",
        "FKSteering",
        "ImportanceResampling",
        "SVDD",
        "TDS",
        "ValueTwisted",
    ),
    "difftilt.smc.population": ("Population",),
    "difftilt.text.rewards": (
        "StringReward",
        "TextReward",
    ),
    "difftilt.text_priors": (
        "TextPrior",
        "text_prior",
    ),
    "difftilt.text_to_image": (
        "TextToImage",
        "TextToImagePopulation",
        "TextToImagePosterior",
        "TextToImagePrior",
    ),
    "difftilt.token_denoisers": (
        "TokenDenoiser",
        "TokenNetwork",
    ),
    "difftilt.training.noisy_classifier": (
        "ClassifierFit",
        "NoisyClassifier",
        "fit_noisy_classifier",
    ),
    "difftilt.training.plan": (
        "Alarm",
        "BehaviourWeights",
        "Optimisation",
        "RTB",
        "Replaying",
        "Training",
    ),
    "difftilt.values.functions": (
        "Value",
        "VectorValue",
    ),
}


def __getattr__(name: str) -> _typing.Any:
    for home, names in _HOMES.items():
        if name in names:
            found = getattr(_importlib.import_module(home), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module 'difftilt' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
