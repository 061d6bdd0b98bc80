"""Problems whose posterior is known: the truth by which every claim is judged."""

from collections.abc import Callable

from difftilt.tasks.exact.base import ExactProblem, Truth, rejection_paths
from difftilt.tasks.exact.grid25 import gmm9of25, rare_corner

__all__ = ["ExactProblem", "Truth", "problems", "rejection_paths"]


def problems() -> dict[str, Callable[[], ExactProblem]]:
    """Builders of every exact problem, by name; each is built (and its truth computed) on call."""
    return {
        "gmm9of25": gmm9of25,
        "rare_corner": rare_corner,
    }
