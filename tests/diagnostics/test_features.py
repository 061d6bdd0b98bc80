"""Diversity against its formula, the Fréchet distance against closed forms and a matrix root."""

import math

import numpy as np
import pytest
import torch

from difftilt.diagnostics.features import diversity, frechet_distance
from difftilt.errors import InputError


def gaussian_rows(count: int, mean: list[float], deviation: list[float], seed: int) -> torch.Tensor:
    """Rows whose sample mean and covariance are exactly the given ones (diagonal)."""
    rows = torch.randn(
        count, len(mean), generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    rows = rows - rows.mean(0)
    whitener = torch.linalg.inv(torch.linalg.cholesky(torch.cov(rows.T)))
    return rows @ whitener.T * torch.tensor(deviation) + torch.tensor(mean)


class TestDiversity:
    def test_of_a_right_triangle(self):
        corners = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
        assert diversity(corners) == pytest.approx((3 + 4 + 5) / 3)

    def test_of_copies_is_zero(self):
        assert diversity(torch.ones(5, 4)) == 0

    def test_subset_estimates_the_whole(self):
        """In one dimension the mean distance of standard normals is 2/√π, sd of the estimate
        below 0.85/√500·√2; 5 standard errors are allowed."""
        rows = torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
        value, again, other = (
            diversity(rows, limit=500, generator=torch.Generator().manual_seed(seed))
            for seed in (1, 1, 2)
        )
        assert value == pytest.approx(2 / math.sqrt(math.pi), abs=5 * 0.85 * math.sqrt(2 / 500))
        assert value == again != other

    def test_is_the_mean_over_pairs(self, generator):
        x = torch.randn(7, 2, 3, generator=generator)
        pairs = [(x[i] - x[j]).norm() for i in range(7) for j in range(i)]
        assert diversity(x) == pytest.approx(float(torch.stack(pairs).mean()), rel=1e-6)
        tokens = torch.tensor([[1, 2, 3, 4], [1, 2, 3, 5], [9, 2, 8, 4]])
        assert diversity(tokens) == pytest.approx((1 + 2 + 3) / 3 / 4)

    def test_compares_within_a_condition_only(self):
        x = torch.tensor([[0.0], [1.0], [100.0], [103.0]])
        assert diversity(x, torch.tensor([0, 0, 1, 1])) == pytest.approx(2.0)
        assert diversity(x, torch.tensor([[0, 1], [0, 2], [1, 1], [1, 1]])) == pytest.approx(3.0)
        assert math.isnan(diversity(x, torch.arange(4)))

    @pytest.mark.parametrize("rows", [0, 1])
    def test_no_pair_has_none(self, rows):
        assert math.isnan(diversity(torch.zeros(rows, 3)))


class TestFrechetDistance:
    def test_closed_form_of_diagonal_gaussians(self):
        """|m_a - m_b|² + Σ (s_a - s_b)² when the covariances commute."""
        a = gaussian_rows(50, [0.0, 1.0, 2.0], [1.0, 2.0, 0.5], seed=0)
        b = gaussian_rows(80, [1.0, 1.0, 0.0], [3.0, 2.0, 1.5], seed=1)
        expected = (1 + 0 + 4) + (4 + 0 + 1)
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)

    def test_equals_the_matrix_root_of_general_covariances(self):
        from scipy.linalg import sqrtm

        generator = torch.Generator().manual_seed(0)
        a, b = (
            torch.randn(40, 6, generator=generator, dtype=torch.float64)
            @ torch.randn(6, 6, generator=generator, dtype=torch.float64)
            for _ in range(2)
        )
        cov_a, cov_b = np.cov(a.T.numpy()), np.cov(b.T.numpy())
        shift = (a.mean(0) - b.mean(0)).square().sum().item()
        root = np.trace(np.real(sqrtm(cov_a @ cov_b)))
        expected = shift + np.trace(cov_a) + np.trace(cov_b) - 2 * root
        assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)

    def test_is_zero_for_itself_also_when_the_covariance_is_singular(self):
        rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
        assert frechet_distance(rows, rows) == pytest.approx(0, abs=1e-5)

    def test_is_symmetric(self):
        a = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))
        b = 2 * torch.randn(20, 4, generator=torch.Generator().manual_seed(1)) + 1
        assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))

    @pytest.mark.usefixtures("unchecked")
    def test_sets_must_fit(self):
        with pytest.raises(InputError, match=r"\(4, 3\) and \(4, 2\)"):
            frechet_distance(torch.zeros(4, 3), torch.zeros(4, 2))
