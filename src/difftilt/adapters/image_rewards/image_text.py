"""How well a picture matches its prompt, by a network of the CLIP family.

    log r(x, prompt) = scale * cos(image tower(x), text tower(prompt)) <= |scale|

| name | network | scale |
|---|---|---|
| ``clip`` | ``CLIPModel``, ``SiglipModel``, ...: a folder of transformers | given, or 100 |
| ``open_clip`` | a folder of open_clip (``open_clip_config.json``, weights) | given, or 100 |
| ``pick_score`` | PickScore, a ``CLIPModel`` fine-tuned on preferences | the network's own |
| ``hps`` | HPS v2, from either kind of folder | 100, the authors' "score in percent" |

The text tower sees each prompt once; the image tower keeps the graph, so that methods which follow
``∇ log r`` may use the score too.

Source: Radford et al. 2021 (arXiv 2103.00020); Kirstain et al. 2023 (arXiv 2305.01569); Wu et al.
2023 (arXiv 2306.09341).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from difftilt.adapters.image_rewards.processing import Processing, processing_of, quiet
from difftilt.errors import InputError, require


@dataclass(frozen=True)
class Towers:
    """The two halves of a network, and what stands in front of them.

    Arguments:
        network: frozen, in eval mode.
        see: processed pictures to features, (B, d).
        read: prompts to features, (P, d), with the network's own tokenizer.
        processing: of pictures.
        own_scale: ``exp(logit_scale)`` of the network.
    """

    network: nn.Module
    see: Callable[[Tensor], Tensor]
    read: Callable[[list[str]], Tensor]
    processing: Processing
    own_scale: float


@final
class ImageTextScore:
    """Scaled cosine of picture and prompt.

    Arguments:
        towers: the network.
        scale: nats between the same direction and an orthogonal one; None for the network's own
            ``exp(logit_scale)``.
        name: what errors and tables call it.
        batch: pictures per call.

    Raises:
        InputError: the scale is 0 or not finite.
    """

    def __init__(
        self,
        towers: Towers,
        scale: float | None = None,
        name: str = "clip",
        batch: int = 32,
    ) -> None:
        self.towers = towers
        self.scale = towers.own_scale if scale is None else float(scale)
        if not 0 < abs(self.scale) < float("inf"):
            raise InputError(f"scale={scale} of {name} must be a finite number other than 0")
        self.bound = abs(self.scale)
        self.name = name
        self.batch = batch
        self._read: dict[str, Tensor] = {}

    def __call__(
        self, images: Float[Tensor, "B 3 H W"], prompts: Sequence[str]
    ) -> Float[Tensor, " B"]:
        """log r of pictures in [0, 1] and their prompts, in nats.

        Raises:
            InputError: the pictures are no such pictures, or there is not one prompt for each.
        """
        check_prompts(images, prompts, self.name)
        wanted = self.directions(prompts)
        return self.scale * (self.features(images) * wanted).sum(1).to(images.device)

    def features(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B d"]:
        """Unit vectors of pictures, float32: what the cosine compares; keeps the graph."""
        device = next(self.towers.network.parameters()).device
        parts = [self._seen(part.to(device)) for part in images.split(self.batch)]
        return torch.cat(parts)

    @torch.no_grad()
    def directions(self, prompts: Sequence[str]) -> Float[Tensor, "B d"]:
        """Unit vectors of prompts, float32; each different one is read once."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._read]
        for start in range(0, len(new), self.batch):
            part = new[start : start + self.batch]
            found = normalize(self.towers.read(part).float(), dim=1)
            self._read |= dict(zip(part, found, strict=True))
        return torch.stack([self._read[prompt] for prompt in prompts])

    def _seen(self, images: Tensor) -> Tensor:
        weight = next(self.towers.network.parameters())
        pixels = self.towers.processing(images).to(weight.dtype)
        return normalize(self.towers.see(pixels).float(), dim=1)


def check_prompts(images: Tensor, prompts: Sequence[str] | None, name: str) -> None:
    """Refuse anything but one prompt per picture.

    Raises:
        InputError: says how many there are.
    """
    if prompts is None or isinstance(prompts, str) or len(prompts) != len(images):
        found = "none" if prompts is None else 1 if isinstance(prompts, str) else len(prompts)
        raise InputError(
            f"{name} got {len(images)} pictures and {found} prompts; give a list of one each"
        )


def clip(folder: str | Path, scale: float = 100.0, batch: int = 32) -> ImageTextScore:
    """The score of any two-tower network of transformers (CLIP, SigLIP, ...).

    Arguments:
        folder: model, tokenizer and image processor, as ``save_pretrained`` writes them.
        scale: nats per unit of cosine.
        batch: pictures per call.

    Raises:
        InputError: no such folder, or a part of it is missing.
        MissingPackage: transformers is not installed.
    """
    return ImageTextScore(transformers_towers(folder), scale, "clip", batch)


def open_clip(folder: str | Path, scale: float = 100.0, batch: int = 32) -> ImageTextScore:
    """The score of a network in a folder of open_clip; arguments and errors as of ``clip``.

    The folder holds ``open_clip_config.json`` and weights, as open_clip's ``save_for_hf`` and its
    models on the hub have them, or, instead of these weights, one checkpoint ``NAME.pt``.
    """
    return ImageTextScore(open_clip_towers(folder), scale, "open_clip", batch)


def pick_score(folder: str | Path, scale: float | None = None, batch: int = 32) -> ImageTextScore:
    """PickScore: the cosine times the network's own scale; arguments and errors as of ``clip``."""
    return ImageTextScore(transformers_towers(folder), scale, "pickscore", batch)


