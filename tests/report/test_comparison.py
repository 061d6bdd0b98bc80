"""Methods side by side: means, spreads and order by hand; the figure is a picture."""

import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from difftilt.errors import InputError
from difftilt.report.comparison import compared, draw_comparison, draw_front
from difftilt.report.tables import Spread


def row(problem: str, method: str, seed: int, ess: float, error: float, tv: float | None = None):
    return {
        "problem": problem,
        "method": method,
        "seed": seed,
        "ess": ess,
        "log_z_error": error,
        "mode_tv_raw": tv,
        "network_calls": 100 + seed,
        "seconds": 1.5,
    }


ROWS = [
    row("two", "poor", 0, 0.1, 0.5),
    row("two", "good", 0, 0.8, -0.02),
    row("two", "good", 1, 0.9, 0.04),
    row("one", "good", 0, 0.5, math.inf, 0.3),
    row("one", "good", 1, 0.7, 0.1, 0.2),
]
KEYS = ["problem", "method", "ess", "log_z_error", "mode_tv_raw", "network_calls", "seconds"]


def test_seeds_become_a_mean_and_a_spread_and_the_best_come_first():
    found = compared(ROWS, KEYS, best="ess")
    assert [(r["problem"], r["method"]) for r in found] == [
        ("two", "good"),
        ("two", "poor"),
        ("one", "good"),
    ]
    good = found[0]
    assert good["ess"].value == pytest.approx(0.85)
    assert good["ess"].spread == pytest.approx(0.05 * math.sqrt(2))
    # An error counts by its size: +0.04 and -0.02 do not cancel.
    assert good["log_z_error"].value == pytest.approx(0.03)
    assert good["mode_tv_raw"] is None
    assert good["network_calls"] == 100 and good["seconds"] == 1.5


def test_one_seed_has_no_spread_and_an_infinite_error_none():
    _, poor, one = compared(ROWS, KEYS, best="ess")
    assert poor["ess"] == 0.1 and poor["log_z_error"] == 0.5
    assert one["log_z_error"] == math.inf and isinstance(one["mode_tv_raw"], Spread)


def test_of_a_mean_the_standard_error_is_shown_where_it_is_asked_for():
    """Of 1, 2, 3 and 6: deviation sqrt(14 / 3), error half of it; a seed's own is averaged."""
    rows = [
        {"problem": "hopper", "method": "rtb", "seed": s, "return": r, "return_error": e}
        for s, (r, e) in enumerate([(1.0, 0.5), (2.0, 0.5), (3.0, 0.1), (6.0, 0.1)])
    ]
    (found,) = compared(rows, ["return", "return_error"], "return", errors=True)
    assert found["return"].value == 3
    assert found["return"].spread == pytest.approx(math.sqrt(14 / 3) / 2)
    assert found["return_error"] == pytest.approx(0.3)


@pytest.mark.parametrize("ending", [".png", ".svg"])
def test_the_figure_is_a_picture(ending: str, tmp_path: Path):
    path = tmp_path / "new" / f"figure{ending}"
    draw_comparison([r for r in ROWS if r["problem"] == "two"], ("ess", "log_z_error"), path)
    start = path.read_bytes()[:200]
    assert start.startswith(b"\x89PNG") if ending == ".png" else b"<svg" in path.read_bytes()


def test_every_dot_is_inside_its_panel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Also where all figures are negative."""
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    rows = [{**r, "log_r": -1.0 - r["seed"], "energy": 0.1} for r in ROWS if r["problem"] == "two"]
    draw_comparison(rows, ("energy", "log_r"), tmp_path / "figure.png")
    for axes in drawn[0].axes:
        low, high = sorted(axes.get_xlim())
        dots = [float(x) for line in axes.lines for x in line.get_xdata()]
        assert dots and low <= min(dots) and max(dots) <= high


def test_panels_stand_three_across_and_leave_out_what_has_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    rows = [
        {"problem": p, "method": m, "seed": 0, "ess": e, "log_z_error": e}
        for p in "abcd"
        for m, e in (("dps", 0.1), ("rtb", 0.9), ("best_of_n", None))
    ]
    draw_comparison(rows, ("ess", "log_z_error"), tmp_path / "figure.png")
    shown = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_title(loc="left") for axes in shown[::2]] == list("abcd")
    assert {axes.get_gridspec().get_geometry() for axes in shown} == {(2, 6)}
    for axes in shown[::2]:
        assert [label.get_text() for label in axes.get_yticklabels()] == ["rtb", "dps"]


def test_another_ending_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match=r"figure\.doc should end in \.png, \.svg or \.pdf"):
        draw_comparison(ROWS, ("ess",), tmp_path / "figure.doc")


def test_a_front_has_a_line_per_method_and_bars_of_its_seeds(tmp_path: Path, monkeypatch):
    drawn: list[Figure] = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda f, *a, **k: (drawn.append(f), save(f, *a, **k)))
    rows = [
        {"problem": f"beta{b}", "method": "rtb", "seed": s, "log_r": b + s, "diversity": 2 - b}
        for b in (2, 1)
        for s in (0, 1)
    ]
    draw_front(rows, "log_r", "diversity", tmp_path / "front.png")
    (axes,) = drawn[0].axes
    assert list(axes.lines[0].get_xdata()) == [1.5, 2.5]
    assert list(axes.lines[0].get_ydata()) == [1, 0]
    assert axes.get_legend() is not None and (tmp_path / "front.png").stat().st_size > 1000
    with pytest.raises(InputError, match=r"should end in \.png"):
        draw_front(rows, "log_r", "diversity", tmp_path / "front.doc")
