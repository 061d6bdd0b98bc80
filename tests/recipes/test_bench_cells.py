"""A bench that was interrupted goes on with the cells that its file lacks."""

import json
from pathlib import Path

import pytest

from difftilt.benches.exact import Exact, Labels, exact, labels
from difftilt.benches.images import Images, images
from difftilt.benches.text import Infilling, infill
from difftilt.errors import InputError, TrainingError
from difftilt.recipes.tables.cells import Cell, Cells, cells_of, run_cells, write_rows

METHODS = ("importance", "importance_resampling")


class Counted:
    """Cells that count how often each is made; method "none" gives no row."""

    def __init__(self, methods: list[str], calls: int = 100) -> None:
        self.made: list[Cell] = []
        names = cells_of(problem=["a"], method=methods, seed=[0, 1])
        self.cells = Cells(names, {"calls": calls}, self._rows_of)

    def _rows_of(self, cell: Cell) -> list[Cell]:
        self.made.append(cell)
        if cell["method"] == "break":
            raise KeyboardInterrupt
        return [] if cell["method"] == "none" else [{**cell, "ess": 0.5}]


def test_the_last_column_varies_fastest():
    found = cells_of(method=["x", "y"], seed=[0, 1])
    assert [tuple(cell.values()) for cell in found] == [("x", 0), ("x", 1), ("y", 0), ("y", 1)]


def test_what_was_done_before_an_interruption_is_kept_and_only_the_rest_is_run(tmp_path: Path):
    path = tmp_path / "deep" / "rows.json"
    with pytest.raises(KeyboardInterrupt):
        run_cells(Counted(["x", "break", "y"]).cells, path)
    assert [row["method"] for row in json.loads(path.read_text())] == ["x", "x"]
    again = Counted(["x", "none", "y"])
    rows = run_cells(again.cells, path, resume=True)
    assert [cell["method"] for cell in again.made] == ["none", "none", "y", "y"]
    assert [row["method"] for row in rows] == ["x", "x", "y", "y"]
    assert json.loads(path.read_text()) == rows
    assert list(tmp_path.joinpath("deep").iterdir()) == [path]


def test_a_resumed_run_makes_what_an_unbroken_one_makes(tmp_path: Path):
    whole = run_cells(Counted(["x", "y"]).cells, tmp_path / "whole.json")
    run_cells(Counted(["x"]).cells, tmp_path / "parts.json")
    assert run_cells(Counted(["x", "y"]).cells, tmp_path / "parts.json", resume=True) == whole


def test_without_the_flag_a_file_is_written_afresh(tmp_path: Path):
    path = tmp_path / "rows.json"
    run_cells(Counted(["x"]).cells, path)
    again = Counted(["y"])
    assert [row["method"] for row in run_cells(again.cells, path)] == ["y", "y"]


def test_rows_of_other_settings_are_not_mixed_in(tmp_path: Path):
    path = tmp_path / "rows.json"
    run_cells(Counted(["x"]).cells, path)
    with pytest.raises(InputError, match="made with calls=100, and this run is asked for calls=7"):
        run_cells(Counted(["x"], calls=7).cells, path, resume=True)


@pytest.mark.parametrize(("text", "said"), [("[{", "is no JSON"), ('{"a": 1}', "is no list of a")])
def test_another_file_is_refused(text: str, said: str, tmp_path: Path):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        run_cells(Counted(["x"]).cells, path, resume=True)


def test_there_must_be_a_file_to_resume_from():
    with pytest.raises(InputError, match="name it with --json FILE"):
        labels(Labels(contrast=(2,), resume=True))


def test_the_exact_table_is_sorted_over_kept_and_new_rows(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("difftilt.recipes.exact.bench.SYSTEMS_JUDGED", 1000)

    def run(*methods: str, resume: bool):
        return exact(
            Exact(tmp_path / "e.json", resume, ("linear_gaussian_d2",), methods, (0,), 2_000_000)
        )

    first = run("importance", resume=True).rows
    both = run("importance_resampling", resume=True)
    assert both.rows[0] == first[0] and len(both.rows) == 2
    assert {row["method"] for row in both.shown} == set(METHODS)
    sizes = [row["ess"] for row in both.shown]
    assert sizes == sorted(sizes, reverse=True)


def test_the_other_tables_keep_their_rows_too(tmp_path: Path, capsys):
    path = tmp_path / "labels.json"
    one = labels(Labels(path, contrast=(2,))).rows
    two = labels(Labels(path, True, contrast=(2, 3))).rows
    assert two[: len(one)] == one and {row["contrast"] for row in two} == {2, 3}
    assert "2 rows kept; 1 cells to run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("run", "options", "problem"),
    [
        (infill, lambda p: Infilling(p, True, method=("prior",)), "stories"),
        (images, lambda p: Images(p, True, target=("bag",), method=("rtb",)), "bag"),
    ],
)
def test_a_table_whose_cells_are_all_in_the_file_is_printed_at_once(
    run, options, problem: str, tmp_path: Path, capsys
):
    path = tmp_path / "rows.json"
    method = "prior" if problem == "stories" else "rtb"
    kept = [
        {"problem": problem, "method": m, "seed": 0, "log_r": v, "frechet": -v, "ess": None}
        for m, v in ((method, -2.0), ("other", -1.0))
    ]
    write_rows(kept, path)
    found = run(options(path))
    assert found.rows == kept
    assert [row["method"] for row in found.shown] == ["other", method]
    assert "2 rows kept; 0 cells to run" in capsys.readouterr().err


def test_a_training_that_diverges_costs_its_own_row_alone(tmp_path: Path, capsys):
    def rows_of(cell):
        if cell["method"] == "wild":
            raise TrainingError("non-finite loss at update 3: lower the learning rate")
        return [{**cell, "score": 1.0}]

    cells = Cells(cells_of(method=["calm", "wild", "mild"]), {}, rows_of)
    rows = run_cells(cells, tmp_path / "rows.json")
    assert [row["method"] for row in rows] == ["calm", "mild"]
    assert "wild: no row, non-finite loss at update 3" in capsys.readouterr().err
    assert cells.missing(rows) == [{"method": "wild"}]
