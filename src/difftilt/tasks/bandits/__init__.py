"""Offline control whose answer is known: contextual bandits, and a process of two steps."""

from difftilt.tasks.bandits.line import LineLaw, line_law
from difftilt.tasks.bandits.mixtures import ContextualDenoiser, ContextualMixture
from difftilt.tasks.bandits.problems import LARGEST_BETA, Bandit
from difftilt.tasks.bandits.truth import BestOf, Distances, Policy, distances, optimal
from difftilt.tasks.bandits.two_step import TwoStep

__all__ = [
    "LARGEST_BETA",
    "Bandit",
    "BestOf",
    "ContextualDenoiser",
    "ContextualMixture",
    "Distances",
    "LineLaw",
    "Policy",
    "TwoStep",
    "distances",
    "line_law",
    "optimal",
]
