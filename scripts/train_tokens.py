"""Train the small transformer of the exact problem ``tokens_trained`` (half a minute on one core).

    python scripts/train_tokens.py [--steps 1500] [--out FILE]

The default writes the weights that the package ships; the problem's truth follows them.
"""

import argparse
from pathlib import Path

import torch
from safetensors.torch import save_file

import difftilt.tasks.tokens
from difftilt.marginals import words
from difftilt.tasks.tokens.networks import TransformerNetwork, random_joint
from difftilt.tasks.tokens.problems import TRAINED

SHIPPED = Path(difftilt.tasks.tokens.__file__).parent / "data" / TRAINED
VOCABULARY, LENGTH = 4, 6


def masked_loss(
    network: TransformerNetwork, tokens: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Cross-entropy at masked positions, a uniform number of them masked at random.

    The mean over the masks of each word, times L: an unbiased bound of -log p (Ou et al. 2024,
    arXiv 2406.03736).
    """
    batch, length = tokens.shape
    count = torch.randint(1, length + 1, (batch, 1), generator=generator)
    keys = torch.rand(batch, length, generator=generator)
    masked = keys.argsort(1).argsort(1) < count
    ids = torch.where(masked, network.mask_id, tokens)
    log_probs = network.network(ids).log_softmax(2).gather(2, tokens[..., None])[..., 0]
    return -(torch.where(masked, log_probs, 0.0).sum(1) * length / count[:, 0]).mean()


def train(steps: int, seed: int = 0, batch: int = 256) -> TransformerNetwork:
    """The masked loss on words of a random correlated law, Adam, cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    network, joint = TransformerNetwork(VOCABULARY, LENGTH), random_joint(4, 6, generator)
    every = words(VOCABULARY, LENGTH)
    optimiser = torch.optim.Adam(network.parameters(), 3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        rows = torch.multinomial(joint, batch, replacement=True, generator=generator)
        loss = masked_loss(network, every[rows], generator)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return network


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the network of tokens_trained.")
    parser.add_argument("--steps", type=int, default=1500, help="updates")
    parser.add_argument("--out", type=Path, default=SHIPPED, help="where to write the weights")
    asked = parser.parse_args()
    asked.out.parent.mkdir(exist_ok=True)
    save_file(train(asked.steps).state_dict(), asked.out)
    print(f"wrote {asked.out}")
