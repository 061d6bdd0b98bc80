"""Cells of a table in processes of their own, so that none inherits another's memory."""

import multiprocessing
import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

Returned = TypeVar("Returned")


def in_own_process(function: Callable[..., Returned], *arguments: Any) -> Returned:
    """What a function returns in a fresh interpreter, which ends when this one does.

    Arguments:
        function: of a module, so that another process finds it.
        arguments: its arguments; they and what it returns are pickled.
    """
    with multiprocessing.get_context("spawn").Pool(1, _end_with_parent) as pool:
        return pool.apply(function, arguments)


def _end_with_parent() -> None:
    """A parent that is killed says nothing; its process is waited for."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
