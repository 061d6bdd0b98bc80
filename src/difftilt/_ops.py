"""Small tensor operations that every room needs and no room owns."""

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


def sum_event(x: Float[Tensor, "..."]) -> Float[Tensor, " B"]:
    """Sum over everything but the first axis, in float32 or wider; (B, *event) -> (B,)."""
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.flatten(1).sum(1) if wide.ndim > 1 else wide


def over_event(values: Shaped[Tensor, " B"], x: Float[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Reshape one number per sample (B,) so that it broadcasts over the event of ``x``."""
    return values.reshape(values.shape + (1,) * (x.ndim - values.ndim))


def above(log_bound: float) -> float:
    """A bound of log r, nats, and as far above it as float32 may carry a reward that keeps it."""
    return log_bound + 1e-5 * (1.0 + abs(log_bound))


def log_mean_exp(log_values: Float[Tensor, "..."], dim: int = 0) -> Float[Tensor, "..."]:
    """``log mean exp`` along one axis, without overflow."""
    count = log_values.shape[dim]
    return torch.logsumexp(log_values, dim) - torch.log(torch.tensor(float(count)))
