"""Metrics of text: by hand, by enumeration, and by what they must not change with."""

import math

import pytest
import torch

from difftilt.errors import InputError
from difftilt.tasks.text_metrics import bleu, distinct, gleu, greedy_similarity, protocol

REFERENCE = "the cat sat on the mat"


def test_bleu_by_hand():
    samples = [[REFERENCE, "the cat sat on a mat", "a dog"]]
    equal, near, far = bleu(samples, [REFERENCE])[0].tolist()
    assert equal == pytest.approx(1)
    # n-grams that agree, of 6, 5, 4, 3: 5, 3, 2, 1.
    assert near == pytest.approx((5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    assert far == 0


def test_bleu_smooths_counts_of_zero_and_punishes_brevity():
    ((found,),) = bleu([["the cat sat a b c"]], [REFERENCE]).tolist()
    assert found == pytest.approx((3 / 6 * 2 / 5 * 1 / 4 * 0.1 / 3) ** 0.25)
    ((short,),) = bleu([["the cat sat on"]], [REFERENCE]).tolist()
    assert short == pytest.approx(math.exp(1 - 6 / 4))


def test_gleu_by_hand():
    ((found,),) = gleu([["the cat ran"]], [REFERENCE]).tolist()
    # 2 of 3 words and 1 of 2 pairs agree; the reference has 6 + 5 + 4 + 3 n-grams.
    assert found == pytest.approx(3 / 18)


def test_greedy_similarity_by_hand():
    vectors = {"e": [2.0, 0.0], "n": [0.0, 1.0], "d": [3.0, 3.0]}

    def embedder(texts):
        return [torch.tensor([vectors[w] for w in t.split()] or [[1.0, 0.0]]) for t in texts]

    found = greedy_similarity([["e n", "n", "d", ""]], ["e n"], embedder)[0].tolist()
    half = math.sqrt(0.5)
    wanted = [1.0, 2 * 1 * 0.5 / 1.5, half, 0.0]
    assert found == pytest.approx(wanted)
    rescaled = greedy_similarity([["e n", "n", "d", ""]], ["e n"], embedder, baseline=0.5)
    assert rescaled[0].tolist() == pytest.approx([2 * w - 1 for w in wanted])
    with pytest.raises(InputError, match="below 1"):
        greedy_similarity([["e"]], ["e"], embedder, baseline=1.0)


def test_distinct_counts_over_all_samples_of_a_story():
    samples = [["a b a b", "a b"], ["a", ""]]
    assert distinct(samples, 1).tolist() == pytest.approx([2 / 6, 1.0])
    assert distinct(samples, 2).tolist() == pytest.approx([2 / 4, 0.0])
    with pytest.raises(InputError, match="n=0"):
        distinct(samples, 0)


def test_the_protocol_is_over_rounds_and_stories():
    scores = torch.tensor([[0.1, 0.3], [0.5, 0.9], [0.0, 0.6]])
    summary = protocol(scores)
    assert summary.mean == pytest.approx(0.4)
    assert summary.spread == pytest.approx(abs(0.2 - 0.6) / math.sqrt(2))
    assert 0.2 <= summary.low < 0.4 < summary.high <= 0.7
    assert protocol(scores[:, :1]).spread == 0
    assert str(summary).startswith("0.400 ± 0.283 [0.")
    with pytest.raises(InputError, match="2 stories or more"):
        protocol(scores[:1])


def test_the_interval_covers_the_mean_as_often_as_it_says(generator: torch.Generator):
    covered = 0
    for trial in range(300):
        scores = torch.rand((60, 2), generator=generator)
        summary = protocol(scores, confidence=0.9, resamples=200, seed=trial)
        covered += summary.low <= 0.5 <= summary.high
    # Binomial(300, 0.9): five standard errors are 26; the percentile interval is a little short.
    assert abs(covered - 270) < 26


def test_tables_must_be_whole():
    with pytest.raises(InputError, match="as many samples"):
        bleu([["a"], ["a", "b"]], ["a", "b"])
    with pytest.raises(InputError, match="one reference"):
        gleu([["a"], ["b"]], ["a"])
