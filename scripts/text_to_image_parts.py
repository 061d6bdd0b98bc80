"""The parts of the small StableDiffusionPipeline, untrained.

An autoencoder from 32x32x3 to 8x8x4, a text encoder of 12 tokens in whose vocabulary each of our
words is one, a denoising network of 2.2 million parameters that reads it at 4x4, and a scheduler
whose chain survives long strides.
"""

from typing import Any

import diffusers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer  # pyright: ignore

from difftilt.tasks.emoji_words import COLOURS, TEMPLATES, THINGS

LENGTH = 12
# Its modules are loaded lazily, which type checkers cannot follow.
parts: Any = diffusers


def new_tokenizer() -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary in which each of our words is one token."""
    words = sorted({w for t in TEMPLATES for w in t.split() if "{" not in w} | {*COLOURS, *THINGS})
    merges: list[str] = []
    characters = sorted({c for word in words for c in word})
    tokens = [*characters, *(f"{c}</w>" for c in characters)]
    for word in words:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merge = f"{parts[-2]} {parts[-1]}"
            merges += [] if merge in merges else [merge]
            parts[-2:] = ["".join(parts[-2:])]
            tokens += [] if parts[-1] in tokens else [parts[-1]]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    pairs: Any = [tuple(merge.split()) for merge in merges]
    vocabulary = {t: i for i, t in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=pairs, model_max_length=LENGTH)


def new_text_encoder(tokenizer: Any, width: int = 96) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=width,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def new_vae() -> Any:
    return parts.AutoencoderKL(
        sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        mid_block_add_attention=False,
    )


def new_network(widths: tuple[int, int]) -> Any:
    return parts.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=96,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def new_scheduler() -> Any:
    """A chain that survives long strides: zero signal at its start, v-prediction."""
    return parts.DDIMScheduler(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=1,
    )


def new_pipeline(widths: tuple[int, int]) -> Any:
    tokenizer = new_tokenizer()
    return parts.StableDiffusionPipeline(
        vae=new_vae(),
        text_encoder=new_text_encoder(tokenizer),
        tokenizer=tokenizer,
        unet=new_network(widths),
        scheduler=new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
