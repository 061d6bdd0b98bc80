"""Guidance of a diffusion policy by a learned value of (noisy action, step, state): QGPO's form.

    δ_n = scale · std_n · ∇_a f(a_n, n, s),        f = log E[exp(β A(s, a_0)) | a_n, s]

f is a network of its own, which ``CEP`` trains on the behaviour's support actions; the behaviour
stays as it is. Each step of a guided policy costs one call of the behaviour, and one call of f with
its gradient. β may be an input of f: one network then serves every β up to a largest one.

Source: Lu et al. 2023, section 4 (arXiv 2304.12824).
"""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.adapters.policies import PolicyDenoiser
from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.forms import Form
from difftilt.models.residual import ResidualMLP, ResidualSize
from difftilt.values.functions import Value
from difftilt.values.kernel import ValueKernel

LONGEST = 1000.0


class StateValue(Value):
    """``f(a_n, n, s)`` by a residual perceptron, zero at the start.

    Arguments:
        network: of one output, on actions, times and states (and β as a share of the largest).
        steps: N.
        largest_beta: train over β in (0, largest_beta], which is then the last number of the
            network's condition; None: one β.
    """

    reads_prediction: ClassVar[bool] = False

    def __init__(self, network: ResidualMLP, steps: int, largest_beta: float | None = None) -> None:
        super().__init__(largest_beta)
        nn.init.zeros_(network.last.weight)
        nn.init.zeros_(network.last.bias)
        self.network, self.steps = network, steps

    def forward(
        self,
        x: Float[Tensor, "B A"],
        n: int | Int[Tensor, " B"],
        prediction: Tensor,
        condition: Tensor | None = None,
        beta: float | Float[Tensor, " B"] = 1.0,
    ) -> Float[Tensor, " B"]:
        if condition is None:
            raise InputError("this value reads a state; bind states with given(states (B, O))")
        time = torch.as_tensor(n, device=x.device).to(x).expand(len(x)) * (LONGEST / self.steps)
        if self.largest_beta is None:
            return self.network(x, time, condition)[:, 0] + self.anchor(beta)
        share = (torch.as_tensor(beta).to(x) / self.largest_beta).expand(len(x))
        read = torch.cat([condition.to(x), share[:, None]], 1)
        # No tilt, no value: f is zero at β = 0.
        return share * self.network(x, time, read)[:, 0] + self.anchor(beta)


@dataclass(frozen=True)
class StateGuided(Form):
    """A diffusion policy guided by the gradient of a ``StateValue``; what ``CEP`` trains.

    Arguments:
        size: of the value's network.
        scale: of the guidance; 1 aims at the posterior.
        largest_beta: one value for every β in (0, largest_beta]; None: for the target's β alone.
    """

    size: ResidualSize = field(default_factory=ResidualSize)
    scale: float = 1.0
    largest_beta: float | None = None

    def kernel(self, chain: Chain) -> ValueKernel:
        """The kernel on a policy's chain, at its starting point.

        Raises:
            InputError: the chain is no policy's.
        """
        prior = chain.denoiser
        if not isinstance(prior, PolicyDenoiser) or not isinstance(prior.network, ResidualMLP):
            raise InputError(
                "StateGuided guides a diffusion policy; for another chain use ValueGuided()"
            )
        own = prior.network
        network = ResidualMLP(own.dimension, own.condition, 1, self.size)
        network.centre.copy_(own.centre)
        network.spread.copy_(own.spread)
        if self.largest_beta is not None:
            network = network.reading(1)
        value = StateValue(network, chain.steps, self.largest_beta).to(chain.like.device)
        beta = 1.0 if self.largest_beta is None else self.largest_beta
        return ValueKernel(value, prior, chain.gaussian, self.scale, beta)
