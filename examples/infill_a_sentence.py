"""A missing sentence between two given ones: a masked language model, a reader, a posterior.

The prior is a masked language model that is shown the text before the slot, ``x``, and not what
comes after it, ``y``. The reward is ``log p(y | x, z)`` of a *reader*: how well it foresees the
ending once the slot is filled with ``z``. So the posterior writes what makes the ending follow.

The posterior is shown ``y`` too, so that it starts at the model's own guess, "prompt (x, y)". One
posterior serves several templates, and ``certify`` says of each how near it is.

Here both models are tiny and are trained first, in the seconds that this takes, on stories of one
kind: someone finds a thing, something happens, and the ending depends on it. With published models
the rest is the same: any transformers tokenizer, any causal reader.

    python examples/infill_a_sentence.py
"""

import random
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel
from transformers import PreTrainedTokenizerFast as FastTokenizer

import difftilt
from difftilt.adapters.text_rewards import ReadingReward
from difftilt.text_priors import text_prior
from difftilt.token_denoisers import TokenNetwork

PEOPLE, THINGS = ["ann", "bob", "eve"], ["coin", "ring", "kite"]
MIDDLES = {"lost": "it fell into the deep well .", "kept": "it was safe in a pocket ."}
ENDINGS = {"lost": "{} cried all day .", "kept": "{} smiled all day ."}
TEMPLATES = [f"ann found a ring . [7] {ENDINGS[end].format('ann')}" for end in ENDINGS]


def story(dice: random.Random) -> str:
    """One story: who, what, what happened, and what followed from it."""
    person, thing, what = dice.choice(PEOPLE), dice.choice(THINGS), dice.choice([*MIDDLES])
    return f"{person} found a {thing} . {MIDDLES[what]} {ENDINGS[what].format(person)}"


def word_tokenizer(stories: list[str]) -> Any:
    """Whole words, as a transformers tokenizer."""
    words = ["<pad>", "<unk>", "<mask>", "<end>", *sorted({w for s in stories for w in s.split()})]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "mask_token": "<mask>"}
    return FastTokenizer(tokenizer_object=tokenizer, eos_token="<end>", **names)


class MaskedModel(TokenNetwork):
    """BERT in two parts, so that its head sees the positions to be revealed alone."""

    def __init__(self, model: Any, mask_id: int) -> None:
        super().__init__(model.config.vocab_size, mask_id)
        self.model = model

    def hidden(self, ids: Tensor, time: Tensor) -> Tensor:
        return self.model.bert(ids)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        return self.model.cls(hidden)


def trained(model: Any, rows: Tensor, steps: int, mask_id: int | None = None) -> Any:
    """The model after ``steps`` updates: to foresee the next word, or, with a mask, hidden ones."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(steps):
        ids = rows[torch.randint(len(rows), (32,))]
        labels, seen = ids, ids
        if mask_id is not None:
            hidden = torch.rand(ids.shape) < torch.rand(len(ids), 1)
            seen, labels = ids.masked_fill(hidden, mask_id), ids.masked_fill(~hidden, -100)
        loss = model(input_ids=seen, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def main(steps: int = 60, prior_steps: int = 250, samples: int = 100) -> Any:
    """Train the two models, then the posterior; print the sentences that each sampler writes."""
    torch.manual_seed(0)
    dice = random.Random(0)
    stories = [story(dice) for _ in range(500)]
    tokenizer = word_tokenizer(stories)
    rows = torch.tensor(tokenizer(stories)["input_ids"])
    count, end = len(tokenizer), tokenizer.eos_token_id
    size = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48}
    bert = BertConfig(vocab_size=count, intermediate_size=96, **size)
    gpt = GPT2Config(vocab_size=count, n_positions=32, bos_token_id=end, eos_token_id=end, **size)
    masked = trained(BertForMaskedLM(bert), rows, prior_steps, tokenizer.mask_token_id)
    reader = trained(GPT2LMHeadModel(gpt), rows, prior_steps)

    prior = text_prior(MaskedModel(masked, tokenizer.mask_token_id), tokenizer)
    task = prior.infill(TEMPLATES, ReadingReward(reader, tokenizer))
    posterior = task.fit(
        difftilt.RTB(residual_clip=10.0),
        steps=steps,
        batch=64,
        replaying=difftilt.Replaying(pool_capacity=512, pool_fresh=16),
    )

    for context, (template, wanted) in enumerate(zip(TEMPLATES, MIDDLES.values(), strict=True)):
        written = {
            "prior": [c.text for c in task.prior_samples(samples, context)],
            "prompt (x, y)": task.prompted().sample(samples, context),
            "posterior": posterior.sample(samples, context),
        }
        print(f"{template}\n  share of {wanted!r}")
        for name, texts in written.items():
            share = sum(wanted in text for text in texts) / samples
            print(f"    {name:<14} {share:.2f}   e.g. {texts[0]}")
    print(certificate := posterior.certify(samples))
    return certificate


if __name__ == "__main__":
    main()
