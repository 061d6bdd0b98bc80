"""Rewards made of classifiers, likelihoods and other rewards.

They keep the graph, for methods that follow ``∇ log r``, and each knows a ``bound`` M with
``log r <= M``, or None: with a bound the certificate is a guarantee, without one an estimate.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol, final, runtime_checkable

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from difftilt.errors import InputError, RewardError
from difftilt.ranges import finite_number
from difftilt.rewards import isolation_worker as worker
from difftilt.rewards.contract import (
    CheckedReward,
    Condition,
    LogReward,
    as_reward,
)


@runtime_checkable
class RewardOfRewards(Protocol):
    """A reward made of others: ``Bounded``, ``Tempered``, ``Floored``, ``Summed``."""

    def over(self, change: Callable[[LogReward], LogReward]) -> LogReward:
        """The same made of other rewards: what ``change`` makes of each."""
        ...


@final
class Bounded:
    """A reward with a declared bound: ``log r <= bound``, checked on every call.

    Arguments:
        log_reward: any reward.
        bound: upper bound M of log r in nats; a value above it is a RewardError. What float32
            rounds, 1e-5 (1 + |M|), is let pass.
    """

    def __init__(self, log_reward: LogReward, bound: float) -> None:
        self.bound: float | None = finite_number("bound", bound)
        self._log_reward = CheckedReward(log_reward, bound=self.bound)
        self.name = self._log_reward.name
        self._given = (log_reward, bound)

    def over(self, change: Callable[[LogReward], LogReward]) -> "Bounded":
        """The same bound on another reward."""
        log_reward, bound = self._given
        return Bounded(change(log_reward), bound)

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        return self._log_reward.differentiable(x_0, condition)


@final
class Tempered:
    """``log r / temperature``: a temperature above 1 flattens a reward, one below sharpens it.

    Arguments:
        log_reward: any reward.
        temperature: above 0.
    """

    def __init__(self, log_reward: LogReward, temperature: float) -> None:
        self.temperature = finite_number("temperature", temperature, positive=True)
        self._log_reward = as_reward(log_reward)
        inner = self._log_reward.bound
        self.bound = None if inner is None else inner / self.temperature
        self._given = log_reward

    def over(self, change: Callable[[LogReward], LogReward]) -> "Tempered":
        """The same of another reward."""
        return Tempered(change(self._given), self.temperature)

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        return self._log_reward.differentiable(x_0, condition) / self.temperature


@final
class Floored:
    """``max(log r, floor)``: a reward without zeros, so that every sample has a finite log weight.

    It changes the target: with ``r' = max(r, e^floor)``,

        TV(p r / Z, p r' / Z') <= p(r < e^floor) e^floor / Z,

    the prior's mass below the floor, lifted at most to the floor.

    Arguments:
        log_reward: any reward.
        floor: lower bound of log r in nats.
    """

    def __init__(self, log_reward: LogReward, floor: float) -> None:
        self.floor = finite_number("floor", floor)
        self._log_reward = as_reward(log_reward)
        inner = self._log_reward.bound
        self.bound = None if inner is None else max(inner, self.floor)
        self._given = log_reward

    def over(self, change: Callable[[LogReward], LogReward]) -> "Floored":
        """The same of another reward."""
        return Floored(change(self._given), self.floor)

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        return self._log_reward.differentiable(x_0, condition).clamp(min=self.floor)


@final
class Summed:
    """``Σ_k weights_k log r_k``: a product of rewards, each to the power of its weight.

    A reward of weight 0 is never called. The bound is known where all bounds are and no weight is
    negative (a negative weight turns an ``r = 0`` into the error +inf).

    Arguments:
        rewards: at least one; some may take the condition and some not.
        weights: one finite number per reward; default all 1.
    """

    def __init__(
        self, rewards: Sequence[LogReward], weights: Sequence[float] | None = None
    ) -> None:
        weights = [1.0] * len(rewards) if weights is None else weights
        if len(weights) != len(rewards):
            raise InputError(
                f"{len(rewards)} rewards with {len(weights)} weights; give one weight per reward"
            )
        pairs = zip(rewards, (finite_number("a weight", w) for w in weights), strict=True)
        self._terms = [(as_reward(r), w) for r, w in pairs if w != 0.0]
        if not self._terms:
            raise InputError("no reward with a weight other than 0; give at least one")
        bounds = [w * r.bound for r, w in self._terms if w > 0.0 and r.bound is not None]
        self.bound = sum(bounds) if len(bounds) == len(self._terms) else None
        self._given = (tuple(rewards), tuple(weights))

    def over(self, change: Callable[[LogReward], LogReward]) -> "Summed":
        """The same sum of other rewards."""
        rewards, weights = self._given
        return Summed([change(reward) for reward in rewards], weights)

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        terms = [w * r.differentiable(x_0, condition) for r, w in self._terms]
        return torch.stack(terms).sum(0)


@final
class ClassifierReward:
    """The log-probability that a classifier gives to a class, or to any of several.

        log r(x) = log Σ_{k in classes} softmax(classifier(x))_k <= 0

    Arguments:
        classifier: ``x_0`` to logits, (B, number of classes); a torch module is put in eval mode,
            because a reward must not depend on dropout or on the rest of the batch.
        classes: the wanted class or classes; None takes the wanted class of each sample from the
            condition, (B,) integers.
    """

    def __init__(
        self, classifier: Callable[[Tensor], Tensor], classes: int | Sequence[int] | None = None
    ) -> None:
        if isinstance(classes, int):
            classes = [classes]
        self.classes = None if classes is None else sorted(set(classes))
        if self.classes is not None and (not self.classes or self.classes[0] < 0):
            raise InputError(f"classes={classes!r}; give at least one class, counted from 0")
        if isinstance(classifier, nn.Module):
            classifier.eval()
        self.classifier = classifier
        self.bound: float | None = 0.0

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        logits = self._logits(x_0)
        log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(1)
        if self.classes is None:
            return log_p.gather(1, self._labels(condition, log_p)[:, None])[:, 0]
        if self.classes[-1] >= log_p.shape[1]:
            raise InputError(_no_class(self.classes[-1], log_p))
        # The clamp takes off what rounding adds when all classes are wanted.
        return log_p[:, self.classes].logsumexp(1).clamp(max=0.0)

    def _logits(self, x_0: Tensor) -> Tensor:
        logits = self.classifier(x_0)
        if isinstance(logits, Tensor) and logits.ndim == 2 and len(logits) == len(x_0):
            return logits
        is_tensor = isinstance(logits, Tensor)
        what = f"shape {tuple(logits.shape)}" if is_tensor else worker.described(logits)
        raise RewardError(
            f"the classifier returned {what} for a batch of {len(x_0)}; "
            "it must return logits of shape (B, number of classes)"
        )

    def _labels(self, condition: Condition | None, log_p: Tensor) -> Tensor:
        if not isinstance(condition, Tensor):
            raise InputError("the classifier reward has neither classes nor a condition; give one")
        whole = not condition.is_floating_point() and condition.dtype != torch.bool
        if not whole or condition.shape != log_p.shape[:1]:
            dtype = str(condition.dtype).removeprefix("torch.")
            raise InputError(
                f"the classifier reward got a condition of {dtype} and shape "
                f"{tuple(condition.shape)}; give one integer label per sample, ({len(log_p)},)"
            )
        labels = condition.to(log_p.device, torch.int64)
        outside = (labels < 0) | (labels >= log_p.shape[1])
        if outside.any():
            raise InputError(_no_class(int(labels[outside][0]), log_p))
        return labels


def _no_class(label: int, log_p: Tensor) -> str:
    width = log_p.shape[1]
    return f"there is no class {label}: the classifier has {width}, counted from 0 to {width - 1}"


@final
class GaussianLikelihood:
    """The likelihood of a measurement ``y = A(x) + std * noise``, normalised.

        log r(x) = -|y - A(x)|^2 / (2 std^2) - d/2 log(2 pi std^2),      d = number of values in y

    Arguments:
        observation: y, (*event of y), shared by all samples.
        forward_operator: A, from (B, *event) to (B, *event of y); differentiable if r is to be.
        std: standard deviation of the noise, above 0.
    """

    def __init__(
        self, observation: Tensor, forward_operator: Callable[[Tensor], Tensor], std: float
    ) -> None:
        if not observation.isfinite().all():
            raise InputError("the observation holds NaN or infinite values; leave those out")
        self.observation = observation
        self.forward_operator = forward_operator
        self.std = finite_number("std", std, positive=True)
        log_scale = math.log(self.std) + 0.5 * math.log(2.0 * math.pi)
        self.bound = -observation.numel() * log_scale

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        predicted = self.forward_operator(x_0)
        wanted = (len(x_0), *self.observation.shape)
        if predicted.shape != wanted:
            raise RewardError(
                f"the forward operator returned shape {tuple(predicted.shape)} for a batch of "
                f"{len(x_0)}; the observation asks for {wanted}"
            )
        predicted = predicted.to(torch.promote_types(predicted.dtype, torch.float32))
        standardised = (predicted - self.observation.to(predicted)) / self.std
        return self.bound - 0.5 * standardised.square().reshape(len(x_0), -1).sum(1)