def hps(folder: str | Path, scale: float = 100.0, batch: int = 32) -> ImageTextScore:
    """HPS v2: the cosine of a fine-tuned network; arguments and errors as of ``clip``.

    A folder of transformers, or of open_clip: the published ``HPS_v2.1_compressed.pt`` as it is,
    and beside it the ``open_clip_config.json`` of its architecture, ViT-H-14 (that of the hub's
    laion/CLIP-ViT-H-14-laion2B-s32B-b79K, or ``{"model_cfg":
    open_clip.get_model_config("ViT-H-14")}`` as JSON).
    """
    is_open_clip = (Path(folder) / "open_clip_config.json").is_file()
    towers = open_clip_towers(folder) if is_open_clip else transformers_towers(folder)
    return ImageTextScore(towers, scale, "hps", batch)


def transformers_towers(folder: str | Path) -> Towers:
    """Both towers of a folder of transformers.

    Raises:
        InputError: no such folder, or a part of it is missing or has no such towers.
        MissingPackage: transformers is not installed.
    """
    require("transformers", "diffusers")
    with quiet():
        from transformers import AutoModel, AutoTokenizer

    network: Any = from_folder(AutoModel, folder)
    if not hasattr(network, "get_image_features") or not hasattr(network, "get_text_features"):
        raise InputError(
            f"{folder} holds a {type(network).__name__}, which has not both an image and a text "
            "tower; give a folder of a CLIPModel, a SiglipModel or the like"
        )
    tokenizer: Any = from_folder(AutoTokenizer, folder)
    length = network.config.text_config.max_position_embeddings
    # SigLIP was trained to read its padding too.
    unread = {"token_type_ids"}
    unread |= {"attention_mask"} if network.config.model_type.startswith("siglip") else set()

    def read(prompts: list[str]) -> Tensor:
        words = tokenizer(
            prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        )
        known = {k: v.to(network.device) for k, v in words.items() if k not in unread}
        return pooled(network.get_text_features(**known))

    def see(pixels: Tensor) -> Tensor:
        return pooled(network.get_image_features(pixel_values=pixels))

    scale = float(network.logit_scale.exp())
    return Towers(network, see, read, processing_of(folder), scale)


def open_clip_towers(folder: str | Path) -> Towers:
    """Both towers of a folder of open_clip.

    Raises:
        InputError: no such folder, it has no weights, or it cannot be read.
        MissingPackage: open_clip is not installed.
    """
    package = require("open_clip", "open_clip")
    path = existing_folder(folder)
    name, checkpoint = f"local-dir:{path}", _checkpoint_alone(path)
    try:
        network = _open_clip_network(package, name, checkpoint).eval().requires_grad_(False)
        tokenizer = package.get_tokenizer(name)
    except Exception as error:  # open_clip raises many unrelated kinds
        raise unreadable(folder, "open_clip", error) from error
    settings = network.visual.preprocess_cfg
    size = package.get_model_preprocess_cfg(network)["size"]
    pair = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    # Its default resizes the shorter edge of the picture, and crops.
    shortest = settings.get("resize_mode", "shortest") == "shortest" and pair[0] == pair[1]
    processing = Processing(
        pair[0] if shortest else pair,
        pair,
        tuple(settings["mean"]),
        tuple(settings["std"]),
        settings.get("interpolation", "bicubic"),
    )

    def read(prompts: list[str]) -> Tensor:
        device = next(network.parameters()).device
        return network.encode_text(tokenizer(prompts).to(device))

    scale = float(network.logit_scale.exp())
    return Towers(network, network.encode_image, read, processing, scale)


def _open_clip_network(package: Any, name: str, checkpoint: Path | None) -> Any:
    if checkpoint is None:
        return package.create_model(name, require_pretrained=True)
    before = logging.root.manager.disable
    # It would warn of random weights, which the checkpoint then replaces.
    logging.disable(logging.WARNING)
    try:
        network = package.create_model(name, load_weights=False, pretrained_text=False)
        package.load_checkpoint(network, str(checkpoint))
    finally:
        logging.disable(before)
    return network


def _checkpoint_alone(path: Path) -> Path | None:
    """The ``.pt`` file that is all a folder has of weights; open_clip does not look for it.

    Raises:
        InputError: no weights, or several such files.
    """
    if any(each.suffix in (".safetensors", ".bin", ".pth") for each in path.iterdir()):
        return None
    found = sorted(path.glob("*.pt"))
    if len(found) != 1:
        named = ", ".join(each.name for each in found) or "none"
        raise InputError(
            f"{path} has no weights that open_clip finds, and not one .pt file ({named}); put "
            "open_clip_model.safetensors or one checkpoint there"
        )
    return found[0]


def from_folder(kind: Any, folder: str | Path) -> Any:
    """What a class of transformers reads from a folder; a network is frozen, in eval mode.

    Raises:
        InputError: no such folder, or it cannot be read.
    """
    path = existing_folder(folder)
    try:
        with quiet():
            found = kind.from_pretrained(str(path), local_files_only=True)
    except Exception as error:  # transformers raises many unrelated kinds
        raise unreadable(folder, kind.__name__, error) from error
    return found.eval().requires_grad_(False) if isinstance(found, nn.Module) else found


def existing_folder(folder: str | Path) -> Path:
    """The folder as a path.

    Raises:
        InputError: there is none.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InputError(f"there is no folder {path} of a reward's network; give one")
    return path


def unreadable(folder: str | Path, kind: str, error: Exception) -> InputError:
    """The sentence about a folder whose network cannot be loaded."""
    reason = (str(error) or type(error).__name__).strip().splitlines()[0]
    return InputError(f"{kind} cannot be read from {folder}: {reason}; save the whole of it there")


def pooled(output: Any) -> Tensor:
    """Features of a tower: a tensor in older versions of transformers, a record in newer ones."""
    return output if isinstance(output, Tensor) else output.pooler_output
