import json
import math
import os
import resource
import signal
import sys
import warnings
from pathlib import Path

import pytest
import torch

from difftilt.errors import CheckpointError
from difftilt.training.files import DamagedFile, write_json
from difftilt.training.run_folder import RunFolder, identity_of
from difftilt.training.steps import Metrics

CONFIG = {
    "recipe": "toy",
    "config": {"steps": 3, "beta": 1.0},
    "prior": {"source": "folder", "fingerprint": "abc"},
    "started": "2030-01-01",
}


def metrics(step: int, log_z: float = 0.5) -> Metrics:
    return Metrics(step, "balance", 1.5, log_z, 0.25, -1.0, 1.0, 2.0)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def test_config_comes_back(run: RunFolder):
    run.begin(CONFIG)
    assert run.config == {"format": 1, **CONFIG}
    assert run.identity == {"recipe": "toy", "config": CONFIG["config"], "prior": "abc"}


def test_a_second_run_is_kept_out_of_the_folder(run: RunFolder):
    run.begin(CONFIG)
    with pytest.raises(CheckpointError, match=r"already holds a run; resume it .* or choose"):
        run.begin(CONFIG)


def test_resuming_needs_the_same_run(run: RunFolder):
    with pytest.raises(CheckpointError, match="there is no run in"):
        run.begin(CONFIG, resume=True)
    run.begin(CONFIG)
    run.begin(CONFIG | {"started": "later"}, resume=True)
    other = CONFIG | {"config": {"steps": 3, "beta": 2.0}}
    with pytest.raises(CheckpointError, match=r"config.beta is 1.0 there and 2.0 here"):
        run.begin(other, resume=True)
    assert run.config["started"] == CONFIG["started"]


def test_identity_without_a_prior():
    assert identity_of({"recipe": "toy"}) == {"recipe": "toy", "config": None, "prior": None}


def test_a_path_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "run").write_text("")
    with pytest.raises(CheckpointError, match="is a file; choose another name"):
        RunFolder(tmp_path / "run")


def test_linked_checkpoints_are_refused(tmp_path: Path):
    (tmp_path / "checkpoints").symlink_to("/")
    with pytest.raises(CheckpointError, match="symbolic link"):
        RunFolder(tmp_path)


def test_two_cannot_work_in_one_folder(run: RunFolder):
    with run, run:
        with pytest.raises(CheckpointError, match=f"is in use by process {os.getpid()}; wait"):
            RunFolder(run.path).__enter__()
        assert (run.path / "lock").read_text() == f"{os.getpid()}\n"
    with RunFolder(run.path):
        pass


def test_a_killed_process_frees_the_folder(run: RunFolder):
    run.path.mkdir()
    ready, tell = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's threads
        child = os.fork()
    if not child:
        run.__enter__()
        os.write(tell, b"!")
        signal.pause()
    os.read(ready, 1)
    try:
        with pytest.raises(CheckpointError, match=f"in use by process {child}"):
            run.__enter__()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with run:
        assert (run.path / "lock").read_text() == f"{os.getpid()}\n"


def test_metrics_come_back_and_nan_is_null(run: RunFolder):
    run.log(metrics(1, math.nan), 0.5)
    run.log(metrics(2, math.inf), 1.0)
    first, second = run.metrics()
    assert first["log_z"] is None and second["log_z"] is None
    assert first["step"] == 1 and first["seconds"] == 0.5 and first["ess"] == 0.25
    assert list(first) == [
        "step",
        "phase",
        "loss",
        "log_z",
        "ess",
        "log_r",
        "beta",
        "gradient_norm",
        "kl",
        "diversity",
        "seconds",
    ]


def test_what_follows_the_training_may_change_on_resume(run: RunFolder):
    config = CONFIG | {"config": {"beta": 1.0, "samples": 256, "certificate_paths": 4096}}
    run.begin(config)
    run.begin(config | {"config": config["config"] | {"samples": 8}}, resume=True)
    with pytest.raises(CheckpointError, match=r"config.beta is 1.0 there and 2.0 here"):
        run.begin(config | {"config": config["config"] | {"beta": 2.0}}, resume=True)


