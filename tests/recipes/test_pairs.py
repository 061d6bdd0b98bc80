"""Paired comparisons: seeds averaged, problems apart, narrower than unpaired intervals."""

import re

import torch

from difftilt.recipes.tables.pairs import gains, story_means
from difftilt.tasks.text_metrics import protocol


def row(problem: str, method: str, seed: int, scores: torch.Tensor) -> dict[str, object]:
    named = {"problem": problem, "method": method, "seed": seed}
    return named | {"by_story": story_means({"log_r": scores})}


def numbers(text: str) -> list[float]:
    return [float(found) for found in re.findall(r"[+-][0-9.]+", text)]


def test_the_gain_is_the_mean_difference_and_its_interval_leaves_out_what_stories_share():
    generator = torch.Generator().manual_seed(0)
    stories = 5 * torch.randn(40, 1, generator=generator)
    noise = 0.1 * torch.randn(3, 40, 2, generator=generator)
    base, first, second = stories + noise[0], stories + 1 + noise[1], stories + 3 + noise[2]
    rows = [row("a", "rtb", 0, first), row("a", "rtb", 1, second), row("a", "prompted", 0, base)]
    (found,) = gains(rows, "rtb", ["log_r"])
    assert found["method"] == "rtb over prompted"
    gain, low, high = numbers(found["log_r"])
    assert abs(gain - 2) < 0.1 and low < gain < high
    # Of a single mean: about 2 * 5 / sqrt(40) each way.
    alone = protocol(base)
    assert high - low < 0.1 < 2 < alone.high - alone.low


def test_problems_are_kept_apart_and_a_method_without_rows_has_no_gains():
    scores = torch.arange(6.0).reshape(3, 2)
    rows = [row("a", "rtb", 0, scores), row("b", "rtb", 0, scores), row("b", "prior", 0, scores)]
    assert [found["problem"] for found in gains(rows, "rtb", ["log_r"])] == ["b"]
    assert numbers(gains(rows, "rtb", ["log_r"])[0]["log_r"]) == [0.0, 0.0, 0.0]
    assert gains(rows, "wake", ["log_r"]) == []
    assert gains([{"problem": "a", "method": "rtb"}], "rtb", ["log_r"]) == []
