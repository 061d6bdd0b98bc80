"""PixArt (alpha and sigma) and DiT: transformers on the noise levels of Stable Diffusion.

Both predict a variance, which their pipelines throw away; so does the prior.

Source: Chen et al. 2023 (arXiv 2310.00426); Peebles and Xie 2023 (arXiv 2212.09748).
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from difftilt.adapters.text_to_image.base import Call, Family, Inputs
from difftilt.errors import InputError

WITH_SIZES = 128  # side in latents of the networks that are told the picture's size


@final
class PixArt(Family):
    """``PixArtAlphaPipeline`` and ``PixArtSigmaPipeline``, as with ``clean_caption=False`` and
    ``use_resolution_binning=False``."""

    pipelines = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")

    @property
    def call(self) -> Call:
        return _masked

    @property
    def patch(self) -> int:
        return self.config.patch_size

    def inputs(self, prompts: list[str]) -> Inputs:
        text, mask, _, _ = self.pipeline.encode_prompt(prompts, False, device=self.pipeline.device)
        return self._inputs(text, mask)

    def null(self) -> Inputs:
        _, _, text, mask = self.pipeline.encode_prompt(
            "", True, self.options.negative_prompt or "", device=self.pipeline.device
        )
        return self._inputs(text, mask)

    def readers(self) -> Sequence[tuple[Any, int]]:
        longest = 120 if "Alpha" in type(self.pipeline).__name__ else 300
        return [(self.pipeline.tokenizer, longest)]

    def asked(self) -> dict[str, Any]:
        return {**super().asked(), "clean_caption": False, "use_resolution_binning": False}

    def _inputs(self, text: Tensor, mask: Tensor) -> Inputs:
        found = {"text": text, "mask": mask}
        if self.config.sample_size != WITH_SIZES:
            return found
        height, width = self.size
        sizes = torch.tensor([[height, width]], dtype=text.dtype, device=text.device)
        shape = torch.tensor([[height / width]], dtype=text.dtype, device=text.device)
        rows = len(text)
        return {**found, "resolution": sizes.expand(rows, -1), "aspect": shape.expand(rows, -1)}


@final
class DiT(Family):
    """``DiTPipeline``: a prompt is the name of a class, or its number."""

    pipelines = ("DiTPipeline",)
    needed = ("vae",)
    subject = 'pipeline.get_label_ids(["a class"])'

    @property
    def call(self) -> Call:
        return _labelled

    @property
    def patch(self) -> int:
        return self.config.patch_size

    def inputs(self, prompts: list[str]) -> Inputs:
        labels = [self._label(prompt) for prompt in prompts]
        return {"labels": torch.tensor(labels, device=self.pipeline.device)}

    def null(self) -> Inputs:
        if self.options.negative_prompt is not None:
            return self.inputs([self.options.negative_prompt])
        none = self.config.num_embeds_ada_norm
        return {"labels": torch.tensor([none], device=self.pipeline.device)}

    def readers(self) -> Sequence[tuple[Any, int]]:
        return []

    def asked(self) -> dict[str, Any]:
        return {"guidance_scale": self.asked_scale}

    def unsaved(self) -> dict[str, Any]:
        names: dict[int, list[str]] = {}
        for name, label in self.pipeline.labels.items():
            names.setdefault(label, []).append(name)
        return {"id2label": {label: ", ".join(each) for label, each in names.items()}}

    def _label(self, prompt: str) -> int:
        classes = self.config.num_embeds_ada_norm
        label = self.pipeline.labels.get(prompt, prompt)
        if not str(label).isdecimal() or int(label) >= classes:
            raise InputError(
                f"{prompt!r} names no class of this DiTPipeline; give a name of pipeline.labels, "
                f"or a number from 0 to {classes - 1}"
            )
        return int(label)


def _masked(network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    output = network(
        x,
        encoder_hidden_states=inputs["text"],
        encoder_attention_mask=inputs["mask"],
        timestep=time,
        added_cond_kwargs={
            "resolution": inputs.get("resolution"),
            "aspect_ratio": inputs.get("aspect"),
        },
        return_dict=False,
    )[0]
    return output[:, : x.shape[1]]


def _labelled(network: nn.Module, x: Tensor, time: Tensor, inputs: Inputs) -> Tensor:
    output = network(x, timestep=time, class_labels=inputs["labels"], return_dict=False)[0]
    return output[:, : x.shape[1]]
