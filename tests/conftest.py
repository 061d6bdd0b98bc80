"""What holds for every test: one thread, fixed seeds, no network."""

import gc
import os

os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported, and by child processes
os.environ["HF_HUB_OFFLINE"] = "1"

import ipaddress
import signal
import socket
from collections.abc import Iterator

import hypothesis
import jaxtyping
import pytest
import torch

import typecheck

# Two processes of two threads each on two cores run several times slower than one thread each.
torch.set_num_threads(1)

# Walking through everything that was imported, again and again, takes a fifth of the suite's time.
gc.disable()

# A shell's background jobs ignore Ctrl-C, and so would the runs that the tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Collect garbage from here on, and leave alone what stays until the end anyway."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture
def generator() -> torch.Generator:
    """A generator seeded 0, new for each test."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Switch the checks of types and shapes off.

    For a test that hands over a wrong type to see our own message, or that takes many small steps.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _each_test_checks_anew() -> None:
    typecheck.check_anew()


@pytest.fixture(autouse=True)
def _seed() -> None:
    # Not the seed of `generator`: weights drawn here and data drawn there must differ.
    torch.manual_seed(20_405)


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex"):
            patch.setattr(socket.socket, name, _loopback_only(getattr(socket.socket, name)))
        yield


def _loopback_only(connect):
    def guarded(self: socket.socket, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_loopback(address[0]):
            # `fail` is no OSError, so no library takes it for a network that is down.
            pytest.fail(f"a test opened a connection to {address[0]}: tests run without a network")
        return connect(self, address)

    return guarded


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
