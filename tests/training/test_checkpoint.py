import json
import os
import random
import resource
import signal
import warnings
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from difftilt.errors import CheckpointError
from difftilt.training import files
from difftilt.training.checkpoint import (
    CheckpointWarning,
    checkpoint_steps,
    load_checkpoint,
    load_posterior,
    save_checkpoint,
    save_posterior,
)
from difftilt.training.plan import RTB, BehaviourWeights, Replaying
from difftilt.training.snapshot import Snapshot
from difftilt.training.state import TrainingState
from difftilt.training.steps import training_step
from tests.toys import Likelihood, linear_posterior, network_posterior, quick_plan, toy_state

IDENTITY = {"config": {"beta": 1.0, "layers": [1, 2]}, "prior": "abc"}
SMALL = Replaying(capacity=200, priority="residual", pool_capacity=100, pool_fresh=8)
EVERYTHING = BehaviourWeights(0.3, 0.1, 0.1, 0.2, 0.1, 0.1, 0.1)


@pytest.fixture(autouse=True, scope="module")
def _own_randomness() -> Iterator[None]:
    """The type checker of the tests draws from Python's global source; give rewards another."""
    own = random.Random(0)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("gauss", "getstate", "setstate", "seed"):
            patch.setattr(random, name, getattr(own, name))
        yield


def noisy(x_0: Tensor, condition: Tensor | None) -> Tensor:
    """A reward that draws from every global source of random numbers."""
    shift = numpy.random.standard_normal() + random.gauss(0, 1) + float(torch.randn(()))
    return Likelihood((1.2, -0.4))(x_0, condition) + 0.01 * shift


def labels(count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, (count,), generator=generator)


def mixed() -> TrainingState:
    """Every behaviour, learned log Z, Adam, warm start."""
    plan = quick_plan(
        steps=40, batch=40, warm_start=0.1, replaying=SMALL, behaviour=EVERYTHING, chunk=64
    )
    plan = replace(plan, objective=RTB(log_z="learned"), beta_start=0.5, subset=2)
    data = torch.linspace(-1, 2, 30)[:, None]
    return toy_state(plan, log_reward=noisy, data=data)


def muon() -> TrainingState:
    """Muon for hidden matrices; a batch-norm-like buffer rides along in the kernel."""
    chain = network_posterior()
    assert chain.kernel is not None
    chain.kernel.register_buffer("seen", torch.zeros(3))
    plan = quick_plan(steps=20, batch=24, replaying=SMALL, hidden_learning_rate=0.02)
    return toy_state(plan, chain, noisy)


def conditional() -> TrainingState:
    """Labels, with a learned log Z for each."""
    plan = quick_plan(steps=20, batch=48, replaying=SMALL, behaviour=EVERYTHING, warm_start=0.1)
    plan = replace(plan, objective=RTB(log_z="learned"), paths_per_condition=4)
    chain, data = linear_posterior(labels=2), torch.linspace(-1, 2, 30)[:, None]
    return toy_state(plan, chain, noisy, conditions=labels, labels=2, data=data)


def advance(state: TrainingState, updates: int) -> None:
    for _ in range(updates):
        training_step(state)


def assert_same(one: Snapshot, other: Snapshot) -> None:
    for name in ("posterior", "tensors"):
        left, right = getattr(one, name), getattr(other, name)
        assert left.keys() == right.keys()
        assert [k for k in left if not torch.equal(left[k], right[k])] == []
    assert one.document == other.document


def frozen(state: TrainingState) -> Snapshot:
    """A copy that later updates do not touch."""
    found = Snapshot.of(state, IDENTITY)
    posterior, tensors = (
        {k: v.detach().clone() for k, v in part.items()}
        for part in (found.posterior, found.tensors)
    )
    return Snapshot(posterior, tensors, json.loads(json.dumps(found.document)))


@pytest.mark.parametrize("build", [mixed, muon, conditional])
def test_resumed_run_equals_uninterrupted_run(build, tmp_path: Path):
    scramble_global_randomness(3)
    run = build()
    advance(run, 6)
    run.elapsed = 0.1 + 0.2
    save_checkpoint(run, tmp_path, IDENTITY)
    advance(run, 4)
    reference = frozen(run)
    resumed = build()
    scramble_global_randomness(99)
    assert load_checkpoint(resumed, tmp_path, IDENTITY) == 6
    assert resumed.elapsed == 0.1 + 0.2
    advance(resumed, 4)
    assert_same(frozen(resumed), reference)