def test_a_half_written_line_is_left_out_and_cut_on_resume(run: RunFolder):
    for step in range(1, 6):
        run.log(metrics(step), 0.1 * step)
    path = run.path / "metrics.jsonl"
    with path.open("a") as file:
        file.write('{"step": 6, "pha')
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4, 5]
    run.rewind(3)
    run.log(metrics(4), 9.0)
    assert [row["step"] for row in run.metrics()] == [1, 2, 3, 4]
    assert path.read_text().endswith("\n")


def test_a_broken_line_in_the_middle_is_an_error(run: RunFolder):
    run.log(metrics(1), 0.1)
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("nonsense\n")
    run.log(metrics(2), 0.2)
    with pytest.raises(CheckpointError, match="holds a line that is no JSON"):
        run.metrics()


def test_tensorboard_gets_the_same_numbers(run: RunFolder):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with run:
        run.log(metrics(3), 0.1)
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    assert [(e.step, e.value) for e in events.Scalars("ess")] == [(3, 0.25)]


def test_tensorboard_is_not_needed(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run.log(metrics(1), 0.1)
    assert len(run.metrics()) == 1
    assert not (run.path / "tensorboard").exists()


def test_samples_come_back(run: RunFolder):
    x_0, log_r = torch.randn(5, 2), torch.tensor([0.0, -1.0, -math.inf, 2.0, 3.0])
    run.save_samples("posterior", x_0.T.contiguous().T, log_r, log_w=-log_r, seed=7)
    found = run.load_samples("posterior")
    assert torch.equal(found["x_0"], x_0) and torch.equal(found["log_r"], log_r)
    assert int(found["seed"]) == 7 and set(found) == {"x_0", "log_r", "log_w", "seed"}
    run.save_samples("prior", x_0, log_r)
    assert set(run.load_samples("prior")) == {"x_0", "log_r"}


def test_absent_documents_and_samples_are_named(run: RunFolder):
    with pytest.raises(DamagedFile, match=r"certificate.json is missing"):
        run.read("certificate")
    with pytest.raises(DamagedFile, match=r"prior.safetensors is missing"):
        run.load_samples("prior")


def test_half_written_json_is_named(run: RunFolder):
    run.write("certificate", {"a": [1.0, math.nan]})
    assert run.read("certificate") == {"a": [1.0, None]}
    path = run.path / "certificate.json"
    path.write_text(path.read_text()[:5])
    with pytest.raises(DamagedFile, match=r"certificate.json cannot be read as JSON"):
        run.read("certificate")


def test_a_full_disk_keeps_the_old_document_and_no_half_line(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run.write("status", {"state": "running"})
    run.log(metrics(1), 0.1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (run.path / "metrics.jsonl").stat().st_size
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard))
        with pytest.raises(CheckpointError, match=r"cannot append to .*; free some space"):
            run.log(metrics(2), 0.2)
        with pytest.raises(CheckpointError, match=r"cannot write .*status.json: File too large"):
            run.write("status", {"message": "x" * (size + 100)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.read("status") == {"state": "running"}
    run.log(metrics(3), 0.3)
    assert [row["step"] for row in run.metrics()] == [1, 3]
    assert not list(run.path.glob(".*.tmp"))


def test_what_a_crash_left_is_swept(run: RunFolder):
    write_json(run.path / "config.json", CONFIG)
    (run.path / ".status.json.123.tmp").write_text("{")
    with run:
        assert not list(run.path.glob(".*.tmp"))
        assert json.loads((run.path / "config.json").read_text()) == CONFIG


def test_a_failing_tensorboard_is_left_out(run: RunFolder, monkeypatch: pytest.MonkeyPatch):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter

    def fail(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(writer, "add_scalar", fail)
    with run:
        with pytest.warns(UserWarning, match="TensorBoard is left out from here on: no space"):
            run.log(metrics(1), 0.1)
        run.log(metrics(2), 0.2)
    assert len(run.metrics()) == 2
