"""A posterior as an ordinary diffusers pipeline.

What plain diffusers can run is a UNet and a scheduler, so a posterior can leave if it *is* a UNet
on the prior's scheduler: a full copy, or adapters, which are merged into a copy of the UNet. With
the same scheduler settings (``steps``, ``eta``) and the same noise, diffusers draws our states at
every step that has a density. A last step without noise is a map that our posterior shares with its
prior, whereas the exported UNet takes it alone: there the two differ, by what the two UNets differ
at the lowest noise level. A sampler that ends in a law has no such step, e.g.
``DDIMScheduler(set_alpha_to_one=False, steps_offset=1)`` at eta > 0.

``DDPMPipeline`` and ``DDIMPipeline`` run their own schedulers; other schedulers are saved as they
are, to be run by their usual loop.
"""

import copy
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from difftilt.adapters.folders import check_replaceable, write_whole
from difftilt.adapters.lora import AdaptedDenoiser, plain_copy
from difftilt.chains.chain import Chain, Kernel
from difftilt.denoisers import NetworkDenoiser
from difftilt.errors import InputError, require
from difftilt.kernels.networks import DenoiserKernel


@dataclass(frozen=True)
class PipelineChain:
    """A pipeline's chain, its parts, and a fingerprint by which a checkpoint knows its prior.

    Arguments:
        chain: the prior.
        unet: its network, shared with the chain.
        scheduler: a copy of the pipeline's scheduler.
        fingerprint: SHA-256 of the UNet's weights.
    """

    chain: Chain
    unet: nn.Module
    scheduler: Any
    fingerprint: str

    def export(self, kernel: Kernel, folder: str | Path) -> Path:
        """Write a posterior as a diffusers pipeline; adapters are also saved alone, in ``lora/``.

        The folder appears whole or not at all; an older pipeline of that name is replaced.

        Arguments:
            kernel: a full copy or adapters, without a learned variance; the law of ``x_N`` has to
                be the prior's, too.
            folder: where to.

        Returns:
            the folder.

        Raises:
            InputError: a kernel that is no UNet, or a folder that holds something else.
            CheckpointError: the folder cannot be written.
            MissingPackage: diffusers is not installed.
        """
        require("diffusers", "diffusers")
        folder = Path(folder).expanduser()
        check_replaceable(folder, "model_index.json", "diffusers pipeline")
        unet, adapter = _posterior_unet(self, kernel)
        pipeline = _pipeline(unet, self.scheduler)

        def write(new: Path) -> None:
            pipeline.save_pretrained(new, safe_serialization=True)
            if adapter is not None:
                _write_adapter(new / "lora", adapter)

        write_whole(folder, write, "pipeline")
        return folder


def _posterior_unet(
    record: PipelineChain, kernel: Kernel
) -> tuple[nn.Module, AdaptedDenoiser | None]:
    denoiser = kernel.denoiser if isinstance(kernel, DenoiserKernel) else None
    plain = isinstance(kernel, DenoiserKernel) and kernel.log_scale is None
    if plain and isinstance(denoiser, AdaptedDenoiser) and denoiser.prior is record.chain.denoiser:
        return plain_copy(record.unet, denoiser.adapter), denoiser
    if plain and isinstance(denoiser, NetworkDenoiser):
        return plain_copy(denoiser.network), None
    raise InputError(
        f"a {type(kernel).__name__} of this form cannot be exported; plain diffusers runs a full "
        "copy or LoRA of this pipeline's UNet without a learned variance, and the prior's x_N"
    )


def _pipeline(unet: nn.Module, scheduler: Any) -> Any:
    from diffusers.pipelines.ddim.pipeline_ddim import DDIMPipeline
    from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline

    kind: Any = DDIMPipeline if type(scheduler).__name__ == "DDIMScheduler" else DDPMPipeline
    return kind(unet=unet, scheduler=copy.deepcopy(scheduler))


def _write_adapter(folder: Path, denoiser: AdaptedDenoiser) -> None:
    """peft's own layout, for a plain UNet: ``PeftModel.from_pretrained(unet, folder)``."""
    from peft import LoraConfig

    folder.mkdir()
    weights, names, layer = {}, [], None
    for name, layer in denoiser.layers.items():
        names.append(name.removeprefix("network."))
        for matrix in ("lora_A", "lora_B"):
            weight = getattr(layer, matrix)[denoiser.adapter].weight
            key = f"base_model.model.{names[-1]}.{matrix}.weight"
            weights[key] = weight.detach().cpu().contiguous()
    assert layer is not None
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    config = LoraConfig(
        r=layer.r[denoiser.adapter],
        lora_alpha=layer.lora_alpha[denoiser.adapter],
        target_modules="|".join(map(re.escape, names)),
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
