"""A tape gives the outputs and the gradient of autograd, whatever way the steps are told."""

import pytest
import torch
from torch import Tensor

from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.kernels.networks import VectorKernel
from difftilt.models.mlp import Size, StepMLP
from difftilt.models.tape import BLOCK, Tape
from difftilt.tasks.exact.grid25 import prior25

STEPS = 4


def network(mask_groups: int, extra: int) -> StepMLP:
    torch.manual_seed(0)
    made = StepMLP(2, 6, STEPS, Size(width=40), mask_groups=mask_groups, extra=extra).double()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter.detach(), std=0.3)
    return made


def gradients(made: StepMLP, output: Tensor, by: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((output * by).sum(), list(made.parameters())))


def inputs(rows: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, clean, extra = torch.randn(3, rows, 2, generator=generator, dtype=torch.float64)
    return x, clean, extra, torch.randn(rows, 6, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("order", ["one by one", "step by step", "any"])
@pytest.mark.parametrize("mask_groups", [1, 3])
@pytest.mark.parametrize("reads", [False, True])
def test_outputs_and_gradient_are_autograds(order: str, mask_groups: int, reads: bool) -> None:
    made = network(mask_groups, extra=2 if reads else 0)
    each = BLOCK + 3 if order == "step by step" else 50
    x, clean, extra, by = inputs(STEPS * each)
    code = extra if reads else None
    n = torch.arange(1, STEPS + 1).repeat_interleave(each)
    if order == "any":
        n = n[torch.randperm(len(n), generator=torch.Generator().manual_seed(2))]
    tape = Tape(made, record=True)
    if order == "one by one":
        for k in range(STEPS):
            rows = slice(k * each, (k + 1) * each)
            tape(x[rows], clean[rows], k + 1, None if code is None else code[rows])
    else:
        tape(x, clean, n, code)
    expected = made(x, clean, n, code)
    torch.testing.assert_close(tape.outputs(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(made, tape.outputs(), by), gradients(made, expected, by), rtol=1e-10, atol=1e-10
    )


def test_without_a_record_the_outputs_are_the_same() -> None:
    made = network(3, 0)
    x, clean, _, _ = inputs(70)
    found = Tape(made, record=False)(x, clean, 2)
    assert not found.requires_grad
    torch.testing.assert_close(found, made(x, clean, 2), rtol=1e-12, atol=1e-12)


def test_a_backward_after_the_parameters_moved_is_refused() -> None:
    made = network(1, 0)
    x, clean, _, by = inputs(10)
    tape = Tape(made, record=True)
    tape(x, clean, 1)
    output = tape.outputs()
    with torch.no_grad():
        made.last.weight.add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        gradients(made, output, by)


@pytest.mark.parametrize(("components", "learned_variance"), [(1, False), (1, True), (3, True)])
def test_a_drawn_path_and_its_visits_have_one_gradient(
    components: int, learned_variance: bool
) -> None:
    """While drawing, in one visit, in chunks: Λ and its gradient agree."""
    torch.manual_seed(3)
    prior = prior25(6)
    kernel = VectorKernel((2,), 6, components, learned_variance, Size(width=24))
    torch.nn.init.normal_(kernel.network.last.weight.detach(), std=0.1)
    chain: Chain = prior.tilted(kernel)
    path = rollout(chain, 64, ratio="differentiable")
    assert path.log_ratio is not None
    weights = torch.linspace(-1, 1, 64)
    parameters = list(kernel.parameters())
    drawn = torch.autograd.grad((weights * path.log_ratio).sum(), parameters)
    visited = log_ratio(chain, path)
    torch.testing.assert_close(path.log_ratio, visited, rtol=1e-4, atol=1e-4)
    whole = torch.autograd.grad((weights * visited).sum(), parameters)
    backward(chain, path, weights, chunk=37)
    for a, b, p in zip(drawn, whole, parameters, strict=True):
        assert p.grad is not None
        scale = float(b.norm())
        assert float((a - b).norm()) < 1e-4 * scale
        assert float((p.grad - b).norm()) < 1e-4 * scale