def scramble_global_randomness(seed: int) -> None:
    torch.manual_seed(seed)
    numpy.random.seed(seed)
    random.seed(seed)


PARTS = [
    "parameter/",
    "log_z/",
    "optimiser/0/0/exp_avg",
    "optimiser/0/0/exp_avg_sq",
    "optimiser/0/0/step",
    "behaviour/pool/counters",
    "behaviour/pool/states",
    "behaviour/pool/predictions",
    "behaviour/pool/log_r",
    "behaviour/pool/log_proposal",
    "buffer/x_0",
    "buffer/log_r",
    "buffer/residual",
    "random/generator",
    "random/torch",
    "random/numpy",
    "random/python",
]


@pytest.fixture(scope="module")
def interrupted() -> tuple[Snapshot, Snapshot]:
    """A training after four updates and after six."""
    scramble_global_randomness(3)
    run = mixed()
    advance(run, 4)
    kept = frozen(run)
    advance(run, 2)
    return kept, frozen(run)


def resumed_from(kept: Snapshot) -> Snapshot:
    run = mixed()
    kept.apply(run)
    advance(run, 2)
    return frozen(run)


def test_nothing_is_forgotten(interrupted: tuple[Snapshot, Snapshot]):
    scramble_global_randomness(99)
    assert_same(resumed_from(interrupted[0]), interrupted[1])


@pytest.mark.parametrize("part", [*PARTS, "average", "step", "rates", "numbers"])
def test_forgetting_any_part_is_seen(part: str, interrupted: tuple[Snapshot, Snapshot]):
    kept, reference = interrupted
    scramble_global_randomness(99)
    forgotten = without(kept, frozen(mixed()), part)
    with pytest.raises((AssertionError, CheckpointError, KeyError)):
        assert_same(resumed_from(forgotten), reference)


