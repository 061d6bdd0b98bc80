"""One cycle of AdamW that lasts a given time: the loop of the scripts that make text models."""

import math
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn


def learning_rate_factor(step: int, share: float, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 0 at the end of the time."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def train_by_clock(
    name: str, model: nn.Module, loss: Callable[[], Tensor], minutes: float, learning_rate: float
) -> None:
    """Minimise ``loss()``, a batch drawn anew each time, in bfloat16 autocast."""
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    start, step, average, share = time.monotonic(), 0, 0.0, 0.0
    model.train()
    while share < 1:
        optimiser.param_groups[0]["lr"] = learning_rate * learning_rate_factor(step, share)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        step += 1
        average += (value.item() - average) / min(step, 100)
        share = (time.monotonic() - start) / (60 * minutes)
        if step % 50 == 0:
            spent = f"{share * minutes:5.1f} min, {time.process_time() / 60:5.1f} CPU-min"
            print(f"{name} {spent}  step {step}  loss {average:.4f}", file=sys.stderr, flush=True)
    model.eval()
