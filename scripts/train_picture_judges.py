"""Train what judges the pictures of the text-to-image task: the reward and the held-out judge.

    python scripts/train_picture_judges.py --data icons.npz --parts reward judge

The reward is a small CLIP: cross-entropy of the picture's caption among those of all 256 pairs.
The judge is a convolutional classifier of colour and thing. Both know every drawing and every pair
of words; they share no weight, no architecture and no batch. The figures that are printed are on
new pictures (tints, shifts) of the same drawings.
"""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from emoji_pictures import EmojiPictures, Pictures
from safetensors.torch import save_file
from text_to_image_parts import LENGTH, new_tokenizer
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig  # pyright: ignore

from difftilt.tasks.emoji_words import COLOURS, TEMPLATES
from difftilt.tasks.text_to_image import CaptionReward, PictureJudge, caption_tokens


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    data: Path
    """The drawings, an .npz of make_emoji_data.py."""
    out: Path = Path("src/difftilt/tasks/data")
    """Folder that receives picture_reward/ and picture_judge.safetensors."""
    parts: tuple[Literal["reward", "judge"], ...] = ("reward", "judge")
    minutes: float = 8.0
    """CPU time of each."""
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def new_clip(tokenizer: Any) -> CLIPModel:
    ends = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=64,
        **ends,
    )
    vision = CLIPVisionConfig(
        image_size=32,
        patch_size=8,
        hidden_size=112,
        intermediate_size=224,
        num_hidden_layers=3,
        num_attention_heads=4,
        projection_dim=64,
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def weathered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the pictures softened, half with noise of a random scale up to 0.15.

    It teaches a judge to bear what an autoencoder and a sampler leave behind.
    """
    kernel = torch.tensor([0.15, 0.7, 0.15])
    kernel = (kernel[:, None] * kernel).expand(3, 1, 3, 3)
    soft = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    coin = torch.rand(2, len(images), 1, 1, 1, generator=generator)
    images = torch.where(coin[0] < 0.5, soft, images)
    noise = torch.randn(images.shape, generator=generator)
    return (images + 0.3 * (coin[1] - 0.5).clamp(min=0) * noise).clamp(0, 1)


def pair_index(pictures: Pictures) -> Tensor:
    return pictures.colours + len(COLOURS) * pictures.things


def fit(parameters: list[Any], loss: Callable[[], Tensor], settings: Settings) -> None:
    """Minimise for the CPU time, with a warm-up and a cosine to zero."""
    optimiser = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.02)
    start, step, average = time.process_time(), 0, 0.0
    while (elapsed := (time.process_time() - start) / 60) < settings.minutes:
        fall = 0.5 * (1 + math.cos(math.pi * elapsed / settings.minutes))
        optimiser.param_groups[0]["lr"] = settings.learning_rate * fall * min(1, (step + 1) / 200)
        value = loss()
        optimiser.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        step += 1
        average += (value.item() - average) / min(step, 100)
        if step % 100 == 0:
            print(f"{elapsed:5.1f} min  {step}  loss {average:.4f}", file=sys.stderr, flush=True)


def train_reward(settings: Settings) -> None:
    """The small CLIP, saved in half precision."""
    folder = settings.out / "picture_reward"
    tokenizer = new_tokenizer()
    model = new_clip(tokenizer)
    captions = torch.stack([caption_tokens(tokenizer, t) for t in range(len(TEMPLATES))])
    pictures = EmojiPictures(settings.data, "all")
    generator = torch.Generator().manual_seed(settings.seed + 11)

    def loss() -> Tensor:
        batch = pictures.batch(settings.batch, generator)
        images = 2 * weathered(batch.images, generator) - 1
        template = captions[int(torch.randint(len(TEMPLATES), ()))]
        logits = model(input_ids=template, pixel_values=images).logits_per_image
        return F.cross_entropy(logits, pair_index(batch))

    fit(list(model.parameters()), loss, settings)
    tokenizer.save_pretrained(folder)
    model.half().save_pretrained(folder)
    reward = CaptionReward(model.float(), captions[0])
    unseen = pictures.batch(2000, generator)
    found = torch.cat([reward.log_probs(part) for part in unseen.images.split(250)])
    report("reward", found.view(len(found), -1, len(COLOURS)), unseen)


def train_judge(settings: Settings) -> None:
    """The classifier, saved in half precision."""
    judge = PictureJudge()
    pictures = EmojiPictures(settings.data, "all")
    generator = torch.Generator().manual_seed(settings.seed + 12)

    def loss() -> Tensor:
        batch = pictures.batch(settings.batch, generator)
        colour, thing = judge(weathered(batch.images, generator))
        return F.cross_entropy(colour, batch.colours) + F.cross_entropy(thing, batch.things)

    fit(list(judge.parameters()), loss, settings)
    halves = {k: v.half() for k, v in judge.state_dict().items()}
    save_file(halves, settings.out / "picture_judge.safetensors")
    judge.eval().load_state_dict({k: v.float() for k, v in halves.items()})
    unseen = pictures.batch(2000, generator)
    with torch.no_grad():
        parts = [judge(part) for part in unseen.images.split(250)]
    colour, thing = (torch.cat(p).log_softmax(1) for p in zip(*parts, strict=True))
    report("judge", thing[:, :, None] + colour[:, None], unseen)


def report(name: str, log_probs: Tensor, pictures: Pictures) -> None:
    """Figures of log-probabilities (B, things, colours) on new pictures."""
    wanted = pair_index(pictures)
    best = log_probs.flatten(1).argmax(1)
    colour = (best % len(COLOURS) == pictures.colours).double().mean()
    thing = (best // len(COLOURS) == pictures.things).double().mean()
    loss = F.nll_loss(log_probs.flatten(1), wanted)
    print(f"{name}: colour {colour:.4f}, thing {thing:.4f}, NLL {loss:.3f} nats", flush=True)


def main(settings: Settings) -> None:
    """Train the chosen parts one after the other."""
    torch.manual_seed(settings.seed)
    for part in settings.parts:
        (train_reward if part == "reward" else train_judge)(settings)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
