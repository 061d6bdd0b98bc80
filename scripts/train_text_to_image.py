"""Train the shipped text-to-image prior: a StableDiffusionPipeline of tinted emoji at 32x32.

    python scripts/make_emoji_data.py SOURCES icons.npz
    python scripts/train_text_to_image.py --data icons.npz --parts vae prior --out FOLDER

First the autoencoder (32x32x3 to 8x8x4), then, on its latents, the text encoder and the denoising
network together, one caption in ten empty for classifier-free guidance. ``--minutes`` counts CPU
time of this run; the learning rate falls to zero at its end. ``--resume`` goes on from what
``--out`` has; the part ``decoder`` sharpens the autoencoder of a prior that is trained already,
``ship`` writes everything in half precision.

The prior sees no held-out pair (``difftilt.tasks.emoji_words.is_held_out``).
"""

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import StableDiffusionPipeline  # pyright: ignore
from diffusers.training_utils import EMAModel
from emoji_pictures import NATURAL, EmojiPictures, Pictures
from PIL import Image
from text_to_image_parts import LENGTH, new_pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from difftilt.tasks.emoji_words import COLOURS, TEMPLATES, THINGS

Part = Literal["vae", "prior", "decoder", "ship"]


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    data: Path
    """The drawings, an .npz of make_emoji_data.py."""
    out: Path
    """Folder of the pipeline."""
    parts: tuple[Part, ...] = ("vae", "prior")
    vae_minutes: float = 3.0
    """CPU time of the autoencoder."""
    minutes: float = 10.0
    """CPU time of the text encoder and the network."""
    widths: tuple[int, int] = (48, 96)
    """Channels of the denoising network at 8x8 and 4x4."""
    batch: int = 64
    learning_rate: float = 1e-3
    bank: int = 16_000
    """Pictures whose latents are kept."""
    resume: bool = False
    """Go on from what ``out`` has."""
    shipped: Path = Path("src/difftilt/tasks/data/text_to_image_prior")
    """Where the part ``ship`` writes the pipeline in half precision."""
    seed: int = 0


# ----------------------------------------------------------------------------------- the training


