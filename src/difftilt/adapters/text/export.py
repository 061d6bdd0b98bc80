"""A posterior over tokens as an ordinary model folder.

A full copy is saved as it is, adapters are merged. A transformers model is written by its own
``save_pretrained``, with its tokenizer; SEDD, MDLM and BD3-LM under the names of their published
checkpoints. Either loads again with ``load_text_model``, and in the software that it came from.

The folder holds a network alone: a suffix has to be given to it in the canvas, and what the
prior's ``TokenDenoiser`` added (a temperature, banned ids) has to be asked for again.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from difftilt.adapters.folders import check_replaceable, write_whole
from difftilt.adapters.lora import AdaptedDenoiser, plain_copy
from difftilt.adapters.text.base import TextModel
from difftilt.adapters.text.ddit_network import DDiTNetwork
from difftilt.adapters.text.files import folder_of
from difftilt.adapters.text.hugging_face import TransformersNetwork
from difftilt.chains.chain import Kernel
from difftilt.errors import InputError
from difftilt.kernels.networks import DenoiserKernel
from difftilt.token_denoisers import TokenDenoiser


def export_text_model(record: TextModel, kernel: Kernel, folder: str | Path) -> Path:
    """Write a posterior as a model folder; it appears whole or not at all.

    Arguments:
        record: the prior's.
        kernel: a full copy or adapters of the prior's network; both draw in the prior's order.
        folder: where to; an older model of that name is replaced.

    Returns:
        the folder.

    Raises:
        InputError: a kernel that is no network alone, or a folder that holds something else.
        CheckpointError: the folder cannot be written.
    """
    folder = Path(folder).expanduser()
    check_replaceable(folder, "config.json", "language model")
    network = _posterior_network(record, kernel)

    def write(new: Path) -> None:
        _save(network, new)
        _copy_code(network, record.source, new)
        if hasattr(record.tokenizer, "save_pretrained"):
            record.tokenizer.save_pretrained(str(new))

    write_whole(folder, write, "language model")
    return folder


def _posterior_network(record: TextModel, kernel: Kernel) -> nn.Module:
    denoiser: Any = kernel.denoiser if type(kernel) is DenoiserKernel else None
    if isinstance(denoiser, AdaptedDenoiser):
        prior: Any = denoiser.prior
        if getattr(prior, "network", None) is record.network:
            return plain_copy(record.network, denoiser.adapter)
    if isinstance(denoiser, TokenDenoiser):
        return plain_copy(denoiser.network)
    raise InputError(
        f"a {type(kernel).__name__} of this form cannot be exported; a language model is a full "
        "copy or LoRA of this prior's network, drawn in the prior's order at the prior's "
        "temperature (learned_order=False, learned_temperature=False)"
    )


def _save(network: Any, folder: Path) -> None:
    if isinstance(network, TransformersNetwork):
        # Whoever loads it may have no tokenizer that knows.
        network.model.config.mask_token_id = network.mask_id
        _untie(network.model)
        network.model.save_pretrained(str(folder), safe_serialization=True)
    elif isinstance(network, DDiTNetwork):
        folder.mkdir()
        weights = {k: v.detach().cpu() for k, v in network.published_weights().items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        (folder / "config.json").write_text(json.dumps(network.published.config, indent=2))
    else:
        raise InputError(
            f"a {type(network).__name__} has no published layout; save its state_dict() yourself"
        )


def _untie(model: Any) -> None:
    """Say so where an adapter parted the head's weight from the embedding's."""
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return
    if getattr(model.config, "tie_word_embeddings", False):
        model.config.tie_word_embeddings = False
        if head.bias is not None:
            head.bias = nn.Parameter(head.bias.detach().clone())


def _copy_code(network: nn.Module, source: str, folder: Path) -> None:
    """The code that a model of its own brings along."""
    config = getattr(getattr(network, "model", None), "config", None)
    if getattr(config, "auto_map", None):
        for file in folder_of(source).glob("*.py"):
            shutil.copy(file, folder)
