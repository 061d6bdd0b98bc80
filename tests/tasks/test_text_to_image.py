"""The shipped text-to-image prior, its reward and its judge; figures of pictures by prompt."""

import math

import pytest
import torch

from difftilt.errors import CheckpointError, InputError
from difftilt.tasks import text_to_image
from difftilt.tasks.emoji_words import (
    COLOURS,
    PAIRS,
    TEMPLATES,
    THINGS,
    caption,
    index_of,
    is_held_out,
    pair_of,
)
from difftilt.tasks.picture_figures import PromptPictures, accepted, picture_figures
from difftilt.tasks.text_to_image import (
    held_out_prompts,
    load_caption_reward,
    load_picture_judge,
    text_to_image_prior_folder,
)


def test_every_template_names_its_pair():
    for template in range(len(TEMPLATES)):
        for number, (colour, thing) in enumerate(PAIRS):
            prompt = caption(colour, thing, template)
            assert pair_of(prompt) == (colour, thing) and index_of(prompt) == number


@pytest.mark.parametrize("prompt", ["a rabbit", "a green", "a green red rabbit", "", "a green cow"])
def test_a_prompt_names_one_colour_and_one_thing(prompt: str):
    with pytest.raises(InputError, match="one of the colours"):
        pair_of(prompt)


def test_each_word_is_seen_and_a_quarter_of_the_pairs_is_not():
    seen = [pair for pair in PAIRS if not is_held_out(*pair)]
    assert len(held_out_prompts()) == len(PAIRS) // 4 and "a green rabbit" in held_out_prompts()
    assert {c for c, _ in seen} == set(COLOURS) and {t for _, t in seen} == set(THINGS)


def test_the_tokenizer_knows_every_word_as_one_token():
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(text_to_image_prior_folder() / "tokenizer")
    for template in TEMPLATES:
        prompt = template.format(colour="purple", thing="butterfly")
        assert len(tokenizer(prompt).input_ids) == 2 + len(prompt.split())


def test_log_r_is_a_law_over_the_pairs():
    reward, images = load_caption_reward(), torch.rand(4, 3, 32, 32)
    log_probs = reward.log_probs(images)
    assert log_probs.shape == (4, len(PAIRS))
    torch.testing.assert_close(log_probs.exp().sum(1), torch.ones(4))
    prompts = [caption(*PAIRS[k]) for k in (3, 3, 100, 255)]
    expected = log_probs[torch.arange(4), torch.tensor([3, 3, 100, 255])]
    torch.testing.assert_close(reward(images, prompts), expected)


def test_bad_pictures_and_prompts_are_named(unchecked):
    reward, judge = load_caption_reward(), load_picture_judge()
    with pytest.raises(InputError, match="as many prompts"):
        reward(torch.rand(2, 3, 32, 32), ["a green rabbit"])
    with pytest.raises(InputError, match=r"must be \(B, 3, 32, 32\)"):
        judge.seen(torch.rand(2, 1, 28, 28))


def test_a_missing_model_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path):
    monkeypatch.setattr(text_to_image, "picture_reward_folder", lambda: tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="nowhere cannot be used"):
        load_caption_reward()


def _pictures(count: int, centre: float, generator: torch.Generator) -> PromptPictures:
    features = torch.randn(count, 3, generator=generator) + centre
    right = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).repeat(count // 2, 1)
    return PromptPictures(features, right, torch.full((count,), math.log(0.25)))


def test_figures_are_of_one_prompt_averaged():
    """Two prompts far apart: nothing of the distance between them is counted as diversity."""
    generator = torch.Generator().manual_seed(0)
    near = [_pictures(400, 0.0, generator), _pictures(400, 100.0, generator)]
    again = [_pictures(400, 0.0, generator), _pictures(400, 100.0, generator)]
    found = picture_figures(near, again)
    assert found["colour"] == 1.0 and found["thing"] == 0.5 and found["right"] == 0.5
    assert found["log_r"] == pytest.approx(math.log(0.25))
    # E|X - X'| of standard normal vectors in three dimensions is 4 / sqrt(π).
    assert found["diversity"] == pytest.approx(4 / math.sqrt(math.pi), rel=0.05)
    assert abs(found["energy"]) < 0.05
    moved = picture_figures(near, [again[0], _pictures(400, 103.0, generator)])
    assert moved["energy"] > 1


def test_rejection_keeps_pictures_with_probability_r_to_beta():
    """Share kept 0.25^2 = 0.0625 of 20,000; wrong in one of 10^6 by 5 standard errors."""
    generator = torch.Generator().manual_seed(1)
    prior = _pictures(20_000, 0.0, generator)
    share = len(accepted(prior, 2.0, generator).log_r) / 20_000
    assert abs(share - 0.0625) < 5 * math.sqrt(0.0625 * 0.9375 / 20_000)
    above = PromptPictures(prior.features, prior.right, prior.log_r + 2)
    with pytest.raises(InputError, match="log r <= 0"):
        accepted(above, 1.0, generator)
