"""Clouds of points on a turntable: one animated picture of a grid of them, all turning together.

Points are drawn as small discs, the near ones over the far ones; near is the sampler's colour and
far is grey, on a transparent ground, so that it reads on a light page and on a dark one. A reader
who has asked for less motion gets the first view alone.
"""

import base64
import io

import numpy as np

from difftilt.errors import require
from difftilt.report.drawing import FIXED
from difftilt.report.markup import Html, tag

TILE = 132  # pixels
COLUMNS = 5
MOST_CLOUDS = COLUMNS * COLUMNS
VIEWS = 24
SECONDS = 6.0
ELEVATION = 0.35  # radians above the horizon
FIRST_VIEW = 0.6  # radians to the side of the front
SHADES = 12
FAR = (166, 166, 166)
DISC = [(i, j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
TRANSPARENT = 0


def turntable(name: str, clouds: np.ndarray, description: str) -> Html:
    """The first clouds, up to 5 x 5, turning once in six seconds.

    Arguments:
        name: of the sampler, "prior", "posterior" or "corrected".
        clouds: (n, P, 3), n ≥ 1, z up; what is not finite is not drawn.
        description: alternative text.

    Raises:
        MissingPackage: pillow is not installed.
    """
    shown = clouds[:MOST_CLOUDS]
    scale = _scale(shown)
    sheets = [view(shown, FIRST_VIEW + 2 * np.pi * k / VIEWS, scale) for k in range(VIEWS)]
    moving, still = (_gif(part, _palette(FIXED[name])) for part in (sheets, sheets[:1]))
    height, width = sheets[0].shape
    source = tag("source", srcset=_data(still), media="(prefers-reduced-motion: reduce)")
    picture = tag("img", src=_data(moving), alt=description, width=str(width), height=str(height))
    return tag("picture", source, picture)


def view(clouds: np.ndarray, angle: float, scale: float) -> np.ndarray:
    """All clouds from one side, (H, W) numbers of colours; 0 is the ground, 1 the farthest.

    Arguments:
        clouds: (n, P, 3).
        angle: of the table, radians.
        scale: pixels per unit.
    """
    columns = min(COLUMNS, len(clouds))
    rows = -(-len(clouds) // columns)
    sheet = np.zeros((rows * TILE, columns * TILE), dtype=np.uint8)
    for index, cloud in enumerate(clouds):
        top, left = index // columns * TILE, index % columns * TILE
        sheet[top : top + TILE, left : left + TILE] = _tile(cloud, angle, scale)
    return sheet


def _scale(clouds: np.ndarray) -> float:
    """Pixels per unit such that nearly every point of every cloud is inside its tile."""
    finite = clouds[np.isfinite(clouds).all(2)]
    reach = np.quantile(np.linalg.norm(finite, axis=1), 0.995) if len(finite) else 1.0
    return 0.47 * TILE / max(float(reach), 1e-6)


def _tile(cloud: np.ndarray, angle: float, scale: float) -> np.ndarray:
    points = cloud[np.isfinite(cloud).all(1)]
    across, up, near = _turned(points, angle).T * scale
    order = near.argsort()
    x = np.rint(TILE / 2 + across[order]).astype(int)
    y = np.rint(TILE / 2 - up[order]).astype(int)
    share = (near[order] - near.min(initial=0)) / max(float(np.ptp(near)) if len(near) else 0, 1e-6)
    shade = (1 + np.rint(share * (SHADES - 1))).astype(np.uint8)
    tile = np.zeros((TILE, TILE), dtype=np.uint8)
    inside = (x > 0) & (x < TILE - 1) & (y > 0) & (y < TILE - 1)
    # Far points first, whole discs, so that near discs cover them.
    rows = np.concatenate([y[inside, None] + [i for i, _ in DISC]], 1)
    cols = np.concatenate([x[inside, None] + [j for _, j in DISC]], 1)
    tile[rows.ravel(), cols.ravel()] = np.repeat(shade[inside], len(DISC))
    return tile


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Across, up and towards the reader of each point, (P, 3)."""
    cosine, sine = np.cos(angle), np.sin(angle)
    across = cosine * points[:, 0] + sine * points[:, 1]
    away = cosine * points[:, 1] - sine * points[:, 0]
    up = np.cos(ELEVATION) * points[:, 2] + np.sin(ELEVATION) * away
    near = np.sin(ELEVATION) * points[:, 2] - np.cos(ELEVATION) * away
    return np.stack([across, up, near], 1)


def _palette(colour: str) -> list[int]:
    """The ground, then from grey to the colour."""
    end = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)])
    share = np.linspace(0, 1, SHADES)[:, None]
    shades = np.rint((1 - share) * np.array(FAR) + share * end).astype(int)
    return [255, 255, 255, *shades.ravel().tolist()]


def _gif(sheets: list[np.ndarray], palette: list[int]) -> bytes:
    image = require("PIL.Image", "report")
    frames = []
    for sheet in sheets:
        frame = image.fromarray(sheet, mode="P")
        frame.putpalette(palette)
        frames.append(frame)
    buffer = io.BytesIO()
    frames[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=frames[1:],
        duration=round(1000 * SECONDS / VIEWS),
        loop=0,
        transparency=TRANSPARENT,
        disposal=2,
        optimize=False,
    )
    return buffer.getvalue()


def _data(gif: bytes) -> str:
    return "data:image/gif;base64," + base64.b64encode(gif).decode("ascii")
