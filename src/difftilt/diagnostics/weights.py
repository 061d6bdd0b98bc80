"""What a vector of log-weights may hold: finite numbers and -inf, at least one of them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError


def check_log_weights(log_w: Tensor, name: str = "log_w", at_least: int = 1) -> Float[Tensor, " n"]:
    """``log_w`` detached, in float64.

    Raises:
        InputError: not of shape (n,), fewer than ``at_least``, or an entry is NaN or +inf.
    """
    if log_w.ndim != 1 or len(log_w) < at_least or not log_w.is_floating_point():
        raise InputError(
            f"{name} has shape {tuple(log_w.shape)} and dtype {log_w.dtype}; "
            f"it needs one float per path, shape (n,), n ≥ {at_least}"
        )
    wide = log_w.detach().double()
    bad = torch.nonzero(wide.isnan() | (wide == math.inf)).flatten()
    if len(bad):
        first = int(bad[0])
        raise InputError(
            f"{name}[{first}] = {wide[first].item()} ({len(bad)} of {len(wide)} entries are NaN or "
            f"+inf); a log-weight is finite or -inf: check the reward and log-ratio of that path"
        )
    return wide


def check_pair(
    log_ratio: Tensor, log_r: Tensor, at_least: int = 1
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Log-ratio and log-reward of the same paths, in float64.

    Raises:
        InputError: their shapes differ, or an entry is NaN or +inf.
    """
    if log_ratio.shape != log_r.shape:
        raise InputError(
            f"log_ratio has shape {tuple(log_ratio.shape)} but log_r {tuple(log_r.shape)}; "
            "both need one number per path, shape (n,)"
        )
    return (
        check_log_weights(log_ratio, "log_ratio", at_least),
        check_log_weights(log_r, "log_r", at_least),
    )


def log_weights(log_ratio: Float[Tensor, " n"], log_r: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``log w = β log r - Λ``; -inf where the reward is zero, even if q vanishes there too."""
    return torch.where(log_r == -math.inf, log_r, log_r - log_ratio)
