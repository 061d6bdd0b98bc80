"""Calibration of samplers with a known fault: exact, too narrow, shifted, discrete."""

import pytest
import torch

from difftilt.diagnostics.calibration import calibration
from difftilt.errors import InputError

PAIRS, DRAWS = 2000, 99


def simulated(scale: float = 1.0, shift: float = 0.0, seed: int = 0):
    """``x ~ N(0, 1)``, ``y = x + N(0, 1)``; the posterior is ``N(y / 2, 1/2)``."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(PAIRS, generator=generator, dtype=torch.float64)
    y = x + torch.randn(PAIRS, generator=generator, dtype=torch.float64)
    noise = torch.randn(PAIRS, DRAWS, generator=generator, dtype=torch.float64)
    return x, shift + y[:, None] / 2 + scale * 0.5**0.5 * noise


def test_an_exact_sampler_is_calibrated():
    """False-alarm rate 1e-3; coverage within 5 binomial standard errors."""
    found = calibration(*simulated())
    assert found.p_value > 1e-3
    assert int(found.ranks.min()) >= 0 and int(found.ranks.max()) <= DRAWS
    for level in (0.5, 0.9):
        error = (level * (1 - level) / PAIRS) ** 0.5
        assert abs(found.coverage(level) - level) < 5 * error


@pytest.mark.parametrize("fault", [{"scale": 0.7}, {"scale": 1.4}, {"shift": 0.2}])
def test_faults_are_seen(fault):
    assert calibration(*simulated(**fault)).p_value < 1e-6


def test_too_narrow_a_sampler_covers_too_little():
    assert calibration(*simulated(scale=0.5)).coverage(0.9) < 0.75


def test_ties_are_broken_at_random():
    """A statistic that is constant has uniform ranks, not all zero."""
    x, draws = simulated()
    found = calibration(0 * x, 0 * draws, generator=torch.Generator().manual_seed(1))
    assert found.p_value > 1e-3


def test_bad_input_is_named():
    x, draws = simulated()
    with pytest.raises(InputError, match="at least 50 pairs"):
        calibration(x[:20], draws[:20])
    with pytest.raises(InputError, match=r"got 2000 pairs of L = 98 draws"):
        calibration(x, draws[:, 1:])
    with pytest.raises(InputError, match=r"level must lie in \(0, 1\), got 1"):
        calibration(x, draws).coverage(1.0)
