"""What every reward must keep to, and the class that holds one to it.

A reward is any Python callable

    log_reward(x_0) -> log r        or        log_reward(x_0, condition) -> log r

with ``x_0`` of shape (B, *event) and one number per sample, in nats, shape (B,). The condition is a
tensor (B, ...) or, for rewards of pictures, a list of B prompts. ``-inf`` means
``r = 0`` and is legal, even for a whole batch (a rare event); ``+inf`` and NaN are not. Whatever
else comes back, or is raised, becomes a ``RewardError`` of one sentence that names the reward, the
sample and the remedy. ``difftilt.rewards.wrappers`` shows all of this to users.
"""

import functools
import hashlib
import inspect
import math
import numbers
import textwrap
import time
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt._ops import above
from difftilt.errors import DifftiltError, InputError, RewardError
from difftilt.rewards import isolation_worker as worker

LogReward = Callable[..., Any]
Condition = Tensor | Sequence[str]


@final
@dataclass(frozen=True)
class RewardProbe:
    """What one batch says about a reward.

    Arguments:
        dtype: of the values as the reward returned them; "list" for a list.
        shape: likewise, (B,) or (B, 1).
        seconds_per_sample: wall time of the faster of two calls, divided by B.
        is_deterministic: the two calls gave the same values, bit for bit.
        minimum, maximum, mean: of the finite values, in nats; NaN where there is none.
        share_zero: share of the samples with ``log r = -inf``.
    """

    dtype: str
    shape: tuple[int, ...]
    seconds_per_sample: float
    is_deterministic: bool
    minimum: float
    maximum: float
    mean: float
    share_zero: float


