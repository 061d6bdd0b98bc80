"""Balance on pieces: by hand, at the optimum, and as relative trajectory balance on whole paths."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from difftilt.errors import InputError
from difftilt.objectives.balance import relative_trajectory_balance
from difftilt.objectives.base import Scores
from difftilt.objectives.subtrajectory import (
    DetailedBalance,
    PathConsistency,
    SubTrajectoryBalance,
    levels,
)

ROWS, PATHS = 4, 6


def scores(seed: int) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    steps, log_h = torch.randn(2, ROWS, PATHS, generator=generator, dtype=torch.float64).unbind()
    log_z = torch.randn((), generator=generator, dtype=torch.float64).expand(PATHS)
    log_r = torch.randn(PATHS, generator=generator, dtype=torch.float64)
    return Scores(
        steps.sum(0), log_r, log_z, steps=steps, log_h=torch.cat([log_h[:-1], log_z[None]])
    )


def balanced(seed: int) -> Scores:
    """λ of the posterior itself, whatever its values are: ``λ_n = log h_{n-1} - log h_n``."""
    found = scores(seed)
    assert found.log_h is not None
    steps = found.log_h_after - found.log_h
    return Scores(steps.sum(0), found.log_r, found.log_z, steps=steps, log_h=found.log_h)


def pieces(found: Scores) -> dict[tuple[int, int], Tensor]:
    """Residual of each piece between two levels, written out."""
    assert found.steps is not None and found.log_h is not None
    flow = [found.log_r, *found.log_h]
    return {
        (i, j): flow[j] + sum(found.steps[i:j]) - flow[i]
        for i in range(ROWS + 1)
        for j in range(i + 1, ROWS + 1)
    }


@given(seed=st.integers(0, 2**31), decay=st.floats(0.05, 1.0))
def test_pieces_by_hand(seed: int, decay: float):
    found = scores(seed)
    by_hand = pieces(found)
    weight = {(i, j): decay ** (j - i) for i, j in by_hand}
    total = sum(weight[k] * by_hand[k] ** 2 for k in by_hand) / sum(weight.values())
    assert torch.allclose(SubTrajectoryBalance(decay).losses(found), torch.as_tensor(total))
    single = torch.stack([by_hand[i, i + 1] for i in range(ROWS)])
    assert torch.allclose(DetailedBalance().losses(found), (single**2).mean(0))
    double = torch.stack([by_hand[i, i + 2] for i in range(ROWS - 1)])
    losses = PathConsistency(window=2, temperature=1.5).losses(found)
    assert torch.allclose(losses, 1.5**2 * (double**2).mean(0))


@given(seed=st.integers(0, 2**31), temperature=st.floats(0.1, 5.0))
def test_path_consistency_of_whole_paths_is_rtb_times_the_temperature_squared(seed, temperature):
    found = scores(seed)
    wanted = temperature**2 * relative_trajectory_balance(found)
    for window in (None, ROWS, 100):
        losses = PathConsistency(window, temperature).losses(found)
        assert torch.allclose(losses, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    "objective",
    [DetailedBalance(), SubTrajectoryBalance(), PathConsistency(), PathConsistency(window=1)],
)
def test_the_posterior_with_its_values_is_the_optimum_and_anything_else_is_not(objective):
    found = balanced(3)
    assert found.steps is not None and found.log_h is not None
    assert float(objective.losses(found).max()) < 1e-25
    assert float(levels(found).diff(dim=0).abs().max()) < 1e-12
    moved = found.steps + 0.1 * torch.eye(ROWS, PATHS)
    other = Scores(moved.sum(0), found.log_r, found.log_z, steps=moved, log_h=found.log_h)
    assert float(objective.losses(other).sum()) > 1e-4


def test_a_small_decay_is_detailed_balance():
    found = scores(1)
    wanted = DetailedBalance().losses(found)
    assert torch.allclose(SubTrajectoryBalance(1e-9).losses(found), wanted, rtol=1e-6)


def test_a_clipped_residual_goes_on_linearly():
    found = scores(2)
    far = Scores(
        found.log_ratio, found.log_r + 100, found.log_z, steps=found.steps, log_h=found.log_h
    )
    residual = levels(far).diff(dim=0)[0].abs()
    clipped, plain = DetailedBalance(residual_clip=2.0).losses(far), DetailedBalance().losses(far)
    saved = (residual**2 - (4 * residual - 4)) / ROWS
    assert torch.allclose(plain - clipped, saved, rtol=0.02)


def test_bad_options_are_named():
    with pytest.raises(InputError, match=r"decay must lie in \(0, 1\], got 0"):
        SubTrajectoryBalance(decay=0.0)
    with pytest.raises(InputError, match="temperature > 0 and a window of at least 1 step"):
        PathConsistency(window=0)
    with pytest.raises(InputError, match=r"needs scores\.steps and scores\.log_h"):
        DetailedBalance().losses(Scores(torch.zeros(2), torch.zeros(2)))
