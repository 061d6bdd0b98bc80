"""The chunked gradient: the full graph's, by autograd; a random subset's, by its mean."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDPMScheduler, UNet2DModel
from torch import Tensor, nn

from difftilt.adapters.diffusers import chain_from_pipeline
from difftilt.adapters.lora import lora
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.chains.scoring import backward, log_ratio
from difftilt.errors import InputError
from difftilt.kernels.networks import full_copy
from small_chains import CONDITION, FORMS, moved, noise, posterior_of, prior


def parameters(chain: Chain) -> list[nn.Parameter]:
    assert chain.kernel is not None
    initial = [] if chain.initial is None else list(chain.initial.parameters())
    return [*chain.kernel.parameters(), *initial]


def gradient_of(chain: Chain, run: Callable[[], None]) -> Tensor:
    """The gradient that ``run`` accumulates, as one vector."""
    for parameter in parameters(chain):
        parameter.grad = None
    run()
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters(chain)]
    )


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("chunk", [None, 1, 7, 1000])
@pytest.mark.parametrize("stored", [True, False])
def test_the_chunked_gradient_is_the_full_one(form: str, chunk: int | None, stored: bool):
    """1e-12 relative in float64, with conditions, an initial tilt and a map at the end."""
    chain = posterior_of(prior().given(CONDITION), form)
    path = rollout(chain, 5, noise())
    path = path if stored else replace(path, predictions=None)
    coefficients = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0]).double()
    full = gradient_of(chain, lambda: (coefficients * log_ratio(chain, path)).sum().backward())
    ours = gradient_of(chain, lambda: backward(chain, path, coefficients, chunk))
    assert float(full.norm()) > 1e-3
    assert relative(ours, full) < 1e-12


@pytest.mark.parametrize("form", FORMS)
def test_a_differentiable_rollout_has_the_gradient_of_its_paths_visited_again(form: str):
    chain = posterior_of(prior().given(CONDITION), form)
    path = rollout(chain, 5, noise(), widen=1.1, ratio="differentiable")
    drawn = path.log_ratio
    assert drawn is not None and not path.states.requires_grad
    coefficients = torch.tensor([1.0, -2.0, 0.5, 3.0, 0.0]).double()
    full = gradient_of(chain, lambda: (coefficients * log_ratio(chain, path)).sum().backward())
    ours = gradient_of(chain, lambda: (coefficients * drawn).sum().backward())
    assert relative(ours, full) < 1e-12
    assert relative(drawn.detach(), log_ratio(chain, path).detach()) < 1e-12


@pytest.mark.parametrize("form", ["copy", "adapters"])
@pytest.mark.parametrize(
    ("dtype", "chunks", "tolerance"),
    # Alone in its batch a float32 convolution runs another algorithm, which float64 has not.
    [(torch.float32, (4, 7), 1e-6), (torch.float64, (1, 4), 1e-12)],
)
def test_a_unets_chunked_gradient_is_the_full_one(
    form: str, dtype: torch.dtype, chunks: tuple[int, ...], tolerance: float
):
    """1e-6 relative in float32, 1e-12 in float64."""
    chain = unet_chain(dtype)
    posterior = chain.tilted(
        lora(chain, 2, targets="all") if form == "adapters" else full_copy(chain)
    )
    moved(posterior.kernel, 0.02)
    path = rollout(posterior, 3, noise())
    coefficients = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    full = gradient_of(
        posterior, lambda: (coefficients * log_ratio(posterior, path)).sum().backward()
    )
    for chunk in chunks:
        run = partial(backward, posterior, path, coefficients, chunk)
        assert relative(gradient_of(posterior, run), full) < tolerance


def unet_chain(dtype: torch.dtype) -> Chain:
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )
    pipeline = SimpleNamespace(unet=unet.to(dtype), scheduler=DDPMScheduler())
    return replace(chain_from_pipeline(pipeline, 6).chain, like=torch.zeros((), dtype=dtype))


def test_conditions_are_bound_row_by_row():
    """A chunk that mixes steps and paths sees each path's own condition."""
    chain = posterior_of(prior().given(CONDITION), "copy")
    path = rollout(chain, 5, noise())
    unbound = chain.given(None)  # the path's own condition counts, not the chain's
    with torch.no_grad():
        together = log_ratio(unbound, replace(path, predictions=None), chunk=3)
        for row in range(5):
            own = replace(path.select(torch.tensor([row])), predictions=None)
            assert torch.allclose(together[row], log_ratio(unbound, own)[0], rtol=0, atol=1e-9)
        swapped = replace(path, condition=CONDITION.flip(0), predictions=None)
        assert not torch.allclose(log_ratio(unbound, swapped), together, atol=1e-3)


@pytest.mark.parametrize("form", ["variance", "copy"])
@pytest.mark.parametrize("subset", [1, 3])
def test_a_random_subset_is_unbiased(unchecked: None, form: str, subset: int):
    """The mean of 600 draws, projected on 4 directions, within 5 standard errors (below 5e-6)."""
    chain = posterior_of(prior(), form)
    path = rollout(chain, 3, noise())
    coefficients = torch.tensor([1.0, -2.0, 0.5]).double()
    full = gradient_of(chain, lambda: backward(chain, path, coefficients))
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            gradient_of(
                chain,
                lambda: backward(chain, path, coefficients, subset=subset, generator=generator),
            )
            for _ in range(600)
        ]
    )
    directions = torch.randn(full.numel(), 4, generator=generator).double()
    projected, expected = draws @ directions, full @ directions
    error = projected.std(0) / 600**0.5
    assert bool((error > 0).all())
    assert bool(((projected.mean(0) - expected).abs() < 5 * error).all())


def test_a_subset_of_all_steps_is_the_full_gradient():
    chain = posterior_of(prior(), "copy")
    path, coefficients = rollout(chain, 3, noise()), torch.tensor([1.0, -2.0, 0.5]).double()
    full = gradient_of(chain, lambda: backward(chain, path, coefficients))
    ours = gradient_of(chain, lambda: backward(chain, path, coefficients, chunk=2, subset=4))
    assert relative(ours, full) < 1e-12
    for subset in (0, 5):
        with pytest.raises(InputError, match=f"subset={subset} must lie between 1 and 4"):
            backward(chain, path, coefficients, subset=subset)


def test_the_expected_gradient_of_the_ratio_of_a_prior_is_zero(unchecked: None):
    """``E_q[∇ log q] = 0`` at q = p: 4 directions within 5 standard errors (below 3e-6)."""
    chain = prior()
    posterior = chain.tilted(full_copy(chain))
    generator = torch.Generator().manual_seed(0)
    count = len(torch.nn.utils.parameters_to_vector(posterior.kernel.parameters()))
    directions = torch.randn(count, 4, generator=generator).double()
    gradients = []
    for seed in range(200):
        path = rollout(posterior, 4, noise(seed))
        run = partial(backward, posterior, path, torch.ones(4).double())
        gradients.append(gradient_of(posterior, run))
    projected = torch.stack(gradients) @ directions
    assert bool((projected.mean(0).abs() < 5 * projected.std(0) / 200**0.5).all())
