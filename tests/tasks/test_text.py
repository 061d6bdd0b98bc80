"""Real text: passages in their canvas, the reader's likelihood, and the shipped models.

Statistical tests have fixed seeds and bounds far from what was seen when the weights were made.
"""

import math

import pytest
import torch
from torch import Tensor

from difftilt.adapters.text.base import load_text_model
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX
from difftilt.errors import CheckpointError, InputError
from difftilt.tasks import text
from difftilt.tasks.any_order import elbo
from difftilt.tasks.shipped import (
    load_causal_model,
    load_masked_model,
    load_tokenizer,
    shipped_folder,
)
from difftilt.tasks.stories.layout import Layout
from difftilt.tasks.text import TEXT_LAYOUT, Passage

MEBIBYTE = 2**20
PAD, SMALL = 0, Layout(context=4, middle=2, ending=2)
FOLDERS = ("text_prior", "text_reader", "text_heldout")


@pytest.fixture(scope="module")
def tokenizer():
    pytest.importorskip("transformers")
    return text.load_text_tokenizer()


@pytest.fixture(scope="module")
def passages(tokenizer) -> Tensor:
    return text.encoded_passages(tokenizer, text.held_out_passages())


@pytest.fixture(scope="module")
def tiny_reader():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=9, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=1, eos_token_id=0
    )
    config.initializer_range = 0.5
    return transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)


def unigram_entropy(tokens: Tensor) -> float:
    """Nats per token of the best model of single tokens, fitted on these very tokens."""
    counts = torch.bincount(tokens).double()
    return torch.special.entr(counts / counts.sum()).sum().item()


def one_by_one(reader, tokens: list[int], first: int) -> float:
    """log p of the tokens from ``first`` on, each from a call of its own."""
    total = 0.0
    for at in range(first, len(tokens)):
        seen = torch.tensor([[1, *tokens[:at]]])
        total += float(reader(input_ids=seen).logits[0, -1].log_softmax(0)[tokens[at]])
    return total


class TestReader:
    ids = torch.tensor([[0, 0, 3, 4, 5, 0, 6, 7], [2, 3, 4, 5, 6, 7, 8, 0]])
    texts = ([3, 4, 5, 6, 7], [2, 3, 4, 5, 6, 7, 8])

    def test_ending_is_judged_token_by_token_without_pads(self, tiny_reader):
        found = text.ending_log_likelihood(tiny_reader, self.ids, PAD, SMALL)
        expected = [one_by_one(tiny_reader, t, s) for t, s in zip(self.texts, (3, 6), strict=True)]
        assert torch.allclose(found, torch.tensor(expected), atol=1e-5)

    def test_endings_have_a_law_given_what_is_before(self, tiny_reader):
        """Two tokens of nine: 81 endings of full length, pads as ordinary tokens here."""
        ids = self.ids[1:].expand(81, -1).clone()
        ids[:, 6:] = torch.cartesian_prod(torch.arange(9), torch.arange(9))
        found = text.ending_log_likelihood(tiny_reader, ids, -1, SMALL)
        assert found.exp().sum().item() == pytest.approx(1, abs=1e-5)

    def test_perplexity_counts_real_tokens(self, tiny_reader):
        total = sum(one_by_one(tiny_reader, tokens, 0) for tokens in self.texts)
        assert text.perplexity(tiny_reader, self.ids, PAD) == pytest.approx(
            math.exp(-total / 12), rel=1e-5
        )


class TestPassages:
    def test_canvas_gives_the_context_and_keeps_the_ending_for_the_posterior(self, passages):
        condition = text.text_canvas(passages[:3])
        assert condition.shape == (3, 2, 104)
        assert condition[0, 1].tolist() == [GIVEN] * 64 + [GENERATED] * 16 + [SUFFIX] * 24
        assert torch.equal(condition[:, 0], passages[:3])

    def test_shipped_passages_fit_whole_and_share_no_sentence(self, tokenizer):
        found = text.held_out_passages()
        assert len(found) >= 150
        for passage, row in zip(found, text.encoded_passages(tokenizer, found), strict=True):
            decoded = tokenizer.decode(row[row != PAD]).replace(" ", "")
            assert decoded == "".join(passage.sentences).replace(" ", "")
            assert 5 <= int((row[TEXT_LAYOUT.middle_slice] != PAD).sum()) <= 16
        places = [(p.source, p.sentences) for p in found]
        assert len(set(places)) == len(places)

    def test_foreign_passages_are_refused(self, tokenizer):
        with pytest.raises(InputError, match="has 5 sentences, this one 2"):
            text.encoded_passages(tokenizer, [Passage("here", ("one.", "two."))])
        endless = Passage("here", ("a.", "b.", "c.", "and then " * 20, "d."))
        with pytest.raises(InputError, match="do not fit"):
            text.encoded_passages(tokenizer, [endless])

    def test_missing_files_are_named(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"passages\.json cannot be used"):
            text.held_out_passages(tmp_path)
        pytest.importorskip("transformers")
        for load in (load_masked_model, load_causal_model, load_tokenizer):
            with pytest.raises(CheckpointError, match="cannot be used"):
                load(tmp_path)


class TestShippedModels:
    def test_files_are_small_and_hold_no_pickle(self):
        paths = [p for name in FOLDERS for p in shipped_folder(name).rglob("*") if p.is_file()]
        assert {p.suffix for p in paths} <= {".json", ".safetensors"}
        assert all(p.stat().st_size <= 10 * MEBIBYTE for p in paths)

    def test_prior_beats_the_best_unigram_of_these_very_passages(self, passages):
        """The bound on log p of whole canvases against their own token frequencies."""
        some = passages[::4]
        everything = torch.ones_like(some, dtype=torch.bool)
        generator = torch.Generator().manual_seed(0)
        bound = elbo(text.load_text_prior(), some, everything, 1, draws=8, generator=generator)
        assert -bound.mean().item() / TEXT_LAYOUT.length < unigram_entropy(some.flatten()) - 0.2

    def test_reader_beats_the_best_unigram_and_sees_the_middle(self, passages):
        """The true middle is worth more than another passage's, by 3 standard errors."""
        reader = text.load_text_reader()
        unigram = unigram_entropy(passages[passages != PAD])
        assert math.log(text.perplexity(reader, passages[::4], PAD)) < unigram - 0.5
        other = passages.clone()
        other[:, TEXT_LAYOUT.middle_slice] = passages.roll(1, 0)[:, TEXT_LAYOUT.middle_slice]
        gain = text.ending_log_likelihood(reader, passages, PAD) - text.ending_log_likelihood(
            reader, other, PAD
        )
        assert gain.mean() > 3 * gain.std() / math.sqrt(len(gain))

    def test_load_as_a_prior_that_writes_pads(self):
        pytest.importorskip("transformers")
        model = load_text_model(shipped_folder("text_prior"))
        denoiser = model.denoiser()
        assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
        assert model.pad_id is None
        assert denoiser.allowed[PAD]
        assert not denoiser.allowed[1]
