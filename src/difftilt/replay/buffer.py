"""A replay buffer of ends ``x_0`` that the reward liked."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.errors import InputError

PRIORITIES = ("uniform", "reward", "residual")


class ReplayBuffer:
    """Ends, their ``log r`` and their last residual; duplicates of a condition are kept once.

    Arguments:
        capacity: number of ends kept; the least liked leave first ("reward"), else the oldest.
        priority: draw uniformly, by rank of reward, or by rank of the absolute residual.
        tolerance: ends that round to the same multiple of it in every coordinate are duplicates;
            0 for exact duplicates alone.

    Raises:
        InputError: unknown priority or a capacity below 1.

    Source: rank-based priorities as in Schaul et al. 2016 (arXiv 1511.05952), exponent 1.
    """

    def __init__(
        self, capacity: int = 10_000, priority: str = "reward", tolerance: float = 0.0
    ) -> None:
        if priority not in PRIORITIES:
            raise InputError(
                f"unknown replay priority {priority!r}; choose one of {', '.join(PRIORITIES)}"
            )
        if capacity < 1:
            raise InputError(f"a replay buffer needs a capacity of at least 1, got {capacity}")
        self.capacity = capacity
        self.priority = priority
        self.tolerance = tolerance
        self.x_0 = torch.zeros(0)
        self.log_r = torch.zeros(0)
        self.residual = torch.zeros(0)
        self.condition: Tensor | None = None
        self._known: set[bytes] = set()

    def __len__(self) -> int:
        return len(self.log_r)

    def add(
        self,
        x_0: Shaped[Tensor, "B ..."],
        log_r: Float[Tensor, " B"],
        residual: Float[Tensor, " B"],
        condition: Tensor | None = None,
    ) -> None:
        """Add ends with a finite ``log r``; a duplicate's residual is not updated."""
        rows = torch.nonzero(torch.isfinite(log_r)).flatten()
        rows = rows[self._is_new(x_0[rows], None if condition is None else condition[rows])]
        first = len(self) == 0
        self.x_0 = x_0[rows] if first else torch.cat([self.x_0, x_0[rows]])
        self.log_r = torch.cat([self.log_r, log_r[rows].float()])
        own_residual = residual[rows].abs().float().nan_to_num(nan=0.0)
        self.residual = torch.cat([self.residual, own_residual])
        if condition is not None:
            own = condition[rows]
            self.condition = own if self.condition is None else torch.cat([self.condition, own])
        if len(self) > self.capacity:
            self._keep(self._survivors())

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Indices (count,) of ends drawn by priority.

        Raises:
            InputError: the buffer is empty.
        """
        if len(self) == 0:
            raise InputError("the replay buffer is empty: no end with a finite log r was added yet")
        return torch.multinomial(self._probabilities(), count, True, generator=generator)

    def update(self, rows: Tensor, residual: Float[Tensor, " B"]) -> None:
        """Record new residuals of replayed ends; one that is not finite is left as it was."""
        finite = torch.isfinite(residual)
        self.residual[rows[finite]] = residual[finite].abs().float()

    def state(self) -> dict[str, Tensor]:
        """The buffer as tensors."""
        state = {"x_0": self.x_0, "log_r": self.log_r, "residual": self.residual}
        return state if self.condition is None else state | {"condition": self.condition}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take over the tensors of ``state()``."""
        self.x_0, self.log_r, self.residual = state["x_0"], state["log_r"], state["residual"]
        self.condition = state.get("condition")
        self._known = set(self._keys(self.x_0, self.condition)) if len(self) else set()

    def _probabilities(self) -> Tensor:
        if self.priority == "uniform":
            return torch.ones(len(self))
        key = self.log_r if self.priority == "reward" else self.residual
        rank = torch.empty(len(self))
        rank[key.argsort(descending=True)] = torch.arange(1, len(self) + 1).float()
        return 1 / rank

    def _survivors(self) -> Tensor:
        if self.priority == "reward":
            return self.log_r.argsort(descending=True)[: self.capacity].sort().values
        return torch.arange(len(self) - self.capacity, len(self))

    def _keep(self, rows: Tensor) -> None:
        self.x_0, self.log_r, self.residual = self.x_0[rows], self.log_r[rows], self.residual[rows]
        self.condition = None if self.condition is None else self.condition[rows]
        self._known = set(self._keys(self.x_0, self.condition))

    def _is_new(self, x_0: Tensor, condition: Tensor | None) -> Tensor:
        new = []
        for key in self._keys(x_0, condition):
            new.append(key not in self._known)
            self._known.add(key)
        return torch.tensor(new, dtype=torch.bool)

    def _keys(self, x_0: Tensor, condition: Tensor | None) -> list[bytes]:
        flat = x_0.detach().flatten(1).cpu()
        cells = (flat / self.tolerance).round() if self.tolerance > 0 else flat
        ends = [row.numpy().tobytes() for row in cells.float()]
        if condition is None:
            return ends
        asked = [row.numpy().tobytes() for row in condition.detach().cpu()]
        return [end + of for end, of in zip(ends, asked, strict=True)]
