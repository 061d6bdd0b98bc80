"""Train the weights that ``difftilt.tasks.text`` ships, from the World English Bible alone.

    apt-get download sword-text-web && dpkg -x sword-text-web_*.deb web
    python scripts/train_text_models.py --data web/usr/share/sword/modules/texts/ztext/engWEB2015eb
    python scripts/train_text_models.py --parts bound      # of the shipped prior, without the books

The books are split once and for all: six are held out, the others go in turn to the prior and to
the reader. The tokeniser is trained on all but the held-out books. One seed fixes every draw; the
learning rate follows the clock, so weights are repeated in law, not to the bit. The tokeniser
numbers some pieces in another order each time: make the models anew with it.
"""

import json
import sys
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal

import torch
import tyro
from jaxtyping import Int
from masked_models import HEAD_WIDTH, drawn_open, new_masked_model
from sword_text import split_books
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from training_by_clock import save_small, train_by_clock
from transformers import GPT2Config, GPT2LMHeadModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

from difftilt.tasks.any_order import any_order_terms, elbo
from difftilt.tasks.shipped import load_causal_model, load_masked_model
from difftilt.tasks.text import (
    TEXT_LAYOUT,
    encoded_passages,
    ending_log_likelihood,
    held_out_passages,
    perplexity,
)

Part = Literal["tokenizer", "heldout", "prior", "reader", "figures", "bound"]
PAD, MASK, BEGIN, UNKNOWN = "[PAD]", "[MASK]", "[BOS]", "[UNK]"
PAD_ID, MASK_ID, BEGIN_ID = 0, 1, 2


@dataclass(frozen=True)
class Settings:
    """What the command line can change."""

    data: Path = Path("/usr/share/sword/modules/texts/ztext/engWEB2015eb")
    """Folder of the SWORD module (Debian package sword-text-web)."""
    out: Path = Path("src/difftilt/tasks/data")
    """Folder that receives text_prior/, text_reader/ and text_heldout/."""
    parts: tuple[Part, ...] = ("tokenizer", "heldout", "prior", "reader", "figures")
    prior_minutes: float = 17.0
    reader_minutes: float = 7.0
    vocabulary: int = 2560
    width: int = 192
    layers: int = 4
    batch: int = 32
    learning_rate: float = 2e-3
    seed: int = 0
    threads: int = 1
    resume: bool = False
    """Go on from the prior's saved weights, for another cycle of the learning rate."""


# --------------------------------------------------------------------------------- the tokeniser


def new_tokenizer(lines: list[str], vocabulary: int) -> FastTokenizer:
    """Byte-pair encoding of words; a word's last piece carries the space after it.

    A pad ends a text, and is a token like others.
    """
    core = Tokenizer(models.BPE(unk_token=UNKNOWN, end_of_word_suffix="</w>"))
    core.normalizer = normalizers.Lowercase()
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    core.decoder = decoders.BPEDecoder(suffix="</w>")
    special = [PAD, MASK, BEGIN, UNKNOWN]
    core.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, end_of_word_suffix="</w>"
        ),
    )
    names = {"pad_token": PAD, "eos_token": PAD, "mask_token": MASK, "bos_token": BEGIN}
    return FastTokenizer(tokenizer_object=core, **names)


def encoded(tokenizer: FastTokenizer, lines: list[str]) -> list[list[int]]:
    return tokenizer(lines, add_special_tokens=False)["input_ids"]  # pyright: ignore


# ------------------------------------------------------------------------------------- the prior


def story_windows(parts: list[list[list[int]]]) -> Int[Tensor, "S L"]:
    """Every run of five sentences whose middle and ending fit, tokens placed in the layout."""
    rows = []
    for book in parts:
        for at in range(len(book) - 4):
            window = book[at : at + 5]
            context, middle, ending = [*chain(*window[:3])], window[3], window[4]
            if len(middle) <= TEXT_LAYOUT.middle and len(ending) <= TEXT_LAYOUT.ending:
                rows.append(TEXT_LAYOUT.placed(context, middle, ending, PAD_ID))
    return torch.stack(rows)


def prior_windows(settings: Settings, tokenizer: FastTokenizer) -> Int[Tensor, "S L"]:
    """Canvases of the prior's books."""
    prior_books, _, _ = split_books(settings.data)
    return story_windows([encoded(tokenizer, lines) for lines in prior_books.values()])


def train_prior(settings: Settings, tokenizer: FastTokenizer) -> None:
    torch.manual_seed(settings.seed)
    windows = prior_windows(settings, tokenizer)
    folder = settings.out / "text_prior"
    if settings.resume:
        torch.manual_seed(settings.seed + 2)
        model = load_masked_model(folder).requires_grad_(True)
    else:
        model = new_masked_model(len(tokenizer), TEXT_LAYOUT, settings.width, settings.layers)
    print(f"{len(windows)} windows, {model.num_parameters()} parameters", file=sys.stderr)

    def loss() -> Tensor:
        ids = windows[torch.randint(len(windows), (settings.batch,))]
        opened = drawn_open(TEXT_LAYOUT, len(ids))
        terms = any_order_terms(model, ids, opened, MASK_ID)
        return -terms.sum() / opened.sum()

    train_by_clock("prior", model, loss, settings.prior_minutes, settings.learning_rate)
    save_small(model, tokenizer, folder)


# ------------------------------------------------------------------------------------ the reader


