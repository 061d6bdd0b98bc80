"""The loop around ``training_step``: clock, log, checkpoints, signals, progress.

    with RunFolder(path) as run, interruptible() as stop:
        for metrics in progress_bar(train(state, run, stop=stop), state):
            ...

``train`` is a generator: leaving it early is an interruption and is saved like one.
"""

import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

from difftilt.errors import CheckpointError
from difftilt.training.checkpoint import CheckpointWarning, checkpoint_steps, save_checkpoint
from difftilt.training.run_folder import RunFolder
from difftilt.training.state import TrainingState
from difftilt.training.steps import Metrics, training_step
from difftilt.training.watch import RewardHacking

LINE_SECONDS = 10.0


class Interruption:
    """Whether a signal asked to stop, and which.

    Call it: True after the first SIGINT or SIGTERM. ``signal`` is its number, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self) -> bool:
        return self.signal is not None


def train(
    state: TrainingState,
    run: RunFolder | None = None,
    *,
    every_checkpoint_seconds: float = 60.0,
    log_every: int = 10,
    stop: Callable[[], bool] | None = None,
) -> Iterator[Metrics]:
    """Update until ``state.progress`` is 1; yields what each update tells.

    With a run folder, also log, and save a checkpoint every so often, at the end and at an
    interruption. An error keeps the last checkpoint, says so in ``status.json`` and is raised. A
    checkpoint that cannot be written on the way is a warning; the last one is an error.

    Arguments:
        state: new, or put back by ``load_checkpoint``.
        run: where to write; None for nowhere.
        every_checkpoint_seconds: wall time between checkpoints.
        log_every: updates between logged ones.
        stop: asked before each update; True ends the training there, resumable.

    Raises:
        TrainingError: the loss or the gradient is not finite; names the cause.
        CheckpointError: the folder is in use, holds another run, or the last save failed.
    """
    updates = _updates(state, stop)
    if run is None:
        return updates
    record = _Record(state, run, every_checkpoint_seconds, log_every)
    return _recorded(updates, record)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM into a stop flag, and the second into KeyboardInterrupt.

    Outside the main thread signals cannot be caught, and the flag stays down.
    """
    stop = Interruption()

    def note(number: int, _: FrameType | None) -> None:
        if stop.signal is not None:
            raise KeyboardInterrupt
        stop.signal = number

    with _handled((signal.SIGINT, signal.SIGTERM), note):
        yield stop


