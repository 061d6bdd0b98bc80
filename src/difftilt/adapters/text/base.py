"""A published masked language model as a prior over tokens.

    model = load_text_model("louaaron/sedd-small")
    denoiser = model.denoiser()
    chain = Chain(denoiser, MaskedDiffusion(denoiser.vocab_size, length=16), (64,))
    kernel = LoRA(rank=8, targets=model.lora_targets).kernel(chain)

Everything that differs between families (``adapters.text.families``) is settled here, once: which
id is the mask, which ids are never drawn, whether logits are shifted, what the network is told of
time.
"""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import nn

from difftilt.adapters.text.families import (
    PUBLISHED,
    TextOptions,
    family_of,
    network_of_folder,
    network_of_model,
)
from difftilt.adapters.text.files import config_of, folder_of
from difftilt.chains.fingerprints import fingerprint
from difftilt.errors import InputError, require
from difftilt.token_denoisers import TokenDenoiser, TokenNetwork

ATTENTION = (
    "query",
    "key",
    "value",
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "q_lin",
    "k_lin",
    "v_lin",
    "out_lin",
    "query_proj",
    "key_proj",
    "value_proj",
    "Wqkv",
    "attn.Wo",
    "attn_qkv",
    "attn_out",
)
"""Names of attention's layers in the models that are known; an adapter's default places."""


@dataclass(frozen=True)
class TextModel:
    """A masked language model and what a chain has to know of it.

    Arguments:
        network: the network, frozen and in eval mode.
        tokenizer: from text to ids and back, or None.
        pad_id: an id that is hidden from all positions, or None.
        banned: ids that are never drawn, besides the mask.
        max_length: longest canvas, or None.
        shift: whether position 0 has no prediction of its own and should be given.
        source: where it came from, for the record.
        fingerprint: SHA-256 of the weights.
        lora_targets: layers of attention, for ``LoRA(targets=...)``; "all" where none is known.
    """

    network: TokenNetwork
    tokenizer: Any
    pad_id: int | None
    banned: tuple[int, ...]
    max_length: int | None
    shift: bool
    source: str
    fingerprint: str
    lora_targets: tuple[str, ...] | str

    def denoiser(self, temperature: float = 1.0) -> TokenDenoiser:
        """The network as a chain's denoiser.

        Arguments:
            temperature: of its logits; a part of the prior's definition.
        """
        return TokenDenoiser(self.network, self.banned, temperature).requires_grad_(False)


def load_text_model(source: Any, tokenizer: Any = None, **options: Any) -> TextModel:
    """A masked language model, ready to be a prior.

    Arguments:
        source: a folder, a hub id, a live transformers model or a ``TokenNetwork``; a live one is
            used itself, frozen and in eval mode.
        tokenizer: a live tokenizer, or a folder or hub id of one; default the source's own.
        **options: fields of ``TextOptions``: ``mask_id``, ``pad_id``, ``banned``, ``family``,
            ``trust_remote_code``, ``dtype``.

    Raises:
        InputError: the source cannot be read, is of no known family, or wants code to be trusted.
        MissingPackage: transformers is needed and not installed.
    """
    known = [f.name for f in fields(TextOptions)]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(
            f"load_text_model has no option {unknown[0]!r}; options are {', '.join(known)}"
        )
    chosen = TextOptions(**options)
    if isinstance(source, nn.Module):
        tokens = _tokenizer(tokenizer)
        network, name = _of_live(source, tokens, chosen), type(source).__name__
    else:
        network, tokens, name = *_of_folder(source, tokenizer, chosen), str(source)
    return _record(network, tokens, chosen, name)


def _of_folder(source: Any, tokenizer: Any, options: TextOptions) -> tuple[TokenNetwork, Any]:
    if not isinstance(source, str | Path):
        raise InputError(
            f"load_text_model takes a folder, a hub id or a live model, got {type(source).__name__}"
        )
    folder = folder_of(source)
    config = config_of(folder)
    family = family_of(config, options.family)
    own = folder if _has_tokenizer(folder) else None
    if own is None and family in PUBLISHED and not Path(source).expanduser().is_dir():
        # They were all trained with the tokenizer of GPT-2, which their repositories lack.
        own = folder_of("openai-community/gpt2")
    tokens = _tokenizer(own if tokenizer is None else tokenizer, options.trust_remote_code)
    return network_of_folder(folder, config, family, tokens, options), tokens


def _of_live(model: nn.Module, tokenizer: Any, options: TextOptions) -> TokenNetwork:
    if isinstance(model, TokenNetwork):
        return model
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "to_dict"):
        raise InputError(
            f"a {type(model).__name__} is neither a transformers model nor a TokenNetwork; wrap it "
            "in a TokenNetwork of two methods, hidden and logits"
        )
    described = {"architectures": [type(model).__name__], **_given(config.to_dict())}
    return network_of_model(model, family_of(described, options.family), tokenizer, options)


def _given(config: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if value is not None}


def _record(network: TokenNetwork, tokenizer: Any, options: TextOptions, source: str) -> TextModel:
    network.eval().requires_grad_(False)
    pad_id = options.pad_id if network.pad_id is None else network.pad_id
    banned = options.banned
    if banned is None:
        banned = _never_drawn(network.vocab_size, tokenizer, pad_id)
    return TextModel(
        network,
        tokenizer,
        pad_id,
        banned,
        getattr(network, "max_length", None),
        getattr(network, "shift", False),
        source,
        fingerprint(network),
        _attention_of(network),
    )


def _never_drawn(vocab_size: int, tokenizer: Any, pad_id: int | None) -> tuple[int, ...]:
    """Padding, ids without a token, and special tokens except the end of text."""
    forbidden = set() if pad_id is None else {pad_id}
    if tokenizer is not None:
        forbidden |= set(range(vocab_size)) - set(tokenizer.get_vocab().values())
        forbidden |= set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}
    return tuple(sorted(i for i in forbidden if i < vocab_size))


def _attention_of(network: nn.Module) -> tuple[str, ...] | str:
    names = [name for name, m in network.named_modules() if type(m) is nn.Linear]
    found = tuple(a for a in ATTENTION if any(name.endswith(f".{a}") for name in names))
    return found or "all"


def _has_tokenizer(folder: Path) -> bool:
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    return any((folder / file).is_file() for file in files)


def _tokenizer(source: Any, trusted: bool = False) -> Any:
    if not isinstance(source, str | Path):
        return source
    require("transformers", "text")
    from transformers import AutoTokenizer

    folder = folder_of(source)
    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trusted)
    except Exception as error:  # transformers raises a dozen unrelated kinds
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise InputError(f"{folder} holds no readable tokenizer: {reason}") from error
