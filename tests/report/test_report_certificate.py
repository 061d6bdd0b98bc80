import json
from pathlib import Path
from typing import Any

import pytest

from difftilt.report import write_report
from difftilt.report.certificate import estimate_text, interval_text, not_claimed


def _certificate(run: Path) -> dict[str, Any]:
    return json.loads((run / "certificate.json").read_text())


def test_a_good_sampler_is_trusted_in_words_and_numbers(image_page: Path):
    page, record = image_page.read_text(), _certificate(image_page.parent)
    assert "</span> Trust</span>" in page and record["verdict"] in page
    assert "with 99 % confidence, the probability of any event is off by at most" in page
    value = f"{record['elbo']['value']:.4f}".replace("-", "−")
    assert value in page
    assert estimate_text(record, "elbo").replace("-", "−") in page


def test_a_sampler_that_misses_half_is_not_trusted(plane_page: Path):
    page, record = plane_page.read_text(), _certificate(plane_page.parent)
    assert "</span> Do not trust</span>" in page and record["verdict"] in page
    assert "</span> Trust</span>" not in page and "In plain words" not in page
    for warning in record["warnings"]:
        assert warning[1:] in page.split("What is not claimed")[1]


def test_the_text_block_is_whole(image_page: Path):
    page = image_page.read_text()
    assert _certificate(image_page.parent)["text"].splitlines()[-1] in page


def test_an_estimate_is_not_called_proven(quick_run: Path):
    record = _certificate(quick_run)
    record["total_variation"]["kind"] = "estimate"
    record["defensive"]["betting"] = None
    (quick_run / "certificate.json").write_text(json.dumps(record))
    page = write_report(quick_run).read_text()
    assert "This is estimated, not proven." in page and ", proven" not in page
    assert "holds for large n" in page and "holds for every n" not in page


def test_bounds_that_are_not_finite_are_named(quick_run: Path):
    record = _certificate(quick_run)
    record["eubo"] = {"value": None, "standard_error": None, "low": None, "high": None}
    (quick_run / "certificate.json").write_text(json.dumps(record))
    assert "Not finite, hence not drawn: EUBO." in write_report(quick_run).read_text()


@pytest.mark.parametrize("keep", [[], ["trust"], ["verdict", "elbo"]])
def test_any_part_may_be_missing(quick_run: Path, keep: list[str]):
    record = {key: value for key, value in _certificate(quick_run).items() if key in keep}
    (quick_run / "certificate.json").write_text(json.dumps(record))
    assert "<h2>Certificate</h2>" in write_report(quick_run).read_text()


@pytest.mark.parametrize("junk", [None, 3, "x", [1], {}])
def test_any_part_may_be_of_another_kind(quick_run: Path, junk: Any):
    record = dict.fromkeys(_certificate(quick_run), junk)
    (quick_run / "certificate.json").write_text(json.dumps(record))
    page = write_report(quick_run).read_text()
    assert "Do not trust" in page


def test_intervals_are_dashes_where_unknown():
    record = {"a": {"value": -0.3456, "standard_error": 0.004, "low": None, "high": 1.0}}
    assert estimate_text(record, "a") == "-0.346 ± 0.004"
    assert interval_text(record, "a") == "–" and estimate_text(record, "b") == "–"


def test_nothing_is_claimed_without_a_certificate():
    assert not_claimed(None) == ["Nothing is claimed: there is no certificate."]
