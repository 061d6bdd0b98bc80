import json
import re
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from difftilt.errors import CheckpointError
from difftilt.recipes.pictures import Picture, save_pictures
from difftilt.report import write_report
from difftilt.report.sections import duration, flat_items

HOSTILE = '<script>alert("x")</script>&<img src=x onerror=alert(1)>'


def _edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_parts_stand_in_the_order_of_the_questions(image_page: Path):
    page = image_page.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Before and after",
        "Rewards",
        "Evaluation",
        "Certificate",
        "Training",
        "Settings",
        "Repeat it",
        "What is not claimed",
    ]
    assert page.index("Trust</span>") < page.index("<h2>")
    assert "difftilt train fashion --out &#x27;runs/my first run&#x27; --seed 3" in page


def test_page_is_small_and_loads_nothing(image_page: Path):
    page = image_page.read_text()
    assert image_page.name == "report.html"
    assert image_page.stat().st_size < 1_500_000
    assert "http:" not in page and "https:" not in page
    assert "<script" not in page


def test_everything_is_escaped(image_run: Path):
    def poison(record: dict[str, Any]) -> None:
        record["recipe"] = record["prior"]["source"] = HOSTILE
        record["command"].append(HOSTILE)
        record["machine"][HOSTILE] = HOSTILE
        record["config"][HOSTILE] = HOSTILE

    def poison_verdict(record: dict[str, Any]) -> None:
        record["verdict"] = record["text"] = HOSTILE
        record["warnings"] = [HOSTILE]

    _edit(image_run / "config.json", poison)
    _edit(image_run / "certificate.json", poison_verdict)
    _edit(image_run / "status.json", lambda record: record.update(state=HOSTILE, message=HOSTILE))
    metrics = image_run / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"warm start"', json.dumps(HOSTILE)))
    page = write_report(image_run).read_text()
    assert "<script" not in page and "<img src=x" not in page
    assert page.count("&lt;script&gt;") > 10


def test_equal_folders_give_equal_pages(plane_page: Path):
    first = plane_page.read_bytes()
    assert write_report(plane_page.parent).read_bytes() == first


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [
        ("certificate.json", "There is no certificate yet."),
        ("evaluation.json", "No evaluation was saved with this run."),
        ("config.json", "The command was not saved."),
        ("status.json", "This command repeats the run"),
    ],
)
def test_what_is_missing_is_said(quick_run: Path, lost: str, sentence: str):
    (quick_run / lost).unlink()
    page = write_report(quick_run).read_text()
    assert sentence in page
    assert "No update was logged yet" in page and "No samples were saved yet" in page


def test_one_sampler_alone_is_shown(image_run: Path):
    (image_run / "metrics.jsonl").unlink()
    (image_run / "samples" / "prior.safetensors").unlink()
    page = write_report(image_run).read_text()
    assert "No samples of the prior were saved." in page and page.count("<img") == 2


def test_other_draws_have_rewards_only(image_run: Path, save_samples):
    (image_run / "metrics.jsonl").unlink()
    for name in ("prior", "posterior", "corrected"):
        save_samples(image_run / "samples", name, torch.zeros(20, 8), -torch.arange(20.0))
    page = write_report(image_run).read_text()
    assert "an array of shape (8,)" in page and "Histogram of log r" in page


def test_empty_draws_are_no_error(image_run: Path, save_samples):
    (image_run / "metrics.jsonl").unlink()
    for name in ("prior", "posterior", "corrected"):
        save_samples(image_run / "samples", name, torch.zeros(0, 1, 28, 28), torch.zeros(0))
    assert "No finite log r was saved" in write_report(image_run).read_text()


def test_a_run_that_did_not_end_says_so(quick_run: Path):
    status = {"state": "interrupted", "step": 120, "of": 1500, "seconds": 9, "message": "by Ctrl-C"}
    (quick_run / "status.json").write_text(json.dumps(status))
    page = write_report(quick_run).read_text()
    assert "This run was interrupted at update 120 of 1,500: by Ctrl-C" in page


def test_damaged_files_are_said(quick_run: Path):
    (quick_run / "certificate.json").write_text("{")
    page = write_report(quick_run).read_text()
    assert "certificate.json could not be read" in page and "Not certified" in page


def test_a_report_that_cannot_be_written_is_one_sentence(quick_run: Path):
    (quick_run / "report.html").mkdir()
    with pytest.raises(CheckpointError, match=r"report could not be written to .*report\.html"):
        write_report(quick_run)
    assert not (quick_run / "report.html.part").exists()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, ""),
        (9, "9.00 s"),
        (252.4, "4 min 12 s"),
        (3780, "1 h 03 min"),
        (3599.9, "1 h 00 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_settings_are_flattened():
    settings = {"a": {"b": 1, "c": {"d": None}}, "e": [1, 2], "f": {}, "g": "text"}
    assert list(flat_items(settings)) == [
        ("a.b", "1"),
        ("a.c.d", "null"),
        ("e", "[1, 2]"),
        ("f", "{}"),
        ("g", "text"),
    ]


def _with_pictures(run: Path, *files: str) -> str:
    entries = [{"file": name, "caption": f"<{name}>", "width": "half"} for name in files]
    _edit(run / "evaluation.json", lambda record: record.update(pictures=entries))
    return write_report(run).read_text()


def test_pictures_of_the_recipe_are_part_of_the_page(quick_run: Path):
    save_pictures(quick_run, [Picture("gif", b"GIF89a", "a walk"), Picture("svg", b"<svg/>", "C")])
    page = _with_pictures(quick_run, "pictures/01.gif", "pictures/02.svg")
    assert f"data:image/gif;base64,{b64encode(b'GIF89a').decode()}" in page
    assert f"data:image/svg+xml;base64,{b64encode(b'<svg/>').decode()}" in page
    assert "&lt;pictures/01.gif&gt;</figcaption>" in page


def test_pictures_that_are_missing_or_outside_are_said_so(quick_run: Path):
    page = _with_pictures(quick_run, "pictures/01.png", "../../secret.png", "/etc/hostname")
    assert "01.png is missing." in page
    assert page.count("A picture lies outside the run folder.") == 2