def train_reader(settings: Settings, tokenizer: FastTokenizer) -> None:
    torch.manual_seed(settings.seed + 1)
    _, reader_books, _ = split_books(settings.data)
    stream = torch.tensor(
        [i for lines in reader_books.values() for s in encoded(tokenizer, lines) for i in s]
    )
    length = TEXT_LAYOUT.length
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer),
            n_positions=length + 1,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.width // HEAD_WIDTH,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=BEGIN_ID,
            eos_token_id=PAD_ID,
        )
    )
    print(f"{len(stream)} tokens, {model.num_parameters()} parameters", file=sys.stderr)

    def loss() -> Tensor:
        start = torch.randint(len(stream) - length, (settings.batch, 1))
        ids = F.pad(stream[start + torch.arange(length)], (1, 0), value=BEGIN_ID)
        logits = model(input_ids=ids[:, :-1]).logits.float()
        return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    train_by_clock("reader", model, loss, settings.reader_minutes, settings.learning_rate)
    save_small(model, tokenizer, settings.out / "text_reader")


# ---------------------------------------------------------------------------- the held-out stories


def write_heldout(settings: Settings, tokenizer: FastTokenizer, count: int = 200) -> None:
    """Passages that fit whole, no sentence in two of them."""
    _, _, held_out = split_books(settings.data)
    found = []
    for name, lines in held_out.items():
        lengths, at = [len(ids) for ids in encoded(tokenizer, lines)], 0
        while at + 5 <= len(lines):
            fits = (
                sum(lengths[at : at + 3]) <= TEXT_LAYOUT.context and min(lengths[at : at + 5]) > 3
            )
            if fits and 5 <= lengths[at + 3] <= 16 and lengths[at + 4] <= TEXT_LAYOUT.ending:
                found.append({"source": name, "sentences": lines[at : at + 5]})
                at += 4
            at += 1
    count = min(count, len(found))
    chosen = [found[i * len(found) // count] for i in range(count)]
    folder = settings.out / "text_heldout"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "passages.json").write_text(json.dumps(chosen, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(chosen)} of {len(found)} held-out passages", file=sys.stderr)


def unigram_nats(windows: Int[Tensor, "S L"], ids: Int[Tensor, "B L"], size: int) -> float:
    """Nats of canvases per real token under frequencies in others, one added to each count."""
    counts = torch.bincount(windows.flatten(), minlength=size).double() + 1
    return float(-(counts / counts.sum()).log()[ids].sum() / (ids != PAD_ID).sum())


def print_bound(settings: Settings, ids: Int[Tensor, "S L"]) -> None:
    """Held-out bound of the prior, per token that is no pad."""
    prior = load_masked_model(settings.out / "text_prior")
    generator = torch.Generator().manual_seed(settings.seed)
    opened = {
        "whole passages": torch.ones_like(ids, dtype=torch.bool),
        "middles, given the context and the ending": TEXT_LAYOUT.open_middle(len(ids)),
    }
    for name, where in opened.items():
        bound = elbo(prior, ids, where, MASK_ID, draws=16, generator=generator).double()
        per_token = -bound.sum() / (where & (ids != PAD_ID)).sum()
        error = bound.std() * len(bound) ** 0.5 / (where & (ids != PAD_ID)).sum()
        print(
            f"prior, {name}: at most {per_token:.3f} ± {error:.3f} nats per token (pads included)"
        )


def print_figures(settings: Settings, tokenizer: FastTokenizer, ids: Int[Tensor, "S L"]) -> None:
    """What the bound compares with, and perplexity of the reader, per token that is no pad."""
    reader = load_causal_model(settings.out / "text_reader")
    unigram = unigram_nats(prior_windows(settings, tokenizer), ids, len(tokenizer))
    print(f"unigram, whole passages: {unigram:.3f} nats per token (pads included)")
    print(f"reader: perplexity {perplexity(reader, ids, PAD_ID):.1f}")
    endings = ending_log_likelihood(reader, ids, PAD_ID)
    shuffled = ids.clone()
    shuffled[:, TEXT_LAYOUT.middle_slice] = ids.roll(1, 0)[:, TEXT_LAYOUT.middle_slice]
    gain = (endings - ending_log_likelihood(reader, shuffled, PAD_ID)).double()
    error = gain.std() / len(gain) ** 0.5
    print(f"reader: the true middle is worth {gain.mean():.2f} ± {error:.2f} nats of the ending")


def main(settings: Settings) -> None:
    """Make the chosen parts one after the other."""
    torch.set_num_threads(settings.threads)
    folder = settings.out / "text_prior"
    if "tokenizer" in settings.parts:
        prior, reader, _ = split_books(settings.data)
        lines = [line for book in (*prior.values(), *reader.values()) for line in book]
        new_tokenizer(lines, settings.vocabulary).save_pretrained(folder)
    tokenizer = FastTokenizer.from_pretrained(folder)
    if "prior" in settings.parts:
        train_prior(settings, tokenizer)
    if "reader" in settings.parts:
        train_reader(settings, tokenizer)
    if "heldout" in settings.parts:
        write_heldout(settings, tokenizer)
    if {"figures", "bound"} & {*settings.parts}:
        ids = encoded_passages(tokenizer, held_out_passages(settings.out / "text_heldout"))
        print_bound(settings, ids)
        if "figures" in settings.parts:
            print_figures(settings, tokenizer, ids)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
