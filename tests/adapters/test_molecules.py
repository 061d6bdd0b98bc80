"""Molecules as a chain: what the law may not depend on, and its dimension."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from difftilt.adapters.molecules import (
    AtomDenoiser,
    molecule_chain,
    projected,
    subspace_log_prob,
)
from difftilt.chains.chain import Chain, InitialTilt, Path
from difftilt.chains.rollouts import bridge, rollout
from difftilt.chains.scoring import log_ratio, step_scores
from difftilt.errors import InputError
from difftilt.kernels.networks import full_copy
from difftilt.models.egnn import AtomNetwork, AtomNetworkSize, present_atoms
from difftilt.models.numbers import Numbers
from difftilt.noise import GeneratorNoise
from difftilt.schedules import Polynomial
from difftilt.transitions.gaussian import Gaussian, GaussianTilt

ATOMS, FEATURES, STEPS = 6, 4, 8
COUNTS = torch.tensor([6, 3, 5, 2])
SIZE = AtomNetworkSize(width=16, layers=2)


def random_network(seed: int, context: int = 0, size: AtomNetworkSize = SIZE) -> AtomNetwork:
    """Weights large enough that the moves are of the size of the molecule."""
    torch.manual_seed(seed)
    network = AtomNetwork(FEATURES, context, size)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


def prior_chain(dtype: torch.dtype = torch.float64) -> Chain:
    denoiser = AtomDenoiser(random_network(0).to(dtype)).requires_grad_(False)
    return molecule_chain(denoiser, Polynomial().levels(STEPS), ATOMS).given(COUNTS)


def posterior_chain(dtype: torch.dtype = torch.float64) -> Chain:
    """A copy of the prior whose weights are off by enough for log-ratios of some nats."""
    chain = prior_chain(dtype)
    kernel = full_copy(chain)
    torch.manual_seed(1)
    for parameter in kernel.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    return chain.tilted(kernel)


def drawn(chain: Chain, seed: int = 2) -> Path:
    return rollout(chain, len(COUNTS), GeneratorNoise(torch.Generator().manual_seed(seed)))


def changed(path: Path, states: Tensor) -> Path:
    """Other states, without the predictions that belong to the old ones."""
    return Path(states, None, None, path.condition)


def moved(path: Path, seed: int) -> dict[str, Path]:
    """The same paths turned, reflected, shifted, in another order, with other absent atoms."""
    generator = torch.Generator().manual_seed(seed)
    states, dtype = path.states, path.states.dtype
    places, rest = states[..., :3], states[..., 3:]
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=dtype)).Q
    shift = torch.randn(len(states), len(COUNTS), 1, 3, generator=generator, dtype=dtype)
    order = torch.stack(
        [
            torch.cat([torch.randperm(int(n), generator=generator), torch.arange(int(n), ATOMS)])
            for n in COUNTS
        ]
    )
    present = present_atoms(COUNTS, ATOMS)[..., None]
    noise = torch.randn(states.shape, generator=generator, dtype=dtype)
    return {
        "turned": changed(path, torch.cat([places @ turn, rest], -1)),
        "reflected": changed(path, torch.cat([-places, rest], -1)),
        "shifted": changed(path, torch.cat([places + shift, rest], -1)),
        "reordered": changed(path, states[:, torch.arange(len(COUNTS))[:, None], order]),
        "other absent atoms": changed(path, torch.where(present, states, noise)),
    }


@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-9), (torch.float32, 1e-5)])
def test_the_log_ratio_knows_no_place_no_orientation_and_no_order(dtype, error):
    chain = posterior_chain(dtype)
    path = drawn(chain)
    assert path.log_ratio is not None
    with torch.no_grad():
        assert torch.allclose(log_ratio(chain, path), path.log_ratio, rtol=1e-4, atol=1e-4)
        expected = log_ratio(chain, changed(path, path.states))
        assert expected.abs().min() > 0.05
        for name, other in moved(path, 3).items():
            found = log_ratio(chain, other)
            relative = (found - expected).abs() / expected.abs().clamp(min=1)
            assert float(relative.max()) < error, (name, relative)


def basis(count: int) -> Tensor:
    """Orthonormal columns of the subspace of one molecule, (A F, 3 (n - 1) + n features)."""
    numbers = ATOMS * (3 + FEATURES)
    eye = torch.eye(numbers, dtype=torch.float64).reshape(numbers, ATOMS, 3 + FEATURES)
    present = present_atoms(torch.tensor([count]), ATOMS).expand(numbers, -1)
    values, vectors = torch.linalg.eigh(projected(eye, present).reshape(numbers, numbers))
    return vectors[:, values > 0.5]


def test_the_log_ratio_is_the_difference_of_two_densities_on_the_subspace():
    """Written out in coordinates of 3 (n - 1) + n F dimensions, for molecules of 2 to 6 atoms."""
    chain = posterior_chain()
    path = drawn(chain)
    with torch.no_grad():
        scores = step_scores(chain, path).log_ratio
    for n in chain.density_steps:
        x, landed = path.states[n], path.states[n - 1]
        own = chain.gaussian.reverse(chain.predict(x, n), x, n)
        std = chain.gaussian.tables.std[n]
        with torch.no_grad():
            tilt = chain.tilt(x, n, chain.predict(x, n))
        assert isinstance(tilt, GaussianTilt)
        for row, count in enumerate(COUNTS.tolist()):
            inside = basis(count)
            assert inside.shape[1] == 3 * (count - 1) + count * FEATURES
            here = landed[row].flatten() @ inside
            means = own.mean[row], own.mean[row] + std * tilt.delta[row].detach()
            covariance = std**2 * torch.eye(len(here), dtype=torch.float64)
            p, q = (
                MultivariateNormal(mean.flatten() @ inside, covariance).log_prob(here)
                for mean in means
            )
            assert float(q - p) == pytest.approx(float(scores[n - 2, row]), abs=1e-8)
            law = Gaussian(own.mean, torch.as_tensor(std))
            written = subspace_log_prob(law, landed, present_atoms(COUNTS, ATOMS))[row]
            assert float(written) == pytest.approx(float(p), abs=1e-8)


def test_the_density_on_the_subspace_integrates_to_one():
    """Importance sampling of ∫ p from a wider Gaussian; 5 standard errors: false alarm 6e-7."""
    draws, std, wider = 20_000, 0.7, 0.9
    present = present_atoms(torch.full((draws,), 3), 4)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, 4, 3 + FEATURES, generator=generator, dtype=torch.float64)
    x = projected(wider * noise, present)
    zero, one = torch.zeros_like(x), torch.ones((), dtype=torch.float64)
    log_p = subspace_log_prob(Gaussian(zero, std * one), x, present)
    log_q = subspace_log_prob(Gaussian(zero, wider * one), x, present)
    weight = (log_p - log_q).exp()
    error = float(weight.std()) / math.sqrt(draws)
    assert abs(float(weight.mean()) - 1) < 5 * error
    assert error < 0.05


def test_ends_are_centred_and_absent_atoms_are_zeros():
    chain = prior_chain()
    path = drawn(chain)
    present = present_atoms(COUNTS, ATOMS)
    assert path.log_ratio is not None
    assert torch.equal(path.log_ratio, torch.zeros(len(COUNTS), dtype=torch.float64))
    assert float(path.x_0[..., :3].sum(1).abs().max()) < 1e-12
    assert bool((path.x_0[~present] == 0).all())
    assert bool((path.x_0[present] != 0).all())
    again = bridge(chain, path.x_0, GeneratorNoise(torch.Generator().manual_seed(4)))
    assert float((again.x_0 - projected(again.x_0, present)).abs().max()) < 1e-12


def test_the_network_turns_with_its_input():
    chain = prior_chain()
    path = drawn(chain)
    for name, other in moved(path, 5).items():
        plain = chain.predict(path.states[4], 4)
        found = chain.predict(other.states[4], 4)
        kept = changed(path, torch.stack([plain] * (STEPS + 1)))
        expected = plain if "shift" in name or "absent" in name else moved(kept, 5)[name].states[4]
        assert torch.allclose(found, expected, atol=1e-9), name


def test_an_initial_tilt_is_a_law_like_any_other():
    """Rolled out and scored again: one number, inert directions included."""
    chain = posterior_chain()
    initial = InitialTilt((ATOMS, 3 + FEATURES)).double()
    nn.init.normal_(initial.delta, std=0.1)
    assert chain.kernel is not None
    chain = chain.tilted(chain.kernel, initial)
    path = drawn(chain)
    assert path.log_ratio is not None
    with torch.no_grad():
        assert torch.allclose(log_ratio(chain, path), path.log_ratio, atol=1e-8)


@pytest.mark.parametrize(
    ("condition", "context", "message"),
    [
        (torch.tensor([3, 3]), 0, "4 rows"),
        (torch.tensor([3, 3, 9, 3]), 0, "between 1 and"),
        (torch.tensor([3, 3, 3, 3]), 1, "1 numbers"),
        (torch.ones(4, 4), 1, "has 3"),
    ],
)
def test_a_condition_that_does_not_fit_is_named(condition, context, message):
    denoiser = AtomDenoiser(random_network(0, context)).given(condition)
    chain = molecule_chain(denoiser, Polynomial().levels(STEPS), ATOMS).given(condition)
    with pytest.raises(InputError, match=message):
        chain.predict(torch.randn(4, ATOMS, 3 + FEATURES), 3)


READS = Numbers((2.0,), centres=(5.0,))
WANTED = torch.stack([COUNTS, torch.tensor([1.0, 4.0, 6.0, 9.0])], 1)


def told_chain() -> Chain:
    """A prior that is handed a value it does not read, and a posterior that reads it."""
    network = random_network(0).double()
    prior = molecule_chain(AtomDenoiser(network, reads=READS), Polynomial().levels(STEPS), ATOMS)
    return prior.given(WANTED)


def test_a_posterior_may_read_numbers_that_its_prior_does_not():
    prior = told_chain()
    kernel = full_copy(prior)
    assert torch.equal(drawn(prior).states, drawn(prior.tilted(kernel)).states)
    assert torch.equal(drawn(prior).states, drawn(prior_chain()).states)
    last = dict(kernel.named_parameters())["denoiser.network.further.2.weight"]
    with torch.no_grad():
        last.normal_(std=0.3, generator=torch.Generator().manual_seed(1))
    moved = drawn(prior.tilted(kernel))
    assert moved.log_ratio is not None
    assert (moved.log_ratio != 0).all()
    # At the centre the number is 0, elsewhere its distance in scales: 7 and 3 are a scale apart.
    told = kernel.denoiser
    assert isinstance(told, AtomDenoiser)
    rows = torch.tensor([[6.0, 7.0], [3.0, 3.0], [5.0, 5.0], [2.0, 1.0]])
    found = told.given(rows)._told(moved.x_0)[1]
    assert found is not None
    assert found.flatten().tolist() == [1.0, -1.0, 0.0, -2.0]
    with pytest.raises(InputError, match="further numbers already"):
        told.network.reading(1)


def test_what_a_posterior_reads_leaves_the_symmetries_as_they_are():
    chain = told_chain()
    kernel = full_copy(chain)
    torch.manual_seed(1)
    for parameter in kernel.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    chain = chain.tilted(kernel)
    path = drawn(chain)
    with torch.no_grad():
        expected = log_ratio(chain, changed(path, path.states))
        for name, other in moved(path, 3).items():
            assert torch.allclose(log_ratio(chain, other), expected, atol=1e-8), name
