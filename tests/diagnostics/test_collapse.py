"""The alarm of reward hacking as a function of numbers."""

import math

import pytest
import torch

from difftilt.diagnostics.collapse import (
    OwnPaths,
    Weights,
    collapse,
    effective_share,
    mean_divergence,
    weights_of,
)


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


def by_numbers(log_w: torch.Tensor, condition: torch.Tensor) -> float:
    """The share of the module's docstring, a condition at a time."""
    above = below = 0.0
    for label in condition.unique():
        w = log_w[condition == label].double().exp()
        m = len(w)
        products = (w[:, None] * w[None]).sum() - (w**2).sum()
        above += float(m * products / (m * (m - 1)) / w.mean() ** 2)
        below += float(m * (w**2).mean() / w.mean() ** 2)
    return above / below


def by_update(log_w: torch.Tensor, condition: torch.Tensor) -> list[Weights]:
    """The weights of updates of eight paths."""
    parts = zip(log_w.split(8), condition.split(8), strict=True)
    return [w for k, (one, label) in enumerate(parts) for w in weights_of(one, label, 1.0, k)]


def test_labels_are_compared_across_updates(generator):
    log_w = 1.5 * torch.randn(24, generator=generator)
    condition = torch.arange(24) % 3
    found = effective_share(by_update(log_w, condition))
    assert found == pytest.approx(by_numbers(log_w, condition))
    # log Z of a condition does not matter.
    assert effective_share(by_update(log_w + 30 * condition, condition)) == pytest.approx(found)


def test_what_has_another_log_z_is_not_compared():
    log_w, label = torch.tensor([0.0, 9.0]), torch.tensor([1])
    betas = [w for k in (0, 1) for w in weights_of(log_w[[k]], label, 0.5 + k, 1)]
    assert len(betas) == 2 and effective_share(betas) == 1.0
    vector = torch.tensor([[0.5, 1.0]])
    assert weights_of(log_w[:1], vector, 1.0, 1) == ()
    (pair,) = weights_of(log_w, vector.expand(2, 2), 1.0, 1)
    (other,) = weights_of(log_w + 50, vector.expand(2, 2), 1.0, 2)
    assert effective_share([pair, other]) == pytest.approx(effective_share([pair]))


@pytest.mark.parametrize("together", [2, 400])
def test_the_share_of_log_normal_weights(generator, together: int):
    """Pairs: with d the difference, A = sech²(d / 2), B = 2 - A; many paths: ``exp(-σ²)``."""
    count, sigma = 40_000, 0.8
    condition = torch.arange(count) // together
    log_z = 5 * torch.randn(count // together, generator=generator)
    log_w = log_z[condition] + sigma * torch.randn(count, generator=generator)
    ess = effective_share(weights_of(log_w, condition, 1.0, 1))
    d = 2**0.5 * sigma * torch.linspace(-8, 8, 4001, dtype=torch.float64)
    law = torch.softmax(-((d / (2**0.5 * sigma)) ** 2) / 2, 0)
    pairs = float((law / (d / 2).cosh() ** 2).sum())
    wanted = pairs / (2 - pairs) if together == 2 else math.exp(-(sigma**2))
    # A is in [0, 1]; else five errors of (mean w)² / mean w² by the delta method, and 1 / m.
    v = math.exp(sigma**2)
    error = 1.0 if together == 2 else math.sqrt(v**4 - 4 * v**2 + 4 * v - 1) / v
    assert abs(ess - wanted) < 5 * error / math.sqrt(count) + (together > 2) * 2 / together


def test_two_paths_can_be_as_uneven_as_many():
    even, uneven = torch.tensor([3.0, 3.0]), torch.tensor([3.0, -40.0])
    label = torch.zeros(2, dtype=torch.long)
    assert effective_share(weights_of(even, label, 1.0, 1)) == pytest.approx(1.0)
    assert effective_share(weights_of(uneven, label, 1.0, 1)) == pytest.approx(0.0, abs=1e-9)


def test_weights_of_zero():
    log_w = torch.tensor([1.0, -math.inf, 5.0, -math.inf, -math.inf])
    found = weights_of(log_w, torch.tensor([0, 0, 1, 2, 2]), 1.0, 1)
    assert [(w.paths, w.log_sum, w.log_square) for w in found] == [(2, 1.0, 2.0), (1, 5.0, 10.0)]
    assert effective_share(found) == 0.0
    assert weights_of(log_w, None, 1.0, 1) == ()


def test_the_rule_reads_weights_where_there_are_any():
    label = torch.zeros(8, dtype=torch.long)
    even, uneven = torch.zeros(8), -10 * torch.arange(8.0)

    def row(step: int, log_w: torch.Tensor) -> OwnPaths:
        return OwnPaths(step, 0.1 * step, 0.9, 2.0, weights_of(log_w, label, 1.0, step))

    start = [row(k, even) for k in (1, 2, 3)]
    found = collapse(start, [row(k, uneven) for k in (90, 91, 92)])
    assert found is not None and found.start.ess == pytest.approx(1.0)
    assert found.present.ess < 0.2
    assert collapse(start, [row(k, even) for k in (90, 91, 92)]) is None


def test_the_divergence_of_gaussians(generator):
    """``KL(N(0.5, 1) ‖ N(0, 1)) = 1/8``, within five standard errors."""
    x = 0.5 + torch.randn(20_000, generator=generator, dtype=torch.float64)
    ratio = (x**2 - (x - 0.5) ** 2) / 2
    assert abs(mean_divergence(ratio) - 0.125) < 5 * 0.5 / math.sqrt(20_000)
    assert math.isnan(mean_divergence(torch.zeros(0)))
