"""An embedding asked once per run of equal times is the same function, in value and gradient."""

import pytest
import torch
from torch import Tensor, nn

from difftilt.models.time import OncePerTime

STEPS = 6
SORTED = torch.arange(STEPS, dtype=torch.float64).repeat_interleave(5) / STEPS
TIMES = {
    "step by step": SORTED,
    "shuffled": SORTED[torch.randperm(len(SORTED), generator=torch.Generator().manual_seed(3))],
    "one, repeated": torch.full((7,), 0.3, dtype=torch.float64),
    "one, expanded": torch.tensor([0.3], dtype=torch.float64).expand(7),
    "all different": torch.linspace(0, 1, 9, dtype=torch.float64),
    "a single row": torch.tensor([0.3], dtype=torch.float64),
    "none": torch.zeros(0, dtype=torch.float64),
}


class Waves(nn.Module):
    """A small embedding that counts the rows it was asked about."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.randn(1, 4))
        self.mix = nn.Linear(4, 3)
        self.rows = 0

    def forward(self, time: Tensor) -> Tensor:
        self.rows += len(time)
        return self.mix((time[:, None] * torch.arange(1, 5) + self.phase).sin())


@pytest.fixture
def plain() -> Waves:
    torch.manual_seed(0)
    return Waves().double()


@pytest.mark.parametrize("name", TIMES)
def test_values_and_gradients_are_the_networks_own(plain: Waves, name: str):
    time = TIMES[name]
    weights = torch.randn(len(time), 3, dtype=torch.float64)
    found = []
    for module in (plain, OncePerTime(plain)):
        plain.zero_grad()
        output = module(time)
        (weights * output**2).sum().backward()
        gradients = [p.grad for p in plain.parameters() if p.grad is not None]
        found.append([output.detach(), *gradients])
    assert len(found[0]) == 4
    for expected, actual in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("name", "rows"), [("step by step", STEPS), ("one, expanded", 1)])
def test_it_is_asked_once_per_run_of_equal_times(plain: Waves, name: str, rows: int):
    OncePerTime(plain)(TIMES[name])
    assert plain.rows == rows


def test_a_time_with_a_gradient_keeps_it_row_by_row(plain: Waves):
    time = SORTED.clone().requires_grad_()
    weights = torch.arange(len(time), dtype=torch.float64)
    (found,) = torch.autograd.grad((weights * OncePerTime(plain)(time).sum(1)).sum(), time)
    (expected,) = torch.autograd.grad((weights * plain(time).sum(1)).sum(), time)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_its_parameters_are_a_plain_wrappers(plain: Waves):
    assert set(OncePerTime(plain).state_dict()) == {f"network.{k}" for k in plain.state_dict()}
