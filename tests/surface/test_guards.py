"""The suite's own guards are on: argument types checked, network closed, one thread."""

import socket

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import TypeCheckError

from difftilt.errors import require


def test_argument_types_are_checked():
    with pytest.raises((BeartypeCallHintViolation, TypeCheckError)):
        require(3, "report")  # pyright: ignore[reportArgumentType]


def test_a_test_can_do_without_the_checks(unchecked: None):
    with pytest.raises(AttributeError):
        require(3, "report")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("example.org", 80)])
def test_other_machines_are_out_of_reach(address: tuple[str, int]):
    with (
        socket.socket() as client,
        pytest.raises(pytest.fail.Exception, match=f"connection to {address[0]}"),
    ):
        client.connect(address)


def test_this_machine_is_within_reach():
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client:
        client.connect(server.getsockname())


def test_torch_uses_one_thread():
    assert torch.get_num_threads() == 1
