"""What a run keeps of a chain tells other chains apart, and leaves last bits out."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import difftilt
from difftilt.chains.fingerprints import chain_record
from difftilt.diffusions.orders import Blocks, LeftToRight
from difftilt.training.identity import differences
from tests.token_chains import arbitrary, masked_chain


class Network(nn.Module):
    """A bare network of one weight."""

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([weight]))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.weight * x


def prior(network: nn.Module, steps: int = 4, clean: float = 8.0, **options) -> difftilt.Prior:
    schedule = difftilt.VariancePreserving(clean)
    return difftilt.load(network, steps, schedule=schedule, event_shape=(2,), **options)


def found(one: difftilt.Chain, other: difftilt.Chain) -> list[str]:
    return differences({"chain": chain_record(one)}, {"chain": chain_record(other)})


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (prior(Network(0.75)), "chain.denoiser.network is"),
        (prior(Network(), clean=8.1), "chain.diffusion.levels.alpha.root_mean_square is"),
        (prior(Network(), steps=5), "chain.diffusion.levels.alpha.entries is 5 there and 6 here"),
        (
            prior(Network(), prediction_type="sample"),
            "chain.denoiser.prediction_type is epsilon there and sample here",
        ),
    ],
)
def test_chains_of_vectors_are_told_apart(other, named):
    own = prior(Network()).chain
    assert not found(own, prior(Network()).chain)
    assert any(each.startswith(named) for each in found(own, other.chain))


def test_chains_of_tokens_are_told_apart():
    network = arbitrary()
    own = masked_chain(network, LeftToRight())
    assert not found(own, masked_chain(network, LeftToRight()))
    said = found(own, masked_chain(network, Blocks(2)))
    assert "chain.diffusion.order.kind is LeftToRight there and Blocks here" in said


def test_last_bits_of_a_table_tell_nothing_apart():
    own = prior(Network()).chain
    tables = own.gaussian.tables
    rounded = replace(own.gaussian.levels, sigma=own.gaussian.levels.sigma * (1 + 1e-7))
    diffusion = type(own.gaussian)(rounded, tables, base_std=own.gaussian.base_std)
    assert not found(own, replace(own, diffusion=diffusion))
