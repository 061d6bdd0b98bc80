"""A network with its embedding of the time apart is the network of both, asked less often."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.denoisers import NetworkDenoiser
from difftilt.kernels.networks import DriftKernel
from small_chains import DIMENSION, STEPS, EmbeddedDrift, Waves, moved, noise, perceptron, prior


class Whole(nn.Module):
    """Embedding and network in one, told the time."""

    def __init__(self, network: nn.Module, embedding: nn.Module) -> None:
        super().__init__()
        self.network, self.embedding = network, embedding

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.network(x, self.embedding(time))


class Joined(EmbeddedDrift):
    """The same class with weights that are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.network = perceptron(DIMENSION + 4)


def denoiser(network: nn.Module, embedding: nn.Module | None = None) -> NetworkDenoiser:
    return NetworkDenoiser(
        network, "v_prediction", time_dtype=torch.float64, embedding=embedding
    ).requires_grad_(False)


def both() -> tuple[Chain, Chain]:
    """A posterior whose two networks get embedded times, and one of the same networks whole."""
    torch.manual_seed(0)
    chain, parts = prior(), [Joined().double(), Waves().double()]
    drift, waves = EmbeddedDrift().double(), Waves().double()
    moved(drift)
    apart = replace(chain, denoiser=denoiser(*parts)).tilted(
        DriftKernel(drift, chain.gaussian, embedding=waves)
    )
    whole = replace(chain, denoiser=denoiser(Whole(*parts))).tilted(
        DriftKernel(Whole(drift, waves), chain.gaussian)
    )
    return apart, whole


def rows(chain: Chain) -> list[int]:
    """How many rows the embeddings of prior and posterior have seen, counting from here."""
    assert chain.kernel is not None
    modules = [*chain.denoiser.modules(), *chain.kernel.modules()]
    found = [m for m in modules if isinstance(m, Waves)]
    counts = [m.rows for m in found]
    for m in found:
        m.rows = 0
    return counts


def test_paths_are_those_of_the_whole_networks_also_after_an_update():
    """1e-12 in float64; a table kept from the first rollout would fail the second."""
    apart, whole = both()
    for _ in range(2):
        found, expected = (rollout(c, 6, noise()) for c in (apart, whole))
        torch.testing.assert_close(found.states, expected.states, rtol=0, atol=1e-12)
        assert expected.log_ratio is not None and apart.kernel is not None
        torch.testing.assert_close(found.log_ratio, expected.log_ratio, rtol=0, atol=1e-12)
        assert float(expected.log_ratio.abs().max()) > 1e-3
        moved(apart.denoiser)
        moved(apart.kernel)


def test_a_rollout_asks_each_embedding_once_about_all_its_steps():
    apart, _ = both()
    rows(apart)
    rollout(apart, 6, noise(), ratio="differentiable")
    assert rows(apart) == [STEPS, STEPS]


def test_gradients_are_those_of_the_whole_networks():
    apart, whole = both()
    assert apart.kernel is not None
    parameters, found = list(apart.kernel.parameters()), []
    for chain in (apart, whole):
        drawn = rollout(chain, 6, noise(), ratio="differentiable").log_ratio
        assert drawn is not None
        found.append(torch.autograd.grad(drawn.sum(), parameters))
    for actual, expected in zip(*found, strict=True):
        assert float(expected.abs().max()) > 0
        torch.testing.assert_close(actual, expected, rtol=1e-11, atol=1e-12)
