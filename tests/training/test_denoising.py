"""The denoising warm start: its loss, its anchor and its refusal."""

from dataclasses import replace

import pytest
import torch

from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel, VectorKernel
from difftilt.noise import GeneratorNoise
from difftilt.objectives.balance import RTB
from difftilt.objectives.weighted import denoising
from difftilt.training.denoising import _distance, denoising_gradient
from difftilt.training.paths import draw_paths
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from toys import gaussian_chain, quick_plan


def log_reward(x, condition=None):
    return -x.flatten(1).square().sum(1)


class Shifted(torch.nn.Module):
    """The prior's denoiser plus a trainable constant."""

    def __init__(self, inner, shape):
        super().__init__()
        self.inner = inner
        self.constant = torch.nn.Parameter(torch.zeros(shape))

    def given(self, condition):
        return self

    def forward(self, x_t, level):
        return self.inner(x_t, level) + self.constant


def state_of(anchor):
    prior = gaussian_chain()
    kernel = DenoiserKernel(Shifted(prior.denoiser, prior.event_shape), prior.diffusion)  # type: ignore[arg-type]
    plan = replace(quick_plan(steps=10, warm_start=1.0), warm_start_loss="denoising", anchor=anchor)
    return TrainingState(prior.tilted(kernel), log_reward, 1.0, plan), kernel


def test_the_loss_is_the_error_of_the_v_prediction():
    x_0, eps = torch.randn(5, 3), torch.randn(5, 3)
    alpha, sigma = torch.full((5, 1), 0.8), torch.full((5, 1), 0.6)
    x_t, v_hat = alpha * x_0 + sigma * eps, torch.randn(5, 3)
    clean = alpha * x_t - sigma * v_hat
    expected = (v_hat - (alpha * eps - sigma * x_0)).square().mean(1)
    torch.testing.assert_close(denoising(clean, x_0, sigma, alpha), expected)


@pytest.mark.usefixtures("unchecked")
def test_the_anchor_is_the_divergence_of_a_step():
    state, _ = state_of(1.0)
    n = torch.tensor(state.chain.density_steps)
    x = torch.randn(len(n), *state.chain.event_shape)
    own = state.chain.predict(x, n)
    assert float(_distance(state.chain, x, n, own).abs().max()) == 0.0
    moved = state.chain.law(own + 0.1, x, n)
    law = state.chain.law(own, x, n)
    expected = (0.5 * ((moved.mean - law.mean) / law.std) ** 2).flatten(1).sum(1)
    torch.testing.assert_close(_distance(state.chain, x, n, own + 0.1), expected)


@pytest.mark.usefixtures("unchecked")
def test_chunks_give_the_gradient_of_the_mean():
    gradients = []
    for chunk in (7, 100_000):
        state, kernel = state_of(0.1)
        state.plan = replace(state.plan, chunk=chunk)
        path = rollout(state.chain.prior, 16, GeneratorNoise(torch.Generator().manual_seed(1)))
        losses = denoising_gradient(state, path)
        assert bool(torch.isfinite(losses).all())
        gradients.append(kernel.denoiser.constant.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-7)
    assert float(gradients[0].abs().max()) > 0


def test_a_posterior_that_is_no_denoiser_is_refused():
    prior = gaussian_chain()
    chain = prior.tilted(VectorKernel(prior.event_shape, prior.steps))
    state = TrainingState(chain, log_reward, 1.0, quick_plan(steps=10, warm_start=1.0))
    with pytest.raises(InputError, match="full_copy or lora"):
        denoising_gradient(state, rollout(prior, 4))


@pytest.mark.usefixtures("unchecked")
def test_a_warm_start_from_data_draws_nothing_else_and_asks_no_prior():
    prior = gaussian_chain()
    kernel = DenoiserKernel(Shifted(prior.denoiser, prior.event_shape), prior.diffusion)  # type: ignore[arg-type]
    plan = replace(
        quick_plan(steps=10, warm_start=1.0), warm_start_loss="denoising", warm_start_from="data"
    )
    data = torch.full((40, *prior.event_shape), 1.5)
    state = TrainingState(prior.tilted(kernel), log_reward, 1.0, plan, data=data)
    record = training_step(state)
    assert set(state.behaviours) >= {"data"}
    assert state.chain.calls.prior == 0
    assert record.phase == "warm start"
    with pytest.raises(InputError, match=r"Sources\(data=...\)"):
        TrainingState(prior.tilted(kernel), log_reward, 1.0, plan)


@pytest.mark.usefixtures("unchecked")
def test_a_warm_start_from_data_draws_different_pairs():
    """Each pair has a condition of its own; a balance that compares must not repeat one."""
    prior = gaussian_chain()
    kernel = DenoiserKernel(Shifted(prior.denoiser, prior.event_shape), prior.diffusion)  # type: ignore[arg-type]
    plan = replace(
        quick_plan(steps=10, warm_start=1.0, batch=64),
        warm_start_loss="denoising",
        warm_start_from="data",
        paths_per_condition=16,
        objective=RTB("batch"),
    )
    data = torch.arange(1000.0)[:, None].expand(-1, *prior.event_shape)
    conditions = {"data": data, "data_conditions": torch.arange(1000)}
    state = TrainingState(prior.tilted(kernel), log_reward, 1.0, plan, **conditions)
    drawn = draw_paths(state, 1.0)["data"].path
    assert len(torch.unique(drawn.x_0)) > 50
