"""Pictures that obey the prompt: the shipped text-to-image prior, a reward and a judge.

The prior is an ordinary ``StableDiffusionPipeline`` folder (`text_to_image_prior_folder`) that
draws tinted emoji at 32x32 from captions such as ``"a green rabbit"``. It has seen every word, but
a quarter of the (colour, thing) pairs never together (`held_out_prompts`): these it often gets
wrong.

Two networks of different kinds judge, trained apart on tinted drawings of every pair:

* `CaptionReward` is the one that a posterior may be trained on: a small CLIP of transformers, whose
  log r is the log-probability of the prompt's pair among all 256, given the picture;
* `PictureJudge` only judges: a convolutional classifier of the colour and of the thing. Its
  penultimate features are the space in which diversity and distances are measured.

Images are (B, 3, 32, 32) in [0, 1]. All weights are made by ``scripts/train_text_to_image.py`` and
``scripts/train_picture_judges.py``.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from difftilt.adapters.folders import without_loading_bars
from difftilt.errors import InputError, require
from difftilt.tasks.emoji_words import COLOURS, PAIRS, THINGS, caption, index_of, is_held_out
from difftilt.tasks.shipped import filled, shipped_data, shipped_folder, unusable

SIZE = 32


def text_to_image_prior_folder() -> Path:
    """The shipped prior, a diffusers ``StableDiffusionPipeline`` folder."""
    return shipped_folder("text_to_image_prior")


def picture_reward_folder() -> Path:
    """The shipped reward, a transformers ``CLIPModel`` folder with its tokenizer."""
    return shipped_folder("picture_reward")


def held_out_prompts() -> list[str]:
    """A caption of each pair that the prior has never seen, 64 of them."""
    return [caption(c, thing) for c, thing in PAIRS if is_held_out(c, thing)]


@final
class CaptionReward:
    """Log-probability of the prompt's colour and thing, given the picture.

        log r(x, c) = log softmax_k(s cos(f(x), g(caption_k)))[c] <= 0

    over the captions of all 256 pairs. It is a black box for the methods that need no gradient;
    its gradient in the pictures exists.

    Arguments:
        model: a ``CLIPModel`` whose f and g are used; frozen and in evaluation mode.
        tokens: of the captions of `PAIRS`, in their order.
    """

    def __init__(self, model: Any, tokens: Int[Tensor, "256 L"]) -> None:
        self.model = model.eval().requires_grad_(False)
        self.bound: float | None = 0.0
        with torch.no_grad():
            embeddings = _pooled(model.get_text_features(input_ids=tokens))
            self._captions = nn.functional.normalize(embeddings, dim=-1)
            self._scale = model.logit_scale.exp()

    def log_probs(self, images: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "B 256"]:
        """Of every pair, given each picture.

        Raises:
            InputError: the pictures are of another size.
        """
        _check(images)
        found = _pooled(self.model.get_image_features(pixel_values=2 * images.float() - 1))
        found = nn.functional.normalize(found, dim=-1)
        return (self._scale * found @ self._captions.T).log_softmax(1)

    def __call__(
        self, images: Float[Tensor, "B 3 32 32"], prompts: Sequence[str]
    ) -> Float[Tensor, " B"]:
        """log r of each picture for its own prompt, nats."""
        if len(prompts) != len(images):
            raise InputError(f"{len(images)} pictures need as many prompts, got {len(prompts)}")
        wanted = torch.tensor([index_of(prompt) for prompt in prompts], device=images.device)
        return self.log_probs(images).gather(1, wanted[:, None])[:, 0]


def _pooled(found: Any) -> Tensor:
    """Projected features; newer versions of transformers put them in a record."""
    return found if isinstance(found, Tensor) else found.pooler_output


def load_caption_reward() -> CaptionReward:
    """The shipped reward.

    Raises:
        CheckpointError: its files are missing or do not fit.
        MissingPackage: transformers is not installed.
    """
    transformers, folder = require("transformers", "text"), picture_reward_folder()
    try:
        with without_loading_bars("transformers"):
            model = transformers.CLIPModel.from_pretrained(folder, local_files_only=True).float()
        tokenizer = transformers.CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise unusable(folder, error) from error
    return CaptionReward(model, caption_tokens(tokenizer))


def caption_tokens(tokenizer: Any, template: int = 0) -> Int[Tensor, "256 L"]:
    """Tokens of the captions of all pairs."""
    texts = [caption(*pair, template) for pair in PAIRS]
    options = {"padding": "max_length", "return_tensors": "pt"}
    return tokenizer(texts, max_length=tokenizer.model_max_length, **options).input_ids


# -------------------------------------------------------------------------------------- the judge


@final
class PictureJudge(nn.Module):
    """A convolutional classifier of a picture's colour and thing.

    Args:
        widths: channels of the convolutions; each but the last is followed by a halving.
    """

    def __init__(self, widths: tuple[int, ...] = (24, 48, 96, 96)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for before, after in zip((3, *widths), widths, strict=False):
            blocks += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after), nn.SiLU()]
            blocks += [nn.MaxPool2d(2)]
        self.body = nn.Sequential(*blocks[:-1])
        self.colour = nn.Linear(2 * widths[-1], len(COLOURS))
        self.thing = nn.Linear(2 * widths[-1], len(THINGS))

    def features(self, images: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "B F"]:
        """Penultimate activations: each channel's mean and maximum over the picture."""
        maps = self.body(2 * images - 1)
        return torch.cat([maps.mean(dim=(2, 3)), maps.amax(dim=(2, 3))], dim=1)

    def forward(
        self, images: Float[Tensor, "B 3 32 32"]
    ) -> tuple[Float[Tensor, "B 8"], Float[Tensor, "B 32"]]:
        """Logits of the colours and of the things."""
        seen = self.features(images)
        return self.colour(seen), self.thing(seen)

    @torch.no_grad()
    def seen(self, images: Float[Tensor, "B 3 32 32"]) -> Float[Tensor, "B F"]:
        """Features of any number of pictures, 256 of them at a time."""
        _check(images)
        return torch.cat([self.features(part.float()) for part in images.split(256)])

    @torch.no_grad()
    def right(
        self, images: Float[Tensor, "B 3 32 32"], prompts: Sequence[str]
    ) -> Float[Tensor, "B 2"]:
        """1 where the colour, and where the thing, is the prompt's by the judge's opinion."""
        _check(images)
        wanted = torch.tensor([index_of(prompt) for prompt in prompts])
        found = [self(part.float()) for part in images.split(256)]
        colour = torch.cat([c.argmax(1) for c, _ in found]) == wanted % len(COLOURS)
        thing = torch.cat([t.argmax(1) for _, t in found]) == wanted // len(COLOURS)
        return torch.stack([colour, thing], 1).double()


def load_picture_judge() -> PictureJudge:
    """The shipped judge, in evaluation mode and frozen.

    Raises:
        CheckpointError: its weights are missing or do not fit.
    """
    path = shipped_data() / "picture_judge.safetensors"
    return filled(PictureJudge(), path, "scripts/train_picture_judges.py")


def _check(images: Tensor) -> None:
    if images.ndim != 4 or images.shape[1:] != (3, SIZE, SIZE):
        raise InputError(f"pictures must be (B, 3, {SIZE}, {SIZE}); got {tuple(images.shape)}")
