"""Which steps of a path get a gradient, and with which weight."""

import pytest
import torch

from difftilt.errors import InputError
from difftilt.objectives.base import kinds
from difftilt.objectives.pathwise import (
    AdjointMatching,
    AlignProp,
    DRaFT,
    KLControl,
    PathwiseObjective,
    suffix_weights,
)

ROWS = 6
EVERY = [
    KLControl(),
    KLControl("random"),
    AlignProp(),
    AlignProp(3, kl=0.5),
    DRaFT(2),
    DRaFT(1, kl=1.0),
]


@pytest.mark.parametrize("rows", [2, 3, 21])
def test_the_random_suffix_is_unbiased(rows: int):
    """Over its S equally likely lengths, every row's weight has mean 1; by enumeration."""
    every = [suffix_weights(rows, last, unbiased=True) for last in range(1, rows)]
    assert torch.allclose(torch.stack(every).mean(0), torch.ones(rows, dtype=torch.float64))


def test_a_suffix_is_the_steps_next_to_the_data():
    assert suffix_weights(5, 1).tolist() == [1, 0, 0, 0, 0]
    assert suffix_weights(5, 3).tolist() == [1, 1, 1, 0, 0]
    assert suffix_weights(5, 4).tolist() == suffix_weights(5, 99).tolist() == [1] * 5
    assert suffix_weights(5, 3, unbiased=True).tolist() == pytest.approx([1, 4 / 3, 2, 0, 0])


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        (KLControl(), [1] * ROWS),
        (AlignProp(truncation=None), [1] * ROWS),
        (AlignProp(truncation=2), [1, 1, 0, 0, 0, 0]),
        (DRaFT(), [1, 0, 0, 0, 0, 0]),
        (DRaFT(last=5), [1] * ROWS),
        (AdjointMatching(), [1] * ROWS),
    ],
)
def test_fixed_weights(objective: PathwiseObjective, weights: list[float], generator):
    assert objective.weights(ROWS, generator).tolist() == weights


@pytest.mark.parametrize("objective", [KLControl("random"), AlignProp()])
def test_random_lengths_are_uniform(objective: PathwiseObjective, generator):
    """5,000 draws of 5 lengths; each count within 5 standard errors of 1,000."""
    lengths = [int((objective.weights(ROWS, generator)[:-1] > 0).sum()) for _ in range(5000)]
    counts = torch.bincount(torch.tensor(lengths), minlength=ROWS)
    assert counts[0] == 0
    assert float((counts[1:] - 1000).abs().max()) < 5 * (5000 * 0.2 * 0.8) ** 0.5


def test_the_published_truncation_is_not_reweighted(generator):
    found = {tuple(AlignProp().weights(ROWS, generator).tolist()) for _ in range(200)}
    assert found == {tuple(suffix_weights(ROWS, last).tolist()) for last in range(1, ROWS)}


@pytest.mark.parametrize("objective", [*EVERY, AdjointMatching()])
def test_what_they_say_of_themselves(objective: PathwiseObjective):
    assert objective.door == "pathwise" and objective.on_policy
    maximises = isinstance(objective, AlignProp | DRaFT)
    assert objective.consistent is not maximises
    assert objective.divergence_weight == (objective.kl if maximises else 1.0)
    assert kinds()[type(objective).__name__] is type(objective)


def test_out_of_range(unchecked):
    with pytest.raises(InputError, match="truncation='half'"):
        KLControl(truncation="half")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="truncation=0"):
        AlignProp(truncation=0)
    with pytest.raises(InputError, match="last=0"):
        DRaFT(last=0)
    for kind in (AlignProp, DRaFT):
        with pytest.raises(InputError, match="kl=-1"):
            kind(kl=-1.0)
