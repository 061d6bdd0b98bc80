"""What a text-to-image pipeline has to say of itself: how it reads prompts and calls its network.

A ``Family`` reads one class of diffusers pipelines. It knows the pipeline; the chain, the
objectives and the certificates do not. What it says:

* ``inputs(prompts)``: what the network is told of prompts, one row each, worked out once;
* ``call``: the network on latents, times and such rows (a plain function: a copied posterior
  copies the network alone);
* ``event_shape`` and ``decoded``: latents (C, H, W), and their pictures in [0, 1];
* ``grid(steps)``: what the pipeline hands to its scheduler besides the number of steps;
* ``scale``: the scale of classifier-free guidance that is a part of the prior.

A class of pipelines is supported by one final class of this kind in a list
(``adapters.text_to_image.loading``).
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from difftilt.errors import InputError

Inputs = dict[str, Tensor]
"""What a network is told of prompts, by name; every tensor has one row per prompt."""

Call = Callable[[nn.Module, Tensor, Tensor, Inputs], Tensor]
"""``(network, latents (B, C, H, W), times (B,), inputs) -> output (B, C, H, W)``."""


@dataclass(frozen=True)
class PictureOptions:
    """How a text-to-image pipeline is run; all of it is a part of the prior's definition.

    Arguments:
        guidance_scale: of classifier-free guidance (Flux: its network's input); 1 for none, None
            for the pipeline's own default.
        negative_prompt: what the unconditional half is told; None for the pipeline's own.
        true_cfg_scale: of Flux alone: classifier-free guidance away from its ``negative_prompt``,
            beside its network's input; None for none.
        height, width: of pictures in pixels; None for the pipeline's own.
        network_batch: states that the network sees at once where no gradient is kept (with a
            gradient it is the training's ``chunk``).
        decode_batch: pictures that the decoder sees at once.
        checkpointing: keep only the borders of the network's blocks for the backward pass: less
            memory, one more forward pass of each block.
        autocast: let a network of 16 bits calculate in them (``torch.autocast``): quicker on a GPU,
            and posterior and prior part by its rounding. Otherwise it calculates in float32.

    Raises:
        InputError: a batch or a size below 1.
    """

    guidance_scale: float | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    height: int | None = None
    width: int | None = None
    network_batch: int = 32
    decode_batch: int = 8
    checkpointing: bool = False
    autocast: bool = False

    def __post_init__(self) -> None:
        for name in ("network_batch", "decode_batch", "height", "width"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name}={value} must be at least 1")


class Family(ABC):
    """One class of pipelines.

    Arguments:
        pipeline: a live pipeline; its parts are used, not copied.
        options: how it is run.

    Class attributes:
        pipelines: names of the pipelines' classes.
        network_name: the part that denoises.
        needed: the other parts that have to be there.
        subject: how the pipeline's call is told what to draw, as code.

    Raises:
        InputError: a part is missing, or the size or an option does not fit.
    """

    pipelines: ClassVar[tuple[str, ...]]
    network_name: ClassVar[str] = "transformer"
    needed: ClassVar[tuple[str, ...]] = ("vae", "text_encoder", "tokenizer")
    subject: ClassVar[str] = '"a prompt"'

    def __init__(self, pipeline: Any, options: PictureOptions) -> None:
        self.pipeline = pipeline
        self.options = options
        for name in (self.network_name, "scheduler", *self.needed):
            if getattr(pipeline, name, None) is None:
                raise InputError(
                    f"the {type(pipeline).__name__} has no {name}, which its prior is made of; "
                    f"load the pipeline with its {name}"
                )
        self._check_size()
        self._check_guidance()

    @property
    def network(self) -> nn.Module:
        """The part that denoises."""
        return getattr(self.pipeline, self.network_name)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.config.in_channels

    @property
    def config(self) -> Any:
        """The network's."""
        network: Any = self.network
        return network.config

    @property
    def scale(self) -> float:
        """Scale of classifier-free guidance; at most 1 for none, as in diffusers."""
        return self.asked_scale

    @property
    def asked_scale(self) -> float:
        """The guidance scale of the options, or the pipeline's own default."""
        if self.options.guidance_scale is not None:
            return self.options.guidance_scale
        own = inspect.signature(type(self.pipeline).__call__).parameters["guidance_scale"]
        return float(own.default)

    @property
    def vae_factor(self) -> int:
        """Pixels per latent."""
        return 2 ** (len(self.pipeline.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of pictures, pixels."""
        own = self.own_size()
        return self.options.height or own[0], self.options.width or own[1]

    def own_size(self) -> tuple[int, int]:
        """Height and width that the pipeline draws when not asked, pixels."""
        side = self.config.sample_size
        height, width = (side, side) if isinstance(side, int) else side
        return height * self.vae_factor, width * self.vae_factor

    @property
    def event_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of latents."""
        height, width = self.size
        return self.latent_channels, height // self.vae_factor, width // self.vae_factor

    @property
    @abstractmethod
    def call(self) -> Call:
        """The network's call; it holds no part of the pipeline."""

    @abstractmethod
    def inputs(self, prompts: list[str]) -> Inputs:
        """What the network is told of prompts."""

    @abstractmethod
    def null(self) -> Inputs:
        """What the unconditional half of guidance is told: one row."""

    def readers(self) -> Sequence[tuple[Any, int]]:
        """Tokenizers, and how many tokens of each the network is told."""
        return [(self.pipeline.tokenizer, self.pipeline.tokenizer.model_max_length)]

    def grid(self, steps: int) -> dict[str, Any]:
        """What the pipeline hands to ``set_timesteps`` besides ``steps``."""
        return {}

    def asked(self) -> dict[str, Any]:
        """What the pipeline's own call is told to draw from this prior, besides steps and eta."""
        height, width = self.size
        negative = self.options.negative_prompt
        found = {"guidance_scale": self.asked_scale, "height": height, "width": width}
        return found if negative is None else {**found, "negative_prompt": negative}

    def unsaved(self) -> dict[str, Any]:
        """Settings of the pipeline that diffusers forgets when it saves one."""
        return {}

    def unscaled(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """The latents that the decoder wants."""
        config = self.pipeline.vae.config
        return latents / config.scaling_factor + (config.shift_factor or 0.0)

    def decoded(self, latents: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 height width"]:
        """Pictures in [0, 1], ``decode_batch`` at a time; the graph to the latents is kept."""
        slices = latents.split(self.options.decode_batch)
        return torch.cat([self._pictures(part) for part in slices])

    def _pictures(self, latents: Tensor) -> Tensor:
        vae = self.pipeline.vae
        wide = bool(vae.config.force_upcast) and vae.dtype == torch.float16
        if wide:  # such a decoder overflows in half precision
            vae.to(torch.float32)
        pictures = vae.decode(self.unscaled(latents).to(vae.dtype), return_dict=False)[0]
        return (pictures.to(latents.dtype) / 2 + 0.5).clamp(0, 1)

    def _check_size(self) -> None:
        multiple = self.vae_factor * self.patch
        wrong = [side for side in self.size if side % multiple]
        if wrong:
            raise InputError(
                f"{wrong[0]} pixels are no multiple of {multiple}, as the "
                f"{type(self.pipeline).__name__} needs; choose another height and width"
            )

    def _check_guidance(self) -> None:
        if self.options.true_cfg_scale is not None:
            raise InputError(
                f"true_cfg_scale={self.options.true_cfg_scale} is an option of Flux; a "
                f"{type(self.pipeline).__name__} is guided by guidance_scale alone"
            )

    @property
    def patch(self) -> int:
        """Latents per side of what the network takes as one."""
        return 1
