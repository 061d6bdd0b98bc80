"""What a network says about the clean sample.

A ``Denoiser`` maps a noisy state and its noise level to a prediction of the clean ``x_0``. Networks
that predict something else are converted here, once, with ``x_t = alpha x_0 + sigma eps``:

| prediction_type | the network's output | clean prediction |
|---|---|---|
| epsilon | ``eps`` | ``(x_t - sigma out) / alpha`` |
| v_prediction | ``alpha eps - sigma x_0`` (unit-variance levels) | ``alpha x_t - sigma out`` |
| sample | ``x_0`` | ``out`` |
| flow | ``eps - x_0`` (levels with alpha + sigma = 1) | ``x_t - sigma out`` |
| score | ``∇ log p_t(x_t)`` | ``(x_t + sigma² out) / alpha`` |

Conditions are bound, not threaded: ``denoiser.given(condition)`` is a denoiser.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from difftilt.errors import InputError
from difftilt.models.time import OncePerTime

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "flow", "score")

Scale = float | Tensor


@dataclass(frozen=True)
class Level:
    """One noise level, or one per sample (then each entry broadcasts over the event)."""

    time: Scale
    alpha: Scale
    sigma: Scale

    def times(self, like: Float[Tensor, "B ..."], dtype: torch.dtype) -> Shaped[Tensor, " B"]:
        """The time of each sample of a batch, in the dtype that a network wants."""
        time = self.time
        if isinstance(time, Tensor):
            return time.to(dtype=dtype, device=like.device).reshape(-1).expand(len(like))
        return torch.full((1,), time, dtype=dtype, device=like.device).expand(len(like))

    def each(self, change: Callable[[Tensor], Tensor]) -> "Level":
        """With a change of what is one entry per sample; what all samples share stays."""
        scales = (self.time, self.alpha, self.sigma)
        return Level(*(change(s) if isinstance(s, Tensor) and s.ndim else s for s in scales))


@dataclass(frozen=True)
class TimeInput:
    """What a network is told of the time: the time itself, or an embedding of it.

    Arguments:
        embedding: maps times (B,) to (B, width), row by row; None for the time itself.
        known: embeddings that are known already, (1, width) by time.
    """

    embedding: nn.Module | None = None
    known: dict[float, Tensor] = field(default_factory=dict)

    def at(self, level: Level, like: Float[Tensor, "B ..."], dtype: torch.dtype) -> Tensor:
        """What to hand over beside a batch at a level, (B,) or (B, width)."""
        if isinstance(level.time, float) and level.time in self.known:
            return self.known[level.time].expand(len(like), -1)
        time = level.times(like, dtype)
        return time if self.embedding is None else self.embedding(time)

    def prepared(self, levels: Iterable[Level], like: Tensor, dtype: torch.dtype) -> "TimeInput":
        """With the embeddings of these levels known, asked for in one call."""
        if self.embedding is None:
            return self
        times = [float(level.time) for level in levels]
        rows = self.embedding(torch.tensor(times, dtype=dtype, device=like.device))
        return TimeInput(self.embedding, dict(zip(times, rows.split(1), strict=True)))


class Denoiser(nn.Module, ABC):
    """``(x_t, level) -> prediction of the clean x``."""

    @abstractmethod
    def forward(self, x_t: Shaped[Tensor, "B ..."], level: Any) -> Float[Tensor, "B ..."]:
        """Prediction of ``x_0`` at a level of the chain's diffusion.

        Of the shape of ``x_t`` (twice the channels for a learned range); for tokens,
        log-probabilities (B, P, V) of the positions that the step reveals.
        """

    def given(self, condition: Tensor | None) -> "Denoiser":
        """This denoiser with a condition (B, ...) bound; unconditional ones return self."""
        return self

    def unconditional(self) -> "tuple[Denoiser, Tensor] | None":
        """A denoiser and the condition (...) of one sample that tells it nothing; None: none."""
        return None

    def informed(self) -> "Denoiser":
        """This denoiser as a posterior's: it may read all of a condition."""
        return self

    def make_trainable(self) -> None:
        """Give a copy that is to be trained weights that small updates are not lost in.

        It is asked of every denoiser of a copy, those inside of others too.
        """

    def prepared(self, levels: Iterable[Any], like: Tensor) -> "Denoiser":
        """This denoiser with what depends on the level alone worked out for given levels.

        Of use as long as the parameters stay as they are: for one rollout.
        """
        return self

    @contextmanager
    def active(self) -> Iterator["Denoiser"]:
        """Inside, the denoiser to ask, whose parts may be called one by one (adapters are on)."""
        yield self


