import pytest
import torch
from torch import nn

from difftilt.training.muon import Muon, orthogonal

SHAPES = [(48, 96), (96, 48), (48, 96), (64, 64)]
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def stepped(optimiser: torch.optim.Optimizer, given: list[nn.Parameter], steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for weight in given:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimiser.step()


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "weight_decay": 0.3}])
def test_it_is_torchs_muon_but_for_the_rounding(options: dict):
    ours, theirs, start = weights(), weights(), weights()
    stepped(Muon(ours, lr=0.02, **options), ours, 3)
    stepped(torch.optim.Muon(theirs, lr=0.02, **options), theirs, 3)
    for own, other, before in zip(ours, theirs, start, strict=True):
        apart, moved = (own - other).detach().norm(), (other - before).detach().norm()
        # bfloat16 keeps 8 bits of every entry.
        assert 0 < float(apart / moved) < 2**-6


def test_a_checkpoint_of_torchs_goes_on_in_ours():
    theirs, ours = weights(), weights()
    before = torch.optim.Muon(theirs, lr=0.02)
    stepped(before, theirs, 2)
    after = Muon(ours, lr=0.5)
    after.load_state_dict(before.state_dict())
    stepped(after, ours, 1)
    kept, going_on = before.state_dict(), after.state_dict()
    assert kept["state"].keys() == going_on["state"].keys()
    assert kept["param_groups"] == going_on["param_groups"]


def test_singular_vectors_stay_and_values_follow_the_polynomial():
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, 8, 20, generator=generator, dtype=torch.float64)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    a, b, c = COEFFICIENTS
    values = values / values.norm(dim=1, keepdim=True)
    for _ in range(5):
        values = a * values + b * values**3 + c * values**5
    expected = left @ values.diag_embed() @ right
    torch.testing.assert_close(orthogonal(matrices, COEFFICIENTS, 5, 1e-7), expected)


def test_a_weight_without_a_gradient_stays():
    first, second, *_ = weights()
    before = second.detach().clone()
    first.grad = torch.ones_like(first)
    Muon([first, second], lr=0.1).step()
    assert torch.equal(second, before)
