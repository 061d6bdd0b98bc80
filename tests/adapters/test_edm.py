"""Published models of molecules: EDM's network pair by pair, its levels and its files."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from difftilt.adapters.molecules import Published, load_edm, molecule_chain, projected
from difftilt.errors import CheckpointError, InputError
from difftilt.models.egnn import AtomNetwork, AtomNetworkSize, present_atoms
from difftilt.schedules import Polynomial

ATOMS, FEATURES = 6, 4
SIZE = AtomNetworkSize(width=16, layers=2)


def random_network(seed: int, context: int, size: AtomNetworkSize) -> AtomNetwork:
    """Weights large enough that the moves are of the size of the molecule."""
    torch.manual_seed(seed)
    network = AtomNetwork(FEATURES, context, size)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return network


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
    published = Published(
        bounded=size.reach is not None, softening=size.softening, normaliser=size.normaliser
    )
    model = load_edm(state, variant, published)
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
    model = load_edm(edm_state(SIZE, 0), published=Published(scales=(2.0, 4.0, 10.0)))
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
        with pytest.raises(InputError, match="is no readable file of weights"):
            load_edm(tmp_path / name)
