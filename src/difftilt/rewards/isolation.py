"""A reward in another process, with an interpreter, and so with dependencies, of its own.

    with isolated("scorer.py:log_reward", python="/envs/scorer/bin/python") as log_reward:
        log_reward(x_0)

``isolation_worker`` runs there. Batches go over and scores come back through two pipes, as JSON and
raw bytes; nothing is pickled, and that interpreter needs only numpy. The reward gets torch tensors
if torch can be imported there, else numpy arrays. What it prints goes to stderr.

A reward that takes too long or dies (a segmentation fault, memory) costs its process, not ours: it
is started again and gets the same batch again, up to ``restarts`` times per batch. An exception is
an answer: it becomes a ``RewardError`` at once and its process lives on.
"""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from difftilt.errors import InputError, RewardError
from difftilt.rewards import isolation_worker as worker
from difftilt.rewards.contract import CheckedReward, Condition

GRACE_SECONDS = 1.0  # for a process to leave by itself once its input is closed

Message = tuple[dict, list[np.ndarray]]


def isolated(
    spec: str,
    *,
    python: str | Path | None = None,
    timeout: float = 60.0,
    restarts: int = 2,
    options: Mapping[str, Any] | None = None,
) -> "IsolatedReward":
    """The reward that ``spec`` names, in a process of its own; see ``IsolatedReward``."""
    return IsolatedReward(spec, python=python, timeout=timeout, restarts=restarts, options=options)


@final
class IsolatedReward:
    """A reward that runs in another process; a context manager, closed at exit at the latest.

    Arguments:
        spec: ``package.module:function`` or ``file.py:function``, found from the current folder by
            the other interpreter.
        python: path of that interpreter; default this one.
        timeout: seconds for one batch, above 0.
        restarts: how often one batch may cost the process before it is an error, 0 or more.
        start_timeout: seconds for starting, which includes what the reward loads on import.
        options: given, ``spec`` names a function that makes the reward of these keyword arguments
            (JSON values) there, and each child is started with them.

    Raises:
        InputError: an argument is out of range, there is no such interpreter, or the reward cannot
            be loaded there.
    """

    def __init__(
        self,
        spec: str,
        *,
        python: str | Path | None = None,
        timeout: float = 60.0,
        restarts: int = 2,
        start_timeout: float = 300.0,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        for name, seconds in (("timeout", timeout), ("start_timeout", start_timeout)):
            if not 0.0 < seconds < math.inf:
                raise InputError(f"{name} is {seconds}; give a number of seconds above 0")
        if not isinstance(restarts, int) or restarts < 0:
            raise InputError(f"restarts is {restarts}; give a whole number, 0 or more")
        self.name = spec
        self._process = _Restarted(
            _Launch(spec, str(python or sys.executable), os.getcwd(), start_timeout, options),
            timeout,
            restarts,
        )
        self._reward = CheckedReward(self._process.score, name=spec, bound=self._process.bound)

    @property
    def bound(self) -> float | None:
        """The upper bound of log r in nats that the reward declares as ``.bound``, or None."""
        return self._reward.bound

    def __call__(
        self, x_0: Shaped[Tensor, "B ..."] | Sequence[str], condition: Condition | None = None
    ) -> Float[Tensor, " B"]:
        """log r of each sample, detached, on the device of x_0.

        Arguments:
            x_0: samples; or B texts, for a function of ``list[str]`` there.
            condition: of samples; (B, ...) or B texts.

        Raises:
            RewardError: as for every reward; or no answer after ``restarts`` restarts.
        """
        if isinstance(x_0, Tensor):
            return self._reward(x_0, condition)
        return self._process.score(list(x_0))

    def close(self) -> None:
        """End the process; closing twice is fine, scoring after it is an error."""
        self._process.close()

    def __enter__(self) -> "IsolatedReward":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Lost(Exception):
    """A child that is gone: what became of it, and the remedy."""

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)
        self.what, self.remedy = what, remedy


