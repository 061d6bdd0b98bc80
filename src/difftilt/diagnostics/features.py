"""What a set of samples, or of their features, looks like beside itself and beside another set."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.errors import InputError


@torch.no_grad()
def diversity(
    rows: Shaped[Tensor, "B ..."],
    condition: Tensor | None = None,
    *,
    limit: int = 2000,
    generator: torch.Generator | None = None,
) -> float:
    """Mean distance of pairs of samples, of one condition each; nan where there is no pair.

        Σ_{i<j} |x_i - x_j| / number of pairs

    Of tokens: the mean share of positions at which two samples differ.

    Arguments:
        rows: samples or features of them.
        condition: (B, ...) what each is given, or None.
        limit: the largest number of rows whose pairs are all visited; a random subset of that
            many stands for a larger set.
        generator: draws that subset.
    """
    x = rows.flatten(1)
    if len(x) > limit:
        chosen = torch.randperm(len(x), generator=generator)[:limit].to(x.device)
        x, condition = x[chosen], None if condition is None else condition[chosen]
    if x.is_floating_point():
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        # Without matrix products, whose rounding depends on the machine's threads.
        distance = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    else:
        distance = (x[:, None] != x[None]).double().mean(2)
    alike = torch.ones_like(distance, dtype=torch.bool)
    if condition is not None:
        flat = condition.reshape(len(x), -1).to(x.device)
        alike = (flat[:, None] == flat[None]).all(2)
    found = distance[alike.triu(1)].double()
    return float(found.mean()) if len(found) else math.nan


def frechet_distance(features_a: Float[Tensor, " A F"], features_b: Float[Tensor, " B F"]) -> float:
    """Squared Fréchet distance between the Gaussians that have the two sets' moments.

        |m_a - m_b|² + tr(C_a + C_b - 2 (C_a C_b)^½)

    It is biased upwards by about tr(C)·(1/A + 1/B) at least, so compare it with the distance of
    two sets of real images of the same sizes.

    Raises:
        InputError: a set has fewer than two rows, or the widths differ.

    Source: Dowson and Landau (1982); as a score of generators, Heusel et al. (2017), eq. 6, there
    with Inception features, here with those of a classifier.
    """
    if min(len(features_a), len(features_b)) < 2 or features_a.shape[1] != features_b.shape[1]:
        raise InputError(
            "the Fréchet distance needs two (n, F) sets of at least 2 rows with one F; these are "
            f"{tuple(features_a.shape)} and {tuple(features_b.shape)}"
        )
    a, b = features_a.double(), features_b.double()
    cov_a, cov_b = _covariance(a), _covariance(b)
    # tr (C_a C_b)^½ is the sum of the singular values of C_a^½ C_b^½: no complex matrix root.
    cross = torch.linalg.svdvals(_symmetric_root(cov_a) @ _symmetric_root(cov_b)).sum()
    shift = (a.mean(0) - b.mean(0)).square().sum()
    return max(0.0, (shift + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def _covariance(rows: Float[Tensor, " B F"]) -> Float[Tensor, " F F"]:
    return torch.cov(rows.T).reshape(rows.shape[1], rows.shape[1])


def _symmetric_root(matrix: Float[Tensor, " F F"]) -> Float[Tensor, " F F"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T
