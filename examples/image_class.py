"""One class of images from an unconditional diffusion model, exported to plain diffusers.

The prior is an ordinary diffusers pipeline folder (28x28 garments; it comes with the package). The
reward is the log-probability that a classifier gives to "sandal": a black box, as far as the
training is concerned. What carries the posterior is a choice:

* ``FullCopy()``: a copy of the network, the most freedom and the most memory;
* ``LoRA(rank, targets="all")``: small adapters on the prior's own network.

A second classifier, which no training has seen, judges. On a small computer this takes minutes and
stays well short of the posterior; the certificate says so. `difftilt train fashion` is the same job
at its full length, with a report.

    python examples/image_class.py
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor

import difftilt
from difftilt.tasks.images import FASHION_CLASSES, fashion_prior_folder, load_classifier

WANTED = FASHION_CLASSES.index("sandal")


@torch.no_grad()
def share(images: Tensor) -> float:
    """Share of the wanted class by the classifier that only judges."""
    judge = load_classifier("heldout")
    return float((judge(images).argmax(1) == WANTED).float().mean())


def main(
    steps: int = 60,
    adapters: bool = True,
    chain_steps: int = 10,
    samples: int = 64,
    folder: str | Path | None = None,
) -> Path:
    """Train for ``steps`` updates, print shares of the class, and export a pipeline."""
    torch.manual_seed(0)
    prior = difftilt.load(fashion_prior_folder(), steps=chain_steps)
    reward = difftilt.ClassifierReward(load_classifier("reward"), WANTED)
    target = prior.tilt(reward)  # a probability: its bound, log r <= 0, is known

    form = difftilt.LoRA(rank=8, targets="all") if adapters else difftilt.FullCopy()
    posterior = target.fit(
        # Rewards of images differ by many nats: a clipped residual keeps one path from ruling.
        difftilt.RTB(residual_clip=10.0),
        form=form,
        steps=steps,
        batch=16,
        # First a likelihood on the best paths of a pool, denoised; then balance.
        warm_start=0.8,
        warm_start_loss="denoising",
        # Of each path's steps 8 get a gradient: unbiased, and much less memory and time.
        subset=min(8, chain_steps - 1),
        warm_start_subset=min(8, chain_steps - 1),
        chunk=64,
        optimisation=difftilt.Optimisation(learning_rate=1e-3, ema=0.98),
        replaying=difftilt.Replaying(
            pool_capacity=max(64, 4 * steps), pool_fresh=0, pool_effective=0.05
        ),
    )

    print(f"share of {FASHION_CLASSES[WANTED]}s, by a classifier that no training has seen")
    print(f"  prior      {share(prior.sample(samples)):.2f}")
    print(f"  posterior  {share(posterior.sample(samples)):.2f}")
    print(posterior.certify(samples).verdict)

    folder = tempfile.mkdtemp() if folder is None else folder
    exported = posterior.export(Path(folder) / "sandals")
    from diffusers import DDPMPipeline

    pipeline = DDPMPipeline.from_pretrained(exported)
    print(f"{exported} is a {type(pipeline).__name__}: diffusers loads it without difftilt")
    return exported


if __name__ == "__main__":
    main()
