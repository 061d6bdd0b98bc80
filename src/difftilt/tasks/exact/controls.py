"""Two controls at once, with the answer: eight Gaussians on a ring, and two probit labels.

    p(y_k = 1 | x) = Φ(a u_k · x),     y_1 and y_2 independent given x,     k = 1, 2

with u_1 and u_2 at an angle of 60 degrees. The posterior ``p(x | y_1, y_2)`` of each pair of labels
keeps another part of the ring. Under a Gaussian component ``N(μ, v I)`` the probability of a pair
is an orthant of a bivariate normal, so the clean mixture's mode weights are closed forms; the truth
of the discrete chain is by quadrature in the plane.

Labels of one kind are offered with samples of their own (``labelled``): no sample carries both.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.tasks.controls import LabelledSet
from difftilt.tasks.exact.base import Truth, rejection_paths
from difftilt.tasks.exact.plane import Cloud, data_law
from difftilt.tasks.exact.toys import Toy, ring_toy

PAIRS = ((0, 0), (0, 1), (1, 0), (1, 1))
ANGLES = (0.0, math.pi / 3)


@dataclass(frozen=True)
class TwoControls:
    """The ring with two binary labels.

    Arguments:
        steps: N of the prior's chain.
        slope: a, in units of the chain's states.
        fineness: of the quadrature's grids (``plane.data_law``); mode weights are right to 1e-5
            at 2.
    """

    steps: int = 20
    slope: float = 1.5
    fineness: float = 2.0
    toy: Toy = field(default_factory=ring_toy)

    @cached_property
    def chain(self) -> Chain:
        """The prior."""
        return self.toy.chain(self.steps)

    @property
    def directions(self) -> Float[Tensor, "2 2"]:
        """u_1 and u_2, one per row."""
        angles = torch.tensor(ANGLES, dtype=torch.float64)
        return torch.stack([angles.cos(), angles.sin()], 1)

    def log_probability(
        self, x: Float[Tensor, "B 2"], label: int, y: Int[Tensor, " B"]
    ) -> Float[Tensor, " B"]:
        """``log p(y_label = y | x)``, label 0 or 1."""
        evidence = self.slope * (x @ self.directions[label].to(x))
        return torch.special.log_ndtr(torch.where(y == 1, evidence, -evidence))

    def log_reward(
        self, x_0: Float[Tensor, "B 2"], condition: Int[Tensor, "B 2"]
    ) -> Float[Tensor, " B"]:
        """``Σ_k log p(y_k | x)`` of the true labels; at most 0."""
        terms = [self.log_probability(x_0, k, condition[:, k]) for k in (0, 1)]
        return terms[0] + terms[1]

    def labelled(self, label: int, n: int, generator: torch.Generator) -> LabelledSet:
        """``n`` samples of the prior's chain with labels of one kind.

        Raises:
            InputError: no such label.
        """
        if label not in (0, 1):
            raise InputError(f"label={label}; this problem has labels 0 and 1")
        x = rollout(self.chain, n, GeneratorNoise(generator), record=False).x_0
        p = self.log_probability(x, label, torch.ones(n, dtype=torch.long)).exp()
        return LabelledSet(x, (torch.rand(n, generator=generator) < p).long())

    def truth(self, pair: tuple[int, int]) -> Truth:
        """The posterior given both labels, of the discrete chain."""

        def log_reward(x: Tensor) -> Tensor:
            return self.log_reward(x, torch.tensor([pair]).expand(len(x), 2))

        prior = self._prior_law
        log_r = log_reward(prior.x)
        posterior = prior.tilted(log_r)
        log_z = math.log(float(prior.expectation(log_r.exp())))
        mean = posterior.expectation(prior.x)
        centred = prior.x - mean
        return Truth(
            log_z=log_z,
            label=self.toy.cell,
            label_probabilities=self._cells(posterior),
            mean=mean,
            covariance=centred.T @ (posterior.mass[:, None] * centred),
            sample_paths=rejection_paths(self.chain, log_reward, 0.0),
            kl_to_prior=float(posterior.expectation(log_r)) - log_z,
        )

    def tilted_cells(self, log_reward: Float[Tensor, " M"]) -> Float[Tensor, " 8"]:
        """Posterior mode weights for any reward, given by its values at ``points``."""
        return self._cells(self._prior_law.tilted(log_reward))

    @property
    def points(self) -> Float[Tensor, "M 2"]:
        """The quadrature's points, in float64."""
        return self._prior_law.x

    @cached_property
    def _prior_law(self) -> Cloud:
        return data_law(self.chain, self.fineness)

    def _cells(self, law: Cloud) -> Tensor:
        masses = torch.zeros(self.toy.labels, dtype=torch.float64)
        return masses.index_add(0, self.toy.cell(law.x), law.mass)

    def clean_mode_weights(self, pair: tuple[int, int]) -> Float[Tensor, " 8"]:
        """Weights of the eight components given both labels, for the clean mixture.

        ``w_m ∝ P(s_1 (a u_1 · x + ε_1) > 0, s_2 (a u_2 · x + ε_2) > 0)`` under component m, with
        ``s_k = ±1`` by label: the orthant of a bivariate normal.
        """
        from scipy.stats import multivariate_normal

        signs = 2 * torch.tensor(pair, dtype=torch.float64) - 1
        axes = signs[:, None] * self.slope * self.directions
        variance = (self.toy.std / self.toy.scale) ** 2
        covariance = variance * axes @ axes.T + torch.eye(2, dtype=torch.float64)
        means = (self.toy.centres / self.toy.scale) @ axes.T
        orthants = [
            multivariate_normal.cdf(mean.numpy(), cov=covariance.numpy())  # pyright: ignore[reportArgumentType]
            for mean in means
        ]
        masses = torch.tensor(orthants, dtype=torch.float64)
        cells = self.toy.cell(self.toy.centres / self.toy.scale)
        ordered = torch.zeros(self.toy.labels, dtype=torch.float64).index_add(0, cells, masses)
        return ordered / ordered.sum()
