"""Tiny random networks of the very classes that score pictures, saved as their users find them."""

import json
from pathlib import Path

import torch

WORDS = ("green", "rabbit", "red", "car", "a", "photo", "of", "does", "this", "picture", "show")


def clip_tokenizer(folder: Path, length: int = 16):
    """A CLIPTokenizer that knows letters and a few whole words."""
    from transformers import CLIPTokenizer

    letters = [chr(c) for c in range(97, 123)] + list("0123456789.,?!")
    pieces = letters + [f"{letter}</w>" for letter in letters]
    merges, vocabulary = [], dict.fromkeys(pieces)
    for word in WORDS:
        present = [*word[:-1], f"{word[-1]}</w>"]
        while len(present) > 1:
            merges.append((present[0], present[1]))
            present = ["".join(present[:2]), *present[2:]]
            vocabulary[present[0]] = None
    names = [*vocabulary, "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in dict.fromkeys(merges))]
    (folder / "merges.txt").write_text("\n".join(lines))
    return CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=length
    )


def clip_folder(folder: Path, kind: str = "clip") -> Path:
    """A CLIPModel or SiglipModel with tokenizer and image processor."""
    import transformers as t

    tokenizer = clip_tokenizer(folder)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    size |= {"num_attention_heads": 2}
    text = size | {"vocab_size": len(tokenizer), "max_position_embeddings": 16}
    text |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    text |= {"pad_token_id": tokenizer.pad_token_id}
    vision = size | {"image_size": 32, "patch_size": 8}
    torch.manual_seed(3)
    if kind == "clip":
        network = t.CLIPModel(
            t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
        )
        processor = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32)
    else:
        text["projection_size"] = 16
        network = t.SiglipModel(t.SiglipConfig(text_config=text, vision_config=vision))
        processor = t.SiglipImageProcessor(size={"height": 32, "width": 32})
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


OPEN_CLIP = {
    "embed_dim": 12,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


def open_clip_folder(folder: Path, checkpoint: str = "") -> Path:
    """A CLIP of open_clip, as it saves one; or with a training's checkpoint of that name alone."""
    import open_clip
    from open_clip.push_to_hf_hub import save_for_hf
    from open_clip.tokenizer import SimpleTokenizer

    class Tokenizer(SimpleTokenizer):
        def save_pretrained(self, folder: Path) -> None:
            """Open_clip's own vocabulary is a part of its package."""

    torch.manual_seed(6)
    network = open_clip.CLIP(**OPEN_CLIP)
    open_clip.set_model_preprocess_cfg(network, vars(open_clip.transform.PreprocessCfg(size=32)))
    save_for_hf(network, Tokenizer(), OPEN_CLIP, str(folder), True, bool(checkpoint))
    if checkpoint:
        torch.save({"epoch": 1, "state_dict": network.state_dict()}, folder / checkpoint)
    return folder


def classifier_folder(folder: Path) -> Path:
    """A ViTForImageClassification of three classes."""
    import transformers as t

    torch.manual_seed(4)
    names = {0: "cat", 1: "dog", 2: "rabbit"}
    config = t.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    t.ViTForImageClassification(config).save_pretrained(folder)
    t.ViTImageProcessor(size={"height": 16, "width": 16}, resample=2).save_pretrained(folder)
    return folder


def answering_folder(folder: Path) -> Path:
    """A ViltForQuestionAnswering that says no, yes or two."""
    import transformers as t

    torch.manual_seed(5)
    folder.mkdir(parents=True, exist_ok=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *WORDS, "?"]))
    tokenizer = t.BertTokenizer(str(folder / "vocab.txt"))
    names = {0: "no", 1: "yes", 2: "two"}
    config = t.ViltConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=24,
        image_size=16,
        patch_size=8,
        id2label=names,
        label2id={v: k for k, v in names.items()},
    )
    t.ViltForQuestionAnswering(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # ViLT's own processor pads with masks; a square resize of the ViT kind has no need of them.
    t.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


STAND_IN = """
import json

class Model:
    def __init__(self, offset):
        self.offset = offset

    def score(self, prompt, image):
        assert image.mode == "RGB"
        red, green, blue = image.resize((1, 1)).getpixel((0, 0))
        return self.offset + green / 255 + len(prompt)

def load(name, med_config):
    return Model(json.load(open(med_config))["offset"])
"""


def image_reward_package(folder: Path) -> Path:
    """A package with ImageReward's interface: offset + green + the prompt's length."""
    folder.mkdir()
    (folder / "ImageReward.py").write_text(STAND_IN)
    return folder


def image_reward_folder(folder: Path) -> Path:
    """What that package reads."""
    folder.mkdir()
    (folder / "ImageReward.pt").write_bytes(b"")
    (folder / "med_config.json").write_text('{"offset": 0.5}')
    return folder


def pictures(count: int = 5, height: int = 40, width: int = 52) -> torch.Tensor:
    """Smooth colour pictures with 8-bit values, in [0, 1]."""
    generator = torch.Generator().manual_seed(11)
    coarse = torch.rand((count, 3, 7, 9), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")
    return (fine.clamp(0, 1) * 255).round() / 255
