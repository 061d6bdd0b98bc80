"""The log-value ``log h``: what a state is worth, in nats.

    h_n(x_n) = E_p[r(x_0)^β | x_n],   h_0 = r^β,   π(x_{n-1} | x_n) = p(x_{n-1} | x_n) h_{n-1} / h_n

One network of it serves as guidance (its gradient), as the twist of a particle filter, as SVDD's
value, as the flow of sub-trajectory balance and as the per-step reward of RGDM. It is minus CEP's
intermediate energy (Lu et al. 2023, eq. 6, arXiv 2304.12824).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from difftilt._ops import log_mean_exp
from difftilt.chains.chain import Chain, Path
from difftilt.diffusions.masked import completed
from difftilt.models.mlp import Size, StepMLP
from difftilt.models.reads import Reads


class RunningLogMean(nn.Module):
    """The running mean of positive numbers, kept as a log (-inf while all were zero).

    A plain mean at first, then an exponential one. Its buffers are part of a checkpoint.

    Arguments:
        count: how many means are kept.
        decay: weight of the past, in [0, 1).
    """

    value: Tensor
    updates: Tensor

    def __init__(self, count: int = 1, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("value", torch.zeros(count))
        self.register_buffer("updates", torch.zeros(()))

    @property
    def started(self) -> bool:
        """Whether anything was averaged yet."""
        return bool(self.updates > 0)

    @property
    def finite(self) -> Float[Tensor, " count"]:
        """The logs; 0 where only zeros were seen."""
        return torch.where(torch.isfinite(self.value), self.value, 0.0)

    @torch.no_grad()
    def update(self, log_values: Float[Tensor, "count B"]) -> None:
        """Average in the means of B numbers each, given by their logs."""
        new = log_mean_exp(log_values.to(self.value), 1)
        keep = (self.updates / (self.updates + 1)).clamp(max=self.decay)
        self.value.copy_(torch.logaddexp(keep.log() + self.value, torch.log1p(-keep) + new))
        self.updates += 1


class Anchor(nn.Module):
    """What turns a contrast's f, known up to a constant, into ``log h = f + A(β) + o``.

    ``A(β)`` is the running log mean of ``r^β``, by which labels are scaled. ``o`` then follows from
    ``E[w | x_n] = h_n(x_n)``: on the same rows, scaled labels ``w e^{-A}`` and ``e^{f + o}`` have
    the same mean, whatever states the rows are. Both are 0 before the first ``update``.

    Arguments:
        largest_beta: None for one β; otherwise A is a table over [0, largest_beta].
        knots: intervals of that table, between which A is interpolated.
    """

    def __init__(self, largest_beta: float | None = None, knots: int = 32) -> None:
        super().__init__()
        self.largest_beta = largest_beta
        self.evidence = RunningLogMean(1 if largest_beta is None else knots + 1)
        self.labels = RunningLogMean()
        self.values = RunningLogMean()

    @property
    def offset(self) -> Float[Tensor, ""]:
        """``o``."""
        return (self.labels.finite - self.values.finite)[0]

    def scale(self, beta: float | Float[Tensor, " B"]) -> Tensor:
        """``A(β)``, a scalar or (B,)."""
        table = self.evidence.finite
        if self.largest_beta is None:
            return table[0]
        knots = len(table) - 1
        place = torch.as_tensor(beta).to(table) * (knots / self.largest_beta)
        low = place.long().clamp(0, knots - 1)
        return torch.lerp(table[low], table[low + 1], place - low)

    def forward(self, beta: float | Float[Tensor, " B"]) -> Tensor:
        """``A(β) + o``, a scalar or (B,)."""
        return self.scale(beta) + self.offset

    def see_ends(
        self, log_r: Float[Tensor, " B"], beta: float, log_ratio: Float[Tensor, " B"] | float = 0.0
    ) -> None:
        """Average in the evidence of B ends.

        Arguments:
            log_r: nats, before any β.
            beta: β; read only where there is no table.
            log_ratio: Λ of their paths to the prior; 0 for the prior's own.
        """
        if self.largest_beta is None:
            powers = log_r.new_tensor([beta])
        else:
            powers = torch.linspace(0, self.largest_beta, len(self.evidence.value)).to(log_r)
        # 0 · (-inf) is nan: at β = 0 every end counts as one.
        powered = torch.where(powers[:, None] > 0, powers[:, None] * log_r, 0.0)
        self.evidence.update(powered - log_ratio)

    def see_rows(self, log_labels: Float[Tensor, " R"], f: Float[Tensor, " R"]) -> None:
        """Average in R scaled labels, by their logs, and the f at their states."""
        self.labels.update(log_labels[None])
        self.values.update(f[None])


class Value(nn.Module, ABC):
    """``log h_n(x_n)`` for n = 1 ... N, up to what it was trained on.

    A value that a contrast trains adds ``self.anchor(beta)`` to what its network says.

    Arguments:
        largest_beta: trained over β in (0, largest_beta], which is an input; None: one β.

    Class attributes:
        reads_prediction: whether it reads the prior's prediction; if not, its gradient costs no
            call of the prior.
    """

    reads_prediction: ClassVar[bool] = True

    def __init__(self, largest_beta: float | None = None) -> None:
        super().__init__()
        self.largest_beta = largest_beta
        self.anchor = Anchor(largest_beta)

    @property
    def conditional(self) -> bool:
        """Whether it reads the condition; if not, it is of no use where conditions differ."""
        return True

    @abstractmethod
    def forward(
        self,
        x: Shaped[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        """``log h`` in nats.

        Arguments:
            x: states x_n, (B, *event).
            n: the step that leaves the state, one int or one per sample.
            prediction: the prior's clean prediction at x_n.
            condition: (B, ...) or None.
            beta: β of the target; a value that was not trained over several β ignores it.
        """


class VectorValue(Value):
    """A perceptron's value for states of a few dimensions; zero at the start.

    Arguments:
        event_shape: shape of one sample.
        steps: N.
        size: of the ``StepMLP``.
        largest_beta: train over β in (0, largest_beta], which becomes an input; None: one β.
        reads: the labels or the numbers of the condition, or None: it reads none.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: int,
        size: Size | None = None,
        largest_beta: float | None = None,
        reads: Reads | None = None,
    ) -> None:
        super().__init__(largest_beta)
        self.reads = reads
        dimension = int(torch.Size(event_shape).numel())
        extra = (0 if largest_beta is None else 1) + (0 if reads is None else reads.count)
        self.network = StepMLP(dimension, 1, steps, Size() if size is None else size, extra=extra)

    @property
    def conditional(self) -> bool:
        return self.reads is not None

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        code = None if self.reads is None else self.reads.code(condition, x)
        if self.largest_beta is None:
            return self.network(x, prediction, n, code)[:, 0] + self.anchor(beta)
        share = torch.as_tensor(beta, dtype=x.dtype, device=x.device) / self.largest_beta
        share = share.expand(len(x))
        extra = share[:, None] if code is None else torch.cat([code, share[:, None]], 1)
        # No tilt, no value: f is zero at β = 0.
        f = share * self.network(x, prediction, n, extra)[:, 0]
        return f + self.anchor(beta)


