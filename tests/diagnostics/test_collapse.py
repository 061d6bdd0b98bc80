"""The alarm of reward hacking as a function of numbers."""

import math

import pytest
import torch

from difftilt.diagnostics.collapse import OwnPaths, collapse, mean_divergence


def rows(log_r: float, ess: float, spread: float, noise: float = 0.5, first: int = 1):
    """Ten updates around given means; log r alternates by ± noise."""
    return [OwnPaths(first + i, log_r + noise * (-1) ** i, ess, spread) for i in range(10)]


START = rows(-3.0, 0.3, 2.0)


@pytest.mark.parametrize(
    ("log_r", "ess", "spread", "what"),
    [
        (0.0, 0.05, 2.0, "effective sample size"),
        (0.0, 0.12, 0.4, "diversity"),
        (0.0, 0.30, 0.4, None),  # alike, and weighed as evenly as before
        (0.0, 0.08, 0.55, None),  # neither is below a quarter
        (0.0, 0.70, 0.1, None),  # a narrow posterior: alike, with even weights
        (-3.0, 0.05, 0.1, None),  # the reward has not risen
        (-2.6, 0.05, 0.1, None),  # within three standard errors (0.24 each end, 1.7 of both)
        (-9.0, 0.05, 0.1, None),  # it has fallen
    ],
)
def test_the_rule(log_r: float, ess: float, spread: float, what: str | None):
    found = collapse(START, rows(log_r, ess, spread, first=50))
    assert (None if found is None else found.what) == what


def test_the_share_decides():
    last = rows(0.0, 0.12, 2.0)
    assert collapse(START, last) is None
    assert collapse(START, last, share=0.5) is not None


def test_too_few_updates_say_nothing():
    assert collapse(START[:1], rows(0.0, 0.01, 0.1)) is None
    assert collapse(START, rows(0.0, 0.01, 0.1)[:1]) is None


def test_the_sentence_names_what_rose_and_what_fell():
    sentence = str(collapse(START, rows(0.0, 0.05, 1.5, first=50)))
    assert sentence.startswith("reward hacking by update 59: mean log r rose from -3 to 0 while")
    assert "effective sample size 0.3 to 0.05, diversity 2 to 1.5" in sentence


def test_an_objective_that_aims_at_the_posterior_gets_other_advice():
    sentence = str(collapse(START, rows(0.0, 0.05, 1.5, first=50), consistent=True))
    assert sentence.startswith("leaving the posterior by update 59: mean log r rose from -3 to 0")
    assert "lower the learning rate" in sentence and "RTB" not in sentence


def test_equal_laws_raise_false_alarms_at_most_once_in_a_hundred(generator):
    """Noisy log r around one mean, ess and diversity collapsed: three errors, Student's tails."""
    fired = 0
    for _ in range(1000):
        log_r = torch.randn(15, generator=generator).tolist()
        first = [OwnPaths(i, x, 0.3, 2.0) for i, x in enumerate(log_r[:5])]
        last = [OwnPaths(i, x, 0.01, 0.1) for i, x in enumerate(log_r[5:])]
        fired += collapse(first, last) is not None
    # P(t_13 > 3) = 0.0051; fifteen or more of a thousand have probability 3e-4.
    assert fired < 15


def test_the_divergence_of_gaussians(generator):
    """``KL(N(0.5, 1) ‖ N(0, 1)) = 1/8``, within five standard errors."""
    x = 0.5 + torch.randn(20_000, generator=generator, dtype=torch.float64)
    ratio = (x**2 - (x - 0.5) ** 2) / 2
    assert abs(mean_divergence(ratio) - 0.125) < 5 * 0.5 / math.sqrt(20_000)
    assert math.isnan(mean_divergence(torch.zeros(0)))
