"""Problems whose posterior is known: the truth by which every claim is judged."""

from collections.abc import Callable
from functools import partial

from difftilt.tasks.exact.base import ExactProblem, Truth, rejection_paths
from difftilt.tasks.exact.grid25 import gmm9of25, rare_corner
from difftilt.tasks.exact.linear_gaussian import (
    centred_gaussian,
    linear_gaussian,
    linear_gaussian_isotropic,
)
from difftilt.tasks.exact.neural import neural_ring8
from difftilt.tasks.exact.toys import TOYS, ring8, toy_problem
from difftilt.tasks.exact.wells import wells

__all__ = ["ExactProblem", "Truth", "problems", "rejection_paths"]


def problems() -> dict[str, Callable[[], ExactProblem]]:
    """Builders of every exact problem, by name; each is built (and its truth computed) on call."""
    builders: dict[str, Callable[[], ExactProblem]] = {"gmm9of25": gmm9of25}
    for d in (2, 10, 50):
        builders[f"linear_gaussian_d{d}"] = partial(linear_gaussian, d)
        builders[f"linear_gaussian_isotropic_d{d}"] = partial(linear_gaussian_isotropic, d)
    builders["centred_gaussian_n4"] = partial(centred_gaussian, 4)
    for alpha in (3, 10, 20):
        builders[f"ring8_alpha{alpha}"] = partial(ring8, float(alpha))
    builders |= {name: partial(toy_problem, name) for name in TOYS}
    builders |= {f"wells_d{d}": partial(wells, d) for d in (8, 32)}
    builders["rare_corner"] = rare_corner
    builders["neural_ring8"] = neural_ring8
    return builders
