"""Train every weight that ``difftilt.tasks.images`` ships, from the Fashion-MNIST files alone.

    python scripts/train_image_models.py --minutes 40

The 60,000 training images are split once and for all:

    [     0, 25,000)  prior, classifier ``reward``
    [25,000, 50,000)  prior, classifier ``heldout``
    [50,000, 60,000)  temperatures of both classifiers; nothing else
    the 10,000 test images: the figures that are printed

The data are in Debian's package ``dataset-fashion-mnist``.  One seed fixes every draw; the prior's
learning rate follows the clock (``--minutes``), so its weights are repeated in law, not to the bit.
"""

import gzip
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # pyright: ignore
from diffusers.training_utils import EMAModel
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from difftilt.tasks.images import CLASSIFIER_WIDTHS, ClassifierName, GarmentClassifier

Part = Literal["reward", "heldout", "prior"]
TRAINING_RANGES: dict[ClassifierName, slice] = {
    "reward": slice(0, 25_000),
    "heldout": slice(25_000, 50_000),
}
PRIOR_RANGE = slice(0, 50_000)
CALIBRATION_RANGE = slice(50_000, 60_000)


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    data: Path = Path("/usr/share/datasets/fashion-mnist")
    """Folder of the four idx.gz files."""
    out: Path = Path("src/difftilt/tasks/data")
    """Folder that receives fashion_prior/ and the classifiers' safetensors files."""
    parts: tuple[Part, ...] = ("reward", "heldout", "prior")
    """Which models to train."""
    minutes: float = 40.0
    """Time for the prior; a classifier takes about two minutes."""
    widths: tuple[int, int, int] = (8, 16, 64)
    """Channels of the prior's network at 28x28, 14x14 and 7x7."""
    batch: int = 64
    learning_rate: float = 2e-3
    epochs: int = 8
    """Passes of a classifier over its images."""
    seed: int = 0
    threads: int = 1


def read_idx(path: Path) -> Tensor:
    """The bytes of one idx.gz file (its header gives the number of axes and their lengths)."""
    if not path.exists():
        sys.exit(f"{path} is missing; install Debian's dataset-fashion-mnist or give --data FOLDER")
    raw = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(raw, ">i4", count=raw[3], offset=4)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).copy()).view(
        *shape.tolist()
    )


def read_split(folder: Path, split: Literal["train", "t10k"]) -> tuple[Tensor, Tensor]:
    """Images (n, 1, 28, 28) in [-1, 1] and labels (n,)."""
    images = read_idx(folder / f"{split}-images-idx3-ubyte.gz")
    labels = read_idx(folder / f"{split}-labels-idx1-ubyte.gz")
    return images[:, None].float() / 127.5 - 1, labels.long()


# ------------------------------------------------------------------------------------- the prior


def new_network(widths: tuple[int, int, int]) -> UNet2DModel:
    """28 -> 14 -> 7 with attention at 7x7 only: nearly all its time is spent in convolutions."""
    return UNet2DModel(
        sample_size=28,
        in_channels=1,
        out_channels=1,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
        attention_head_dim=16,
    )


def new_scheduler() -> DDPMScheduler:
    """A chain that survives long strides: zero signal at its start, and the small variance."""
    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        variance_type="fixed_small",
        timestep_spacing="trailing",
        clip_sample=True,
    )


def velocity_loss(network: nn.Module, scheduler: DDPMScheduler, images: Tensor) -> Tensor:
    """Squared error of v = alpha_t eps - sigma_t x_0 at uniform times (Salimans & Ho, 2022)."""
    t = torch.randint(len(scheduler.betas), (len(images),))
    eps = torch.randn_like(images)
    noisy = scheduler.add_noise(images, eps, t)  # pyright: ignore[reportArgumentType]
    v = scheduler.get_velocity(images, eps, t)  # pyright: ignore[reportArgumentType]
    return F.mse_loss(network(noisy, t).sample, v)


def learning_rate_factor(step: int, progress: float) -> float:
    """A warm-up of 200 steps, then a cosine to zero as the time runs out."""
    return min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def save_prior(network: UNet2DModel, ema: EMAModel, scheduler: DDPMScheduler, out: Path) -> None:
    """Write the averaged weights as an ordinary diffusers folder."""
    ema.store(network.parameters())
    ema.copy_to(network.parameters())
    DDPMPipeline(network, scheduler).save_pretrained(out / "fashion_prior", safe_serialization=True)
    ema.restore(network.parameters())