def without(kept: Snapshot, fresh: Snapshot, part: str) -> Snapshot:
    """What was kept, with one part as a new training has it."""
    document = json.loads(json.dumps(kept.document))
    if part == "average":
        return Snapshot(fresh.posterior, kept.tensors, document)
    if part == "step":
        return Snapshot(kept.posterior, kept.tensors, document | {"step": 0})
    if part == "numbers":
        return Snapshot(
            kept.posterior, kept.tensors, document | {"random": fresh.document["random"]}
        )
    if part == "rates":
        document["optimisers"][0][0]["initial_lr"] *= 1.01
        return Snapshot(kept.posterior, kept.tensors, document)
    tensors = {}
    for name, value in kept.tensors.items():
        if not name.startswith(part):
            tensors[name] = value
        elif name.startswith(("behaviour", "buffer", "optimiser")):
            tensors[name] = torch.zeros_like(value)
        else:
            tensors[name] = fresh.tensors[name]
    return Snapshot(kept.posterior, tensors, document)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Checkpoints at updates 1 and 2."""
    run = toy_state(quick_plan(batch=8, replaying=SMALL))
    for _ in range(2):
        advance(run, 1)
        save_checkpoint(run, tmp_path, IDENTITY)
    return tmp_path


def fresh() -> TrainingState:
    return toy_state(quick_plan(batch=8, replaying=SMALL))


def test_the_newest_two_are_kept_and_nothing_else(saved: Path):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    advance(run, 1)
    (saved / ".step-00000009.77.tmp").mkdir()
    path = save_checkpoint(run, saved, IDENTITY)
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000002", "step-00000003"]
    assert path == saved / "step-00000003"
    names = {"manifest.json", "posterior.safetensors", "state.json", "tensors.safetensors"}
    assert {p.name for p in path.iterdir()} == names


def test_saving_a_step_again_replaces_it(saved: Path):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    run.elapsed = 77.0
    save_checkpoint(run, saved, IDENTITY)
    again = fresh()
    assert load_checkpoint(again, saved, IDENTITY) == 2
    assert again.elapsed == 77.0
    assert checkpoint_steps(saved) == [1, 2]


FILES = ["tensors.safetensors", "posterior.safetensors", "state.json", "manifest.json"]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_damage_falls_back_to_the_checkpoint_before(saved: Path, name: str, damage):
    damage(saved / "step-00000002" / name)
    seen = ".*" if name == "manifest.json" and damage is flip else f".*{name}"
    with pytest.warns(CheckpointWarning, match="fell back to the checkpoint at update 1: " + seen):
        assert load_checkpoint(fresh(), saved, IDENTITY) == 1


def test_a_damaged_branch_is_given_up_when_the_run_goes_on(saved: Path):
    flip(saved / "step-00000002" / "tensors.safetensors")
    (saved / "step-00000002").rename(saved / "step-00000005")
    run = fresh()
    with pytest.warns(CheckpointWarning):
        load_checkpoint(run, saved, IDENTITY)
    advance(run, 1)
    save_checkpoint(run, saved, IDENTITY)
    assert checkpoint_steps(saved) == [1, 2]
    assert load_checkpoint(fresh(), saved, IDENTITY) == 2


def test_nothing_intact_is_an_error_and_changes_nothing(saved: Path):
    flip(saved / "step-00000001" / "state.json")
    flip(saved / "step-00000002" / "tensors.safetensors")
    run = fresh()
    before = frozen(run)
    with pytest.raises(CheckpointError, match=r"no checkpoint of .* is intact"):
        load_checkpoint(run, saved, IDENTITY)
    assert_same(frozen(run), before)


def test_an_empty_folder_is_an_error(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*; nothing to resume"):
        load_checkpoint(fresh(), tmp_path / "absent", IDENTITY)


def test_another_config_is_named(saved: Path):
    other = {"config": {"beta": 2.0, "layers": [1, 2]}, "prior": "xyz"}
    expected = "config.beta is 1.0 there and 2.0 here; prior is abc there and xyz here"
    with pytest.raises(CheckpointError, match=expected):
        load_checkpoint(fresh(), saved, other)


def test_another_architecture_is_named(saved: Path):
    plan = quick_plan(batch=8, replaying=SMALL)
    other = toy_state(plan, linear_posterior(steps=4))
    with pytest.raises(
        CheckpointError, match=r"kernel.table is \(3, 1, 4, 1\) there and \(3, 1, 5"
    ):
        load_checkpoint(other, saved, IDENTITY)


def test_another_format_is_refused(saved: Path):
    path = saved / "step-00000002" / "state.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 7'))
    reseal(path.parent)
    with pytest.raises(CheckpointError, match="format 7; this version reads format 2"):
        load_checkpoint(fresh(), saved, IDENTITY)


def reseal(folder: Path) -> None:
    """Make the manifest agree with what the files hold now, as an attacker would."""
    manifest = {
        path.name: {"sha256": sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    (folder / "manifest.json").write_text(json.dumps({"files": manifest}))


def spoil_nan(tensors: dict[str, Tensor]) -> None:
    tensors["parameter/kernel.table"][0, 0, 0] = float("nan")


def spoil_extra(tensors: dict[str, Tensor]) -> None:
    tensors["evil"] = torch.zeros(3)


def spoil_moment(tensors: dict[str, Tensor]) -> None:
    tensors["optimiser/0/0/exp_avg"] = torch.zeros(5)


def spoil_missing(tensors: dict[str, Tensor]) -> None:
    del tensors["random/generator"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nan, "'parameter/kernel.table' of .* holds NaN"),
        (spoil_extra, "holds evil of shape"),
        (spoil_moment, r"holds optimiser/0/0/exp_avg of shape \(5,\)"),
        (spoil_missing, "random/generator is absent there"),
    ],
)
def test_foreign_tensors_are_refused(saved: Path, spoil, message: str):
    path = saved / "step-00000002" / "tensors.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    reseal(path.parent)
    run = fresh()
    before = frozen(run)
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(run, saved, IDENTITY)
    assert_same(frozen(run), before)


def test_a_tensor_given_twice_is_refused(tmp_path: Path):
    entry = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
    header = f'{{"a":{entry},"a":{entry}}}'.encode()
    path = tmp_path / "twice.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(CheckpointError, match=r"'a' of .* is given twice"):
        files.read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64, (5).to_bytes(8, "little") + b"hello"])
def test_what_is_no_safetensors_file_is_damaged(tmp_path: Path, content: bytes):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(content)
    with pytest.raises(files.DamagedFile):
        files.read_tensors(path)


@pytest.mark.parametrize("inside", [True, False])
def test_a_pickle_is_refused_unread(tmp_path: Path, inside: bool):
    path = tmp_path / "model.pt"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(CheckpointError, match=r"model.pt is a pickle, .* safetensors only"):
        load_checkpoint(fresh(), tmp_path if inside else path, IDENTITY)


def test_links_are_refused(saved: Path, tmp_path_factory: pytest.TempPathFactory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (saved / "step-00000002").rename(elsewhere / "step-00000002")
    (saved / "step-00000002").symlink_to(elsewhere / "step-00000002")
    with pytest.raises(CheckpointError, match="symbolic link"):
        load_checkpoint(fresh(), saved, IDENTITY)
    link = saved.parent / "link"
    link.symlink_to(saved)
    with pytest.raises(CheckpointError, match="symbolic link"):
        save_checkpoint(fresh(), link, IDENTITY)


@pytest.mark.parametrize("room", [0, 300, 3000, 20_000])
def test_a_full_disk_leaves_the_checkpoint_before(saved: Path, room: int):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    advance(run, 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))  # Python ignores SIGXFSZ
        with pytest.raises(CheckpointError, match=r"File too large.* it needs [\d,]+ bytes; what"):
            save_checkpoint(run, saved, IDENTITY)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(p.name for p in saved.iterdir()) == ["step-00000001", "step-00000002"]
    assert load_checkpoint(fresh(), saved, IDENTITY) == 2


def test_a_kill_at_any_moment_leaves_a_loadable_folder(saved: Path):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    advance(run, 1)
    reached = []
    for moment in range(1, 12):
        if not save_and_die(run, saved, moment):
            break
        assert not [p for p in saved.glob("step-*") if not (p / "manifest.json").exists()]
        reached.append(load_checkpoint(fresh(), saved, IDENTITY))
    assert set(reached) == {2, 3}
    assert reached == sorted(reached)
    save_checkpoint(run, saved, IDENTITY)
    assert checkpoint_steps(saved) == [2, 3]
    assert not list(saved.glob(".*"))


def save_and_die(run: TrainingState, folder: Path, moment: int) -> bool:
    """Save in a child that is killed at its n-th fsync; False if it lived."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside torch's threads
        child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    left = [moment]
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        flush(descriptor)

    try:
        os.fsync = fsync
        save_checkpoint(run, folder, IDENTITY)
    finally:
        os._exit(0)


