"""Quadrature of any chain of one number, prior or posterior: the law of its x_0 on a grid.

    p_{n-1}(x_j) = Σ_i p_n(x_i) h q_n(x_j | x_i)

with the chain's own transition density q_n, tilt included: one network call per grid point and
step. There is no sampling noise in what is found, so total variations of 0.001 can be told apart.
The trapezoid rule converges geometrically once the spacing is below the smallest std of a step.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.errors import InputError
from difftilt.transitions.base import Tilt
from difftilt.transitions.gaussian import Gaussian, GaussianTilt, MixtureTilt

SPACING, REACH = 0.03, 4.0
FAR = 9.0
"""In standard deviations; beyond it a density is nothing."""


@dataclass(frozen=True)
class LineLaw:
    """A law on the line as masses at grid points; they sum to 1.

    Arguments:
        x: (G,).
        mass: (G,).
    """

    x: Float[Tensor, " G"]
    mass: Float[Tensor, " G"]

    def tilted(self, log_reward: Float[Tensor, " G"]) -> "LineLaw":
        """The law re-weighted by ``exp(log_reward)`` and normalised."""
        return LineLaw(self.x, (self.mass.log() + log_reward).softmax(0))

    def log_mean_exp(self, values: Float[Tensor, " G"]) -> Tensor:
        """``log E[exp(values)]``."""
        return (self.mass.log() + values).logsumexp(0)

    def total_variation(self, other: "LineLaw") -> float:
        """``Σ |p - q| / 2`` of two laws on the same grid."""
        return 0.5 * float((self.mass - other.mass).abs().sum())


def best_of(
    mass: Float[Tensor, " M"], worth: Float[Tensor, " M"], count: int
) -> Float[Tensor, " M"]:
    """Masses of the worthiest of ``count`` independent draws from a discrete law.

    With F the probability to be worth at most as much, a point that no other equals in worth has
    mass ``F^n - (F - mass)^n``.
    """
    order = worth.argsort()
    below = mass[order].cumsum(0).clamp(max=1)
    power = torch.cat([below.new_zeros(1), below]) ** count
    found = torch.empty_like(mass)
    found[order] = power[1:] - power[:-1]
    return found / found.sum()


@torch.no_grad()
def line_law(chain: Chain, spacing: float = SPACING, reach: float = REACH) -> LineLaw:
    """The law of a chain's ``x_0`` by quadrature, in float64 masses.

    Arguments:
        chain: of one number, every step with a density; with a condition (1, ...) bound, if any.
        spacing: of the grid.
        reach: the grid covers [-reach, reach].

    Raises:
        InputError: states of several numbers, or several conditions.
    """
    if chain.event_shape != (1,):
        raise InputError(f"quadrature on a line is of states (B, 1), got {chain.event_shape}")
    count = round(reach / spacing)
    x = (spacing * torch.arange(-count, count + 1, dtype=torch.float64)).to(chain.like)
    base = None if chain.initial is None else chain.initial(1)
    law = Gaussian(x.new_zeros(1, 1), x.new_tensor(chain.gaussian.base_std))
    mass = _densities(law, base, x)[0].double()
    for n in range(chain.steps, 0, -1):
        keep = (mass > 1e-9 * mass.max()).nonzero().flatten()
        mass = mass[keep] @ _step(chain, x, n, keep).double()
    return LineLaw(x.double(), mass / mass.sum())


def _step(chain: Chain, x: Tensor, n: int, rows: Tensor) -> Float[Tensor, "rows G"]:
    """The transition density from some grid points to all."""
    state = x[rows, None]
    bound = chain if chain.condition is None else chain.given(_expanded(chain, len(rows)))
    prediction = bound.predict(state, n)
    law = bound.law(prediction, state, n)
    assert isinstance(law, Gaussian)
    return _densities(law, bound.tilt(state, n, prediction), x)


def _expanded(chain: Chain, count: int) -> Tensor:
    assert chain.condition is not None
    if len(chain.condition) != 1:
        raise InputError(
            f"a law is that of one condition, got {len(chain.condition)}; bind one of shape (1, ..."
            ")"
        )
    return chain.condition.expand(count, *chain.condition.shape[1:])


def _densities(law: Gaussian, tilt: Tilt | None, x: Tensor) -> Float[Tensor, "rows G"]:
    """Densities at all grid points, up to the grid's spacing."""
    eps = law.standardise(x[None])
    total = torch.zeros_like(eps)
    for share, shift, log_scale in _components(tilt, eps[:, :1]):
        z = (eps - shift) * torch.exp(-log_scale)
        # Beyond FAR there are only denormal numbers, which cost a hundred times as much.
        density = torch.exp(-0.5 * z.square().clamp_(max=FAR**2))
        total.add_(density.masked_fill_(z.abs() > FAR, 0).mul_(share * torch.exp(-log_scale)))
    return total / (law.std * math.sqrt(2 * math.pi))


def _components(tilt: Tilt | None, like: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Share, shift and log-scale of each Gaussian of a tilt, (rows, 1) each."""
    zero = torch.zeros_like(like)
    if tilt is None:
        return [(zero + 1, zero, zero)]
    if isinstance(tilt, GaussianTilt):
        return [(zero + 1, tilt.delta, zero if tilt.log_scale is None else tilt.log_scale)]
    assert isinstance(tilt, MixtureTilt)
    parts = zip(tilt.logits.softmax(0), tilt.delta, tilt.log_scale, strict=True)
    return [(share[:, None], shift.T, log_scale.T) for share, shift, log_scale in parts]