def train_prior(images: Tensor, settings: Settings) -> None:
    """Fit the unconditional diffusion model, saving once a minute so that it can be stopped."""
    torch.manual_seed(settings.seed)
    network, scheduler = new_network(settings.widths), new_scheduler()
    ema = EMAModel(network.parameters(), decay=0.999)
    optimiser = torch.optim.AdamW(network.parameters(), lr=settings.learning_rate)
    start, saved, step, average = time.monotonic(), 0.0, 0, 1.0
    while (elapsed := (time.monotonic() - start) / 60) < settings.minutes:
        rate = settings.learning_rate * learning_rate_factor(step, elapsed / settings.minutes)
        optimiser.param_groups[0]["lr"] = rate
        batch = images[torch.randint(len(images), (settings.batch,))]
        loss = velocity_loss(network, scheduler, batch)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        ema.step(network.parameters())
        step += 1
        average += (loss.item() - average) / min(step, 200)
        if step % 100 == 0:
            print(f"prior {elapsed:5.1f} min  step {step}  loss {average:.4f}", file=sys.stderr)
        if elapsed - saved > 1:
            save_prior(network, ema, scheduler, settings.out)
            saved = elapsed
    save_prior(network, ema, scheduler, settings.out)


# ------------------------------------------------------------------------------- the classifiers


def augmented(images: Tensor) -> Tensor:
    """Shift by up to 2 pixels, and add noise of a random standard deviation in [0, 0.3].

    The noise teaches a classifier to bear what a sampler leaves behind.
    """
    padded = F.pad(images, (2, 2, 2, 2), value=-1.0)
    down, right = torch.randint(5, (2,)).tolist()
    shifted = padded[:, :, down : down + 28, right : right + 28]
    scale = 0.3 * torch.rand(len(images), 1, 1, 1) * (torch.rand(len(images), 1, 1, 1) < 0.5)
    return (shifted + scale * torch.randn_like(images)).clamp(-1, 1)


def fit_classifier(
    classifier: GarmentClassifier, images: Tensor, labels: Tensor, epochs: int, batch: int
) -> None:
    """Minimise the cross-entropy on augmented images, one cycle of the learning rate."""
    steps = epochs * (len(images) // batch)
    optimiser = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=5e-3, total_steps=steps)
    average = 2.3
    for step in range(steps):
        chosen = torch.randint(len(images), (batch,))
        loss = F.cross_entropy(classifier(augmented(images[chosen])), labels[chosen])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cycle.step()
        average += (loss.item() - average) / 100
        if step % 200 == 0:
            print(f"  step {step} of {steps}  loss {average:.4f}", file=sys.stderr)


@torch.no_grad()
def all_logits(classifier: GarmentClassifier, images: Tensor) -> Tensor:
    return torch.cat([classifier(part) for part in images.split(500)])


def best_temperature(logits: Tensor, labels: Tensor) -> Tensor:
    """The divisor of the logits that minimises the negative log-likelihood (Guo et al., 2017)."""
    grid = torch.logspace(-1, 1, 400)
    return grid[torch.stack([F.cross_entropy(logits / t, labels) for t in grid]).argmin()]


def expected_calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Σ_bins (share of the bin) · |accuracy - mean confidence| over equal bins of confidence."""
    confidence, predicted = logits.softmax(1).max(1)
    gap = (predicted == labels).double() - confidence.double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    sums = torch.zeros(bins, dtype=torch.float64).index_add(0, index, gap)
    return sums.abs().sum().item() / len(labels)


def train_classifier(name: ClassifierName, settings: Settings) -> None:
    """Train on this classifier's own half, calibrate on the third part, print the test figures."""
    torch.manual_seed(settings.seed + 1 + TRAINING_RANGES[name].start)
    images, labels = read_split(settings.data, "train")
    own = TRAINING_RANGES[name]
    classifier = GarmentClassifier(CLASSIFIER_WIDTHS[name])
    print(f"classifier {name}", file=sys.stderr)
    fit_classifier(classifier, images[own], labels[own], settings.epochs, batch=100)
    classifier.eval()
    logits = all_logits(classifier, images[CALIBRATION_RANGE])
    classifier.temperature.copy_(best_temperature(logits, labels[CALIBRATION_RANGE]))
    save_file(classifier.state_dict(), settings.out / f"fashion_{name}.safetensors")
    print_test_figures(name, classifier, settings.data)


def print_test_figures(name: str, classifier: GarmentClassifier, data: Path) -> None:
    images, labels = read_split(data, "t10k")
    logits = all_logits(classifier, images)
    print(
        f"{name}: accuracy {(logits.argmax(1) == labels).double().mean():.4f}, "
        f"NLL {F.cross_entropy(logits, labels):.4f} nats, "
        f"ECE {expected_calibration_error(logits, labels):.4f}, "
        f"temperature {classifier.temperature:.3f}"
    )


def main(settings: Settings) -> None:
    """Train the chosen parts one after the other."""
    torch.set_num_threads(settings.threads)
    settings.out.mkdir(parents=True, exist_ok=True)
    for part in settings.parts:
        if part == "prior":
            train_prior(read_split(settings.data, "train")[0][PRIOR_RANGE], settings)
        else:
            train_classifier(part, settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
