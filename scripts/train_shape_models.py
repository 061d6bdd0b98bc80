"""Train every weight of the shape task: the prior of point clouds and the classifiers that judge.

    python scripts/train_shape_models.py --minutes 28

Data are the clouds of ``difftilt.tasks.shapes.furniture``, made here from three seeds that share no
shape: one for the prior, one for each classifier. A cloud is drawn afresh at every visit, 256
points of 1,024 kept. The learning rate follows the processor's time (``--minutes``), so weights are
repeated in law, not to the bit.
"""

import copy
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from difftilt.adapters.point_clouds import PointCloudConfig, PointCloudModel
from difftilt.models.point_cloud import PointNetwork
from difftilt.tasks.shapes.furniture import furniture
from difftilt.tasks.shapes.judges import JUDGE_WIDTHS, JudgeName, PointNet, judged
from difftilt.training.state import hidden_matrices

Part = Literal["reward", "heldout", "prior"]
DENSE = 1024
SEEDS: dict[Part, int] = {"prior": 1, "reward": 2, "heldout": 3}


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    out: Path = Path("src/difftilt/tasks/data")
    """Folder that receives shape_prior/ and the classifiers' safetensors files."""
    parts: tuple[Part, ...] = ("reward", "heldout", "prior")
    """Which models to train."""
    minutes: float = 28.0
    """Time of the prior; a classifier takes two minutes."""
    shapes: int = 20_000
    """Shapes that each model learns from."""
    batch: int = 48
    learning_rate: float = 2e-3
    hidden_learning_rate: float = 1e-2
    judge_steps: int = 700
    """Updates of a classifier."""
    seed: int = 0
    threads: int = 1


def subset(clouds: Tensor, rows: Tensor, points: int) -> Tensor:
    """Some of the points of some clouds, (R, points, 3), chosen at random."""
    columns = torch.rand(len(rows), clouds.shape[1]).argsort(1)[:, :points]
    return clouds[rows[:, None], columns]


def even_log_snr(count: int, config: PointCloudConfig) -> Tensor:
    """Log-SNRs for training, even over the chain's and one more nat towards the data, (count,)."""
    share = (torch.arange(count) + torch.rand(1)) / count
    return config.noisy + share * (config.clean + 1 - config.noisy)


def velocity_loss(network: nn.Module, x_0: Tensor, config: PointCloudConfig) -> Tensor:
    """Squared error of v = alpha_t eps - sigma_t x_0 (Salimans & Ho, 2022)."""
    log_snr = even_log_snr(len(x_0), config)
    alpha, sigma = (
        log_snr.sigmoid().sqrt()[:, None, None],
        (-log_snr).sigmoid().sqrt()[:, None, None],
    )
    eps = torch.randn_like(x_0)
    found = network(alpha * x_0 + sigma * eps, config.time_of(log_snr))
    return F.mse_loss(found, alpha * eps - sigma * x_0)


def optimisers(network: nn.Module, settings: Settings) -> list[torch.optim.Optimizer]:
    """Muon for hidden matrices, Adam for the rest."""
    hidden = hidden_matrices(network)
    others = [p for p in network.parameters() if not any(p is q for q in hidden)]
    adam = torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=0.0)
    if settings.hidden_learning_rate == 0:
        return [torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)]
    muon = torch.optim.Muon(
        hidden,
        lr=settings.hidden_learning_rate,
        weight_decay=0.0,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adam, muon]


def set_rates(made: list[torch.optim.Optimizer], factor: float) -> None:
    """Every learning rate times a factor."""
    for optimiser in made:
        for group in optimiser.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


def rate(step: int, progress: float) -> float:
    """A warm-up of 50 steps, and a fall to zero over the last half of the time."""
    return min(1.0, step / 50) * min(1.0, 2 * max(1 - progress, 0.0))