@contextmanager
def terminable() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, as SIGINT already is: what a batch system sends.

    Outside the main thread signals cannot be caught.
    """

    def interrupt(number: int, _: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handled((signal.SIGTERM,), interrupt):
        yield


@contextmanager
def _handled(
    signals: tuple[signal.Signals, ...], handler: Callable[[int, FrameType | None], None]
) -> Iterator[None]:
    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {s: signal.signal(s, handler) for s in signals}
    try:
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, signal.SIG_DFL if own is None else own)


def progress_bar(metrics: Iterable[Metrics], state: TrainingState) -> Iterator[Metrics]:
    """Pass metrics through and show them on stderr: rate, time left, log Z, ESS, phase.

    A bar on a terminal, a line every ten seconds elsewhere; counted in seconds if the plan has a
    time budget.

    Arguments:
        metrics: of ``train``.
        state: the training they come from.
    """
    return _bar(metrics, state) if sys.stderr.isatty() else _lines(metrics, state)


def _updates(state: TrainingState, stop: Callable[[], bool] | None) -> Iterator[Metrics]:
    started = time.monotonic() - state.elapsed
    while state.progress < 1 and not (stop is not None and stop()):
        metrics = training_step(state)
        state.elapsed = time.monotonic() - started
        if metrics.alarm is not None:
            warnings.warn(metrics.alarm, RewardHacking, stacklevel=3)
        yield metrics


def _recorded(updates: Iterator[Metrics], record: "_Record") -> Iterator[Metrics]:
    with record.run:
        record.begin()
        try:
            for metrics in updates:
                record.note(metrics)
                yield metrics
        except GeneratorExit:
            record.end()
            raise
        except KeyboardInterrupt:
            record.fail("interrupted", "stopped inside an update; the last checkpoint is intact")
            raise
        except BaseException as error:
            record.fail("failed", f"{type(error).__name__}: {error}")
            raise
        record.end()


class _Record:
    """Writes a training into its run folder."""

    def __init__(
        self, state: TrainingState, run: RunFolder, every_seconds: float, log_every: int
    ) -> None:
        self.state = state
        self.run = run
        self.every_seconds = every_seconds
        self.log_every = log_every
        self.saved_at = time.monotonic()
        self.saved_step = -1
        self.unlogged: Metrics | None = None

    def begin(self) -> None:
        found = checkpoint_steps(self.run.checkpoints)
        if self.state.step == 0 and found and found[-1] > 0:
            raise CheckpointError(
                f"run folder {self.run.path} already holds a run at update {found[-1]}; resume it "
                "or choose another folder"
            )
        self.run.rewind(self.state.step)
        self.status("running")

    def note(self, metrics: Metrics) -> None:
        self.unlogged = metrics
        due = metrics.step % self.log_every == 0 or metrics.step == 1
        if due or metrics.alarm is not None:
            self._warned(self._log)
        if time.monotonic() - self.saved_at >= self.every_seconds:
            self._warned(self._save)
            self._warned(lambda: self.status("running"))
            self.saved_at = time.monotonic()

    def end(self) -> None:
        self._warned(self._log)
        if self.saved_step != self.state.step:
            self._save()
        if self.state.progress >= 1:
            watch = self.state.watch
            self.status("finished", f"stopped early: {watch.sentence}" if watch.stops else "")
        else:
            self.status("interrupted", f"stopped after update {self.state.step}; resume to go on")

    def fail(self, name: str, message: str) -> None:
        self._warned(self._log)
        self._warned(lambda: self.status(name, message))

    def status(self, name: str, message: str = "") -> None:
        state = self.state
        of, plan = state.plan.steps, state.plan
        if plan.seconds is not None or plan.network_calls is not None:
            of = round(state.step / state.progress) if state.progress > 0 else 0
        self.run.set_status(name, state.step, of, state.elapsed, message)

    def _log(self) -> None:
        if self.unlogged is not None:
            self.run.log(self.unlogged, self.state.elapsed)
            self.unlogged = None

    def _save(self) -> None:
        self.run.flush()
        save_checkpoint(self.state, self.run.checkpoints, self.run.identity)
        self.saved_step = self.state.step

    @staticmethod
    def _warned(write: Callable[[], None]) -> None:
        try:
            write()
        except CheckpointError as error:
            warnings.warn(f"{error}; the training goes on", CheckpointWarning, stacklevel=2)


def _bar(metrics: Iterable[Metrics], state: TrainingState) -> Iterator[Metrics]:
    from tqdm import tqdm

    done, total, unit = _measure(state)
    layout = f"{{l_bar}}{{bar}}| {{n:.0f}}/{{total:.0f}} {unit}{{postfix}}" if unit else None
    shown = _Shown()
    with tqdm(total=total, initial=done, bar_format=layout, file=sys.stderr) as bar:
        for each in metrics:
            bar.set_postfix_str(shown.text(each, state), refresh=False)
            bar.update(min(total, _measure(state)[0]) - bar.n)
            yield each


def _measure(state: TrainingState) -> tuple[float, float, str]:
    """How far a training is, of how much, and in which unit ("": updates)."""
    plan = state.plan
    if plan.seconds is not None:
        return state.elapsed, plan.seconds, "s"
    if plan.network_calls is not None:
        return state.network_calls / 1e6, plan.network_calls / 1e6, "M calls"
    return state.step, plan.steps, ""


def _lines(metrics: Iterable[Metrics], state: TrainingState) -> Iterator[Metrics]:
    shown, told = _Shown(), time.monotonic()
    for each in metrics:
        text = shown.text(each, state)
        now = time.monotonic()
        if now - told >= LINE_SECONDS or state.progress >= 1:
            print(f"{shown.where(state)}  {text}", file=sys.stderr, flush=True)
            told = now
        yield each


class _Shown:
    """Words for the progress of a training; where a batch lacks an estimate, the last one known."""

    def __init__(self) -> None:
        self.last: dict[str, float] = {}
        self.started: tuple[float, float, int] | None = None

    def text(self, metrics: Metrics, state: TrainingState) -> str:
        if self.started is None:
            self.started = (time.monotonic(), state.progress, state.step)
        for name in ("log_z", "ess"):
            value = getattr(metrics, name)
            if value == value:
                self.last[name] = value
        log_z = f"{self.last['log_z']:.3f}" if "log_z" in self.last else "-"
        ess = f"{self.last['ess']:.2f}" if "ess" in self.last else "-"
        return f"log Z {log_z}, ESS {ess}, {metrics.phase}"

    def where(self, state: TrainingState) -> str:
        assert self.started is not None
        clock, progress, step = self.started
        spent = max(time.monotonic() - clock, 1e-9)
        gained = state.progress - progress
        left = f"{spent / gained * (1 - state.progress):.0f} s left" if gained > 0 else "? s left"
        rate = f"{(state.step - step) / spent:.3g} updates/s"
        return f"update {state.step} ({100 * state.progress:.0f} %), {rate}, {left}"