def rate_at(step: int, progress: float) -> float:
    """A warm-up of 200 steps, then a cosine to zero as the time runs out."""
    return min(1.0, step / 200) * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def train_vae(pipe: Any, settings: Settings, whole: bool = True) -> None:
    """Mean absolute error of pictures and of their slopes, with a little Kullback-Leibler.

    Without ``whole`` the decoder alone goes on, which leaves the latents and a prior of them valid.
    """
    pictures = EmojiPictures(settings.data, "all", NATURAL)
    generator = torch.Generator().manual_seed(settings.seed)
    vae = pipe.vae.train().requires_grad_(whole)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    optimiser = torch.optim.AdamW(
        [p for p in vae.parameters() if p.requires_grad], lr=2 * settings.learning_rate
    )

    def loss() -> Tensor:
        images = 2 * pictures.batch(settings.batch // 2, generator).images - 1
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(images).latent_dist
            latents = posterior.sample()
            if not whole:
                latents = posterior.mean + 0.3 * (latents - posterior.mean)
            shown = vae.decode(latents).sample.float()
        slopes = sum((shown.diff(dim=d) - images.diff(dim=d)).abs().mean() for d in (2, 3))
        return (shown - images).abs().mean() + slopes + 5e-6 * posterior.kl().mean()

    run(loss, optimiser, settings.vae_minutes, lambda: save(pipe, settings))
    if not whole:
        return
    with torch.no_grad():
        images = 2 * pictures.batch(1024, generator).images - 1
        latents = torch.cat([vae.encode(x).latent_dist.mean for x in images.split(64)])
    vae.register_to_config(scaling_factor=1 / float(latents.std()))
    save(pipe, settings)


def latent_bank(pipe: Any, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Scaled latents (n, 4, 8, 8) of pictures of the prior's split, their colours and things."""
    pictures = EmojiPictures(settings.data, "prior", NATURAL)
    generator = torch.Generator().manual_seed(settings.seed + 1)
    parts: list[Pictures] = []
    latents: list[Tensor] = []
    pipe.vae.eval()
    for _ in range(settings.bank // 200):
        parts.append(pictures.batch(200, generator))
        with torch.no_grad():
            mean = pipe.vae.encode(2 * parts[-1].images - 1).latent_dist.mean
        latents.append(mean * pipe.vae.config.scaling_factor)
    colours, things = (torch.cat([getattr(p, k) for p in parts]) for k in ("colours", "things"))
    return torch.cat(latents), colours, things


def all_captions(tokenizer: Any) -> Tensor:
    """Tokens of every caption, (colours + 1, things, templates, 12); the last colour is none."""
    texts = [
        " ".join(t.format(colour=c, thing=thing).split())
        for c in [*COLOURS, ""]
        for thing in THINGS
        for t in (TEMPLATES if c else (TEMPLATES[0],) * len(TEMPLATES))
    ]
    found = tokenizer(texts, padding="max_length", max_length=LENGTH, return_tensors="pt")
    return found.input_ids.view(len(COLOURS) + 1, len(THINGS), len(TEMPLATES), LENGTH)


def train_prior(pipe: Any, settings: Settings) -> None:
    """Squared error of v = alpha_t eps - sigma_t x_0 at uniform times (Salimans & Ho, 2022)."""
    latents, colours, things = latent_bank(pipe, settings)
    captions = all_captions(pipe.tokenizer)
    empty = pipe.tokenizer("", padding="max_length", max_length=LENGTH, return_tensors="pt")
    print(f"{len(latents)} latents", file=sys.stderr, flush=True)
    unet, text, scheduler = pipe.unet.train(), pipe.text_encoder.train(), pipe.scheduler
    parameters = [*unet.requires_grad_(True).parameters(), *text.requires_grad_(True).parameters()]
    ema = EMAModel(parameters, decay=0.998)
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=1e-3)

    def loss() -> Tensor:
        ema.step(parameters)
        chosen = torch.randint(len(latents), (settings.batch,))
        template = torch.randint(len(TEMPLATES), (settings.batch,))
        tokens = captions[colours[chosen], things[chosen], template]
        tokens = torch.where(torch.rand(settings.batch, 1) < 0.1, empty.input_ids, tokens)
        x_0, t = latents[chosen], torch.randint(1000, (settings.batch,))
        eps = torch.randn_like(x_0)
        noisy, v = scheduler.add_noise(x_0, eps, t), scheduler.get_velocity(x_0, eps, t)
        return F.mse_loss(unet(noisy, t, text(tokens).last_hidden_state).sample, v)

    def keep() -> None:
        ema.store(parameters)
        ema.copy_to(parameters)
        save(pipe, settings)
        ema.restore(parameters)

    run(loss, optimiser, settings.minutes, keep)


def run(loss: Any, optimiser: Any, minutes: float, keep: Any) -> None:
    """Minimise until the CPU time is spent, saving every two minutes."""
    start, saved, step, average = time.process_time(), 0.0, 0, 0.0
    while (elapsed := (time.process_time() - start) / 60) < minutes:
        factor = rate_at(step, elapsed / minutes)
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("peak", group["lr"]) * factor
        value = loss()
        optimiser.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(optimiser.param_groups[0]["params"], 1.0)
        optimiser.step()
        step += 1
        average += (value.item() - average) / min(step, 200)
        if step % 100 == 0:
            print(f"{elapsed:5.1f} min  {step}  loss {average:.4f}", file=sys.stderr, flush=True)
        if elapsed - saved > 2:
            keep()
            saved = elapsed
    keep()


def save(pipe: Any, settings: Settings) -> None:
    """In float32 to go on from, and a sheet of samples to look at."""
    pipe.save_pretrained(settings.out)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.eval()
    things = THINGS[::2]
    prompts = [
        f"a {COLOURS[(3 * i) % 8]} {thing}" for i, thing in enumerate(things) for _ in range(2)
    ]
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"guidance_scale": 2.0, "num_inference_steps": 20, "eta": 1.0}
    shown = pipe(prompts, generator=generator, output_type="np", **options).images
    sheet = torch.from_numpy(shown).view(-1, 2, 32, 32, 3).permute(1, 2, 0, 3, 4)
    bytes_ = (sheet.reshape(64, -1, 3) * 255).byte().numpy()
    Image.fromarray(bytes_).save(settings.out / "samples.png")
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.train()


def main(settings: Settings) -> None:
    """Train the chosen parts one after the other."""
    torch.manual_seed(settings.seed)
    if settings.resume:
        pipe = StableDiffusionPipeline.from_pretrained(settings.out, safety_checker=None)
    else:
        pipe = new_pipeline(settings.widths)
    for part in ("unet", "vae", "text_encoder"):
        count = sum(p.numel() for p in getattr(pipe, part).parameters())
        print(f"{part}: {count} parameters", file=sys.stderr)
    if "vae" in settings.parts:
        train_vae(pipe, settings)
    if "prior" in settings.parts:
        train_prior(pipe, settings)
    if "decoder" in settings.parts:
        train_vae(pipe, settings, whole=False)
    if "ship" in settings.parts:
        pipe.to(dtype=torch.float16).save_pretrained(settings.shipped)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
