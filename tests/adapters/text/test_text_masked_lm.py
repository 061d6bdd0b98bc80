"""Any masked language model of transformers says what the plain model says."""

from pathlib import Path

import pytest
import torch

from difftilt.adapters.text.base import load_text_model
from difftilt.adapters.text.hugging_face import TransformersNetwork
from difftilt.chains.rollouts import rollout
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from tiny_text_models import (
    MASK,
    PAD,
    PADDED_VOCABULARY,
    assert_same,
    at_masks,
    chain_of,
    expected,
    level_of,
    masked_lm,
    partly_masked,
    spread,
)

KINDS = ["Bert", "Roberta", "ModernBert", "Esm", "DistilBert", "Electra", "Albert"]
WITHOUT_TOKEN = tuple(range(25, PADDED_VOCABULARY))
NEVER_DRAWN = (0, 1, 2, 3, MASK, *WITHOUT_TOKEN)


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_gives_the_plain_models_log_probs(kind: str, tmp_path: Path, tokenizer):
    plain = masked_lm(kind)
    plain.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    model = load_text_model(tmp_path)
    ids = partly_masked(25, MASK)
    with torch.no_grad():
        theirs = plain(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        ours = model.denoiser()(ids, at_masks(ids))
    assert theirs[:, 1::2].std() > 0.1
    assert_same(ours, expected(theirs, ids, NEVER_DRAWN))
    assert model.network.split == "backbone"
    assert model.network.vocab_size == PADDED_VOCABULARY


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_as_if_it_were_not_there(kind: str, tokenizer):
    model = load_text_model(masked_lm(kind), tokenizer)
    ids = partly_masked(25, MASK)
    padded = torch.cat([ids, torch.full((4, 5), PAD)], 1)
    level = at_masks(ids)
    with torch.no_grad():
        short, long = (model.denoiser()(x, level) for x in (ids, padded))
    assert model.pad_id == PAD
    assert_same(long, short.double())


@pytest.mark.usefixtures("unchecked")
def test_what_the_tokenizer_lacks_is_never_drawn(bert_folder: Path):
    model = load_text_model(bert_folder)
    path = rollout(chain_of(model), 500, GeneratorNoise(torch.Generator().manual_seed(2)))
    assert path.x_0.unique().tolist() == list(range(5, 25))
    assert model.banned == (0, 1, 2, 3, MASK, *WITHOUT_TOKEN)
    assert model.max_length == 24


@pytest.mark.usefixtures("unchecked")
def test_the_caller_may_ban_others(bert_folder: Path):
    model = load_text_model(bert_folder, banned=tuple(range(7, PADDED_VOCABULARY)))
    path = rollout(chain_of(model), 300, GeneratorNoise(torch.Generator().manual_seed(2)))
    assert path.x_0.unique().tolist() == [0, 1, 2, 3, 5, 6]


def test_the_head_sees_revealed_positions_alone(head_rows):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=50_000,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
    )
    plain = BertForMaskedLM(config).eval()
    model = load_text_model(plain, mask_id=MASK)
    rows = head_rows(plain.cls.predictions.decoder)
    ids = torch.full((8, 64), MASK)
    positions = torch.arange(8)[:, None]
    with torch.no_grad():
        log_probs = model.denoiser()(ids, level_of(positions))
    assert log_probs.shape == (8, 1, 50_000)
    assert rows == [8]


def test_a_model_that_cannot_be_split_still_says_the_same():
    from transformers import BertForMaskedLM

    class Favouring(BertForMaskedLM):
        """Its logits depend on the ids once more, after the head."""

        def forward(self, input_ids, attention_mask=None, return_dict=True):
            output = super().forward(input_ids=input_ids, attention_mask=attention_mask)
            output.logits = output.logits + torch.nn.functional.one_hot(input_ids, 32)
            return output

    plain = spread(Favouring(masked_lm("Bert").config))
    network = TransformersNetwork(plain, MASK)
    assert network.split == "whole" and network.vocab_size == PADDED_VOCABULARY
    ids = partly_masked(25, MASK)
    with torch.no_grad():
        ours = network.logits(network.hidden(ids, torch.ones(4)))
        assert torch.equal(ours, plain(ids, torch.ones_like(ids)).logits)


def test_a_shifted_model_predicts_a_token_from_the_row_before(tokenizer):
    plain = spread(masked_lm("Bert"))
    network = TransformersNetwork(plain, MASK, shift=True)
    ids = partly_masked(25, MASK)
    with torch.no_grad():
        logits = plain(input_ids=ids).logits
        hidden = network.hidden(ids, torch.ones(4))
        torch.testing.assert_close(network.logits(hidden[:, 1:]), logits[:, :-1])
        torch.testing.assert_close(network.logits(hidden[:, 0]), logits[:, 0])


def test_half_precision_ends_in_normalised_float32(bert_folder: Path):
    model = load_text_model(bert_folder, dtype=torch.bfloat16)
    ids = partly_masked(25, MASK)
    with torch.no_grad():
        log_probs = model.denoiser()(ids, at_masks(ids))
    assert model.network.model.dtype == torch.bfloat16
    assert log_probs.dtype == torch.float32
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(4, 4))


def test_a_fingerprint_tells_weights_apart(bert_folder: Path, tokenizer):
    one, same = load_text_model(bert_folder), load_text_model(masked_lm("Bert"), tokenizer)
    assert one.fingerprint == same.fingerprint
    changed = masked_lm("Bert")
    with torch.no_grad():
        changed.cls.predictions.bias[7] += 1e-3
    assert load_text_model(changed, tokenizer).fingerprint != one.fingerprint


def test_a_canvas_longer_than_the_model_is_refused(bert_folder: Path):
    network = load_text_model(bert_folder).network
    with pytest.raises(InputError, match=r"25 positions is longer than the model's 24"):
        network.hidden(torch.full((1, 25), MASK), torch.ones(1))


def test_roberta_counts_its_positions_from_the_padding():
    model = load_text_model(masked_lm("Roberta"), mask_id=MASK)
    assert model.max_length == 32 - 1 - PAD
    with torch.no_grad():
        model.network.hidden(torch.full((1, 31), MASK), torch.ones(1))
