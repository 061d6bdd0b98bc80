"""Rewards of text against the plain models, one text and one token at a time."""

from pathlib import Path

import pytest
import torch

from difftilt.adapters.text_rewards import (
    ReadingReward,
    SentenceEmbedder,
    SimilarityReward,
    TextClassifierReward,
)
from difftilt.errors import InputError, RewardError
from difftilt.rewards.contract import reward_bound
from difftilt.rewards.isolation import isolated
from difftilt.rewards.wrappers import Bounded, Floored, Summed, Tempered
from difftilt.text.layouts import Passage
from difftilt.text.rewards import StringReward
from tiny_text import byte_tokenizer, log_likelihood, tiny_gpt, tiny_prior, word_tokenizer

PASSAGES = [
    Passage("He ran.", " Far", " Then home", ("Far",)),
    Passage("He ran.", " Away he went", " Then home", ("Away he went",)),
    Passage("He ran.", "", " Then off", ("",)),
    Passage("Ann saw a cat", " !", " (grey)", ("!",)),
]


def by_hand(model, tokenizer, passage: Passage, start: str = "") -> float:
    def ids(text: str) -> list[int]:
        return tokenizer(text)["input_ids"] if text else []

    given = [*([tokenizer.bos_token_id] if start else []), *ids(passage.before)]
    return log_likelihood(model, given + ids(passage.middle), ids(passage.after))


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_a_reader_is_the_plain_model_token_by_token(cached: bool, batch: int):
    tokenizer = byte_tokenizer()
    model = tiny_gpt(tokenizer)
    reward = ReadingReward(model, tokenizer, batch, cached)
    wanted = torch.tensor([by_hand(model, tokenizer, p) for p in PASSAGES])
    assert float(wanted.std()) > 1
    torch.testing.assert_close(reward.judged(PASSAGES).float(), wanted, atol=1e-4, rtol=0)
    again = reward.judged(PASSAGES[::-1]).flip(0).float()
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=0)


def test_a_reader_begins_with_its_first_token_where_nothing_is_before():
    tokenizer = byte_tokenizer()
    model = tiny_gpt(tokenizer)
    passage = Passage("", "Ann", " ran", ("Ann",))
    (found,) = ReadingReward(model, tokenizer).judged([passage]).tolist()
    assert found == pytest.approx(by_hand(model, tokenizer, passage, "start"), abs=1e-4)
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(InputError, match="neither bos_token nor eos_token"):
        ReadingReward(model, tokenizer).judged([passage])


def test_the_prefix_is_read_once_and_few_are_kept():
    tokenizer = byte_tokenizer()
    model = tiny_gpt(tokenizer)
    seen = []
    model.register_forward_pre_hook(
        lambda module, args, given: seen.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    reward = ReadingReward(model, tokenizer, remembered=1)
    for passage in PASSAGES[:2]:
        reward.judged([passage])
    length = len(PASSAGES[0].before)
    tails = [1 + len(p.middle) + len(p.after) for p in PASSAGES[:2]]
    assert seen == [(1, length - 1), (1, tails[0]), (1, tails[1])]
    reward.judged(PASSAGES[3:])
    assert list(reward._prefixes) == [PASSAGES[3].before]


def test_errors_of_a_reader():
    tokenizer = byte_tokenizer()
    reward = ReadingReward(tiny_gpt(tokenizer), tokenizer)
    with pytest.raises(InputError, match="ends with a slot"):
        reward.judged([Passage("He", " ran", "", ("ran",))])
    with pytest.raises(InputError, match="context holds 64"):
        reward.judged([Passage("He", " ran", " a" * 40, ("ran",))])


def test_an_embedder_does_not_see_padding():
    tokenizer = word_tokenizer()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.3,
    )
    embedder = SentenceEmbedder(BertModel(config), tokenizer)
    texts = ["ann saw bob", "ran", "bob met ann . ann ran home"]
    together = embedder(texts)
    for text, vector in zip(texts, together, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        states = embedder.model(ids)[0][0, 1:-1]
        torch.testing.assert_close(vector, states.mean(0), atol=1e-5, rtol=1e-4)
    assert [len(states) for states in embedder.tokens(texts)] == [3, 1, 7]
    assert embedder([""]).isfinite().all()

    reward = SimilarityReward(embedder, "ann saw bob", scale=5.0)
    passages = [Passage("x", f" {text}", "", (text,)) for text in texts]
    cosine = torch.nn.functional.cosine_similarity(together, together[:1])
    torch.testing.assert_close(reward.judged(passages).float(), 5 * cosine, atol=1e-4, rtol=0)
    assert reward_bound(reward) == 5.0
    with pytest.raises(InputError, match="scale=0"):
        SimilarityReward(embedder, "ann", scale=0.0)


def test_a_classifier_of_text():
    tokenizer = word_tokenizer()
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        num_labels=3,
        initializer_range=0.5,
    )
    model = BertForSequenceClassification(config)
    reward = TextClassifierReward(model, tokenizer, [0, 2], batch=2)
    texts = ["ann saw bob", "ran", "bob met ann . ann ran home"]
    found = reward.judged([Passage(text, "", "", ()) for text in texts])
    for text, log_r in zip(texts, found, strict=True):
        logits = model(torch.tensor([tokenizer(text)["input_ids"]])).logits[0]
        assert float(logits.softmax(0)[[0, 2]].sum()) == pytest.approx(float(log_r.exp()), abs=1e-5)
    with pytest.raises(InputError, match="classes 0 to 2"):
        TextClassifierReward(model, tokenizer, 3)


