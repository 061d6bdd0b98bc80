"""The script of the other process: what it may need, and the messages that it exchanges."""

import ast
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_numpy

from difftilt.rewards import isolation_worker as worker

SOURCE = Path(worker.__file__).read_text()

dtypes = st.sampled_from(["<f4", ">f4", "<f8", ">f8", "<f2", "|u1", "<i8", ">i4", "|b1"])
arrays = hypothesis_numpy.arrays(dtypes, hypothesis_numpy.array_shapes(min_dims=0, min_side=0))
headers = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text())


def test_it_needs_the_standard_library_and_numpy_only():
    imported = set()
    for node in ast.walk(ast.parse(SOURCE)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported - sys.stdlib_module_names == {"numpy"}


def test_it_is_written_in_the_grammar_of_python_3_9():
    tree = ast.parse(SOURCE, feature_version=(3, 9))
    # 3.9 evaluates annotations, and has no `X | None`.
    unions = [n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, ast.BitOr)]
    assert not unions


@given(headers, st.lists(arrays, max_size=3))
def test_a_message_arrives_as_it_was_sent(header, sent):
    stream = io.BytesIO()
    worker.write_message(stream, header, sent)
    worker.write_message(stream, {"after": 1})
    stream.seek(0)
    received_header, received = worker.read_message(stream)
    assert {**header, "arrays": received_header["arrays"]} == received_header
    assert len(received) == len(sent)
    for one, other in zip(received, sent, strict=True):
        assert one.shape == other.shape
        assert one.dtype == other.dtype.newbyteorder("<")
        np.testing.assert_array_equal(one, other)
        one[...] = 0
    assert worker.read_message(stream)[0]["after"] == 1


def test_the_header_is_json_and_numbers_are_little_endian():
    stream = io.BytesIO()
    worker.write_message(stream, {"bound": None}, [np.array([1.0], dtype=">f4")])
    length = int.from_bytes(stream.getvalue()[:4], "little")
    header, data = stream.getvalue()[4 : 4 + length], stream.getvalue()[4 + length :]
    assert json.loads(header) == {"bound": None, "arrays": [["<f4", [1]]]}
    assert data == b"\x00\x00\x80\x3f"


def test_a_message_that_stops_half_way_is_the_end():
    stream = io.BytesIO()
    worker.write_message(stream, {}, [np.zeros(10)])
    whole = stream.getvalue()
    for size in (0, 3, 10, len(whole) - 1):
        with pytest.raises(EOFError):
            worker.read_message(io.BytesIO(whole[:size]))


class _Trickle(io.RawIOBase):
    """A pipe that takes and gives at most three bytes at once, as an unbuffered one may."""

    def __init__(self):
        self.content = bytearray()

    def write(self, data):
        self.content += data[:3]
        return min(3, len(data))

    def readinto(self, buffer):
        count = min(3, len(buffer), len(self.content))
        buffer[:count] = self.content[:count]
        del self.content[:count]
        return count


def test_a_pipe_may_take_and_give_little_at_once():
    stream = _Trickle()
    worker.write_message(stream, {"key": "value"}, [np.arange(5.0)])
    header, (array,) = worker.read_message(stream)
    assert header["key"] == "value"
    assert array.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]


def test_it_leaves_by_itself_when_its_input_ends(tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('hidden by a test')\n")
    (tmp_path / "scorer.py").write_text("def log_reward(x_0):\n    return x_0.sum(1)\n")
    request = io.BytesIO()
    worker.write_message(request, {}, [np.ones((2, 3))])
    ended = subprocess.run(
        [sys.executable, worker.__file__, "scorer.py:log_reward"],
        input=request.getvalue(),
        capture_output=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    replies = io.BytesIO(ended.stdout)
    assert worker.read_message(replies) == ({"bound": None, "arrays": []}, [])
    assert worker.read_message(replies)[1][0].tolist() == [3.0, 3.0]
    assert replies.read() == b""
