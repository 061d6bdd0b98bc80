"""Furniture of five classes, varied by hand-written rules: the data of the shape prior.

    chair   a seat on four legs, crossed bars or a pedestal; a back of one panel, of posts or of
            rails, upright or leaning; with or without arms
    table   a rectangular or round top on four legs, two panels or a pedestal; with or without a
            lower board or a chest of drawers
    sofa    a long or short seat with a low back and two arms; with or without cushions and a chaise
    lamp    a round foot, a pole and a shade; or a desk lamp of two bent bars and a cone
    vase    a smooth profile turned about the vertical; with or without handles

Every draw has its own measures, so no two are alike. What leaves here is a cloud of points uniform
on the surface, centred, with root mean square coordinate 1 (``normalised``). All face the same way.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float, Int

from difftilt.errors import InputError
from difftilt.tasks.shapes.parts import Bar, Box, Part, Points, Revolved, disc, surface

ShapeClass = Literal["chair", "table", "sofa", "lamp", "vase"]
SHAPE_CLASSES: tuple[ShapeClass, ...] = get_args(ShapeClass)
SHARES = (0.3, 0.25, 0.15, 0.15, 0.15)

Random = np.random.Generator


def furniture(
    count: int, points: int, seed: int = 0, only: ShapeClass | None = None
) -> tuple[Float[np.ndarray, "count points 3"], Int[np.ndarray, " count"]]:
    """Clouds of ``points`` points and their classes, as numbers of ``SHAPE_CLASSES``.

    Arguments:
        count: number of shapes.
        points: of each cloud.
        seed: of all draws.
        only: one class; None for all five, in the proportions of ``SHARES``.

    Raises:
        InputError: an unknown class, or no shape or no point asked for.
    """
    if min(count, points) < 1:
        raise InputError(f"furniture needs count and points >= 1, got {count} and {points}")
    if only is not None and only not in SHAPE_CLASSES:
        raise InputError(f"no class is called {only!r}; choose one of {', '.join(SHAPE_CLASSES)}")
    random = np.random.default_rng(seed)
    labels = random.choice(len(SHAPE_CLASSES), count, p=SHARES)
    if only is not None:
        labels[:] = SHAPE_CLASSES.index(only)
    clouds = [surface(MAKERS[SHAPE_CLASSES[k]](random), points, random) for k in labels]
    return np.stack([normalised(cloud) for cloud in clouds]).astype(np.float32), labels


def normalised(points: Points) -> Points:
    """A cloud whose centroid is the origin and whose root mean square coordinate is 1."""
    centred = points - points.mean(0)
    return centred / np.sqrt(np.square(centred).mean())


def chair(random: Random) -> list[Part]:
    """A chair; 0.35 to 0.6 m wide."""
    width, depth = random.uniform(0.38, 0.58), random.uniform(0.38, 0.55)
    height, thick = random.uniform(0.38, 0.5), random.uniform(0.03, 0.09)
    seat = Box((0, 0, height - thick / 2), (width, depth, thick))
    parts: list[Part] = [seat, *_support(random, width, depth, height - thick)]
    parts += _back(random, width, depth, height)
    if random.uniform() < 0.4:
        parts += _chair_arms(random, width, depth, height)
    return parts


def _support(random: Random, width: float, depth: float, height: float) -> list[Part]:
    kind = random.choice(["legs", "bars", "pedestal"], p=[0.6, 0.2, 0.2])
    if kind == "pedestal":
        radius = random.uniform(0.18, 0.3)
        pole = Bar((0, 0, 0.03), (0, 0, height), random.uniform(0.025, 0.05))
        return [disc(radius, 0.03, 0.03), pole]
    side = random.uniform(0.025, 0.06)
    if kind == "bars":
        y, x = depth / 2 - side, width / 2 - side
        bars = [
            Bar((s * x, -f * y, 0), (s * x, f * y, height), side / 2)
            for s in (-1, 1)
            for f in (-1, 1)
        ]
        return [*bars, *(Bar((-x, f * y, 0), (x, f * y, 0), side / 2) for f in (-1, 1))]
    return legs(random, width, depth, height, side)


def legs(random: Random, width: float, depth: float, height: float, side: float) -> list[Part]:
    """Four legs under the corners of a rectangle: square, or round and splayed."""
    splay = random.uniform(0, 0.07) if random.uniform() < 0.5 else 0.0
    x, y = width / 2 - side, depth / 2 - side
    corners = [(s * x, f * y, s, f) for s in (-1, 1) for f in (-1, 1)]
    if splay > 0:
        return [
            Bar((a, b, height), (a + s * splay, b + f * splay, 0), side / 2, side / 3)
            for a, b, s, f in corners
        ]
    return [Box((a, b, height / 2), (side, side, height)) for a, b, _, _ in corners]


def _back(random: Random, width: float, depth: float, height: float) -> list[Part]:
    """A panel, posts or rails behind the seat, all leaning by one angle."""
    tall, thick = random.uniform(0.35, 0.65), random.uniform(0.025, 0.06)
    lean, y = random.uniform(0, 0.3), depth / 2 - thick / 2
    hinge, middle = (y, height), height + tall / 2

    def piece(x: float, z: float, wide: float, high: float) -> Part:
        return Box((x, y, z), (wide, thick, high), lean, hinge)

    kind = random.choice(["panel", "posts", "rails"], p=[0.45, 0.3, 0.25])
    if kind == "panel":
        gap = random.uniform(0, 0.12) if random.uniform() < 0.5 else 0.0
        return [piece(0, middle + gap / 2, width * random.uniform(0.8, 1), tall - gap)]
    frame = [piece(s * (width / 2 - 0.02), middle, 0.04, tall) for s in (-1, 1)]
    if kind == "posts":
        inner = np.linspace(-width / 2, width / 2, random.integers(3, 6) + 2)[1:-1]
        frame += [piece(float(x), middle, 0.025, tall) for x in inner]
        return [*frame, piece(0, height + tall - 0.03, width, 0.06)]
    places = np.linspace(height + tall - 0.04, height + 0.15, random.integers(2, 5))
    return [*frame, *(piece(0, float(z), width, 0.07) for z in places)]


def _chair_arms(random: Random, width: float, depth: float, height: float) -> list[Part]:
    above, thick = random.uniform(0.16, 0.26), random.uniform(0.03, 0.05)
    x, long = width / 2 + thick / 2, depth * random.uniform(0.75, 1)
    top = [Box((s * x, 0, height + above), (thick, long, thick)) for s in (-1, 1)]
    front = -long / 2 + thick / 2
    post = [Box((s * x, front, height + above / 2), (thick, thick, above + 0.05)) for s in (-1, 1)]
    return [*top, *post]


def table(random: Random) -> list[Part]:
    """A table; 0.5 to 2 m long, 0.4 to 1.1 m high."""
    height, thick = random.uniform(0.4, 0.8), random.uniform(0.02, 0.06)
    if random.uniform() < 0.3:
        return _round_table(random, height, thick)
    width = random.uniform(0.7, 1.8)
    depth = width * random.uniform(0.4, 0.9)
    top = Box((0, 0, height - thick / 2), (width, depth, thick))
    if random.uniform() < 0.25:
        x = width / 2 - random.uniform(0.03, 0.15)
        high, deep = height - thick, depth * random.uniform(0.8, 1)
        return [top, *(Box((s * x, 0, high / 2), (0.04, deep, high)) for s in (-1, 1))]
    parts = [top, *legs(random, width, depth, height - thick, random.uniform(0.04, 0.09))]
    extra = random.uniform()
    if extra < 0.25:
        low = height * random.uniform(0.2, 0.45)
        parts.append(Box((0, 0, low), (width * 0.9, depth * 0.9, 0.025)))
    elif extra < 0.45:
        wide, high = width * random.uniform(0.25, 0.35), height * random.uniform(0.4, 0.8)
        side = random.choice([-1, 1]) * (width / 2 - wide / 2 - 0.03)
        parts.append(Box((side, 0, height - thick - high / 2), (wide, depth * 0.85, high)))
    return parts


def _round_table(random: Random, height: float, thick: float) -> list[Part]:
    radius = random.uniform(0.3, 0.7)
    top = disc(radius, height, thick)
    if random.uniform() < 0.5:
        return [top, *legs(random, 1.4 * radius, 1.4 * radius, height - thick, 0.05)]
    pole = Bar((0, 0, 0.03), (0, 0, height - thick), random.uniform(0.03, 0.07))
    return [top, pole, disc(radius * random.uniform(0.5, 0.8), 0.03, 0.03)]


def sofa(random: Random) -> list[Part]:
    """A sofa; 1 to 2.4 m wide."""
    width, depth = random.uniform(1.0, 2.4), random.uniform(0.75, 1.0)
    foot, seat = random.uniform(0.04, 0.15), random.uniform(0.36, 0.46)
    arm, arm_height = random.uniform(0.1, 0.28), random.uniform(0.5, 0.68)
    back, back_height = random.uniform(0.14, 0.26), random.uniform(0.68, 0.95)
    inner = width - 2 * arm
    parts: list[Part] = [
        Box((0, -back / 2, (foot + seat) / 2), (inner, depth - back, seat - foot)),
        Box((0, depth / 2 - back / 2, (foot + back_height) / 2), (width, back, back_height - foot)),
    ]
    for s in (-1, 1):
        centre = (s * (width - arm) / 2, -back / 2, (foot + arm_height) / 2)
        parts.append(Box(centre, (arm, depth - back, arm_height - foot)))
    corners = [(s * (width / 2 - 0.08), f * (depth / 2 - 0.08)) for s in (-1, 1) for f in (-1, 1)]
    parts += [Box((x, y, foot / 2), (0.06, 0.06, foot)) for x, y in corners]
    return parts + _cushions(random, inner, depth, back, seat)


def _cushions(random: Random, inner: float, depth: float, back: float, seat: float) -> list[Part]:
    kind = random.uniform()
    if kind < 0.4:
        places = (np.arange(count := int(random.integers(1, 4))) + 0.5) / count - 0.5
        size, y = (0.94 * inner / count, 0.16, 0.36), depth / 2 - back - 0.08
        return [Box((float(p) * inner, y, seat + 0.18), size, 0.2, (y, seat)) for p in places]
    if kind < 0.6:
        wide, long = 0.4 * inner, random.uniform(0.5, 0.8)
        x = random.choice([-1, 1]) * (inner - wide) / 2
        return [Box((x, -depth / 2 - long / 2, seat / 2 + 0.05), (wide, long, seat - 0.1))]
    return []


def lamp(random: Random) -> list[Part]:
    """A lamp for the floor, a table or a desk; 0.3 to 1.8 m high."""
    if random.uniform() < 0.3:
        return _desk_lamp(random)
    height = random.uniform(0.4, 1.6)
    shade, wide = height * random.uniform(0.18, 0.4), random.uniform(0.12, 0.26)
    narrow, foot = wide * random.uniform(0.45, 1.0), wide * random.uniform(0.5, 1.0)
    low = height - shade
    parts: list[Part] = [
        disc(foot, 0.03, 0.03),
        Revolved(((wide, low), (narrow, height))),
        Bar((0, 0, 0.03), (0, 0, low + 0.3 * shade), random.uniform(0.012, 0.03)),
    ]
    if random.uniform() < 0.35 and height < 0.9:
        belly = random.uniform(0.06, 0.12)
        parts.append(Revolved(((0.02, low * 0.9), (belly, low * 0.45), (0.5 * belly, 0.03))))
    return parts


def _desk_lamp(random: Random) -> list[Part]:
    foot, thick = random.uniform(0.08, 0.13), random.uniform(0.01, 0.018)
    first, second = random.uniform(0.25, 0.45), random.uniform(0.2, 0.4)
    back, down = random.uniform(0.2, 0.7), random.uniform(-0.3, 0.8)
    knee = (0.0, first * np.sin(back), 0.03 + first * np.cos(back))
    head = (0.0, knee[1] - second * np.cos(down), knee[2] + second * np.sin(down))
    drop = random.uniform(0.1, 0.16)
    mouth = (0.0, head[1] - 0.5 * drop, head[2] - drop)
    cone = Bar(head, mouth, 0.025, random.uniform(0.07, 0.11))
    return [disc(foot, 0.03, 0.03), Bar((0, 0, 0.03), knee, thick), Bar(knee, head, thick), cone]


def vase(random: Random) -> list[Part]:
    """A vase, a bowl or a jug; as wide as high, up to four times as high."""
    height, widest = 1.0, random.uniform(0.12, 0.5)
    knots = np.concatenate([[random.uniform(0.35, 0.9)], random.uniform(0.3, 1.0, 3)])
    knots = widest * knots / knots.max()
    z = np.linspace(0, 1, 24)
    # A cosine between the knots: smooth, and never outside them.
    place = z * (len(knots) - 1)
    left = np.minimum(place.astype(int), len(knots) - 2)
    share = (1 - np.cos(np.pi * (place - left))) / 2
    radius = (1 - share) * knots[left] + share * knots[left + 1]
    wall = [(float(r), float(h) * height) for r, h in zip(radius, z, strict=True)]
    parts: list[Part] = [Revolved(((0.0, 0.0), *wall))]
    if random.uniform() < 0.3:
        parts += _handles(radius, z, random)
    return parts


def _handles(radius: np.ndarray, z: np.ndarray, random: Random) -> list[Part]:
    low, high, out = random.uniform(0.3, 0.5), random.uniform(0.65, 0.9), random.uniform(0.12, 0.2)
    ends = [float(np.interp(h, z, radius)) for h in (low, high)]
    far = max(ends) + out
    sides = [1] if random.uniform() < 0.5 else [-1, 1]
    found: list[Part] = []
    for s in sides:
        corners = [(s * ends[0], 0.0, low), (s * far, 0.0, low + 0.05)]
        corners += [(s * far, 0.0, high - 0.05), (s * ends[1], 0.0, high)]
        found += [Bar(a, b, 0.025) for a, b in pairwise(corners)]
    return found


MAKERS: dict[ShapeClass, Callable[[Random], list[Part]]] = {
    "chair": chair,
    "table": table,
    "sofa": sofa,
    "lamp": lamp,
    "vase": vase,
}
