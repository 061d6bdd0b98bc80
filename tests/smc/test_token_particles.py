"""Particles of token chains: Ẑ is unbiased, over every outcome of all draws and by simulation."""

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, MaskedDiffusion, canvas
from difftilt.diffusions.orders import AnyOrder, LeftToRight, Order, Parallel, Stepwise
from difftilt.kernels.networks import full_copy
from difftilt.noise import Noise
from difftilt.posteriors import Prior
from difftilt.smc.feynman_kac import Resampling, particle_systems
from difftilt.smc.methods import SVDD, BestOfN, FKSteering, ImportanceResampling
from difftilt.smc.population import Population
from difftilt.smc.potentials import POTENTIALS, Twist, TwistedChain
from difftilt.token_denoisers import TokenDenoiser
from tabular import (
    ENDS,
    K,
    Table,
    arbitrary,
    codes,
    conditionals,
    coupled,
    distance,
    ends_law,
    joint,
    product,
    tilted,
    token_chain,
)


class Digits(Noise):
    """Uniforms of every possible outcome: a system per combination of digits, column by column."""

    def __init__(self, radices: Sequence[int]) -> None:
        points = [(torch.arange(r, dtype=torch.float64) + 0.5) / r for r in radices]
        self.table, self.used = torch.cartesian_prod(*points), 0

    def normal(self, like: Tensor) -> Tensor:
        raise AssertionError("tokens take uniforms alone")

    def uniform(self, like: Tensor) -> Tensor:
        return self.next(len(like))

    def uniforms(self, like: Tensor) -> Tensor:
        return self.next(like.numel()).reshape(like.shape)

    def of(self, chosen: Tensor) -> Noise:
        return SomeDigits(self, chosen)

    def next(self, count: int) -> Tensor:
        columns = count // len(self.table)
        self.used += columns
        return self.table[:, self.used - columns : self.used].flatten()


class SomeDigits(Digits):
    """The digits of some systems; they use up the columns of the others too."""

    def __init__(self, whole: Digits, chosen: Tensor) -> None:
        self.whole, self.chosen = whole, chosen

    def next(self, count: int) -> Tensor:
        each, systems = count // int(self.chosen.sum()), len(self.chosen)
        return self.whole.next(each * systems).reshape(systems, each)[self.chosen].flatten()


def coins() -> Chain:
    """Two tokens of two values, left to right, whose probabilities are quarters."""
    first, after_0, after_1 = [0.75, 0.25], [0.25, 0.75], [0.5, 0.5]
    rows = torch.full((9, 2, 2), 0.5)
    rows[8] = torch.tensor([first, first])  # both masked
    rows[2, 1], rows[5, 1] = torch.tensor(after_0), torch.tensor(after_1)  # 0 _ and 1 _
    denoiser = TokenDenoiser(Table(rows.log())).requires_grad_(False)
    return Chain(denoiser, MaskedDiffusion(2, 2, LeftToRight()), (2,))


PAIRS = torch.cartesian_prod(torch.arange(2), torch.arange(2))
LAW = torch.tensor([0.75 * 0.25, 0.75 * 0.75, 0.25 * 0.5, 0.25 * 0.5]).double()
# Completions are 01 after 0, 10 after 1 and 00 from nothing: their rewards have the ratio 1 : 3.
REWARDS = torch.tensor([3.0, 1.0, 3.0, 5.0]).double()
Z = float((LAW * REWARDS).sum())


def reward(x: Tensor, condition: Tensor | None = None) -> Tensor:
    return REWARDS[2 * x[:, 0] + x[:, 1]].log()


def every_outcome(scheme: str, twist: Twist, pinned: Tensor | None = None):
    """Two particles in a system for each outcome of all draws and resamplings."""
    at_start, drawn = ([2], [4]) if scheme == "single" else ([], [4, 4])
    if pinned is not None and scheme == "single":
        at_start, drawn = [], []
    noise = Digits([*at_start, 4, 4, *drawn, 4, 4])
    systems = len(noise.table)
    model = TwistedChain(coins(), reward, 1.0, noise, twist, group=2)
    if pinned is not None:
        states = [pinned, torch.tensor([int(pinned[0]), 3]), torch.tensor([4, 3])]
        model.pinned = Path(torch.stack(states)[:, None].expand(-1, systems, -1))
    threshold = math.inf if scheme == "single" else 1.0
    resampling = Resampling(threshold, scheme, pinned=pinned is not None)
    return particle_systems(model, systems, 2, resampling, noise)


SCHEMES = [("multinomial", p) for p in POTENTIALS] + [("single", "difference")]


@pytest.mark.parametrize("scheme, potential", SCHEMES)
def test_z_is_unbiased_to_rounding_over_every_outcome(scheme: str, potential):
    ran = every_outcome(scheme, Twist(potential=potential))
    assert float(ran.log_z.exp().mean()) == pytest.approx(Z, rel=1e-7)
    assert float(ran.log_z.exp().std()) > 0.1


