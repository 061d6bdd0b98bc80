"""The linear map of each step: by hand, between knots, and exact on a Gaussian target."""

import pytest
import torch
from torch import Tensor

from difftilt.models.mlp import StepLinear


def moved(dimension: int, outputs: int, steps: int, knots: int) -> StepLinear:
    network = StepLinear(dimension, outputs, steps, knots).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        network.maps += torch.randn(network.maps.shape, generator=generator)
    return network


def features(batch: int, dimension: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x, prediction = torch.randn(2, batch, dimension, generator=generator, dtype=torch.float64)
    return x, prediction


def test_it_starts_at_zero():
    x, prediction = features(4, 3)
    assert torch.equal(StepLinear(3, 2, 7).double()(x, prediction, 5), torch.zeros(4, 2))


def test_with_a_knot_for_each_step_every_map_is_its_own():
    network, (x, prediction) = moved(3, 2, 5, knots=9), features(4, 3)
    assert len(network.maps) == 5
    for n in range(1, 6):
        weight = network.maps[n - 1]
        expected = x @ weight[:, :3].T + prediction @ weight[:, 3:6].T + weight[:, 6]
        assert torch.allclose(network(x, prediction, n), expected, rtol=1e-12, atol=1e-12)


def test_between_knots_maps_are_interpolated():
    """Of 12 steps 1, 2, 7 and 12 have maps of their own."""
    network, (x, prediction) = moved(3, 2, 12, knots=4), features(4, 3)
    at = {n: network(x, prediction, n) for n in range(1, 13)}
    assert len(network.maps) == 4
    for n in range(2, 8):
        expected = torch.lerp(at[2], at[7], (n - 2) / 5)
        assert torch.allclose(at[n], expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(at[1], 2 * at[2] - at[3])


@pytest.mark.parametrize("knots", [3, 20])
def test_rows_of_mixed_steps_are_those_of_each(knots: int):
    network, (x, prediction) = moved(3, 2, 9, knots), features(6, 3)
    n = torch.tensor([4, 9, 1, 4, 2, 9])
    mixed = network(x, prediction, n)
    for row, k in enumerate(n.tolist()):
        single = network(x[row : row + 1], prediction[row : row + 1], k)
        assert torch.allclose(mixed[row], single[0], rtol=1e-12, atol=1e-12)


def test_one_step_has_one_map():
    network, (x, prediction) = moved(2, 2, 1, knots=4), features(3, 2)
    assert torch.equal(network(x, prediction, torch.ones(3).long()), network(x, prediction, 1))
