"""Networks of 16 bits: held so, calculating in float32, trained without a loss."""

from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

import difftilt as dt
from difftilt.adapters.arithmetic import as_now, calculating, in_float32
from difftilt.chains.rollouts import Path, rollout
from difftilt.chains.scoring import backward, log_ratio
from plain_diffusers import PROMPTS, SCALE, SIZES, STEPS, noise_of, plain
from tiny_pipelines import tiny

LORA = dt.LoRA(rank=2)
HALVES = [torch.bfloat16, torch.float16]
NETWORKS = ("sd", "sdxl", "sd3", "flux", "pixart_sigma", "dit")


def redness(pictures: Tensor) -> Tensor:
    """Log r of pictures alone."""
    return 3 * (pictures[:, 0] - pictures[:, 2]).mean((1, 2))


def network_of(pipeline: Any) -> nn.Module:
    return pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer


def held(name: str, dtype: torch.dtype, wide: bool = False) -> Any:
    """A tiny pipeline in 16 bits; ``wide``: with its network's rounded weights in 32."""
    pipeline = tiny(name).to(dtype)
    if wide:
        nn.Module.to(network_of(pipeline), torch.float32)
    return pipeline


def task(pipeline: Any, **options: Any) -> Any:
    sizes = {} if type(pipeline).__name__ == "DiTPipeline" else SIZES
    options = {"guidance_scale": SCALE, **sizes, **options}
    return dt.load(pipeline, steps=STEPS, **options).draw(PROMPTS, redness)


