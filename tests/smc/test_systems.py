"""Systems of particles side by side: exact by enumeration, and equal to one system at a time."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise, Noise, StreamNoise
from difftilt.smc.feynman_kac import FeynmanKac, Resampling, particle_filter, particle_systems
from difftilt.smc.potentials import Twist, TwistedChain
from difftilt.smc.resampling import SYSTEM_SCHEMES, resample_systems, systematic
from toys import Likelihood, gaussian_chain

SINGLE_UNIFORM = ("systematic", "single")


class Digits(Noise):
    """Uniforms of every possible outcome: a system per combination of digits, column by column."""

    def __init__(self, radices: Sequence[int]) -> None:
        points = [(torch.arange(r, dtype=torch.float64) + 0.5) / r for r in radices]
        self.table, self.used = torch.cartesian_prod(*points), 0

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("the coins take uniforms alone")

    def uniforms(self, like: Tensor) -> Tensor:
        raise AssertionError("the coins take one uniform each")

    def of(self, chosen: Tensor) -> Noise:
        return SomeDigits(self, chosen)

    def uniform(self, like: Tensor) -> Tensor:
        return self.next(len(like) // len(self.table)).flatten()

    def next(self, count: int) -> Tensor:
        self.used += count
        return self.table[:, self.used - count : self.used]


class SomeDigits(Digits):
    """The digits of some systems; they use up the columns of the others too."""

    def __init__(self, whole: Digits, chosen: Tensor) -> None:
        self.whole, self.chosen = whole, chosen

    def uniform(self, like: Tensor) -> Tensor:
        return self.whole.next(len(like) // int(self.chosen.sum()))[self.chosen].flatten()


class Coins(FeynmanKac):
    """Three fair coins; weights 1 or 3 on the way, 0 to 5 at the end, by the whole path.

    The weights of two particles then always have the ratio 1:1 or 1:3, so that four equal parts of
    [0, 1) hold every outcome of a resampling.
    """

    moves = 2

    def __init__(self, noise: Noise, pinned: tuple[int, int, int] | None = None) -> None:
        self.noise, self.pinned = noise, pinned

    def start(self, particles: int) -> tuple[tuple[Tensor, ...], Tensor]:
        x = self._flip(torch.zeros(particles, dtype=torch.float64), 0)
        return (x[:, None],), self.growth(x[:, None])

    def move(self, index: int, state: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], Tensor]:
        x = torch.cat([state[0], self._flip(state[0][:, 0], index + 1)[:, None]], 1)
        return (x,), self.growth(x)

    @staticmethod
    def growth(x: Tensor) -> Tensor:
        """Of a path of 1, 2 or 3 coins."""
        if x.shape[1] == 1:
            return (1 + 2 * x[:, 0]).log()
        if x.shape[1] == 2:
            return (1 + 2 * (x[:, 0] - x[:, 1]).abs()).log()
        return (5 * x[:, 2] * (1 - 0.4 * x[:, 0]) + 0.2 * (x[:, 1] - x[:, 1] * x[:, 2])).log()

    def _flip(self, like: Tensor, index: int) -> Tensor:
        x = (self.noise.uniform(like) < 0.5).double()
        if self.pinned is not None:
            x[::2] = self.pinned[index]
        return x


PATHS = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3)
REWARDS = sum(Coins.growth(PATHS[:, : n + 1]) for n in range(3)).exp()  # type: ignore[union-attr]
Z = float(REWARDS.mean())


def every_outcome(resampling: Resampling, pinned: tuple[int, int, int] | None = None):
    """Two particles in a system for each outcome of all coins and resamplings."""
    uniforms = [4] * (1 if resampling.scheme in SINGLE_UNIFORM else 2)
    if resampling.pinned and resampling.scheme == "single":
        uniforms = []
    if resampling.scheme == "best":
        uniforms = []
    noise = Digits([2, 2, *uniforms, 2, 2, *uniforms, 2, 2])
    return particle_systems(Coins(noise, pinned), len(noise.table), 2, resampling, noise)


@pytest.mark.parametrize("scheme", SYSTEM_SCHEMES)
@pytest.mark.parametrize("threshold", [0.0, 0.9, math.inf])
def test_z_is_unbiased_to_rounding_over_every_outcome(scheme: str, threshold: float):
    ran = every_outcome(Resampling(threshold, scheme))
    assert float(ran.log_z.exp().mean()) == pytest.approx(Z, rel=1e-12)
    assert float(ran.log_z.exp().std()) > 0.1


@pytest.mark.parametrize("scheme", SYSTEM_SCHEMES)
def test_weighted_particles_are_the_target_over_every_outcome(scheme: str):
    """``E[Ẑ Σ W f]  = Z E_π[f]`` for the indicator of each path."""
    ran = every_outcome(Resampling(math.inf, scheme))
    code = (ran.state[0] @ torch.tensor([4.0, 2.0, 1.0]).double()).long()
    weights = ran.log_z[:, None].exp() * ran.log_w.softmax(1).nan_to_num()
    mass = torch.zeros(8, dtype=torch.float64).index_add(0, code, weights.flatten())
    torch.testing.assert_close(mass / len(ran.log_z), REWARDS / 8, rtol=1e-12, atol=1e-12)


def test_the_best_candidate_is_biased():
    ran = every_outcome(Resampling(math.inf, "best"))
    assert float(ran.log_z.exp().mean()) < 0.95 * Z


@pytest.mark.parametrize("scheme", ["multinomial", "single"])
@pytest.mark.parametrize("threshold", [0.9, math.inf])
def test_conditional_systems_are_the_weighted_law_over_every_outcome(scheme: str, threshold: float):
    """``E_π E[f(Ẑ) | path] = E[Ẑ f(Ẑ)] / Z``, for 1/Ẑ (with P(Ẑ > 0) on the right) and Ẑ."""
    free = every_outcome(Resampling(threshold, scheme)).log_z.exp()
    inverse, mean = 0.0, 0.0
    for path, reward in zip(PATHS.long().tolist(), REWARDS.tolist(), strict=True):
        if reward == 0:
            continue
        ran = every_outcome(Resampling(threshold, scheme, pinned=True), tuple(path))
        inverse += reward / (8 * Z) * float((-ran.log_z).exp().mean())
        mean += reward / (8 * Z) * float(ran.log_z.exp().mean())
    assert inverse == pytest.approx(float((free > 0).double().mean()) / Z, rel=1e-12)
    assert mean == pytest.approx(float((free**2).mean()) / Z, rel=1e-12)


def one_system(model: FeynmanKac, particles: int, threshold: float, generator: torch.Generator):
    """The textbook's loop for a single system."""
    state, log_w = model.start(particles)
    log_z = 0.0
    for index in range(model.moves):
        w = torch.exp(log_w - log_w.max())
        if w.sum() ** 2 / (w**2).sum() < threshold * particles:
            log_z += float(torch.logsumexp(log_w, 0)) - math.log(particles)
            rows = systematic(log_w, particles, generator)
            state, log_w = tuple(t[rows] for t in state), torch.zeros_like(log_w)
        state, growth = model.move(index, state)
        log_w = log_w + growth
    return state[0], log_w, log_z + float(torch.logsumexp(log_w, 0)) - math.log(particles)


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_one_system_is_the_ungrouped_filter(threshold: float):
    def model(generator: torch.Generator) -> TwistedChain:
        noise = GeneratorNoise(generator)
        return TwistedChain(gaussian_chain(2), Likelihood(), 2.0, noise, Twist())

    first, second = (torch.Generator().manual_seed(7) for _ in range(2))
    x, log_w, log_z = one_system(model(first), 40, threshold, first)
    ran = particle_filter(model(second), 40, threshold, second)
    assert torch.equal(ran.state[0], x)
    torch.testing.assert_close(ran.log_w, log_w)
    assert ran.log_z == pytest.approx(log_z, abs=1e-12)


