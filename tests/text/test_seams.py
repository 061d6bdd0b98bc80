"""A filled text is what its tokens spell, with tokenizers of every kind."""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from difftilt.adapters.text_rewards import ReadingReward
from difftilt.diffusions.masked import GENERATED
from difftilt.tasks.shipped import load_tokenizer, shipped_folder
from difftilt.text.canvases import canvases_of, given_canvases
from difftilt.text.codecs import Codec, surrounding
from difftilt.text.layouts import Passage
from difftilt.text.templates import parsed
from tiny_text import byte_tokenizer, log_likelihood, tiny_gpt, word_tokenizer

PIECES = ["ann", "met", "cat", "no", "comp", "and"]


def wrapped(core: Tokenizer) -> Any:
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "eos_token": "[PAD]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


def word_pieces() -> Any:
    """BERT's kind: a piece that goes on with a word begins with ##; its decoder tidies up."""
    words = ["[PAD]", "[UNK]", *PIECES, *[f"##{piece}" for piece in PIECES], ".", ",", "'"]
    core = Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()  # pyright: ignore
    core.decoder = decoders.WordPiece()  # pyright: ignore
    return wrapped(core)


def sentence_pieces() -> Any:
    """Llama's kind: a word's first piece begins with a visible space."""
    words = ["[PAD]", "[UNK]", *PIECES, *[f"▁{piece}" for piece in PIECES], ".", "▁"]
    core = Tokenizer(models.Unigram([(w, -1.0) for w in words], unk_id=1))
    core.pre_tokenizer = pre_tokenizers.Metaspace()  # pyright: ignore
    core.decoder = decoders.Metaspace()  # pyright: ignore
    return wrapped(core)


def shipped() -> Any:
    """The shipped kind: a word's last piece carries the space behind it."""
    return load_tokenizer(shipped_folder("text_prior"))


KINDS = [word_tokenizer, byte_tokenizer, word_pieces, sentence_pieces, shipped]


def codec_of(tokenizer: Any) -> Codec:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    return Codec(tokenizer, pad, *surrounding(tokenizer))


def some_filled(codec: Codec, texts: Sequence[str], tail: int, **options: Any) -> list[tuple]:
    """Canvases with random tokens in their slots, pads at the end of the last one."""
    random, tokenizer, found = Random(0), codec.tokenizer, []
    tokens = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    for _ in range(60):
        for layout in canvases_of([parsed(text) for text in texts], codec, **options).layouts:
            ids = list(layout.tokens)
            for place in layout.places:
                ids[place.start : place.stop] = random.choices(tokens, k=len(place))
            if tail:
                ids[layout.places[-1].stop - tail : layout.places[-1].stop] = [codec.pad_id] * tail
            found.append((layout, ids))
    return found


@pytest.mark.parametrize("tail", [0, 1])
@pytest.mark.parametrize("make", KINDS)
def test_a_filled_text_is_what_its_tokens_spell(make: Callable[[], Any], tail: int):
    codec = codec_of(make())
    texts = ["ann met [3] cat", "ann[2] met [1-4] cat", "[3] met", "ann [2][2]"]
    for layout, ids in some_filled(codec, texts, tail):
        passage = layout.passage(ids, codec)
        assert passage.text == codec.tokenizer.decode(ids, skip_special_tokens=True)
        assert passage.before == (
            "" if layout.context == 2 else texts[layout.context].split("[")[0].rstrip()
        )
        for filling, place in zip(passage.fillings, layout.places, strict=True):
            assert filling == filling.strip() and (len(place) or not filling)


def test_given_text_stays_as_it_was_written():
    codec = codec_of(shipped())
    (layout,) = canvases_of([parsed("They came;\n[3], and HE [1]!")], codec).layouts
    for ids in ("water of life fire", "waters (and so"):
        filled = list(layout.tokens)
        *first, last = codec.ids(ids)[:4]
        filled[layout.places[0].start : layout.places[0].stop] = first
        filled[layout.places[1].start] = last
        passage = layout.passage(filled, codec)
        words = passage.fillings
        assert passage.text == f"They came;\n{words[0]}, and HE {words[1]}!"


def within_a_word(behind: str, **options: Any) -> Passage:
    """A filling whose last piece goes on in the text behind it."""
    codec = codec_of(shipped())
    vocabulary = codec.tokenizer.get_vocab()
    (layout,) = canvases_of([parsed(f"there was [2]{behind}")], codec, **options).layouts
    ids = list(layout.tokens)
    ids[layout.places[0].start : layout.places[0].stop] = [vocabulary["no</w>"], vocabulary["comp"]]
    return layout.passage(ids, codec)


@pytest.mark.parametrize("suffix", ["posterior", "none"])
def test_a_word_that_is_not_ended_is_joined_to_the_text_behind_it(suffix: str):
    passage = within_a_word(" and they drank.", suffix=suffix)
    assert passage.text == "there was no compand they drank."
    assert (passage.middle, passage.after) == (" no comp", "and they drank.")
    assert passage.fillings == ("no comp",)


def test_a_reader_reads_a_broken_seam_as_one_word():
    tokenizer = shipped()
    model = tiny_gpt(tokenizer)
    (found,) = ReadingReward(model, tokenizer).judged([within_a_word(" and they drank.")]).tolist()
    given = tokenizer("there was no")["input_ids"]
    read = tokenizer("compand they drank.")["input_ids"]
    assert read != tokenizer("comp and they drank.")["input_ids"]
    assert found == pytest.approx(log_likelihood(model, given, read), abs=1e-3)


@pytest.mark.parametrize("make", KINDS)
def test_canvases_made_elsewhere_are_spelled_too(make: Callable[[], Any]):
    codec = codec_of(make())
    canvases = canvases_of([parsed("ann[2] met [3]cat")], codec)
    again = given_canvases(canvases.conditions, codec)
    drawn = some_filled(codec, ["ann[2] met [3]cat"], 0)
    ids = torch.tensor([ids for _, ids in drawn])
    condition = again.conditions.expand(len(ids), -1, -1)
    assert int((condition[0, 1] == GENERATED).sum()) == 5
    for passage, row in zip(again.passages(ids, condition), ids, strict=True):
        assert passage.text == codec.tokenizer.decode(row, skip_special_tokens=True)