@final
class _Restarted:
    """A child that is started again when it is lost."""

    def __init__(self, launch: "_Launch", timeout: float, restarts: int) -> None:
        self._launch, self._timeout, self._attempts = launch, timeout, 1 + restarts
        self._lock = threading.Lock()
        self._is_closed = False
        try:
            self._child, self.bound = launch.start()
        except _Lost as lost:
            raise InputError(
                f"reward {launch.spec!r} cannot be loaded: it {lost.what} while loading in "
                f"{launch.python}; {lost.remedy}"
            ) from None

    def score(self, x_0: Tensor | list[str], condition: Condition | None = None) -> Tensor:
        name, where = self._launch.spec, f"{len(x_0)} texts"
        if isinstance(x_0, Tensor):
            where = f"a batch of shape {tuple(x_0.shape)}"
        with self._lock:
            if self._is_closed:
                raise RewardError(f"reward {name!r} is closed; make another with isolated(...)")
            try:
                reply, arrays = self._ask(_question(x_0, condition))
            except _Lost as lost:
                attempts = f"(attempt {self._attempts} of {self._attempts})"
                text = f"{lost.what} {attempts} on {where}; {lost.remedy}"
                raise RewardError(f"reward {name!r} {text}") from None
        if "raised" in reply:
            error = RewardError(f"reward {name!r} raised {reply['raised']} on {where}")
            error.add_note(f"In the process of the reward:\n{reply['traceback']}")
            raise error
        if "unusable" in reply:
            raise RewardError(f"reward {name!r} {reply['unusable']}")
        return torch.from_numpy(arrays[0])

    def _ask(self, question: Message) -> Message:
        for attempt in range(1, self._attempts + 1):
            try:
                # Only a child that has answered is used again: another may answer late.
                child, self._child = self._child or self._launch.start()[0], None
                reply = child.exchange(question, self._timeout)
                self._child = child
                return reply
            except _Lost:
                if attempt == self._attempts:
                    raise
        raise AssertionError("there is at least one attempt")

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            child, self._child = self._child, None
            if child is not None:
                child.stop()


@final
@dataclass(frozen=True)
class _Launch:
    """How to start a child."""

    spec: str
    python: str
    folder: str
    timeout: float
    options: Mapping[str, Any] | None = None

    @property
    def _words(self) -> list[str]:
        return [] if self.options is None else [json.dumps(dict(self.options))]

    def start(self) -> tuple["_Child", float | None]:
        """A child that has loaded the reward, and the bound that the reward declares."""
        try:
            child = _Child([self.python, worker.__file__, self.spec, *self._words], self.folder)
        except OSError as error:
            raise InputError(
                f"python={self.python!r} cannot be started ({error.strerror}: {error.filename}); "
                "give the path of a Python interpreter"
            ) from None
        try:
            hello, _ = child.exchange(None, self.timeout)
        except _Lost:
            if child.exit_code == worker.NO_NUMPY:
                raise InputError(
                    f"the interpreter {self.python} has no numpy, which it needs to talk to us; "
                    f"run: {self.python} -m pip install numpy"
                ) from None
            raise
        if "unusable" in hello:
            child.stop()
            raise InputError(f"reward {self.spec!r} {hello['unusable']}")
        return child, hello["bound"]


@final
class _Child:
    """One process, ended at the latest when this object or the interpreter goes."""

    def __init__(self, command: Sequence[str], folder: str) -> None:
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            cwd=folder,
            start_new_session=True,  # Ctrl-C is for us; and we can end it with its own children
        )
        self.stop = weakref.finalize(self, _stop, self._process)

    @property
    def exit_code(self) -> int | None:
        return self._process.returncode

    def exchange(self, question: Message | None, timeout: float) -> Message:
        """Ask, if there is a question, and wait for a message; without one the child is ended."""
        answer: Future[Message] = Future()
        talk = threading.Thread(target=_talk, args=(self._process, question, answer), daemon=True)
        talk.start()
        try:
            return answer.result(timeout)
        except TimeoutError:
            remedy = "raise the time-out or score fewer samples at once"
            lost = _Lost(f"gave no answer within {timeout:g} s", remedy)
        except (EOFError, OSError, ValueError):
            lost = _Lost(f"lost its process ({self._epitaph()})", "what it printed is on stderr")
        finally:
            if not answer.done() or answer.exception() is not None:
                _kill(self._process)  # which ends the talk
                talk.join(GRACE_SECONDS)
                self.stop()
        raise lost

    def _epitaph(self) -> str:
        try:
            code = self._process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            return "it no longer answers"
        return f"signal {-code}, {signal.strsignal(-code)}" if code < 0 else f"exit code {code}"


def _talk(process: subprocess.Popen, question: Message | None, answer: Future) -> None:
    assert process.stdin is not None and process.stdout is not None
    try:
        if question is not None:
            worker.write_message(process.stdin, *question)
        answer.set_result(worker.read_message(process.stdout))
    except BaseException as error:
        answer.set_exception(error)


def _kill(process: subprocess.Popen) -> None:
    if process.returncode is None:  # not waited for yet, so the number is still its own
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _stop(process: subprocess.Popen) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()  # to an idle child the end of its work
    try:
        process.wait(GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        _kill(process)
    process.stdout.close()


def _to_numpy(x: Tensor) -> np.ndarray:
    x = x.detach().cpu()
    return (x.float() if x.dtype == torch.bfloat16 else x).numpy()


def _question(x_0: Tensor | list[str], condition: Condition | None) -> Message:
    """Samples and a condition of numbers as arrays; those of texts in the header."""
    if isinstance(x_0, list):
        return {"samples": x_0}, []
    if condition is None:
        return {}, [_to_numpy(x_0)]
    if isinstance(condition, Tensor):
        return {}, [_to_numpy(x_0), _to_numpy(condition)]
    return {"texts": list(condition)}, [_to_numpy(x_0)]
