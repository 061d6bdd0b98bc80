"""One cycle of Muon and AdamW of a given length: the loop of the scripts that make text models.

Muon (Jordan et al. 2024) steps the matrices of the hidden layers, AdamW embeddings, norms and
biases, both with one learning rate (updates of AdamW's size: Liu et al. 2025, arXiv 2502.16982).
"""

import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

EMBEDDINGS = ("embeddings", "wte", "wpe", "token.", "position", "last.")
"""Parts of the names of embeddings and heads: BERT's, GPT-2's, a ``TokenTransformer``'s."""


def learning_rate_factor(step: int, share: float, warmup: int = 100) -> float:
    """Linear warm-up, then half a cosine down to 0 at the end of the time."""
    return min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * min(1.0, share)))


def new_optimisers(model: nn.Module, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, AdamW for all else."""
    hidden = [
        parameter
        for name, parameter in model.named_parameters()
        if parameter.ndim == 2 and not any(part in name for part in EMBEDDINGS)
    ]
    chosen = {id(parameter) for parameter in hidden}
    others = [p for p in model.parameters() if id(p) not in chosen]
    return [
        torch.optim.Muon(
            hidden, lr=learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(others, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def train_by_clock(
    name: str,
    model: nn.Module,
    loss: Callable[[], Tensor],
    minutes: float,
    learning_rate: float,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Minimise ``loss()``, a batch drawn anew each time, in bfloat16 autocast."""
    optimisers = new_optimisers(model, learning_rate)
    start, step, average, share = clock(), 0, 0.0, 0.0
    model.train()
    while share < 1:
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = learning_rate * learning_rate_factor(step, share)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = loss()
        model.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
        step += 1
        average += (value.item() - average) / min(step, 100)
        share = (clock() - start) / (60 * minutes)
        if step % 50 == 0:
            spent = f"{share * minutes:5.1f} min, {time.process_time() / 60:5.1f} CPU-min"
            print(f"{name} {spent}  step {step}  loss {average:.4f}", file=sys.stderr, flush=True)
    model.eval()


def save_small(model: Any, tokenizer: Any, folder: Path) -> None:
    """Save in half precision, to be loaded in float32: files stay small, computing does not."""
    model.to(torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
