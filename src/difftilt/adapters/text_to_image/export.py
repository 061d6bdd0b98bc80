"""A text-to-image posterior as something that plain diffusers loads.

Adapters become ``pytorch_lora_weights.safetensors`` for ``pipeline.load_lora_weights(folder)``
beside the scheduler that takes the chain's steps. Where a pipeline's class has no loader of such
weights (PixArt, DiT) they are merged into a whole pipeline, as which a full copy leaves, too. A
README has the lines that draw our pictures (``adapters.text_to_image.plain``).
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from difftilt.adapters.folders import check_replaceable, write_whole
from difftilt.adapters.lora import AdaptedDenoiser, plain_copy
from difftilt.adapters.text_to_image.plain import levels, plain_scheduler, readme
from difftilt.adapters.text_to_image.record import PictureChain, network_of
from difftilt.chains.chain import Kernel
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel

SETTINGS = "difftilt.json"


def export_text_to_image(model: PictureChain, kernel: Kernel, folder: str | Path) -> Path:
    """Write a posterior for plain diffusers; an older one of that name is replaced.

    Arguments:
        model: the prior's.
        kernel: adapters or a full copy, without a learned variance.
        folder: where to.

    Returns:
        the folder.

    Raises:
        InputError: a kernel that is no network of the pipeline, or a folder of something else.
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    check_replaceable(folder, SETTINGS, "exported text-to-image posterior")
    pipeline = model.family.pipeline
    adapted, network = _parts(model, kernel)
    loads_adapters = hasattr(type(pipeline), "save_lora_weights")

    def write(new: Path) -> None:
        if adapted is not None and loads_adapters:
            _write_adapter(model, adapted, new)
        else:
            assert network is not None
            plain = plain_copy(network, None if adapted is None else adapted.adapter, wide=True)
            _with_network(model, plain).save_pretrained(new, safe_serialization=True)
        _write_settings(model, new, whole=adapted is None or not loads_adapters)

    write_whole(folder, write, "posterior")
    return folder


def _parts(model: PictureChain, kernel: Kernel) -> tuple[AdaptedDenoiser | None, nn.Module | None]:
    """The adapters, if it is them, and the network that carries them or is the copy."""
    if isinstance(kernel, DenoiserKernel) and kernel.log_scale is None:
        denoiser = kernel.denoiser
        if isinstance(denoiser, AdaptedDenoiser) and denoiser.prior is model.chain.denoiser:
            return denoiser, model.family.network
        if network_of(denoiser) is not None:
            return None, network_of(denoiser)
    raise InputError(
        f"a {type(kernel).__name__} of this form cannot be exported; plain diffusers runs a full "
        "copy or LoRA of this pipeline's network without a learned variance"
    )


def _write_adapter(model: PictureChain, adapted: AdaptedDenoiser, new: Path) -> None:
    pipeline, network = model.family.pipeline, model.family.network_name
    layers = {f"{network}_lora_layers": adapter_weights(model, adapted)}
    type(pipeline).save_lora_weights(new, **layers)
    plain_scheduler(model).save_pretrained(new / "scheduler")


def adapter_weights(model: PictureChain, adapted: AdaptedDenoiser) -> dict[str, Tensor]:
    """Adapters by their names in the network, scaled so that their alpha is their rank."""
    prefix, weights = _prefix(model), {}
    for name, layer in adapted.layers.items():
        own = name.removeprefix(prefix)
        first, second = (getattr(layer, m)[adapted.adapter].weight for m in ("lora_A", "lora_B"))
        weights[f"{own}.lora_A.weight"] = first.detach().cpu().contiguous()
        scaled = layer.scaling[adapted.adapter] * second.detach()
        weights[f"{own}.lora_B.weight"] = scaled.cpu().contiguous()
    return weights


def _prefix(model: PictureChain) -> str:
    """Where the network is in the prior's denoiser."""
    network = model.family.network
    names = [name for name, m in model.chain.denoiser.named_modules() if m is network]
    return f"{names[0]}."


def _with_network(model: PictureChain, network: nn.Module) -> Any:
    """The same pipeline with another network and the chain's scheduler."""
    pipeline = model.family.pipeline
    kind = type(pipeline)
    parts = {
        **pipeline.components,
        model.family.network_name: network,
        "scheduler": model.scheduler,
    }
    _, optional = kind._get_signature_keys(pipeline)
    kept = {k: pipeline.config[k] for k in optional if k in pipeline.config}
    made = kind(**parts, **kept, **model.family.unsaved())
    made.register_to_config(**model.family.unsaved())
    return made


def _write_settings(model: PictureChain, new: Path, whole: bool) -> None:
    family = model.family
    height, width = family.size
    settings = {
        "pipeline": type(family.pipeline).__name__,
        "steps": model.chain.steps,
        "eta": model.eta,
        "guidance_scale": family.asked_scale,
        "negative_prompt": family.options.negative_prompt,
        "true_cfg_scale": family.options.true_cfg_scale,
        "height": height,
        "width": width,
    }
    if plain_scheduler(model) is not model.scheduler:
        settings["sigmas"] = levels(model)
    (new / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    (new / "README.md").write_text(readme(model, settings, whole), "utf-8")