def test_nan_weights_are_not_written(saved: Path):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    run.step = 3
    with torch.no_grad():
        run.parameters[0].fill_(float("nan"))
    with pytest.raises(CheckpointError, match=r"parameter/kernel.table holds NaN"):
        save_checkpoint(run, saved, IDENTITY)
    assert checkpoint_steps(saved) == [1, 2]


def test_another_machine_is_a_warning(saved: Path):
    path = saved / "step-00000002" / "state.json"
    path.write_text(path.read_text().replace('"threads": 1', '"threads": 64'))
    reseal(path.parent)
    with pytest.warns(CheckpointWarning, match="may differ in the last bits"):
        load_checkpoint(fresh(), saved, IDENTITY)


def test_a_posterior_comes_from_its_own_folder_or_from_a_checkpoint(saved: Path):
    run = fresh()
    load_checkpoint(run, saved, IDENTITY)
    run.use_average()
    save_posterior(run.chain, saved / "posterior", IDENTITY)
    names = {"manifest.json", "posterior.safetensors", "state.json"}
    assert {p.name for p in (saved / "posterior").iterdir()} == names
    for folder in (saved / "posterior", saved, saved / "step-00000002"):
        chain = linear_posterior()
        load_posterior(chain, folder, IDENTITY)
        assert isinstance(chain.kernel, nn.Module) and isinstance(run.chain.kernel, nn.Module)
        loaded, own = chain.kernel.state_dict(), run.chain.kernel.state_dict()
        assert all(torch.equal(loaded[k], own[k]) for k in own)


def test_a_posterior_of_another_run_or_shape_is_refused(saved: Path):
    with pytest.raises(CheckpointError, match="prior is abc there and absent here"):
        load_posterior(linear_posterior(), saved, {"config": IDENTITY["config"]})
    with pytest.raises(CheckpointError, match=r"does not fit this posterior: .*kernel.table is"):
        load_posterior(linear_posterior(dimension=2), saved)
    flip(saved / "step-00000002" / "posterior.safetensors")
    with pytest.raises(CheckpointError, match="differs from its checksum"):
        load_posterior(linear_posterior(), saved / "step-00000002")
