"""Samplers of the posterior ``p(x) r(x)^β`` under a pre-trained diffusion prior ``p``.

    prior = difftilt.load("folder-of-a-diffusers-pipeline", steps=50)
    target = prior.tilt(log_reward, beta=1.0)
    posterior = target.fit(difftilt.RTB(), steps=500, out="runs/mine")
    images = posterior.sample(64)
    print(posterior.certify(4096))

Everything is a chain with known kernels: see ``difftilt.chains``.

The names below are imported when they are first asked for, so that ``import difftilt`` and
``difftilt --help`` do not wait for torch.
"""

import importlib as _importlib
import typing as _typing

if _typing.TYPE_CHECKING:
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

# Where each name lives: the imports above, for ``__getattr__``.
_HOMES = {
    "difftilt.chains": ("Chain", "Path"),
    "difftilt.diagnostics.certificate": ("Certificate",),
    "difftilt.errors": (
        "CheckpointError",
        "DifftiltError",
        "InputError",
        "MissingPackage",
        "RewardError",
        "TrainingError",
    ),
    "difftilt.forms": ("DriftNet", "FullCopy", "LoRA", "Perceptron"),
    "difftilt.isolation": ("isolated",),
    "difftilt.posteriors": ("Posterior", "Prior", "Sources", "Target", "latent", "load"),
    "difftilt.rewards": (
        "Bounded",
        "ClassifierReward",
        "Floored",
        "GaussianLikelihood",
        "Summed",
        "Tempered",
    ),
    "difftilt.rollouts": ("bridge", "rollout"),
    "difftilt.schedules": ("RectifiedFlow", "VarianceExploding", "VariancePreserving"),
    "difftilt.scoring": ("backward", "log_ratio"),
    "difftilt.training.plan": ("RTB", "BehaviourWeights", "Optimisation", "Replaying", "Training"),
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
