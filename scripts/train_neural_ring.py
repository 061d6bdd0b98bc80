"""Train the small network of the exact problem ``neural_ring8`` (half a minute on one core).

    python scripts/train_neural_ring.py [--seconds 25] [--out FILE]

The default writes the weights that the package ships; the problem's truth follows them.
"""

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

import difftilt.tasks.exact
from difftilt.tasks.exact.neural import WEIGHTS, NoiseMLP, ring_chain
from difftilt.tasks.exact.toys import ring_toy

SHIPPED = Path(difftilt.tasks.exact.__file__).parent / "data" / WEIGHTS


def batch(count: int, generator: torch.Generator) -> torch.Tensor:
    """Data on the ring, in units of the toy's scale."""
    toy = ring_toy()
    rows = torch.randint(8, (count,), generator=generator)
    x = toy.centres[rows] + toy.std * torch.randn(count, 2, generator=generator)
    return (x / toy.scale).float()


def train(seconds: float, seed: int = 0) -> NoiseMLP:
    """Predict the noise at the chain's own levels, mean squared error, Adam."""
    torch.manual_seed(seed)
    network, generator = NoiseMLP(), torch.Generator().manual_seed(seed)
    levels = ring_chain(network).gaussian.levels
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        optimiser.param_groups[0]["lr"] = 3e-3 * (1 - spent / seconds)
        n = torch.randint(1, levels.steps + 1, (512,), generator=generator)
        eps = torch.randn(512, 2, generator=generator)
        alpha, sigma, told = (v[n].float() for v in (levels.alpha, levels.sigma, levels.time))
        x = alpha[:, None] * batch(512, generator) + sigma[:, None] * eps
        loss = (network(x, told) - eps).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return network


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the network of neural_ring8.")
    parser.add_argument("--seconds", type=float, default=25.0, help="time to train for")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where to write the weights")
    asked = parser.parse_args()
    save_file(train(asked.seconds).state_dict(), asked.out)
    print(f"wrote {asked.out}")
