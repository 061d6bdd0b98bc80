"""The plane tasks of contrastive energy prediction, with an answer for the discrete chain.

Priors are Gaussian mixtures laid on the tasks' curves and cells, scaled to unit variance, so their
denoisers are exact. Rewards are ``exp(beta (e(x) - 1))`` with e a function of x in [0, 1]; the
paper's own energies of four tasks are labels of the generating component, which no reward can see.
Truth is by symmetry (ring of eight) or by quadrature in the plane.

Source: Lu et al. 2023, Contrastive Energy Prediction, section 5.1 (arXiv 2304.12824).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.schedules import quantile_log_snr
from difftilt.tasks.exact.base import ExactProblem, Truth, rejection_paths
from difftilt.tasks.exact.denoisers import MixtureDenoiser
from difftilt.tasks.exact.plane import data_law
from difftilt.tasks.exact.vectors import vector_chain

RING_RADIUS = 4 / 1.414
RING_STD = 0.5 / 1.414


@dataclass(frozen=True)
class Toy:
    """A plane task in data units.

    Arguments:
        centres: of the mixture, (K, 2).
        std: of each component.
        energy: ``x (B, 2) -> e (B,)`` in [0, 1].
        label: ``x (B, 2) -> cell (B,)``.
        labels: number of cells.
        summary: one line.
        weights: of the components, (K,); default equal.
    """

    centres: Float[Tensor, "K 2"]
    std: float
    energy: Callable[[Tensor], Tensor]
    label: Callable[[Tensor], Int[Tensor, " B"]]
    labels: int
    summary: str
    weights: Float[Tensor, " K"] | None = None

    @property
    def scale(self) -> float:
        """Data units per unit of state: the root mean variance of a coordinate."""
        share = self._shares()
        mean = share @ self.centres
        spread = share @ (self.centres - mean).square().mean(1)
        return math.sqrt(float(spread) + self.std**2)

    def _shares(self) -> Float[Tensor, " K"]:
        weights = torch.ones(len(self.centres)) if self.weights is None else self.weights
        return (weights / weights.sum()).double()

    def chain(self, steps: int) -> Chain:
        """The prior, in units of ``scale``."""
        centres, variance = (self.centres / self.scale).float(), (self.std / self.scale) ** 2
        denoiser = MixtureDenoiser(centres, self._shares().float(), variance)
        return vector_chain(denoiser, quantile_log_snr(steps), 2)

    def log_reward(self, x_0: Float[Tensor, "B 2"], beta: float) -> Float[Tensor, " B"]:
        """``beta (e(x) - 1)``; at most 0."""
        return beta * (self.energy(x_0 * self.scale) - 1)

    def cell(self, x_0: Float[Tensor, "B 2"]) -> Int[Tensor, " B"]:
        """The label of a state."""
        return self.label(x_0 * self.scale)


def sector(x: Float[Tensor, "B 2"]) -> Int[Tensor, " B"]:
    """The nearest of eight centres at angles 90° + 45° k: k, (B,)."""
    turns = (torch.atan2(x[:, 1], x[:, 0]) - math.pi / 2) / (math.pi / 4)
    return turns.round().long() % 8


def ring_toy() -> Toy:
    """Eight Gaussians on a ring; the centre's number is the reward."""
    angle = math.pi / 2 + math.pi / 4 * torch.arange(8, dtype=torch.float64)
    return Toy(
        RING_RADIUS * _directions(angle),
        RING_STD,
        lambda x: sector(x).to(x.dtype) / 7,
        sector,
        8,
        "eight Gaussians on a ring; the reward grows with the centre's number",
    )


def _directions(angle: Float[Tensor, " K"]) -> Float[Tensor, "K 2"]:
    return torch.stack([angle.cos(), angle.sin()], 1)