def differentiable_prediction(
    denoiser: Denoiser, x_t: Float[Tensor, "B ..."], level: Level
) -> Tensor:
    """The prediction with its graph to ``x_t``.

    Raises:
        InputError: the network cut the graph.
    """
    prediction = denoiser(x_t, level)
    if x_t.requires_grad and not prediction.requires_grad:
        raise InputError(
            "this method goes through the prior's network, whose prediction has no gradient; "
            "let the network run without torch.no_grad, or use particles (correct='smc')"
        )
    return prediction


def to_clean(
    prediction_type: str, output: Tensor, x_t: Float[Tensor, "B ..."], level: Level
) -> Float[Tensor, "B ..."]:
    """Convert a network's output to a prediction of ``x_0`` (table in the module's docstring).

    Raises:
        InputError: unknown ``prediction_type``.
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction_type == "epsilon":
        return (x_t - sigma * output) / alpha
    if prediction_type == "v_prediction":
        # Off the unit circle (Euler's alpha = 1) the net saw x_t / |(alpha, sigma)|.
        square = alpha**2 + sigma**2
        return (alpha / square) * x_t - (sigma / square**0.5) * output
    if prediction_type == "sample":
        return output
    if prediction_type == "flow":
        return x_t - sigma * output
    if prediction_type == "score":
        return (x_t + sigma**2 * output) / alpha
    raise InputError(
        f"unknown prediction type {prediction_type!r}; choose one of {', '.join(PREDICTION_TYPES)}"
    )


class NetworkDenoiser(Denoiser):
    """Any network ``(x, time) -> output`` as a denoiser.

    Arguments:
        network: the module; owned, so its parameters are this denoiser's.
        prediction_type: what its output means.
        call: how to call it, ``call(network, x, time (B,))``; default ``network(x, time)``.
        unit_input: divide the input by ``sqrt(alpha² + sigma²)`` (a variance-preserving network
            driven on levels with alpha = 1, as diffusers' Euler schedulers do).
        time_dtype: dtype of the time handed to the network.
        embedding: maps times (B,) to (B, width), row by row; the network then gets its output in
            place of the time, and it is asked once per rollout or gradient and distinct time.

    Raises:
        InputError: unknown ``prediction_type``.
    """

    def __init__(
        self,
        network: nn.Module,
        prediction_type: str = "epsilon",
        call: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
        unit_input: bool = False,
        time_dtype: torch.dtype = torch.float32,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if prediction_type not in PREDICTION_TYPES:
            raise InputError(
                f"unknown prediction type {prediction_type!r}; "
                f"choose one of {', '.join(PREDICTION_TYPES)}"
            )
        self.network = network
        self.prediction_type = prediction_type
        self.call = call
        self.unit_input = unit_input
        self.time_dtype = time_dtype
        self.embedding = None if embedding is None else OncePerTime(embedding)
        self.time = TimeInput(self.embedding)

    def forward(self, x_t: Float[Tensor, "B ..."], level: Level) -> Float[Tensor, "B ..."]:
        network_input = x_t
        if self.unit_input:
            network_input = x_t / (level.alpha**2 + level.sigma**2) ** 0.5
        time = self.time.at(level, x_t, self.time_dtype)
        if self.call is None:
            output = self.network(network_input, time)
        else:
            output = self.call(self.network, network_input, time)
        return self._clean(output, x_t, level)

    def calling(self, call: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> "NetworkDenoiser":
        """The same network, called otherwise (with a condition, for example)."""
        other = copy.copy(self)
        other.call = call
        return other

    def prepared(self, levels: Iterable[Level], like: Tensor) -> "NetworkDenoiser":
        other = copy.copy(self)
        other.time = self.time.prepared(levels, like, self.time_dtype)
        return other

    def _clean(self, output: Tensor, x_t: Tensor, level: Level) -> Tensor:
        channels = x_t.shape[1]
        if output.shape == x_t.shape:
            return to_clean(self.prediction_type, output, x_t, level)
        if x_t.ndim > 1 and output.shape[1] == 2 * channels:
            mean, variance = output.split(channels, dim=1)
            return torch.cat([to_clean(self.prediction_type, mean, x_t, level), variance], 1)
        raise InputError(
            f"the network maps a state of shape {tuple(x_t.shape)} to {tuple(output.shape)}; "
            "it has to keep the shape (or double the channels for a learned variance)"
        )
