"""Resampling schemes: unbiased counts, and how far a count may stray."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from difftilt.errors import InputError
from difftilt.smc.resampling import SCHEMES, _invert, resample

WEIGHTS = torch.tensor([0.0, 0.03, 0.4, 0.0, 0.07, 0.25, 0.25, 0.0], dtype=torch.float64)
STRAYING = {"systematic": 1.0, "stratified": 2.0, "residual": math.inf, "multinomial": math.inf}


def counts(scheme: str, n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.bincount(SCHEMES[scheme](WEIGHTS.log(), n, generator), minlength=8)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [5, 20])
def test_counts_are_unbiased_and_zero_weights_never_drawn(scheme: str, n: int, generator):
    trials = 800
    drawn = torch.stack([counts(scheme, n, generator) for _ in range(trials)]).double()
    assert bool((drawn.sum(1) == n).all())
    assert drawn[:, WEIGHTS == 0].sum() == 0
    error = drawn.std(0) / math.sqrt(trials)
    assert bool(((drawn.mean(0) - n * WEIGHTS).abs() <= 5 * error + 1e-9).all())


@pytest.mark.parametrize("scheme", SCHEMES)
def test_noise_is_at_most_that_of_multinomial(scheme: str, generator):
    """Variance of a count ≤ n W (1 - W), with 5 standard errors of a variance (800 draws: 0.05)."""
    drawn = torch.stack([counts(scheme, 20, generator) for _ in range(800)]).double()
    multinomial = 20 * WEIGHTS * (1 - WEIGHTS)
    assert bool((drawn.var(0) <= multinomial * (1 + 5 * 0.05) + 1e-9).all())


@given(
    log_w=st.lists(st.floats(-30, 30), min_size=1, max_size=30),
    n=st.integers(1, 60),
    seed=st.integers(0, 2**20),
)
def test_counts_stray_no_further_than_the_scheme_allows(log_w: list[float], n: int, seed: int):
    log_weights = torch.tensor(log_w, dtype=torch.float64)
    mean = n * torch.softmax(log_weights, 0)
    for name, scheme in SCHEMES.items():
        index = scheme(log_weights, n, torch.Generator().manual_seed(seed))
        count = torch.bincount(index, minlength=len(log_w)).double()
        assert len(index) == n
        assert bool(((count - mean).abs() <= STRAYING[name] + 1e-6).all())
        if name == "residual":
            assert bool((count >= mean.floor() - 1e-6).all() or (mean % 1 > 1 - 1e-6).any())


@pytest.mark.parametrize("scheme", ["residual", "systematic"])
def test_equal_weights_keep_every_particle(scheme: str, generator):
    for k in (1, 3, 7, 100):
        index = resample(torch.full((k,), -800.0), scheme=scheme, generator=generator)
        assert index.sort().values.tolist() == list(range(k))


def test_the_generator_decides(generator):
    log_w = torch.randn(50, generator=generator)
    for scheme in SCHEMES:
        first, again = (
            resample(log_w, 30, scheme, torch.Generator().manual_seed(4)) for _ in range(2)
        )
        assert torch.equal(first, again)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_impossible_weights_are_refused(scheme: str):
    with pytest.raises(InputError, match="none to resample"):
        resample(torch.full((4,), -math.inf), scheme=scheme)
    with pytest.raises(InputError, match=r"log_w\[1\] = nan"):
        resample(torch.tensor([0.0, math.nan]), scheme=scheme)
    with pytest.raises(InputError, match="n must be at least 1"):
        resample(torch.zeros(4), 0, scheme)


def test_unknown_scheme():
    with pytest.raises(InputError, match="'bootstrap' is not one of multinomial"):
        resample(torch.zeros(4), scheme="bootstrap")


def test_points_on_an_edge_fall_to_a_particle_of_positive_weight():
    """0 with a leading weight of 0, an inner edge, and 1, to which a strided grid may round."""
    weights = torch.tensor([0.0, 0.5, 0.0, 0.5, 0.0], dtype=torch.float64)
    edges = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    assert _invert(weights, edges).tolist() == [1, 3, 3]
