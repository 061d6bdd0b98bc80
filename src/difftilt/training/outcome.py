"""What a door of the training step hands back, and what stops a training."""

from dataclasses import dataclass

import torch
from torch import Tensor

from difftilt.errors import TrainingError
from difftilt.replay.behaviour import Scored
from difftilt.training.snapshot import trained
from difftilt.training.state import TrainingState


@dataclass(frozen=True)
class Outcome:
    """A gradient that has been accumulated.

    Arguments:
        losses: detached.
        parts: the paths that were drawn, by behaviour.
        ratios: Λ of the joined paths, detached; nan where it is not known.
    """

    losses: Tensor
    parts: dict[str, Scored]
    ratios: Tensor

    @property
    def log_r(self) -> Tensor:
        """``log r`` of the joined paths."""
        return torch.cat([scored.log_r for scored in self.parts.values()])


def forget_gradients(state: TrainingState) -> None:
    """Drop what the last update accumulated."""
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            for parameter in group["params"]:
                parameter.grad = None


def check(state: TrainingState, losses: Tensor, log_r: Tensor) -> None:
    """Refuse losses that are not finite.

    Raises:
        TrainingError: names the cause.
    """
    if len(losses) and bool(torch.isfinite(losses).all()):
        return
    raise TrainingError(
        f"non-finite loss at update {state.step + 1}: {_cause(state, losses, log_r)}; log r spans "
        f"[{float(log_r.min()):.4g}, {float(log_r.max()):.4g}]; lower the learning rate, set "
        "residual_clip, or floor the reward (the last checkpoint is intact)"
    )


def _cause(state: TrainingState, losses: Tensor, log_r: Tensor) -> str:
    for name, parameter in trained(state.chain).items():
        if not bool(torch.isfinite(parameter).all()):
            return f"parameter {name} is not finite"
    if bool(log_r.isnan().any()):
        return "log r is not a number"
    if len(losses):
        return "Λ of a path is not finite"
    return "every path of the batch has log r = -inf"