def train_prior(settings: Settings) -> None:
    """Fit the unconditional diffusion model, saving once a minute so that it can be stopped."""
    torch.manual_seed(settings.seed)
    config = PointCloudConfig()
    clouds = torch.from_numpy(furniture(settings.shapes, DENSE, SEEDS["prior"])[0])
    network = PointNetwork(config.size)
    average = copy.deepcopy(network).requires_grad_(False)
    made = optimisers(network, settings)
    start, saved, step, mean = time.monotonic(), 0.0, 0, 1.0
    while (spent := (time.monotonic() - start) / 60) < settings.minutes:
        set_rates(made, rate(step, spent / settings.minutes))
        rows = torch.randint(len(clouds), (settings.batch,))
        # Half the points show nearly as much, in half the time.
        points = config.points // (2 if spent < settings.minutes / 2 else 1)
        loss = velocity_loss(network, subset(clouds, rows, points), config)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimiser in made:
            optimiser.step()
            optimiser.zero_grad()
        step += 1
        decay = min(0.998, step / (step + 10))
        for kept, new in zip(average.parameters(), network.parameters(), strict=True):
            kept.lerp_(new.detach(), 1 - decay)
        mean += (loss.item() - mean) / min(step, 100)
        if step % 50 == 0:
            print(f"prior {spent:5.1f} min  step {step}  loss {mean:.4f}", file=sys.stderr)
        if spent - saved > 1:
            PointCloudModel(average, config).save(settings.out / "shape_prior")
            saved = spent
    PointCloudModel(average, config).save(settings.out / "shape_prior")


# ------------------------------------------------------------------------------- the classifiers


def disturbed(clouds: Tensor) -> Tensor:
    """Clouds with noise of a random standard deviation in [0, 0.2], stretched by up to 10 %.

    The noise teaches a classifier to bear what a sampler leaves behind.
    """
    noise = 0.2 * torch.rand(len(clouds), 1, 1) * torch.randn_like(clouds)
    return clouds * (0.9 + 0.2 * torch.rand(len(clouds), 1, 3)) + noise


def train_judge(name: JudgeName, settings: Settings) -> None:
    """Train on this classifier's own shapes, calibrate and print figures on those of others."""
    torch.manual_seed(settings.seed + SEEDS[name])
    points, judge = PointCloudConfig().points, PointNet(JUDGE_WIDTHS[name])
    drawn, classes = furniture(settings.shapes // 4, DENSE, SEEDS[name])
    clouds, labels = torch.from_numpy(drawn), torch.from_numpy(classes)
    optimiser = torch.optim.AdamW(judge.parameters(), weight_decay=0.05)
    steps = settings.judge_steps
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=4e-3, total_steps=steps)
    for step in range(steps):
        rows = torch.randint(len(clouds), (64,))
        loss = F.cross_entropy(judge(disturbed(subset(clouds, rows, points))), labels[rows])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cycle.step()
        if step % 100 == 0:
            print(f"{name}  step {step} of {steps}  loss {loss.item():.4f}", file=sys.stderr)
    judge.eval().requires_grad_(False)
    calibrate(judge, name, points)
    folder = settings.out / "shape_judges"
    folder.mkdir(exist_ok=True)
    save_file(judge.state_dict(), folder / f"{name}.safetensors")


def calibrate(judge: PointNet, name: JudgeName, points: int) -> None:
    """Fit the temperature on noisy clouds of new shapes; print figures on other new ones."""
    sets = [furniture(1500, points, 10 * SEEDS[name] + k) for k in (0, 1)]
    (x, y), (x_test, y_test) = [(torch.from_numpy(a), torch.from_numpy(b)) for a, b in sets]
    logits, grid = judged(judge, disturbed(x)), torch.logspace(-1, 1, 400)
    found = grid[torch.stack([F.cross_entropy(logits / t, y) for t in grid]).argmin()]
    judge.temperature.copy_(found)
    for what, clouds in (("clean", x_test), ("disturbed", disturbed(x_test))):
        logits = judged(judge, clouds)
        right = (logits.argmax(1) == y_test).double().mean()
        loss = F.cross_entropy(logits, y_test)
        print(f"{name}, {what}: accuracy {right:.4f}, NLL {loss:.4f}, temperature {found:.3f}")


def main(settings: Settings) -> None:
    """Train the chosen parts one after the other."""
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    for part in settings.parts:
        if part == "prior":
            train_prior(settings)
        else:
            train_judge(part, settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
