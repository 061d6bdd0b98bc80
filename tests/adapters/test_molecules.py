"""Molecules as a chain: what the law may not depend on, its dimension, EDM's networks and files."""

import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from difftilt.adapters.molecules import (
    AtomDenoiser,
    load_edm,
    molecule_chain,
    projected,
    subspace_log_prob,
)
from difftilt.chains import Chain, InitialTilt, Path
from difftilt.errors import CheckpointError, InputError
from difftilt.kernels import full_copy
from difftilt.models.egnn import AtomNetwork, AtomNetworkSize, present_atoms
from difftilt.noise import GeneratorNoise
from difftilt.rollouts import bridge, rollout
from difftilt.schedules import Polynomial
from difftilt.scoring import log_ratio, step_scores
from difftilt.transitions import Gaussian, GaussianTilt

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


class PairByPair:
    """EDM's network from its paper and its parameters' names, one pair of atoms at a time."""

    def __init__(self, weights: dict[str, Tensor], size: AtomNetworkSize) -> None:
        self.weights, self.size = weights, size

    def layer(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return nn.functional.linear(x, self.weights[f"{name}.weight"], bias)

    def perceptron(self, name: str, x: Tensor, layers: int) -> Tensor:
        for k in range(layers):
            x = self.layer(f"{name}.{2 * k}", x)
            x = x if k == layers - 1 else nn.functional.silu(x)
        return x

    def message(self, name: str, pair: Tensor) -> Tensor:
        found = nn.functional.silu(self.perceptron(f"{name}.edge_mlp", pair, 2))
        if not self.size.attention:
            return found
        return found * torch.sigmoid(self.layer(f"{name}.att_mlp.0", found))

    def __call__(self, x: Tensor, told: Tensor) -> Tensor:
        """Of one molecule: places (n, 3) and what its atoms are told (n, F + 1 + C)."""
        n, start, size = len(x), x, self.size
        square = lambda x, i, j: (x[i] - x[j]).square().sum()[None]  # noqa: E731
        h = self.layer("embedding", told)
        for b in range(size.layers):
            block = f"e_block_{b}"
            apart = {
                (i, j): torch.cat([square(x, i, j), square(start, i, j)])
                for i in range(n)
                for j in range(n)
            }
            for g in range(size.sublayers):
                heard = []
                for i in range(n):
                    others = [j for j in range(n) if j != i]
                    pairs = [torch.cat([h[i], h[j], apart[i, j]]) for j in others]
                    spoken = [self.message(f"{block}.gcl_{g}", pair) for pair in pairs]
                    total = torch.stack(spoken).sum(0)
                    heard.append(torch.cat([h[i], total / size.normaliser]))
                h = h + self.perceptron(f"{block}.gcl_{g}.node_mlp", torch.stack(heard), 2)
            steps = []
            for i in range(n):
                step = torch.zeros(3, dtype=x.dtype)
                for j in range(n):
                    pair = torch.cat([h[i], h[j], apart[i, j]])
                    size_ = self.perceptron(f"{block}.gcl_equiv.coord_mlp", pair, 3)
                    size_ = size_ if size.reach is None else size.reach * torch.tanh(size_)
                    distance = (square(x, i, j) + 1e-8).sqrt()
                    step = step + size_ * (x[i] - x[j]) / (distance + size.softening)
                steps.append(step / size.normaliser)
            x = x + torch.stack(steps)
        move = x - start
        return torch.cat([move - move.mean(0), self.layer("embedding_out", h)[:, :FEATURES]], 1)


def edm_state(size: AtomNetworkSize, context: int, levels: int = 21) -> dict[str, Tensor]:
    """A state dict with EDM's names; gamma rises from data to noise."""
    weights = random_network(6, context, size).double().state_dict()
    gamma = torch.linspace(-9, 9, levels)
    return {f"dynamics.egnn.{k}": v for k, v in weights.items()} | {"gamma.gamma": gamma}


@pytest.mark.parametrize("variant", [0, 1])
def test_a_state_dict_of_edm_is_its_network_pair_by_pair(variant):
    size = (SIZE, AtomNetworkSize(8, 3, 2, False, None, 0.5, 100.0))[variant]
    state = edm_state(size, context=variant)
    options = {"bounded": size.reach is not None, "softening": size.softening}
    model = load_edm(state, variant, normaliser=size.normaliser, charges=True, **options)
    assert model.denoiser.network.features == FEATURES
    weights = {k.removeprefix("dynamics.egnn."): v for k, v in state.items()}
    model.denoiser.double()
    chain, n, level = model.chain(21, ATOMS), 3, 11
    x = torch.randn(1, ATOMS, 3 + FEATURES, generator=torch.Generator().manual_seed(8)).double()
    x = projected(x, present_atoms(torch.tensor([n]), ATOMS))
    told = torch.tensor([[n, 0.3]])[:, : 1 + variant].double()
    found = chain.given(told if variant else told[:, 0]).predict(x, level)[0]
    # Level 11 of the table's 21 times 0 ... 1 is number 10.
    time = torch.full((n, 1), 0.5, dtype=torch.float64)
    known = torch.cat([x[0, :n, 3:], time, told[:, 1:].expand(n, -1)], 1)
    eps = PairByPair(weights, size)(x[0, :n, :3], known)
    alpha, sigma = (torch.sigmoid(s * state["gamma.gamma"][10].double()).sqrt() for s in (-1, 1))
    assert torch.allclose(found[:n], (x[0, :n] - sigma * eps) / alpha, atol=1e-8)
    assert bool((found[n:] == 0).all())


def test_levels_of_edm_are_its_own_and_may_be_strided():
    model = load_edm(edm_state(SIZE, 0))
    whole, few = model.chain(21, ATOMS).gaussian.levels, model.chain(6, ATOMS).gaussian.levels
    assert torch.equal(few.alpha[1:], whole.alpha[[1, 5, 9, 13, 17, 21]])
    assert few.alpha[0] == 1 and few.sigma[0] == 0
    assert float(whole.time[1]) == 0 and float(whole.time[-1]) == 1
    assert all(late > early for early, late in pairwise((whole.sigma / whole.alpha).tolist()))
    for steps in (1, 22):
        with pytest.raises(InputError, match="between 2 and the model's 21"):
            model.chain(steps, ATOMS)


def test_states_of_edm_are_decoded_to_units_of_data():
    model = load_edm(edm_state(SIZE, 0), scales=(2.0, 4.0, 10.0))
    x = torch.ones(1, ATOMS, 3 + FEATURES)
    assert model.decode(x)[0, 0].tolist() == [2.0] * 3 + [4.0] * 3 + [10.0]


def test_files_of_edm_are_read_as_weights_only(tmp_path):
    state = edm_state(SIZE, 0)
    save_file(state, tmp_path / "model.safetensors")
    torch.save(state, tmp_path / "model.npy")
    x = torch.randn(1, ATOMS, 3 + FEATURES, generator=torch.Generator().manual_seed(9)).double()
    kinds = [load_edm(tmp_path / name) for name in ("model.safetensors", "model.npy")]
    found = [model.denoiser.double() for model in kinds]
    chains = [molecule_chain(d, Polynomial().levels(4), ATOMS) for d in found]
    assert torch.equal(chains[0].predict(x, 2), chains[1].predict(x, 2))


def test_what_is_no_edm_is_said_to_be_none(tmp_path):
    state = edm_state(SIZE, 0)
    learned = {k: v for k, v in state.items() if k != "gamma.gamma"}
    with pytest.raises(CheckpointError, match=r"lacks gamma\.gamma"):
        load_edm(learned)
    with pytest.raises(CheckpointError, match="does not fit"):
        load_edm(state | {"dynamics.egnn.e_block_0.gcl_0.edge_mlp.0.weight": torch.zeros(3, 3)})
    (tmp_path / "broken.npy").write_text("no weights")
    for name in ("broken.npy", "missing.safetensors"):
        with pytest.raises(CheckpointError, match="no weights can be read"):
            load_edm(tmp_path / name)
