"""The log-value ``log h``: what a state is worth, in nats.

    h_n(x_n) = E_p[r(x_0)^β | x_n],   h_0 = r^β,   π(x_{n-1} | x_n) = p(x_{n-1} | x_n) h_{n-1} / h_n

One network of it serves as guidance (its gradient), as the twist of a particle filter, as SVDD's
value, as the flow of sub-trajectory balance and as the per-step reward of RGDM. It is minus CEP's
intermediate energy (Lu et al. 2023, eq. 6, arXiv 2304.12824).
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.chains import Chain, Path
from difftilt.models.mlp import Size, StepMLP


class Value(nn.Module, ABC):
    """``log h_n(x_n)`` for n = 1 ... N, up to what it was trained on."""

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "B ..."],
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
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        steps: int,
        size: Size | None = None,
        largest_beta: float | None = None,
    ) -> None:
        super().__init__()
        dimension = int(torch.Size(event_shape).numel())
        self.largest_beta = largest_beta
        extra = 0 if largest_beta is None else 1
        self.network = StepMLP(dimension, 1, steps, Size() if size is None else size, extra=extra)

    def forward(
        self,
        x: Float[Tensor, "B ..."],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        if self.largest_beta is None:
            return self.network(x, prediction, n)[:, 0]
        share = torch.as_tensor(beta, dtype=x.dtype, device=x.device) / self.largest_beta
        share = share.expand(len(x))
        # No tilt, no value: log h is zero at β = 0.
        return share * self.network(x, prediction, n, share[:, None])[:, 0]


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
