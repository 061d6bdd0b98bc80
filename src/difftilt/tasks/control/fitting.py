"""How the small networks of offline control are fitted: Adam on random rows of the data."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor, nn
from tqdm import tqdm

from difftilt.errors import InputError, TrainingError
from difftilt.tasks.control.data import OfflineData


@dataclass(frozen=True)
class Fit:
    """How a network of this task is fitted.

    Arguments:
        updates: Adam steps.
        batch: rows per step.
        learning_rate: of Adam; falls to zero along a cosine where ``decays``.
        decays: whether it does.
        seed: of weights and batches.

    Raises:
        InputError: a number out of range.
    """

    updates: int = 20_000
    batch: int = 256
    learning_rate: float = 3e-4
    decays: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("updates", "batch", "learning_rate"):
            if not getattr(self, name) > 0:
                raise InputError(f"a fit needs {name} above 0, got {getattr(self, name)}")

    def shortened(self, times: int) -> "Fit":
        """The same with so many times fewer updates, one at least."""
        return replace(self, updates=max(1, self.updates // times))

    @property
    def generator(self) -> torch.Generator:
        """A new generator of the batches."""
        return torch.Generator().manual_seed(self.seed)

    def rows(self, count: int) -> Iterator[Int[Tensor, " batch"]]:
        """Random rows of a data set of ``count``, one batch per update."""
        generator = self.generator
        # A bar with rate and remaining time, where somebody looks.
        for _ in tqdm(range(self.updates), unit="update", disable=None, leave=False):
            yield torch.randint(count, (self.batch,), generator=generator)


def minimised(
    loss: Callable[[Int[Tensor, " batch"]], Tensor],
    parameters: list[nn.Parameter],
    count: int,
    fit: Fit,
) -> Iterator[float]:
    """Adam on ``loss(rows)``; yields the loss of each update, after its step.

    Arguments:
        loss: of random rows of the data, a number.
        parameters: what is fitted.
        count: rows of the data.
        fit: how.

    Raises:
        TrainingError: the loss is not finite.
    """
    optimiser = torch.optim.Adam(parameters, lr=fit.learning_rate)
    for update, rows in enumerate(fit.rows(count)):
        if fit.decays:
            share = 0.5 * (1 + math.cos(math.pi * update / fit.updates))
            optimiser.param_groups[0]["lr"] = fit.learning_rate * share
        value = loss(rows)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        found = float(value.detach())
        if not math.isfinite(found):
            raise TrainingError(
                f"the loss of update {update + 1} is {found}; lower learning_rate="
                f"{fit.learning_rate}, or look for extreme numbers in the data"
            )
        yield found


def reward_scale(data: OfflineData) -> float:
    """``1000 / (largest - least return)``: rewards of this size make critics of one learning rate.

    Source: Kostrikov et al. 2021, IQL, on locomotion (arXiv 2110.06169). Equal returns: 1.
    """
    spread = float(data.returns.max() - data.returns.min())
    return 1000.0 / spread if spread > 0 else 1.0
