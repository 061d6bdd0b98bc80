"""Turning clouds: each in its tile, near over far, and a still first view for those who ask."""

import base64
import io
import re

import numpy as np
from PIL import Image

from difftilt.report.run_folder import Samples
from difftilt.report.turntable import COLUMNS, SHADES, TILE, VIEWS, turntable, view


def _clouds(n: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 64, 3)).astype(np.float32)


def test_the_table_turns_and_a_still_picture_stands_beside():
    markup = turntable("posterior", _clouds(7), 'seven "clouds"')
    still, moving = (
        Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'base64,([^"]+)"', markup)
    )
    assert getattr(moving, "n_frames", 1) == VIEWS and getattr(still, "n_frames", 1) == 1
    assert moving.size == still.size == (COLUMNS * TILE, 2 * TILE)
    assert "prefers-reduced-motion" in markup and "&quot;clouds&quot;" in markup
    assert np.array_equal(np.asarray(moving), np.asarray(still)), "the first view"
    moving.seek(VIEWS // 4)
    assert not np.array_equal(np.asarray(moving.convert("RGBA")), np.asarray(still.convert("RGBA")))


def test_near_points_cover_far_ones_and_up_is_up():
    """Seen from the front (angle 0): nearer is more negative y; z points up."""
    pair = np.array([[[0.0, -1.0, 0.364], [0.0, 1.0, -0.364]]])  # one behind the other
    sheet = view(pair, 0.0, 20.0)
    assert sheet.max() == SHADES and set(np.unique(sheet)) == {0, SHADES}
    stacked = np.array([[[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]]])
    rows = np.nonzero(view(stacked, 1.0, 20.0))[0]
    assert rows.min() < TILE / 2 < rows.max()


def test_what_is_not_finite_is_not_drawn():
    broken = _clouds(1)
    broken[0, :3] = np.nan
    assert view(broken, 0.3, 20.0).any()
    assert len(turntable("prior", np.full((1, 4, 3), np.nan), "nothing")) > 0


def test_a_cloud_is_told_from_other_rows_of_three():
    assert Samples(_clouds(2), None).kind == "cloud"
    assert Samples(np.zeros((2, 8, 3)), None).kind == "other"
    assert Samples(np.zeros((2, 64, 2)), None).kind == "other"
