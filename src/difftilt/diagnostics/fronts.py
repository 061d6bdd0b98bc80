"""Two figures that pull against each other: what a family of samplers can have of both."""

from collections.abc import Sequence
from itertools import combinations


def front_height(points: Sequence[tuple[float, float]], x: float) -> float | None:
    """The most of y that samplers, or mixtures of two of them, have with at least so much of x.

    The upper concave hull of the points. A mixture's mean reward is the mean of theirs, and its
    mean pairwise distance at least that mean, as no energy distance is negative: so what lies on a
    line between two points is reached by drawing from one or the other.

    Arguments:
        points: (x, y) of each sampler, more being better.
        x: where the front is asked for.

    Returns:
        its height; None beyond the largest x of the points.
    """
    reached = [y for there, y in points if there >= x]
    lines = [
        y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        for (x0, y0), (x1, y1) in combinations(sorted(points), 2)
        if x0 < x < x1
    ]
    return max(reached + lines, default=None)