class TokenValue(Value):
    """A small transformer's value of masked canvases, with their suffix; zero at the start.

    Arguments:
        vocab_size: V, the chain's.
        length: L, positions of a state.
        width: of the embeddings.
        depth: layers.
        heads: of the attention.
    """

    def __init__(
        self, vocab_size: int, length: int, width: int = 64, depth: int = 2, heads: int = 4
    ) -> None:
        super().__init__()
        self.vocab_size = vocab_size
        self.tokens = nn.Embedding(vocab_size + 1, width)
        self.places = nn.Parameter(0.5 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.last = nn.Linear(width, 1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(
        self,
        x: Int[Tensor, "B L"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        ids = completed(x, condition).clamp(max=self.vocab_size)
        hidden = self.layers(self.tokens(ids) + self.places)
        return self.last(hidden.mean(1))[:, 0] + self.anchor(beta)


def path_values(
    value: Value, chain: Chain, path: Path, beta: float, chunk: int | None = None
) -> Float[Tensor, "steps B"]:
    """``log h`` at the states that the steps with a density leave (``chain.density_steps``).

    Arguments:
        value: the network.
        chain: whose prior predicts where the path kept no predictions.
        path: B paths.
        beta: β.
        chunk: states per network call; default all at once.
    """
    count = len(chain.density_steps) * path.batch
    parts = torch.arange(count, device=path.states.device).split(chunk or count)
    chain.calls.posterior += count
    every = [_values(value, chain, path, rows, beta) for rows in parts]
    return torch.cat(every).unflatten(0, (-1, path.batch))


def value_backward(
    value: Value,
    chain: Chain,
    path: Path,
    beta: float,
    coefficients: Float[Tensor, "steps B"],
    chunk: int,
) -> None:
    """Accumulate the gradient of ``Σ coefficients · path_values`` a chunk at a time."""
    flat = coefficients.detach().flatten()
    for rows in torch.arange(len(flat), device=flat.device).split(chunk):
        (flat[rows] * _values(value, chain, path, rows, beta)).sum().backward()


def _values(value: Value, chain: Chain, path: Path, rows: Tensor, beta: float) -> Tensor:
    n = chain.density_steps[0] + rows // path.batch
    which = rows % path.batch
    x = path.states[n, which]
    condition = None if path.condition is None else path.condition[which]
    if path.predictions is None:
        prediction = chain.given(path.condition).predict(x, n, which)
    else:
        prediction = path.predictions[n - 1, which]
    return value(x, n, prediction, condition, beta)
