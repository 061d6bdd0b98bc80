"""Stories as token ids, their canvases and rewards, and the shipped prior over them.

Statistical tests have fixed seeds; their bounds lie at least 4 standard errors from what was seen
when the weights were made, a false-alarm rate below 1e-4 each under a new seed.
"""

import math
import random
from collections import Counter

import pytest
import torch
from torch import Tensor

from difftilt.adapters.text.base import load_text_model
from difftilt.chains.chain import Chain
from difftilt.chains.rollouts import rollout
from difftilt.diffusions.masked import GENERATED, GIVEN, SUFFIX, MaskedDiffusion, completed
from difftilt.errors import InputError
from difftilt.noise import GeneratorNoise
from difftilt.tasks.shipped import load_tokenizer, shipped_folder
from difftilt.tasks.stories import grammar, tokens
from difftilt.tasks.stories.layout import Layout
from difftilt.tasks.stories.tokens import MASK_ID, PAD_ID, STORY_LAYOUT
from difftilt.token_denoisers import TokenDenoiser

MEBIBYTE = 2**20


def stories(count: int, seed: int = 0) -> list[grammar.Story]:
    generator = random.Random(seed)
    return [grammar.story(generator) for _ in range(count)]


class TestLayout:
    def test_parts_are_placed_and_padded(self):
        layout = Layout(context=4, middle=3, ending=2)
        row = layout.placed([5, 6], [7, 8], [9], pad=0)
        assert row.tolist() == [0, 0, 5, 6, 7, 8, 0, 9, 0]
        assert row[layout.middle_slice].tolist() == [7, 8, 0]
        assert layout.roles().tolist() == [GIVEN] * 4 + [GENERATED] * 3 + [SUFFIX] * 2
        assert layout.open_middle(2).sum(1).tolist() == [3, 3]

    def test_of_a_long_context_the_end_is_kept(self):
        assert Layout(2, 1, 1).placed([1, 2, 3, 4], [5], [6], pad=0).tolist() == [3, 4, 5, 6]
        assert Layout(0, 1, 1).placed([1, 2], [5], [6], pad=0).tolist() == [5, 6]

    def test_what_does_not_fit_is_refused(self):
        with pytest.raises(InputError, match="a middle of 2 tokens and an ending of 1 do not fit"):
            Layout(2, 1, 1).placed([1], [5, 5], [6], pad=0)


class TestTokens:
    def test_round_trip(self):
        drawn = stories(200)
        ids = tokens.encoded(drawn)
        assert ids.shape == (200, STORY_LAYOUT.length)
        assert tokens.decoded(ids) == drawn

    def test_vocabulary_begins_with_the_pad_and_the_mask(self):
        names = tokens.vocabulary()
        assert (names[PAD_ID], names[MASK_ID]) == (tokens.PAD, tokens.MASK)
        assert len(set(names)) == len(names)

    def test_canvas_gives_the_context_and_keeps_the_ending_for_the_posterior(self):
        condition = tokens.story_canvas(stories(3))
        assert condition.shape == (3, 2, 45)
        assert condition[0, 1].tolist() == [GIVEN] * 27 + [GENERATED] * 9 + [SUFFIX] * 9
        blank = condition[:, 0].clone()
        blank[:, 36:] = 0
        assert torch.equal(completed(blank, condition), condition[:, 0])

    def test_reward_and_verdict_are_the_grammar_s(self):
        drawn = stories(50, seed=1)
        ids = tokens.encoded(drawn)
        values = tokens.log_reward(ids)
        for story, value, verdict in zip(drawn, values, tokens.verdicts(ids), strict=True):
            told = grammar.log_likelihood(story.context, story.middle, story.ending)
            assert value.item() == pytest.approx(told, rel=1e-6)
            assert verdict == grammar.judge(story.context, story.middle, story.ending)

    def test_rewards_of_all_middles_give_the_exact_posterior(self):
        story = stories(1, seed=3)[0]
        law = grammar.prior(story.context)
        ids = tokens.encoded([story]).repeat(len(law), 1)
        ids[:, STORY_LAYOUT.middle_slice] = tokens.encoded_sentences(list(law))
        joint = torch.tensor(list(law.values())).log() + tokens.log_reward(ids)
        exact = grammar.posterior(story.context, story.ending)
        assert joint.logsumexp(0).item() == pytest.approx(
            grammar.evidence(story.context, story.ending), abs=1e-5
        )
        assert torch.allclose(joint.softmax(0), torch.tensor(list(exact.values())), atol=1e-6)

    @pytest.mark.parametrize("token", [PAD_ID, MASK_ID])
    def test_a_hole_in_the_middle_makes_it_invalid(self, token):
        ids = tokens.encoded(stories(5, seed=2))
        ids[:, 29] = token
        assert tokens.verdicts(ids) == ["invalid"] * 5
        expected = -math.log(len(grammar.all_endings()))
        assert torch.allclose(tokens.log_reward(ids), torch.full((5,), expected))


@pytest.fixture(scope="module")
def denoiser() -> TokenDenoiser:
    pytest.importorskip("transformers")
    return load_text_model(shipped_folder("story_prior")).denoiser()


def drawn_middles(denoiser: TokenDenoiser, condition: Tensor, seed: int) -> Tensor:
    diffusion = MaskedDiffusion(denoiser.vocab_size, STORY_LAYOUT.middle)
    chain = Chain(denoiser, diffusion, (STORY_LAYOUT.length,)).given(condition)
    noise = GeneratorNoise(torch.Generator().manual_seed(seed))
    return completed(rollout(chain, len(condition), noise).x_0, condition)


class TestPrior:
    def test_files_are_small_safetensors(self):
        paths = [p for p in shipped_folder("story_prior").iterdir() if p.is_file()]
        assert {p.suffix for p in paths} <= {".json", ".safetensors"}
        assert sum(p.stat().st_size for p in paths) <= 4 * MEBIBYTE

    def test_tokenizer_and_grammar_have_one_vocabulary(self):
        pytest.importorskip("transformers")
        tokenizer = load_tokenizer(shipped_folder("story_prior"))
        story = stories(1)[0]
        text = " ".join(word for sentence in story.context for word in sentence)
        ids = tokens.encoded([story])[0, : STORY_LAYOUT.context]
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[ids != PAD_ID].tolist()
        assert tokenizer.get_vocab() == {w: i for i, w in enumerate(tokens.vocabulary())}

    def test_loads_in_full_precision_and_writes_pads(self, denoiser):
        assert {p.dtype for p in denoiser.parameters()} == {torch.float32}
        assert not denoiser.allowed[MASK_ID]
        assert denoiser.allowed[PAD_ID]
        assert int(denoiser.allowed.sum()) == len(tokens.vocabulary()) - 1

    def test_writes_valid_middles_and_the_ending_selects(self, denoiser):
        """Of 200 middles 131 were valid and 53 coherent when made; with the ending shown, 130."""
        condition = tokens.story_canvas(stories(100, seed=99))
        blind = Counter(tokens.verdicts(drawn_middles(denoiser, condition, seed=0)))
        shown = condition.clone()
        shown[:, 1] = shown[:, 1].masked_fill(shown[:, 1] == SUFFIX, GIVEN)
        seeing = Counter(tokens.verdicts(drawn_middles(denoiser, shown, seed=0)))
        # Of half as many, 34 and 27 ± 5 and 65 ± 5 are expected.
        assert blind["invalid"] <= 54
        assert 8 <= blind["coherent"] <= 45
        assert seeing["coherent"] >= 46