def moved(posterior: Any, by: float = 0.1) -> Any:
    """Away from the prior, from a start that does not depend on what the network is held in."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in posterior.posterior.chain.kernel.parameters():
            parameter.copy_(parameter.bfloat16())
            parameter += by * torch.randn(parameter.shape, generator=generator)
    return posterior


def path_of(posterior: Any, name: str = "sd") -> tuple[Any, Path]:
    chain = posterior.posterior.chain.given(posterior.task.prior.rows(PROMPTS))
    return chain, rollout(chain, len(PROMPTS), noise_of(name))


def gradient(posterior: Any, coefficient: float = 1.0) -> Tensor:
    chain, path = path_of(posterior)
    backward(chain, path, coefficient * torch.tensor([1.0, -2.0]))
    return torch.cat([p.grad.flatten() for p in chain.kernel.parameters() if p.grad is not None])


@pytest.mark.parametrize("name", NETWORKS)
def test_sixteen_bits_calculate_as_thirty_two(name: str):
    """Prior and posterior are those of the same weights in float32, to the bit."""
    found = []
    for wide in (False, True):
        torch.manual_seed(3)
        pipeline = held(name, torch.bfloat16, wide)
        posterior = task(pipeline).posterior(LORA)
        assert next(network_of(pipeline).parameters()).dtype == (
            torch.float32 if wide else torch.bfloat16
        )
        prior = path_of(posterior.task.prior_sampler(), name)[1].states
        _, path = path_of(moved(posterior), name)
        found.append((prior, path.states, path.log_ratio))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == torch.float32 and torch.equal(ours, theirs)
    assert (found[0][2] != 0).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_the_pipeline_itself_stays_as_it_is(dtype: torch.dtype):
    pipeline = held("sd", dtype)
    before = plain(pipeline, "sd")
    moved(task(pipeline).posterior(LORA))
    after = plain(pipeline, "sd")
    assert before.dtype == after.dtype == dtype and torch.equal(before, after)


@pytest.mark.parametrize("dtype", HALVES)
def test_a_training_is_that_of_float32(dtype: torch.dtype):
    """Rounded arithmetic left a divergence of .3 nats (bfloat16) however small the update."""
    found = []
    for wide in (False, True):
        torch.manual_seed(3)
        drawn = task(held("sd", dtype, wide))
        start, path = path_of(drawn.posterior(LORA))
        assert torch.equal(path.log_ratio, torch.zeros(len(PROMPTS)))
        prior = path_of(drawn.prior_sampler())[1]
        assert torch.equal(path.states, prior.states) and start.kernel is not None
        posterior = drawn.fit(
            dt.RTB("learned"),
            form=LORA,
            steps=4,
            batch=4,
            chunk=4,
            paths_per_condition=2,
            warm_start=0.0,
            behaviour=dt.BehaviourWeights(on_policy=1, pool=0),
            optimisation=dt.Optimisation(learning_rate=1e-4, ema=0.0, decay_from=1.0),
        )
        kernel = posterior.posterior.chain.kernel
        assert all(p.dtype == torch.float32 for p in kernel.parameters())
        second = [p for name, p in kernel.named_parameters() if "lora_B" in name]
        assert second and all(bool((p != 0).any()) for p in second)
        found.append(path_of(posterior)[1].log_ratio)
        assert posterior.certify_each(16).ess > 0.9
    ours, theirs = found
    assert float(theirs.abs().min()) > 0 and float(theirs.abs().max()) < 0.2
    # peft rounds the first values of its matrices to what the network is held in.
    assert torch.allclose(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))


def test_gradients_beyond_sixteen_bits_are_finite():
    """In float16 anything above 65,504 is infinite."""
    found = []
    for coefficient in (1.0, 2.0**24):
        torch.manual_seed(0)
        posterior = moved(task(held("sd", torch.float16)).posterior(LORA))
        found.append(gradient(posterior, coefficient))
    once, often = found
    assert float(often.abs().max()) > 65_504
    assert torch.equal(often, 2.0**24 * once)


def test_checkpointed_blocks_are_recomputed_in_float32():
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        drawn = task(held("sd", torch.bfloat16), checkpointing=checkpointing)
        found.append(gradient(moved(drawn.posterior(LORA))))
    assert torch.allclose(*found, rtol=1e-4, atol=1e-5 * float(found[0].abs().max()))


def test_a_visit_of_other_batches_finds_the_same_log_ratio():
    chain, path = path_of(moved(task(held("sd", torch.bfloat16)).posterior(LORA)))
    with torch.no_grad():
        again = log_ratio(chain, path, chunk=1)
    assert torch.allclose(again, path.log_ratio, rtol=1e-4, atol=1e-4)


def test_a_full_copy_is_of_thirty_two_bits():
    posterior = task(held("sd", torch.bfloat16)).posterior(dt.FullCopy())
    chain, path = path_of(posterior)
    assert {p.dtype for p in chain.kernel.parameters()} == {torch.float32}
    assert torch.equal(path.log_ratio, torch.zeros(len(PROMPTS)))
    path_again = path_of(moved(posterior, 1e-5))[1]
    assert bool((path_again.log_ratio != 0).all())


def test_merged_adapters_are_not_swallowed(tmp_path):
    pipeline = held("pixart_sigma", torch.bfloat16)
    posterior = moved(task(pipeline).posterior(LORA), 1e-3)
    theirs = DiffusionPipeline.from_pretrained(posterior.export(tmp_path / "whole")).transformer
    own = pipeline.transformer.state_dict()
    change = [
        value - own[name.replace("to_q.", "to_q.base_layer.")].float()
        for name, value in theirs.state_dict().items()
        if name.endswith("to_q.weight")
    ]
    # Every entry has moved, by less than the spacing of bfloat16 at a typical weight.
    assert change and all(bool((c != 0).all()) and float(c.abs().max()) < 1e-3 for c in change)


def test_half_precision_stays_close_to_full():
    full, half = (
        dt.load(pipeline, steps=STEPS, guidance_scale=SCALE)
        for pipeline in (tiny("sd"), held("sd", torch.bfloat16))
    )
    error = (full.sample(PROMPTS, 1) - half.sample(PROMPTS, 1)).abs().mean()
    assert 0 < float(error) < 0.05


def test_widening_ends_where_it_should():
    layer, x = nn.Linear(3, 3).to(torch.bfloat16), torch.randn(2, 3)
    with calculating(layer):
        assert layer.weight.dtype == torch.float32 and layer.weight.shape == (3, 3)
        assert x.to(torch.float16).dtype == torch.float32
        wide = layer(x)
        with as_now():
            assert torch.equal(torch.cat([layer(x), layer.weight]), torch.cat([wide, layer.weight]))
    assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(wide, nn.functional.linear(x, layer.weight.float(), layer.bias.float()))
    with as_now(), pytest.raises(RuntimeError):
        layer(x)
    with pytest.raises(RuntimeError, match="inside"), in_float32():
        raise RuntimeError("inside")
    with calculating(layer.to(torch.float32)):
        assert x.to(torch.float16).dtype == torch.float16


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_rounding_by_choice_starts_at_the_prior_and_parts_from_it(name: str):
    """With ``autocast`` a small update's divergence is the rounding's, by far."""
    apart = []
    for rounded in (False, True):
        drawn = task(held(name, torch.bfloat16), autocast=rounded)
        _, path = path_of(drawn.posterior(LORA), name)
        assert torch.equal(path.log_ratio, torch.zeros(len(PROMPTS)))
        posterior = moved(drawn.posterior(LORA), 1e-3)
        _, path = path_of(posterior, name)
        apart.append(float(path.log_ratio.abs().mean()))
    assert 0 < 3 * apart[0] < apart[1]
