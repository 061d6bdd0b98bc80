"""The warm start through the second door: denoising ends that are the posterior's already."""

from collections.abc import Iterator

import torch
from torch import Tensor

from difftilt.chains.chain import Chain, Path
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.noise import GeneratorNoise
from difftilt.training.outcome import Outcome, check, forget_gradients
from difftilt.training.paths import draw_paths
from difftilt.training.state import TrainingState


def denoising_updates(state: TrainingState, beta: float) -> Iterator[Outcome]:
    """Draw pooled or given ends and accumulate one gradient."""
    parts = draw_paths(state, beta)
    forget_gradients(state)
    path = Path.joined([scored.path for scored in parts.values()])
    outcome = Outcome(denoising_gradient(state, path), parts, torch.zeros(path.batch))
    check(state, outcome.losses, outcome.log_r)
    yield outcome


def denoising_gradient(state: TrainingState, path: Path) -> Tensor:
    """Accumulate the gradient of the mean denoising loss; returns the losses, detached.

    With ``anchor`` each row also pays ``anchor KL(q ‖ p)`` of its step: few ends say little about
    the fine steps, where the prior is nearly right already.

    Each end is noised to ``warm_start_subset`` (or all N) random levels.

    Raises:
        InputError: the posterior is no denoiser, so that it cannot be trained by denoising.
    """
    kernel = state.chain.kernel
    if not isinstance(kernel, DenoiserKernel):
        raise InputError(
            "warm_start_loss='denoising' needs a posterior that is a denoiser (full_copy or lora); "
            "use warm_start_loss='likelihood'"
        )
    diffusion = state.chain.diffusion
    per_end = state.subset or state.chain.steps
    ends = path.x_0.repeat_interleave(per_end, 0)
    n = torch.randint(1, state.chain.steps + 1, (len(ends),), generator=state.generator)
    condition = None
    if path.condition is not None:
        condition = path.condition.repeat_interleave(per_end, 0)
    noise = GeneratorNoise(state.generator)
    noised, wanted = diffusion.denoising_pair(ends, n, noise, condition)
    losses = []
    for rows in torch.arange(len(ends)).split(state.plan.chunk):
        given = None if condition is None else condition[rows]
        x = noised[rows]
        prediction = kernel.denoiser.given(given)(x, diffusion.level(n[rows], x, given))
        loss = diffusion.denoising_loss(prediction, wanted[rows], x, n[rows])
        if state.plan.anchor > 0:
            own = state.chain.given(given)
            loss = loss + state.plan.anchor * _distance(own, x, n[rows], prediction)
        (loss.sum() / len(ends)).backward()
        losses.append(loss.detach())
    state.chain.calls.posterior += len(ends)
    return torch.cat(losses)


def _distance(chain: Chain, x: Tensor, n: Tensor, prediction: Tensor) -> Tensor:
    """``KL(q ‖ p)`` of single steps, nats: what a deviation from the prior costs a path."""
    own = chain.predict(x, n)
    divergence = torch.zeros(len(x))
    kept = (n >= chain.density_steps[0]).nonzero().flatten()
    tilt = chain.diffusion.tilt_between(prediction[kept], own[kept], x[kept], n[kept])
    return divergence.index_add(0, kept, tilt.divergence())
