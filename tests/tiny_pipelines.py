"""Text-to-image pipelines of every family with random weights, small enough for milliseconds."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WIDTH = 16
CLASSES: Any = {3: "cat, tom", 7: "dog"}
SIDE = 8  # latents; pictures have 16 × 16 pixels


def clip_tokenizer() -> CLIPTokenizer:
    """One token per letter, 16 at most."""
    tokens = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{a}</w>" for a in LETTERS)]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def t5_tokenizer() -> T5Tokenizer:
    """One token per letter."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    return T5Tokenizer(vocab=[*special, *((a, -2.0) for a in LETTERS)], extra_ids=0)


def clip_model(projected: bool = False) -> Any:
    """A text encoder of two layers."""
    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def t5_model(width: int = WIDTH) -> Any:
    """A text encoder of one layer."""
    config = T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=WIDTH, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval()


def vae(channels: int = 4, **settings: Any) -> AutoencoderKL:
    """Two pixels a latent."""
    return AutoencoderKL(
        block_out_channels=(4, 8),
        norm_num_groups=2,
        latent_channels=channels,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **settings,
    ).eval()


def unet(text_width: int = WIDTH, **settings: Any) -> UNet2DConditionModel:
    """Two levels, the lower with attention."""
    return UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=8,
        cross_attention_dim=text_width,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        mid_block_type=None,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **settings,
    ).eval()


def ddim(**settings: Any) -> DDIMScheduler:
    """As Stable Diffusion's: at eta = 1 every step has a density, the last one too."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        **settings,
    )


def stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=vae(),
        text_encoder=clip_model(),
        tokenizer=clip_tokenizer(),
        unet=unet(),
        scheduler=ddim(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    network = unet(
        2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + WIDTH,
        transformer_layers_per_block=1,
    )
    return StableDiffusionXLPipeline(
        vae=vae(),
        text_encoder=clip_model(),
        text_encoder_2=clip_model(projected=True),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        unet=network,
        scheduler=ddim(),
        add_watermarker=False,
    )


def flow(**settings: Any) -> FlowMatchEulerDiscreteScheduler:
    """With noise of its own, so that diffusers' step has a density."""
    return FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=True, **settings)


def stable_diffusion_3() -> StableDiffusion3Pipeline:
    network = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=WIDTH,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=SIDE,
    ).eval()
    return StableDiffusion3Pipeline(
        transformer=network,
        scheduler=flow(),
        vae=vae(shift_factor=0.1),
        text_encoder=clip_model(projected=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=clip_model(projected=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=t5_model(2 * WIDTH),
        tokenizer_3=t5_tokenizer(),
    )


def flux() -> FluxPipeline:
    network = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        guidance_embeds=True,
    ).eval()
    return FluxPipeline(
        scheduler=flow(use_dynamic_shifting=True),
        vae=vae(shift_factor=0.1),
        text_encoder=clip_model(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5_model(),
        tokenizer_2=t5_tokenizer(),
        transformer=network,
    )


def as_published(build: Callable[[], Any], **settings: Any) -> Callable[[], Any]:
    """A pipeline of flow matching with the scheduler of its published weights: an ODE's."""

    def built() -> Any:
        pipeline = build()
        pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, **settings)
        return pipeline

    return built


def _pixart(kind: Any) -> Any:
    network = PixArtTransformer2DModel(
        sample_size=SIDE,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        cross_attention_dim=WIDTH,
        caption_channels=WIDTH,
    ).eval()
    return kind(
        tokenizer=t5_tokenizer(),
        text_encoder=t5_model(),
        vae=vae(),
        transformer=network,
        scheduler=ddim(),
    )


def pixart_alpha() -> PixArtAlphaPipeline:
    return _pixart(PixArtAlphaPipeline)


def pixart_sigma() -> PixArtSigmaPipeline:
    return _pixart(PixArtSigmaPipeline)


def dit() -> DiTPipeline:
    network = DiTTransformer2DModel(
        sample_size=SIDE,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        in_channels=4,
        out_channels=8,
        num_embeds_ada_norm=1000,
    ).eval()
    return DiTPipeline(network, vae(), ddim(), id2label=CLASSES)


BUILDERS: dict[str, Callable[[], Any]] = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "sd3_ode": as_published(stable_diffusion_3),
    "flux": flux,
    "flux_ode": as_published(flux, use_dynamic_shifting=True),
    "pixart_alpha": pixart_alpha,
    "pixart_sigma": pixart_sigma,
    "dit": dit,
}


def tiny(name: str) -> Any:
    """The pipeline of that name: the same weights each time, all of them different from zero."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        pipeline = BUILDERS[name]()
        network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
        with torch.no_grad():
            for parameter in network.parameters():  # some last layers start at zero
                parameter.add_(0.05 * torch.randn_like(parameter))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