def test_rewards_read_what_an_infilling_fills_in():
    tokenizer = byte_tokenizer()
    reader = tiny_gpt(tokenizer)
    prior = tiny_prior()
    task = prior.infill("ann saw [1] . bob [1] home", ReadingReward(reader, tokenizer))
    for completion in task.prior_samples(5):
        first, second = completion.fillings
        passage = Passage("ann saw", f" {first} . bob {second}", " home", completion.fillings)
        assert completion.log_r == pytest.approx(by_hand(reader, tokenizer, passage), abs=1e-4)
    seen = []

    def counted(texts: list[str]) -> list[float]:
        seen.append(texts)
        return [0.0] * len(texts)

    middle = prior.infill("ann [1] bob", StringReward(counted, reads="middle"))
    drawn = [c.fillings[0] for c in middle.prior_samples(60)]
    assert sorted(seen[0]) == sorted(set(drawn)) and len(seen[0]) < 60
    with pytest.raises(InputError, match=r"give it to TextPrior\.infill"):
        StringReward(counted)(torch.zeros(1, 3, dtype=torch.long))


def test_rewards_of_text_are_summed_and_scaled():
    tokenizer = byte_tokenizer()
    reading = ReadingReward(tiny_gpt(tokenizer), tokenizer)
    template = "ann saw [1] . bob [1] home"

    def cats(texts: list[str]) -> list[float]:
        return [-float(text.count("cat")) for text in texts]

    def scored(reward) -> dict[str, float]:
        return {c.text: c.log_r for c in tiny_prior().infill(template, reward).prior_samples(20)}

    read, counted = scored(reading), scored(cats)
    assert len(set(read.values())) > 3 and len(set(counted.values())) > 1
    both = Floored(Tempered(Summed([reading, Bounded(cats, 0.0)], [1.0, 0.5]), 2.0), -20.0)
    assert both.bound == 0.0
    for text, log_r in scored(both).items():
        assert log_r == pytest.approx(max(0.5 * read[text] + 0.25 * counted[text], -20.0))
    with pytest.raises(RewardError, match="above its bound of -1 nats"):
        scored(Summed([reading, Bounded(cats, -1.0)]))


def test_a_function_of_strings_in_another_process(tmp_path: Path):
    source = "def cats(texts):\n    return [-float(text.count('cat')) for text in texts]\n"
    broken = "def broken(texts):\n    raise ValueError(texts[0])\n"
    (tmp_path / "scorer.py").write_text(source + "cats.bound = 0.0\n" + broken)
    prior, template = tiny_prior(), "ann saw [2]"
    with isolated(f"{tmp_path}/scorer.py:cats") as cats:
        task = prior.infill(template, cats)
        assert task.target.log_bound == 0.0
        drawn = task.prior_samples(20)
        assert {c.log_r for c in drawn} >= {0.0, -1.0}
        assert all(c.log_r == -c.text.count("cat") for c in drawn)
    with (
        isolated(f"{tmp_path}/scorer.py:broken") as broken,
        pytest.raises(RewardError, match=r"raised ValueError.* on \d+ texts"),
    ):
        prior.infill(template, broken).prior_samples(2)