@final
class CheckedReward:
    """A callable held to the contract of a reward.

    Arguments:
        log_reward: ``(x_0)`` or ``(x_0, condition)`` to log r in nats: a (B,) or (B, 1) tensor or
            array of floats or integers, or a list of B numbers. A second parameter is the condition
            if it has no default, defaults to None or is called ``condition``. It gets its own copy
            of x_0 and runs without gradients, except in ``differentiable``.
        name: what errors call it; default its own name.
        bound: upper bound of log r in nats, checked on every call; default the reward's own.

    Attributes:
        calls: samples scored so far.

    Raises:
        RewardError: it cannot be called so.
    """

    def __init__(
        self, log_reward: object, *, name: str | None = None, bound: float | None = None
    ) -> None:
        if not callable(log_reward):
            what = worker.described(log_reward)
            raise RewardError(f"a reward is a function from x_0 to log r, but this is {what}")
        self.name = _name_of(log_reward) if name is None else name
        with _naming(self.name):
            self._use = worker.condition_use(log_reward)
        self._log_reward = log_reward
        self.bound = reward_bound(log_reward) if bound is None else bound
        self.calls = 0

    @property
    def code_digest(self) -> str | None:
        """SHA-256 of the function's source text; None for other callables and for lambdas."""
        function = self._log_reward
        if not isinstance(function, types.FunctionType) or function.__name__ == "<lambda>":
            return None
        try:
            text = textwrap.dedent(inspect.getsource(function))
        except (OSError, TypeError):  # typed in, with no file behind it
            return None
        return hashlib.sha256(text.encode()).hexdigest()

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        """log r of each sample, detached, in float32 or wider, on the device of x_0.

        Arguments:
            x_0: samples, (B, *event), B >= 1.
            condition: (B, ...), B texts, or None; dropped if the reward does not take one.

        Raises:
            RewardError: the reward raised, or returned NaN, +inf, a value above its bound, another
                shape or another kind of object.
        """
        with torch.no_grad():
            return self.differentiable(x_0, condition).clone()

    def differentiable(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        """The same with its graph, where gradients are enabled and the reward has one."""
        return self._checked(self._returned(x_0, condition), x_0)

    def probe(
        self,
        x_0: Shaped[Tensor, "B ..."],
        condition: Condition | None = None,
        *,
        require_signal: bool = True,
    ) -> RewardProbe:
        """Score one batch twice and say what came back.

        Raises:
            RewardError: as for a call; or ``require_signal`` and log r is -inf on the whole batch.
        """
        first, returned, slow = self._timed(x_0, condition)
        second, _, fast = self._timed(x_0, condition)
        batch = len(x_0)
        finite = first[first.isfinite()].double()
        if require_signal and not len(finite):
            raise RewardError(
                f"reward {self.name!r} is zero (log r = -inf) on all {batch} samples: no signal; "
                "try more samples, or give it a floor (difftilt.Floored)"
            )
        return RewardProbe(
            dtype=str(getattr(returned, "dtype", "list")).removeprefix("torch."),
            shape=tuple(getattr(returned, "shape", (batch,))),
            seconds_per_sample=min(slow, fast) / batch,
            is_deterministic=torch.equal(first, second),
            minimum=finite.min().item() if len(finite) else math.nan,
            maximum=finite.max().item() if len(finite) else math.nan,
            mean=finite.mean().item(),
            share_zero=1.0 - len(finite) / batch,
        )

    @torch.no_grad()
    def _timed(self, x_0: Tensor, condition: Condition | None) -> tuple[Tensor, Any, float]:
        start = time.perf_counter()
        returned = self._returned(x_0, condition)
        log_r = self._checked(returned, x_0).clone()
        return log_r, returned, time.perf_counter() - start

    def _returned(self, x_0: Tensor, condition: Condition | None) -> Any:
        if x_0.ndim == 0 or len(x_0) == 0:
            raise InputError(f"x_0 has shape {tuple(x_0.shape)}; give (B, *event) with B >= 1")
        with _naming(self.name, f" on a batch of shape {tuple(x_0.shape)}"):
            # A copy, because a reward that rescales pixels in place would corrupt the path.
            value = worker.call(self._log_reward, self._use, x_0.clone(), condition)
        self.calls += len(x_0)
        return value

    def _checked(self, value: Any, x_0: Tensor) -> Tensor:
        with _naming(self.name):
            log_r = _as_tensor(value, x_0)
            limit = math.inf if self.bound is None else above(self.bound)
            is_good = (log_r < math.inf) & (log_r <= limit)
            if not is_good.all():
                raise worker.Unusable(_complaint(log_r.detach(), self.bound))
        return log_r


@contextmanager
def _naming(name: str, where: str = "") -> Iterator[None]:
    """Turns what goes wrong inside into one RewardError about the reward of this name."""
    try:
        yield
    except DifftiltError:
        raise
    except worker.Unusable as error:
        raise RewardError(f"reward {name!r} {error}") from error.__cause__
    except Exception as error:
        raise RewardError(f"reward {name!r} raised {worker.quoted(error)}{where}") from error


def as_reward(log_reward: object, *, name: str | None = None) -> CheckedReward:
    """The reward itself if it is checked already, else a ``CheckedReward`` of it."""
    if isinstance(log_reward, CheckedReward):
        return log_reward
    return CheckedReward(log_reward, name=name)


def reward_bound(log_reward: object) -> float | None:
    """The upper bound of log r that a reward declares as ``.bound``, in nats, or None."""
    bound = getattr(log_reward, "bound", None)
    return float(bound) if isinstance(bound, numbers.Real) and math.isfinite(bound) else None


def _name_of(log_reward: object) -> str:
    while isinstance(log_reward, functools.partial):
        log_reward = log_reward.func
    for attribute in ("name", "__name__"):
        if isinstance(name := getattr(log_reward, attribute, None), str):
            return name
    return type(log_reward).__name__


def _as_tensor(value: Any, x_0: Tensor) -> Tensor:
    """What a reward returned as (B,) floats on the device of x_0; keeps the graph."""
    batch = len(x_0)
    if not isinstance(value, Tensor):
        value = torch.from_numpy(worker.to_array(value, batch))
    if value.is_complex() or value.dtype == torch.bool:
        raise worker.Unusable(worker.not_real(str(value.dtype).removeprefix("torch.")))
    if value.shape not in ((batch,), (batch, 1)):
        raise worker.Unusable(
            f"returned shape {tuple(value.shape)} for a batch of {batch}; "
            f"return one log r per sample, shape ({batch},)"
        )
    wide = torch.promote_types(value.dtype, torch.float32)
    if x_0.device.type == "mps":  # has no float64
        wide = torch.float32
    return value.reshape(batch).to(x_0.device, wide)


def _complaint(log_r: Tensor, bound: float | None) -> str:
    nan, infinite = log_r.isnan(), log_r == math.inf
    if nan.any():
        what, rows, remedy = "NaN", nan, "log r must be a number, or -inf where r = 0"
    elif infinite.any():
        what, rows, remedy = "+inf", infinite, "log r must be finite, or -inf where r = 0"
    else:
        assert bound is not None
        rows = log_r > above(bound)
        what = f"log r above its bound of {bound:g} nats (up to {log_r.max().item():g})"
        remedy = "declare a higher bound"
    count, first = int(rows.sum()), int(rows.int().argmax())
    return f"returned {what} on {count} of {len(log_r)} samples, first in row {first}; {remedy}"