@pytest.mark.parametrize("scheme, potential", SCHEMES)
def test_weighted_ends_are_the_posterior_over_every_outcome(scheme: str, potential):
    ran = every_outcome(scheme, Twist(potential=potential))
    weights = ran.log_z[:, None].exp() * ran.log_w.softmax(1)
    code = 2 * ran.state[0][:, 0] + ran.state[0][:, 1]
    mass = torch.zeros(4, dtype=torch.float64).index_add(0, code, weights.flatten())
    torch.testing.assert_close(mass / len(ran.log_z), LAW * REWARDS, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scheme", ["multinomial", "single"])
def test_systems_around_posterior_paths_have_the_weighted_law_over_every_outcome(scheme: str):
    """``E_π[1/Ẑ | path] = 1/Z`` and ``E_π[Ẑ | path] = E[Ẑ²] / Z``."""
    free = every_outcome(scheme, Twist()).log_z.exp()
    around = [every_outcome(scheme, Twist(), pinned=pair).log_z.exp() for pair in PAIRS]
    posterior = LAW * REWARDS / Z
    inverse = sum(float(p * (1 / z).mean()) for p, z in zip(posterior, around, strict=True))
    mean = sum(float(p * z.mean()) for p, z in zip(posterior, around, strict=True))
    assert inverse == pytest.approx(1 / Z, rel=1e-6)
    assert mean == pytest.approx(float((free**2).mean()) / Z, rel=1e-6)


def moved_copy(chain: Chain) -> Chain:
    """A posterior with other logits, so that weights hold a ratio q/p."""
    kernel = full_copy(chain)
    with torch.no_grad():
        for parameter in kernel.parameters():
            parameter += 0.5 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(3)
            )
    return chain.tilted(kernel)


METHODS = [
    ImportanceResampling(4),
    FKSteering(4),
    FKSteering(4, "max"),
    SVDD(4),
]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: f"{type(m).__name__} {m.size}")
@pytest.mark.parametrize("order", [AnyOrder(), Stepwise(), Parallel(2)], ids=repr)
@pytest.mark.parametrize("trained", [False, True])
def test_z_is_unbiased_for_every_method_and_order(method: Population, order: Order, trained: bool):
    """Within 5 standard errors; 24 such tests fail by chance once in 7e4."""
    # Several tokens at once are right for a product alone.
    law = product() if isinstance(order, Parallel) else joint()
    chain = token_chain(conditionals(law), order)
    if trained:
        chain = moved_copy(chain)
    target = Prior(chain.prior).tilt(coupled)
    z = target.population(method, chain).draw(1_500).log_w
    assert z is not None
    z = z.exp()
    truth = math.exp(tilted(law)[1])
    assert abs(float(z.mean()) - truth) < 5 * float(z.std()) / math.sqrt(len(z))
    assert float(z.std()) > 0.05 * truth


@pytest.mark.parametrize("method", [FKSteering(8), SVDD(8)], ids=lambda m: type(m).__name__)
def test_ends_weighted_by_z_are_the_posterior_of_any_prior(method: Population):
    """A uniform order of a prior that belongs to no joint law: particles need no such law."""
    chain = token_chain(arbitrary())
    law = ends_law(chain)
    posterior, _ = tilted(law)
    drawn = Prior(chain).tilt(coupled).population(method).draw(3_000)
    assert drawn.log_w is not None
    weights = drawn.log_w.softmax(0)
    found = torch.zeros_like(law).index_add(0, codes(drawn.x_0), weights)
    # 27 cells of 3,000 even draws are 0.03 from their law on average.
    assert distance(found, posterior) < 0.08
    assert distance(law, posterior) > 0.4


def test_a_corrected_sample_of_a_token_posterior_is_exact():
    chain = moved_copy(token_chain(conditionals(joint())))
    target = Prior(chain.prior).tilt(coupled)
    posterior, _ = tilted(joint())
    x = replace(target.posterior(), chain=chain).sample(4_000, correct="smc", effort=4)
    found = torch.bincount(codes(x), minlength=len(ENDS)) / len(x)
    assert distance(found, posterior) < 0.06
    assert distance(joint(), posterior) > 0.4


def test_the_certificate_of_a_population_of_tokens_holds_log_z():
    chain = token_chain(conditionals(joint()), Stepwise())
    bound = float(coupled(ENDS).max())
    target = Prior(chain).tilt(coupled, log_bound=bound)
    certificate = target.population(FKSteering(4)).certify(2_048)
    log_z = tilted(joint())[1]
    assert certificate.defensive.best.low < log_z < certificate.defensive.best.high
    assert certificate.elbo.value < log_z < certificate.eubo.value


def test_the_best_of_many_forgets_the_prior():
    target = Prior(token_chain(conditionals(joint()))).tilt(coupled)
    ends = target.population(BestOfN(64)).sample(200)
    posterior, _ = tilted(joint())
    mean = float((posterior * coupled(ENDS)).sum())
    assert float(coupled(ends).mean()) > mean + 0.5


def test_the_guess_of_a_state_keeps_what_is_shown_and_hides_the_suffix():
    """The prior's likeliest tokens at all masks, from one call; a suffix stays unseen by it."""
    chain = token_chain(conditionals(joint()), Stepwise())
    roles = torch.tensor([[GIVEN, GENERATED, SUFFIX]])
    bound = chain.given(canvas(torch.tensor([[2, 0, 1]]), roles))
    x = bound.base(1).at(bound.base(1).draw(Digits([1])))
    level = chain.diffusion.leap.level(1, x)
    assert level.reveal.valid.sum() == 1
    assert isinstance(chain.denoiser, TokenDenoiser)
    seen = chain.denoiser.log_probs(chain.denoiser.features(x, level))[0, 1]
    before = chain.calls.prior
    guess = bound.clean(torch.zeros(1), x, 1)
    assert guess.tolist() == [[2, int(seen.argmax()), K]]
    assert chain.calls.prior == before + 1