@pytest.mark.parametrize("scheme", SYSTEM_SCHEMES)
def test_a_system_does_not_depend_on_its_neighbours(scheme: str):
    """Streams are systems: those of 5 are the same alone, resampled at other times or not."""

    def run(indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        noise = StreamNoise(3, indices)
        model = TwistedChain(gaussian_chain(2), Likelihood(), 2.0, noise, Twist(), group=4)
        ran = particle_systems(model, len(indices), 4, Resampling(0.8, scheme), noise)
        return ran.state[0].unflatten(0, (-1, 4)), ran.log_z

    together = run(range(5))
    alone = [run([i]) for i in range(5)]
    assert torch.equal(together[0], torch.cat([x for x, _ in alone]))
    torch.testing.assert_close(together[1], torch.cat([z for _, z in alone]))


def test_system_draws_follow_their_own_weights(generator):
    """20,000 draws of each of two systems, 5 standard errors."""
    log_w = torch.tensor([[0.1, 0.9, 0.0], [0.5, 0.0, 0.5]], dtype=torch.float64).log()
    for scheme in SYSTEM_SCHEMES:
        many = log_w.repeat(10_000, 1)
        rows = resample_systems(many, 2, scheme, GeneratorNoise(generator))
        for m in (0, 1):
            share = torch.bincount(rows[m::2].flatten(), minlength=3) / 20_000
            bound = 5 * (0.25 / 10_000) ** 0.5
            assert float((share - log_w[m].exp()).abs().max()) < bound
            assert share[log_w[m] == -math.inf].sum() == 0


def test_impossible_systems_are_refused(generator):
    noise = GeneratorNoise(generator)
    dead = torch.tensor([[0.0, 0.0], [-math.inf, -math.inf]])
    with pytest.raises(InputError, match="all 2 particles of 1 systems"):
        resample_systems(dead, 2, "systematic", noise)
    with pytest.raises(InputError, match="'residual' of systems is not one of multinomial"):
        resample_systems(dead, 2, "residual", noise)


def test_a_weight_that_is_no_number_stops_the_run(generator):
    class Broken(Coins):
        def move(self, index: int, state: tuple[Tensor, ...]):
            return state, state[0][:, 0] * math.nan

    with pytest.raises(InputError, match="became NaN or"):
        noise = GeneratorNoise(generator)
        particle_systems(Broken(noise), 3, 2, Resampling(), noise)
