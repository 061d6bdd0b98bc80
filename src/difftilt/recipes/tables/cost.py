"""What a method costs: wall time, and the memory that it needs beyond what was held before."""

import ctypes
import threading
import time
from types import TracebackType

import psutil

EVERY = 0.01
"""Seconds between two looks at the process's memory."""


class Cost:
    """Wall time and memory of a ``with`` block.

    Resident memory is looked at all the while, so that a block whose peak is below an earlier one
    of the process shows its own. What the process has freed and still keeps is given back to the
    system first (with glibc; elsewhere a block that is served from it shows less than it needs).

    Attributes:
        seconds: wall time so far, or of the whole block once it is left.
        peak_mb: most resident memory so far, less that at the start, MB.
    """

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._left = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)
        self._end: float | None = None

    def __enter__(self) -> "Cost":
        _give_back_freed_memory()
        self._first = self._most = self._process.memory_info().rss
        self._start = time.perf_counter()
        self._watching.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end = time.perf_counter()
        self._left.set()
        self._watching.join()

    @property
    def seconds(self) -> float:
        return (time.perf_counter() if self._end is None else self._end) - self._start

    @property
    def peak_mb(self) -> float:
        return (self._most - self._first) / 1e6

    def _watch(self) -> None:
        while not self._left.wait(EVERY):
            self._most = max(self._most, self._process.memory_info().rss)


def _give_back_freed_memory() -> None:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError, TypeError):  # not glibc
        return
    trim(0)
