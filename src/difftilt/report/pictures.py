"""Draws of a sampler as a reader can see them: a grid of images, or a cloud of 2-D points."""

import base64
import io
from pathlib import Path

import numpy as np

from difftilt.errors import require
from difftilt.report.drawing import FIXED, canvas
from difftilt.report.markup import Html, tag

GRID_SIDE = 640  # pixels: bounds the size of the file whatever the size of the images
LARGEST_TILE = 160
MOST_COLUMNS = 8
FEWEST_COLUMNS = 4
GAP = 2
MOST_POINTS = 4_000
POINT_AREA = 6.0  # square pixels

Limits = tuple[tuple[float, float], tuple[float, float]]


def image_grid(x_0: np.ndarray, description: str) -> Html:
    """The first images, up to 8 x 8, as one PNG inside an ``img``.

    Images wider than 80 pixels are fewer, wider than 160 are reduced as well.

    Arguments:
        x_0: (n, 1, H, W) or (n, 3, H, W) in [-1, 1], n ≥ 1; what is outside is clipped.
        description: alternative text.

    Raises:
        MissingPackage: pillow is not installed.
    """
    image = require("PIL.Image", "report")
    tiles = _tiles(x_0[: images_shown(x_0)])
    sheet = _sheet(tiles, min(columns_shown(x_0), len(tiles)))
    buffer = io.BytesIO()
    image.fromarray(sheet).save(buffer, format="PNG", optimize=True)
    height, width = sheet.shape[:2]
    source = _inline(buffer.getvalue(), "png")
    return tag(
        "img", src=source, alt=description, width=str(width), height=str(height), class_="pixels"
    )


def picture_file(path: Path, description: str) -> Html:
    """A PNG, GIF or SVG file as an ``img`` that holds all of it.

    Raises:
        OSError: it cannot be read.
    """
    return tag(
        "img", src=_inline(path.read_bytes(), path.suffix[1:]), alt=description, class_="picture"
    )


def _inline(content: bytes, kind: str) -> str:
    media = {"svg": "svg+xml"}.get(kind, kind)
    return f"data:image/{media};base64," + base64.b64encode(content).decode("ascii")


def columns_shown(x_0: np.ndarray) -> int:
    """Images in a row of the grid."""
    side = min(max(x_0.shape[2:]), LARGEST_TILE)
    return max(FEWEST_COLUMNS, min(MOST_COLUMNS, GRID_SIDE // max(1, side)))


def images_shown(x_0: np.ndarray) -> int:
    """How many of the images the grid holds."""
    return min(len(x_0), columns_shown(x_0) ** 2)


def _tiles(x_0: np.ndarray) -> np.ndarray:
    """(k, h, w, 1 or 4) bytes, no side above ``LARGEST_TILE``."""
    grey = np.nan_to_num(x_0, nan=-1.0, posinf=1.0, neginf=-1.0).clip(-1, 1)
    tiles = np.rint((grey + 1) * 127.5).astype(np.uint8).transpose(0, 2, 3, 1)
    longest = max(tiles.shape[1:3])
    return tiles if longest <= LARGEST_TILE else _reduced(tiles, LARGEST_TILE / longest)


def _reduced(tiles: np.ndarray, scale: float) -> np.ndarray:
    image = require("PIL.Image", "report")
    size = tuple(max(1, round(scale * side)) for side in (tiles.shape[2], tiles.shape[1]))
    squeezed = [tile[..., 0] if tile.shape[-1] == 1 else tile for tile in tiles]
    reduced = [np.asarray(image.fromarray(tile).resize(size)) for tile in squeezed]
    return np.stack(reduced).reshape(len(tiles), size[1], size[0], tiles.shape[-1])


def _sheet(tiles: np.ndarray, columns: int) -> np.ndarray:
    """Tiles row by row, with transparent gaps: (H, W, 2) grey and alpha, or (H, W, 4)."""
    count, height, width, channels = tiles.shape
    rows = -(-count // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP, channels + 1)
    sheet = np.zeros(size, dtype=np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        sheet[top : top + height, left : left + width, :channels] = tile
        sheet[top : top + height, left : left + width, channels] = 255
    return sheet


def shared_limits(clouds: list[np.ndarray]) -> Limits:
    """Axes of one scale that hold nearly all points of every cloud.

    Arguments:
        clouds: arrays (n, 2); what is not finite is ignored, as is the outermost 0.1 %.
    """
    points = np.concatenate([_finite_points(cloud) for cloud in clouds])
    if not len(points):
        return (-1.0, 1.0), (-1.0, 1.0)
    low, high = np.quantile(points, [0.001, 0.999], axis=0)
    middle, half = (low + high) / 2, 0.55 * max(float((high - low).max()), 1e-6)
    ends = [(float(m - half), float(m + half)) for m in middle]
    return ends[0], ends[1]


def point_cloud(name: str, x_0: np.ndarray, limits: Limits, description: str) -> Html:
    """The first 4,000 points as a scatter plot.

    Arguments:
        name: of the sampler, "prior", "posterior" or "corrected".
        x_0: (n, 2).
        limits: of the two axes.
        description: alternative text.
    """
    points = _finite_points(x_0)[:MOST_POINTS]
    with canvas(f"cloud-{name}", description, 320, 320) as drawing:
        axes = drawing.axes
        opacity = float(np.clip(30 / np.sqrt(max(1, len(points))), 0.35, 0.9))
        axes.scatter(
            points[:, 0],
            points[:, 1],
            s=POINT_AREA,
            c=FIXED[name],
            alpha=opacity,
            linewidths=0,
            rasterized=True,
        )
        axes.set(xlim=limits[0], ylim=limits[1], aspect="equal")
        axes.locator_params(nbins=5)
    return drawing.svg


def _finite_points(points: np.ndarray) -> np.ndarray:
    return points[np.isfinite(points).all(axis=1)]
