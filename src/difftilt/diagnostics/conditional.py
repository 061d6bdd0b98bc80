"""A certificate for each condition of an amortised sampler, and what holds on average."""

import statistics
from dataclasses import dataclass
from typing import Any

from difftilt.diagnostics.certificate import Certificate


@dataclass(frozen=True)
class ConditionalCertificate:
    """How near an amortised sampler is to the posterior of each of some conditions.

    Arguments:
        names: of the conditions, as text.
        each: their certificates, in the same order.
    """

    names: tuple[str, ...]
    each: tuple[Certificate, ...]

    @property
    def ess(self) -> float:
        """Mean effective sample size, a share."""
        return statistics.fmean(c.ess for c in self.each)

    @property
    def total_variation(self) -> float:
        """Mean of the total variations' upper bounds."""
        return statistics.fmean(c.total_variation.upper for c in self.each)

    @property
    def trust(self) -> bool:
        """Whether every condition is to be trusted."""
        return all(c.trust for c in self.each)

    @property
    def worst(self) -> str:
        """The condition with the smallest effective sample size."""
        return self.names[min(range(len(self.each)), key=lambda i: self.each[i].ess)]

    @property
    def verdict(self) -> str:
        """One sentence."""
        trusted = sum(c.trust for c in self.each)
        return (
            f"{trusted} of {len(self.each)} conditions to be trusted; TV ≤ "
            f"{self.total_variation:.2f} on average; worst: {self.worst}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries for strict JSON."""
        average = {"ess": self.ess, "total_variation": self.total_variation, "trust": self.trust}
        each = {n: c.to_dict() for n, c in zip(self.names, self.each, strict=True)}
        said = {"verdict": self.verdict, "trust": self.trust}
        return {**said, "average": average, "worst": self.worst, "each": each}

    def __str__(self) -> str:
        """A line for each condition, then the average."""
        width = max(len(name) for name in (*self.names, "average"))
        lines = [
            f"{name:<{width}}  ESS {c.ess:.3f}  {c.verdict}"
            for name, c in zip(self.names, self.each, strict=True)
        ]
        lines.append(f"{'average':<{width}}  ESS {self.ess:.3f}  {self.verdict}")
        return "\n".join(lines)
