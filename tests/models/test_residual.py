"""The residual perceptron: standardised conditions, and further ones that change nothing yet."""

import pytest
import torch

from difftilt.errors import InputError
from difftilt.models.residual import ResidualMLP, ResidualSize

SIZE = ResidualSize(width=16, blocks=2, expansion=2, embedding=8)


def test_a_wider_copy_says_the_same(generator):
    network = ResidualMLP(3, 4, size=SIZE).standardised_by(
        5 + 2 * torch.randn(50, 4, generator=generator)
    )
    x, time = torch.randn(6, 3, generator=generator), torch.arange(6.0)
    state, more = torch.randn(6, 4, generator=generator), torch.randn(6, 2, generator=generator)
    wider = network.reading(2)
    assert torch.equal(wider(x, time, torch.cat([state, more], 1)), network(x, time, state))
    assert wider.condition == 6 and network.condition == 4


def test_conditions_are_standardised_and_a_constant_is_only_centred(generator):
    states = torch.randn(200, 2, generator=generator) * torch.tensor([10.0, 0.0]) + 3
    network = ResidualMLP(1, 2, size=SIZE).standardised_by(states)
    plain = ResidualMLP(1, 2, size=SIZE)
    plain.load_state_dict(
        {**network.state_dict(), "centre": torch.zeros(2), "spread": torch.ones(2)}
    )
    x, time = torch.zeros(200, 1), torch.zeros(200)
    by_hand = torch.stack(
        [(states[:, 0] - states[:, 0].mean()) / states[:, 0].std(), states[:, 1] - 3], 1
    )
    assert torch.allclose(network(x, time, states), plain(x, time, by_hand), atol=1e-5)


def test_a_condition_of_another_width_is_refused():
    with pytest.raises(InputError, match="conditions of 4 numbers"):
        ResidualMLP(3, 4, size=SIZE)(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2, 5))
