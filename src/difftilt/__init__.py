"""Samplers of the posterior ``p(x) r(x)^β`` under a pre-trained diffusion prior ``p``.

    prior = difftilt.load("folder-of-a-diffusers-pipeline", steps=50)
    target = prior.tilt(log_reward, beta=1.0)
    posterior = target.fit(difftilt.RTB(), steps=500, out="runs/mine")
    images = posterior.sample(64)
    print(posterior.certify(4096))

Everything is a chain with known kernels: see ``difftilt.chains``.
"""

from difftilt.chains import Chain, Path
from difftilt.diagnostics.certificate import Certificate
from difftilt.errors import (
    CheckpointError,
    DifftiltError,
    InputError,
    MissingPackage,
    RewardError,
    TrainingError,
)
from difftilt.forms import DriftNet, FullCopy, LoRA, Perceptron
from difftilt.isolation import isolated
from difftilt.posteriors import (
    Posterior,
    Prior,
    Sources,
    Target,
    latent,
    load,
)
from difftilt.rewards import (
    Bounded,
    ClassifierReward,
    Floored,
    GaussianLikelihood,
    Summed,
    Tempered,
)
from difftilt.rollouts import bridge, rollout
from difftilt.schedules import RectifiedFlow, VarianceExploding, VariancePreserving
from difftilt.scoring import backward, log_ratio
from difftilt.training.plan import (
    RTB,
    BehaviourWeights,
    Optimisation,
    Replaying,
    Training,
)

__version__ = "0.1.0.dev0"

__all__ = [
    "BehaviourWeights",
    "Bounded",
    "Certificate",
    "Chain",
    "CheckpointError",
    "ClassifierReward",
    "DifftiltError",
    "DriftNet",
    "Floored",
    "FullCopy",
    "GaussianLikelihood",
    "InputError",
    "LoRA",
    "MissingPackage",
    "Optimisation",
    "Path",
    "Perceptron",
    "Posterior",
    "Prior",
    "RTB",
    "RectifiedFlow",
    "Replaying",
    "RewardError",
    "Sources",
    "Summed",
    "Target",
    "Tempered",
    "Training",
    "TrainingError",
    "VarianceExploding",
    "VariancePreserving",
    "backward",
    "bridge",
    "isolated",
    "latent",
    "load",
    "log_ratio",
    "rollout",
]