def _middles(count: int) -> Float[Tensor, " K"]:
    """The middles of ``count`` equal parts of [0, 1]."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


def _shell(x: Float[Tensor, "B 2"], cuts: list[float]) -> Int[Tensor, " B"]:
    radius = x.square().sum(1).sqrt()
    return torch.bucketize(radius, torch.tensor(cuts, dtype=x.dtype, device=x.device))


def _rings() -> Toy:
    counts, radii = (32, 64, 96, 128), (0.75, 1.5, 2.25, 3.0)
    circles = [_directions(2 * math.pi * _middles(k)) for k in counts]
    shell = partial(_shell, cuts=[1.125, 1.875, 2.625])
    energies = (0.0, 1.0, 1 / 3, 2 / 3)
    return Toy(
        torch.cat([r * circle for r, circle in zip(radii, circles, strict=True)]),
        0.08,
        lambda x: torch.tensor(energies, dtype=x.dtype, device=x.device)[shell(x)],
        shell,
        4,
        "four circles of equal mass; each has its own reward",
        torch.cat([torch.full((k,), 1 / k) for k in counts]),
    )


def _moon_distance(x: Float[Tensor, "B 2"], centre: Tensor, side: float) -> Float[Tensor, " B"]:
    """Distance to a half circle of radius 2, the upper (side 1) or the lower (side -1) one."""
    away = x - centre.to(x)
    ends = torch.stack([away[:, 0].abs() - 2, away[:, 1]], 1).square().sum(1).sqrt()
    arc = (away.square().sum(1).sqrt() - 2).abs()
    return torch.where(side * away[:, 1] >= 0, arc, ends)


def _moons() -> Toy:
    upper, lower = torch.tensor([-1.0, -0.2]).double(), torch.tensor([1.0, 0.8]).double()
    arc = 2 * _directions(math.pi * _middles(64))

    def label(x: Tensor) -> Tensor:
        return (_moon_distance(x, lower, -1.0) < _moon_distance(x, upper, 1.0)).long()

    return Toy(
        torch.cat([upper + arc, lower - arc]),
        0.2,
        lambda x: label(x).to(x.dtype),
        label,
        2,
        "two half circles; the reward wants the lower one",
    )


def _checkerboard() -> Toy:
    step = 2 * _middles(6)
    tile = torch.cartesian_prod(step, step)
    corners = [(2.0 * i, 2.0 * j) for i in range(-2, 2) for j in range(-2, 2) if (i + j) % 2 == 0]

    def label(x: Tensor) -> Tensor:
        column, row = (torch.floor(x / 2).clamp(-2, 1).long() + 2).unbind(1)
        return 4 * column + row

    return Toy(
        torch.cat([tile + torch.tensor(c, dtype=torch.float64) for c in corners]),
        0.2,
        lambda x: 1 - (label(x) // 4 % 2).to(x.dtype),
        label,
        16,
        "eight squares; the reward wants every other column",
    )


def _spirals() -> Toy:
    turn = _middles(128).sqrt() * 3 * math.pi
    arm = torch.stack([-turn.cos() * turn, turn.sin() * turn], 1) + 0.25
    return Toy(
        torch.cat([arm, -arm]) / 3,
        math.sqrt(0.1**2 + (0.5 / 3) ** 2 / 12),
        lambda x: (1 - 0.3 * x.square().sum(1).sqrt()).clamp(0, 1),
        partial(_shell, cuts=[0.8, 1.4, 2.0, 2.6]),
        5,
        "two spirals; the reward wants their middle",
    )


def _swissroll() -> Toy:
    turn = 1.5 * math.pi * (1 + 2 * _middles(128))
    return Toy(
        _directions(turn) * turn[:, None] / 5,
        0.2,
        lambda x: (x.square().sum(1) / 9).clamp(max=1),
        partial(_shell, cuts=[1.3, 1.7, 2.1, 2.5]),
        5,
        "a spiral of one arm; the reward wants its outside",
    )


TOYS: dict[str, Callable[[], Toy]] = {
    "rings": _rings,
    "moons": _moons,
    "checkerboard": _checkerboard,
    "spirals": _spirals,
    "swissroll": _swissroll,
}


@cache
def ring8(alpha: float = 10.0, steps: int = 20) -> ExactProblem:
    """The ring of eight, ``log r = alpha (k / 7 - 1)``; exact by symmetry for every N.

    The chain commutes with rotations by 45°, so each sector has prior mass 1/8 exactly.
    """
    toy = ring_toy()
    chain, log_reward = toy.chain(steps), partial(toy.log_reward, beta=alpha)
    log_r = alpha * (torch.arange(8, dtype=torch.float64) / 7 - 1)
    share = torch.softmax(log_r, 0)
    log_z = float(torch.logsumexp(log_r, 0)) - math.log(8)
    truth = Truth(
        log_z=log_z,
        label=toy.cell,
        label_probabilities=share,
        sample_paths=rejection_paths(chain, log_reward, 0.0),
        kl_to_prior=float(share @ log_r) - log_z,
        prior_ess=math.exp(2 * log_z) / float(torch.exp(2 * log_r).mean()),
    )
    return ExactProblem(f"ring8_alpha{alpha:g}", toy.summary, chain, log_reward, 0.0, truth)


@cache
def toy_problem(name: str, beta: float = 10.0, steps: int = 20) -> ExactProblem:
    """One of ``TOYS``, tilted by ``exp(beta (e(x) - 1))``; truth by quadrature in the plane."""
    toy = TOYS[name]()
    chain = toy.chain(steps)
    log_reward = partial(toy.log_reward, beta=beta)
    truth = plane_truth(chain, log_reward, toy.cell, toy.labels)
    return ExactProblem(name, toy.summary, chain, log_reward, 0.0, truth)


def plane_truth(
    chain: Chain,
    log_reward: Callable[[Tensor], Tensor],
    label: Callable[[Tensor], Tensor],
    labels: int,
    fineness: float = 1.0,
) -> Truth:
    """Truth of a reward bounded by 1 on a plane chain, by quadrature.

    Arguments:
        chain: the prior.
        log_reward: at most 0.
        label: cell of a state.
        labels: number of cells.
        fineness: as in ``data_law``.
    """
    prior = data_law(chain, fineness)
    log_r, x = log_reward(prior.x), prior.x
    posterior = prior.tilted(log_r)
    z = float(prior.expectation(log_r.exp()))
    mean = posterior.expectation(x)
    masses = torch.zeros(labels, dtype=torch.float64)
    return Truth(
        log_z=math.log(z),
        label=label,
        label_probabilities=masses.index_add(0, label(x), posterior.mass),
        mean=mean,
        covariance=(x - mean).T @ (posterior.mass[:, None] * (x - mean)),
        sample_paths=rejection_paths(chain, log_reward, 0.0),
        kl_to_prior=float(posterior.expectation(log_r)) - math.log(z),
        prior_ess=z**2 / float(prior.expectation((2 * log_r).exp())),
    )
