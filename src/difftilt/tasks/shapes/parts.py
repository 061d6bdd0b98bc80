"""Solids whose surfaces can be drawn from: boxes, bars and solids of revolution.

A shape is a list of parts. Points are uniform on its surface: a part gets them in proportion to its
area, and draws them uniformly on itself. Units are metres, z is up and y is depth; the front of a
shape looks towards negative y. Surfaces inside another part are drawn from as well, as they are
from the meshes of real data sets.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

Vector = tuple[float, float, float]
Points = Float[np.ndarray, "n 3"]


class Part(ABC):
    """A surface."""

    @property
    @abstractmethod
    def area(self) -> float:
        """In square metres."""

    @abstractmethod
    def sample(self, n: int, random: np.random.Generator) -> Points:
        """``n`` points, uniform on the surface."""


@dataclass(frozen=True)
class Box(Part):
    """The six faces of a box.

    Arguments:
        centre: of the box, before it is tilted.
        size: of its edges.
        tilt: angle about the x axis through ``hinge``, radians; positive leans back.
        hinge: (y, z) of the axis.
    """

    centre: Vector
    size: Vector
    tilt: float = 0.0
    hinge: tuple[float, float] = (0.0, 0.0)

    @cached_property
    def _faces(self) -> np.ndarray:
        x, y, z = self.size
        return np.array([y * z, x * z, x * y])

    @property
    def area(self) -> float:
        return 2 * float(self._faces.sum())

    def sample(self, n: int, random: np.random.Generator) -> Points:
        points = random.uniform(-0.5, 0.5, (n, 3))
        axis = random.choice(3, n, p=self._faces / self._faces.sum())
        points[np.arange(n), axis] = random.choice([-0.5, 0.5], n)
        points = points * self.size + self.centre
        return points if self.tilt == 0 else self._tilted(points)

    def _tilted(self, points: Points) -> Points:
        y, z = points[:, 1] - self.hinge[0], points[:, 2] - self.hinge[1]
        cosine, sine = np.cos(self.tilt), np.sin(self.tilt)
        back = self.hinge[0] + cosine * y + sine * z
        return np.stack([points[:, 0], back, self.hinge[1] - sine * y + cosine * z], 1)


@dataclass(frozen=True)
class Bar(Part):
    """The mantle of a round bar between two points.

    Arguments:
        start: one end of its axis.
        end: the other.
        radius: at the start.
        end_radius: at the end; None for the same.
    """

    start: Vector
    end: Vector
    radius: float
    end_radius: float | None = None

    @property
    def _ends(self) -> tuple[float, float]:
        return self.radius, self.radius if self.end_radius is None else self.end_radius

    @cached_property
    def _axis(self) -> np.ndarray:
        return np.subtract(self.end, self.start)

    @property
    def area(self) -> float:
        first, last = self._ends
        slant = np.hypot(np.linalg.norm(self._axis), last - first)
        return float(np.pi * (first + last) * slant)

    def sample(self, n: int, random: np.random.Generator) -> Points:
        share = _along(*self._ends, random.uniform(size=n))
        first, last = self._ends
        radius = first + share * (last - first)
        angle = random.uniform(0, 2 * np.pi, n)
        across = np.stack([radius * np.cos(angle), radius * np.sin(angle)], 1) @ self._normals
        return np.asarray(self.start) + share[:, None] * self._axis + across

    @cached_property
    def _normals(self) -> np.ndarray:
        """Two directions across the axis."""
        axis = self._axis / np.linalg.norm(self._axis)
        other = np.eye(3)[np.abs(axis).argmin()]
        first = np.cross(axis, other)
        first /= np.linalg.norm(first)
        return np.stack([first, np.cross(axis, first)])


@dataclass(frozen=True)
class Revolved(Part):
    """A profile turned about a vertical axis.

    Arguments:
        profile: (radius, height) of the corners, from one end of the profile to the other.
        x: of the axis.
        y: of the axis.
    """

    profile: tuple[tuple[float, float], ...]
    x: float = 0.0
    y: float = 0.0

    @cached_property
    def _pieces(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ends of each straight piece (k, 2) and its area."""
        corners = np.asarray(self.profile)
        first, last = corners[:-1], corners[1:]
        slant = np.linalg.norm(last - first, axis=1)
        return first, last, np.pi * (first[:, 0] + last[:, 0]) * slant

    @property
    def area(self) -> float:
        return float(self._pieces[2].sum())

    def sample(self, n: int, random: np.random.Generator) -> Points:
        first, last, areas = self._pieces
        piece = random.choice(len(areas), n, p=areas / areas.sum())
        share = _along(first[piece, 0], last[piece, 0], random.uniform(size=n))[:, None]
        radius, height = ((1 - share) * first[piece] + share * last[piece]).T
        angle = random.uniform(0, 2 * np.pi, n)
        return np.stack(
            [self.x + radius * np.cos(angle), self.y + radius * np.sin(angle), height], 1
        )


def disc(radius: float, height: float, thickness: float, x: float = 0.0, y: float = 0.0) -> Part:
    """A round plate, closed above and below; ``height`` is that of its upper face."""
    low = height - thickness
    return Revolved(((0.0, low), (radius, low), (radius, height), (0.0, height)), x, y)


def surface(parts: Sequence[Part], n: int, random: np.random.Generator) -> Points:
    """``n`` points, uniform on the surfaces of some parts together."""
    areas = np.array([part.area for part in parts])
    counts = random.multinomial(n, areas / areas.sum())
    drawn = [part.sample(k, random) for part, k in zip(parts, counts, strict=True) if k]
    return np.concatenate(drawn)


def _along(first: float | np.ndarray, last: float | np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Where on a cone's slant a uniform point of its mantle lies, by the inverse of its CDF.

    The density at share s is proportional to the radius ``first + s (last - first)``.
    """
    # s solves s first + s² (last - first)/2 = u (first + last)/2; this root holds for equal radii.
    root = np.sqrt((1 - uniform) * np.square(first) + uniform * np.square(last))
    total = first + root
    return uniform * (first + last) / np.where(total > 0, total, 1)
