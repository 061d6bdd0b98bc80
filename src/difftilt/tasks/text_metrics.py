"""How near generated sentences are to reference ones: BLEU-4, GLEU-4, token similarity, variety.

All scores are tables (stories, samples): several generated sentences for each story's one
reference. ``protocol`` sums a table up as the field does: the mean over stories of each round of
samples, then mean and standard deviation over the rounds; and it adds an interval from resampled
stories, which is how far another set of stories could have moved the mean.

BLEU and GLEU are nltk's (extra ``text``), on words split at white space. ``greedy_similarity`` has
the formula of BERTScore on any embedder's token vectors: its values are comparable with each other,
not with those of another embedder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from difftilt.errors import InputError, require

Samples = Sequence[Sequence[str]]
"""Generated sentences: for each story, its samples."""
Embedder = Callable[[Sequence[str]], Sequence[Tensor]]
"""From texts to (T, d) vectors of each text's tokens."""


@dataclass(frozen=True)
class Summary:
    """A score over stories and rounds of samples.

    Arguments:
        mean: over stories and samples.
        spread: standard deviation, over the rounds, of the mean over stories; 0 for one round.
        low: lower end of the interval of the mean, from resampled stories.
        high: its upper end.
    """

    mean: float
    spread: float
    low: float
    high: float

    def __str__(self) -> str:
        """``0.025 ± 0.002 [0.021, 0.030]``."""
        return f"{self.mean:.3f} ± {self.spread:.3f} [{self.low:.3f}, {self.high:.3f}]"


def protocol(
    scores: Float[Tensor, "stories samples"],
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Summary:
    """Sum a table of scores up: mean ± standard deviation over rounds, interval over stories.

    Arguments:
        scores: one row per story; column k is round k.
        confidence: of the interval, in (0, 1).
        resamples: of the stories.
        seed: of the resampling.

    Raises:
        InputError: no score, or a single story.

    Source: the five samples for each of 100 stories of Venkatraman et al. 2024, table 3 (arXiv
    2405.20971); percentile bootstrap, Efron 1979.
    """
    if len(scores) < 2 or not scores.numel():
        raise InputError(
            f"scores of shape {tuple(scores.shape)}; give 2 stories or more, each scored"
        )
    from scipy.stats import bootstrap

    rounds, stories = scores.double().mean(0), scores.double().mean(1).numpy()
    interval = bootstrap(
        (stories,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    spread = float(rounds.std()) if len(rounds) > 1 else 0.0
    return Summary(float(rounds.mean()), spread, float(interval.low), float(interval.high))


def bleu(samples: Samples, references: Sequence[str]) -> Float[Tensor, "stories samples"]:
    """Sentence BLEU of up to four words, with smoothing method 1 (0.1 for a count of 0).

    Raises:
        InputError: stories without the same number of samples, or without a reference.
        MissingPackage: nltk is not installed.

    Source: Papineni et al. 2002; Chen and Cherry 2014, section 3.
    """
    score = require("nltk.translate.bleu_score", "text")
    smooth = score.SmoothingFunction().method1
    return _table(
        samples,
        references,
        lambda words, wanted: score.sentence_bleu([wanted], words, smoothing_function=smooth),
    )


def gleu(samples: Samples, references: Sequence[str]) -> Float[Tensor, "stories samples"]:
    """Sentence GLEU of one to four words: the smaller of precision and recall of n-grams.

    Raises:
        InputError: stories without the same number of samples, or without a reference.
        MissingPackage: nltk is not installed.

    Source: Wu et al. 2016, section 5.2 (arXiv 1609.08144).
    """
    score = require("nltk.translate.gleu_score", "text")
    return _table(samples, references, lambda words, wanted: score.sentence_gleu([wanted], words))


def greedy_similarity(
    samples: Samples, references: Sequence[str], embedder: Embedder, baseline: float = 0.0
) -> Float[Tensor, "stories samples"]:
    """F1 of the best cosine match of each token, as BERTScore has it, without word weights.

        P = mean_i max_j cos(s_i, r_j),   R = mean_j max_i cos(s_i, r_j),   F = 2 P R / (P + R)

    Arguments:
        samples: generated sentences; one without a word scores 0.
        references: one sentence per story.
        embedder: token vectors of texts, e.g. ``SentenceEmbedder(model, tokenizer).tokens``.
        baseline: F of unrelated sentences, which is put at 0: ``(F - baseline) / (1 - baseline)``.

    Raises:
        InputError: stories without the same number of samples, or without a reference; or a
            baseline of 1 or more.

    Source: Zhang et al. 2020, equations 2 to 4 (arXiv 1904.09675).
    """
    _check(samples, references)
    if not baseline < 1:
        raise InputError(f"baseline={baseline} must be below 1, the score of equal sentences")
    rows = []
    for row, reference in zip(samples, references, strict=True):
        wanted, *found = embedder([reference, *row])
        said = [bool(text.split()) for text in row]
        pairs = zip(found, said, strict=True)
        rows.append([matching(states, wanted) if some else 0.0 for states, some in pairs])
    return (torch.tensor(rows) - baseline) / (1 - baseline)


def distinct(samples: Samples, n: int = 2) -> Float[Tensor, " stories"]:
    """Share of different n-grams among all n-grams of a story's samples, in [0, 1].

    Arguments:
        samples: generated sentences.
        n: words of an n-gram, at least 1; a story without any scores 0.

    Raises:
        InputError: n below 1.

    Source: Li et al. 2016, section 4 (arXiv 1510.03055).
    """
    if n < 1:
        raise InputError(f"n={n} must be at least 1 word")
    shares = []
    for row in samples:
        words = [text.split() for text in row]
        grams = [tuple(w[i : i + n]) for w in words for i in range(len(w) - n + 1)]
        shares.append(len(set(grams)) / max(1, len(grams)))
    return torch.tensor(shares)


def matching(found: Float[Tensor, "T d"], wanted: Float[Tensor, "S d"]) -> float:
    """F1 of the best cosine match of each token (``greedy_similarity``), in [-1, 1]."""
    cosines = _directions(found) @ _directions(wanted).T
    precision, recall = cosines.amax(1).mean(), cosines.amax(0).mean()
    return float(2 * precision * recall / (precision + recall))


def _check(samples: Samples, references: Sequence[str]) -> None:
    counts = {len(row) for row in samples}
    if len(samples) != len(references) or len(counts) != 1:
        raise InputError(
            f"{len(samples)} stories with {sorted(counts)} samples and {len(references)} "
            "references; give each story as many samples as the others and one reference"
        )


def _table(
    samples: Samples,
    references: Sequence[str],
    score: Callable[[list[str], list[str]], float],
) -> Float[Tensor, "stories samples"]:
    """A score of every sample's words against its story's."""
    _check(samples, references)
    return torch.tensor(
        [
            [float(score(text.split(), reference.split())) for text in row]
            for row, reference in zip(samples, references, strict=True)
        ],
        dtype=torch.float64,
    )


def _directions(states: Tensor) -> Float[Tensor, "T d"]:
    return torch.nn.functional.normalize(torch.as_tensor(states).double(), dim=1)
