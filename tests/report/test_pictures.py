import base64
import io

import numpy as np
import pytest
from PIL import Image

from difftilt.report.pictures import GAP, image_grid, images_shown, point_cloud, shared_limits


def _decoded(markup: str) -> np.ndarray:
    data = markup.split("base64,")[1].split('"')[0]
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


@pytest.mark.parametrize("channels", [1, 3])
def test_each_image_stands_in_its_place(channels):
    values = np.random.default_rng(0).uniform(-1, 1, (70, channels, 5, 6)).astype(np.float32)
    sheet = _decoded(image_grid(values, "grid"))
    assert sheet.shape == (8 * (5 + GAP) - GAP, 8 * (6 + GAP) - GAP, channels + 1)
    for index in (0, 7, 8, 37, 63):
        top, left = index // 8 * (5 + GAP), index % 8 * (6 + GAP)
        tile = sheet[top : top + 5, left : left + 6]
        expected = np.rint((values[index] + 1) * 127.5).transpose(1, 2, 0)
        assert np.array_equal(tile[..., :channels], expected)
        assert (tile[..., channels] == 255).all()
    assert (sheet[5 : 5 + GAP, :, channels] == 0).all(), "gaps show the page"


def test_values_outside_the_range_are_clipped():
    values = np.array([-9.0, 9.0, np.nan, np.inf]).reshape(1, 1, 2, 2)
    assert _decoded(image_grid(values, "grid"))[..., 0].tolist() == [[0, 255], [0, 255]]


def test_fewer_images_than_a_row():
    assert _decoded(image_grid(np.zeros((3, 1, 4, 4)), "grid")).shape == (4, 3 * (4 + GAP) - GAP, 2)


@pytest.mark.parametrize(("side", "shown"), [(28, 64), (64, 64), (128, 25), (512, 16)])
def test_large_images_are_fewer_and_reduced(side, shown):
    values = np.zeros((64, 3, side, side), dtype=np.float32)
    assert images_shown(values) == shown
    sheet = _decoded(image_grid(values, "grid"))
    assert max(sheet.shape[:2]) <= 660
    assert abs(int(sheet[0, 0, 0]) - 128) <= 1


def test_alternative_text_is_escaped():
    markup = image_grid(np.zeros((1, 1, 2, 2)), '"><script>')
    assert "<script>" not in markup and 'alt="&quot;&gt;&lt;script&gt;"' in markup


def test_limits_hold_the_points_and_one_scale():
    rng = np.random.default_rng(0)
    wide, far = rng.normal(0, 1, (500, 2)), rng.normal([9, 0], 0.1, (500, 2))
    broken = np.array([[np.nan, 0.0], [np.inf, 1.0]])
    (left, right), (bottom, top) = shared_limits([wide, far, broken])
    assert right - left == pytest.approx(top - bottom)
    points = np.concatenate([wide, far])
    inside = (points > [left, bottom]).all(1) & (points < [right, top]).all(1)
    assert inside.mean() > 0.99


def test_limits_without_a_finite_point():
    assert shared_limits([np.full((3, 2), np.nan)]) == ((-1.0, 1.0), (-1.0, 1.0))


def test_a_cloud_is_drawn_within_the_limits():
    svg = point_cloud("prior", np.zeros((10, 2)), ((-1.0, 1.0), (-1.0, 1.0)), "cloud")
    assert svg.startswith("<svg") and "data:image/png;base64," in svg
