import json
import math
from pathlib import Path

import pytest
import torch

from difftilt.errors import CheckpointError
from difftilt.report.run_folder import number, read_run


def test_everything_is_read(image_run: Path):
    run = read_run(image_run)
    assert run.problems == ()
    assert list(run.samples) == ["prior", "posterior", "corrected"]
    assert run.samples["prior"].kind == "image"
    assert len(run.metrics) == 1500 and run.metrics[0]["step"] == 1
    assert run.certificate is not None and run.certificate["trust"] is True


def test_kinds_of_draws(tmp_path: Path, save_samples):
    (tmp_path / "status.json").write_text("{}")
    shapes = {"prior": (5, 2), "posterior": (5, 3, 4, 4), "corrected": (5, 8)}
    for name, shape in shapes.items():
        save_samples(tmp_path / "samples", name, torch.zeros(shape), torch.zeros(5))
    kinds = [samples.kind for samples in read_run(tmp_path).samples.values()]
    assert kinds == ["plane", "image", "other"]


def test_damaged_files_are_named(image_run: Path):
    (image_run / "certificate.json").write_text('{"trust": tr')
    (image_run / "evaluation.json").write_text("[1, 2]")
    sample = image_run / "samples" / "prior.safetensors"
    sample.write_bytes(sample.read_bytes()[:100])
    with (image_run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 1501, "lo')
    run = read_run(image_run)
    assert run.certificate is None and run.evaluation is None and "prior" not in run.samples
    assert len(run.metrics) == 1500
    for name in ("certificate.json", "evaluation.json", "prior.safetensors", "metrics.jsonl"):
        assert any(name in problem for problem in run.problems)


def test_draws_and_rewards_must_agree_in_number(image_run: Path, save_samples):
    save_samples(image_run / "samples", "prior", torch.zeros(5, 1, 2, 2), torch.zeros(4))
    run = read_run(image_run)
    assert "prior" not in run.samples and "disagree" in run.problems[0]


def test_after_a_resumption_the_later_record_counts(tmp_path: Path):
    (tmp_path / "status.json").write_text("{}")
    records = [(1, 1.0), (2, 2.0), (3, 3.0), (2, 20.0), (3, 30.0)]
    lines = [json.dumps({"step": step, "loss": loss}) for step, loss in records]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert [record["loss"] for record in read_run(tmp_path).metrics] == [1.0, 20.0, 30.0]


def test_another_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="is not a run folder"):
        read_run(tmp_path)


def test_another_format_is_refused(tmp_path: Path):
    (tmp_path / "config.json").write_text('{"format": 2}')
    with pytest.raises(CheckpointError, match="format 2, this version reads format 1"):
        read_run(tmp_path)


def test_numbers_deep_in_a_record():
    record = {"a": {"b": 2, "c": None, "d": True, "e": math.inf}, "f": 0.5}
    assert number(record, "a", "b") == 2 and number(record, "f") == 0.5
    absent = [("a", "c"), ("a", "d"), ("a", "e"), ("a",), ("f", "x"), ("z",)]
    assert [number(record, *path) for path in absent] == [None] * 6
    assert number(None, "a") is None
