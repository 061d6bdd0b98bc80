"""Text-to-image pipelines as chains of latents, conditioned on prompts."""

from difftilt.adapters.text_to_image.base import Family, PictureOptions
from difftilt.adapters.text_to_image.loading import (
    TextToImageModel,
    family_of,
    text_to_image_model,
)

__all__ = ["Family", "PictureOptions", "TextToImageModel", "family_of", "text_to_image_model"]
