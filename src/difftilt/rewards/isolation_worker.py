"""What a reward is, in the standard library and numpy; and the script that scores in a process.

``python isolation_worker.py SPEC [OPTIONS]`` loads the reward and answers batches on its standard
input until that closes. It is started by path, so difftilt and torch need not be installed in the
interpreter that runs it (Python 3.9 or later). ``loading`` and ``contract`` use the same functions
in our own process, so that a reward is loaded, called and judged by the same rules, in the same
words, on both sides.

A message is ``length of the header (4 bytes) | header (JSON) | the bytes of each array``, all
little-endian; ``header["arrays"]`` lists (dtype, shape) of each array, ``header["texts"]`` is a
condition of texts, ``header["samples"]`` samples that are texts. Nothing is ever unpickled.
"""

import os
import sys

if __name__ == "__main__":
    # Run by path, Python puts this folder first, where our modules would shadow the reward's.
    _here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [os.getcwd(), *(p for p in sys.path if os.path.abspath(p) != _here)]

import difflib
import faulthandler
import importlib
import inspect
import json
import math
import numbers
import struct
import textwrap
import traceback
import types
import zlib
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from typing import Any

NO_NUMPY = 77  # exit code of an interpreter that cannot serve

try:
    import numpy as np
except ImportError:
    if __name__ != "__main__":
        raise
    sys.exit(NO_NUMPY)


class Unusable(Exception):
    """Why something is no reward; the text goes on where "reward NAME" stopped."""


def quoted(error: BaseException) -> str:
    """An exception as ``Type: message``, on one line."""
    text = f"{type(error).__name__}: {error}".rstrip(": ")
    return textwrap.shorten(text, 400, placeholder="...")


def load(spec: str) -> Callable:
    """The function that ``package.module:function`` or ``file.py:function`` names.

    The current folder, and before it the file's own, come first on ``sys.path``.

    Raises:
        Unusable: there is no such function; what importing raised is chained.
    """
    source, _, attribute = spec.rpartition(":")
    if not (source and attribute):
        raise Unusable("is no name; write package.module:function or file.py:function")
    _put_first(os.getcwd())
    module = _load_file(source) if source.endswith(".py") else _load_module(source)
    return _find(module, source, attribute)


def _put_first(folder: str) -> None:
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)


def _load_file(path: str) -> types.ModuleType:
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isfile(path):
        raise Unusable(f"cannot be loaded: there is no file {path}")
    _put_first(os.path.dirname(path))
    # The checksum keeps a file called json.py from replacing the json that everybody imports.
    name = f"{os.path.basename(path)[:-3]}_{zlib.crc32(path.encode()):08x}"
    module = sys.modules[name] = types.ModuleType(name)
    module.__file__ = path
    try:
        SourceFileLoader(name, path).exec_module(module)
    except (Exception, SystemExit) as error:
        raise Unusable(f"cannot be loaded: importing {path} raised {quoted(error)}") from error
    return module


def _load_module(name: str) -> types.ModuleType:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{name}.".startswith(f"{missing}."):
            raise Unusable(
                f"cannot be loaded: there is no module {missing!r} in the current folder "
                f"({os.getcwd()}) or among the packages of {sys.executable}"
            ) from None
        raise Unusable(f"cannot be loaded: importing {name} raised {quoted(error)}") from error


def _find(module: types.ModuleType, source: str, attribute: str) -> Callable:
    found = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name, value in vars(module).items() if callable(value)]
            near = difflib.get_close_matches(attribute, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise Unusable(f"cannot be loaded: {source} has no {attribute!r}{hint}")
        found = getattr(found, part)
    if inspect.isclass(found) or not callable(found):
        raise Unusable(f"is {described(found)}; name a function or another callable object")
    return found


def condition_use(log_reward: Callable) -> str:
    """Whether a reward takes the condition: "never", "optional" or "required".

    Its second positional parameter is the condition if it has no default, defaults to None or is
    called ``condition``; another default (``scale=2.0``) makes it an option of the reward.

    Raises:
        Unusable: no call of one or two positional arguments fits.
    """
    try:  # a torch module's own __call__ takes anything; its forward says what it means
        signature = inspect.signature(getattr(log_reward, "forward", log_reward))
    except ValueError:  # a builtin that does not tell
        return "never"
    with_one, with_two = _accepts(signature, 1), _accepts(signature, 2)
    if not (with_one or with_two):
        shapes = "log_reward(x_0) or log_reward(x_0, condition)"
        raise Unusable(f"has the parameters {signature}; it must be callable as {shapes}")
    if not (with_one and with_two):
        return "never" if with_one else "required"
    second = list(signature.parameters.values())[:2][-1]
    is_condition = second.default is None or second.name == "condition"
    return "optional" if is_condition or second.kind is second.VAR_POSITIONAL else "never"


def _accepts(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def call(log_reward: Callable, use: str, x_0: Any, condition: Any) -> Any:
    """``log_reward`` on a batch, with the condition if there is one and the reward takes it.

    Raises:
        Unusable: the reward needs a condition and there is none.
    """
    if use == "required" and condition is None:
        raise Unusable("needs a condition and none was given; give one, or make it optional")
    return log_reward(x_0) if use == "never" or condition is None else log_reward(x_0, condition)


def described(value: Any) -> str:
    """What a value is, in a word or two."""
    if value is None:
        return "None"
    name = "class" if inspect.isclass(value) else type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def to_array(value: Any, batch: int) -> np.ndarray:
    """What a reward returned, if not a torch tensor, as a new array of float32 or float64.

    Raises:
        Unusable: it is not an array or list, or holds something else than real numbers.
    """
    remedy = f"return one log r per sample, shape ({batch},)"
    if isinstance(value, (list, tuple)):
        for row, item in enumerate(value):
            if not isinstance(item, numbers.Real) and getattr(item, "shape", 0) not in ((), (1,)):
                raise Unusable(f"returned a list with {described(item)} in row {row}; {remedy}")
        value = np.asarray([v.item() if hasattr(v, "item") else v for v in value])
    if not hasattr(value, "__array__"):
        raise Unusable(f"returned {described(value)}; {remedy}")
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise Unusable(not_real(array.dtype.name))
    return array.astype(np.float32 if array.dtype.itemsize < 8 else np.float64, order="C")


def not_real(dtype: str) -> str:
    """The complaint about values that are no real numbers."""
    return f"returned {dtype} values; return log r as floats, in nats"


def write_message(stream: Any, header: dict, arrays: Sequence[np.ndarray] = ()) -> None:
    """Send a header and arrays of numbers or booleans to a binary file, buffered or not."""
    arrays = [np.asarray(a, a.dtype.newbyteorder("<"), order="C") for a in arrays]
    text = json.dumps({**header, "arrays": [(a.dtype.str, a.shape) for a in arrays]}).encode()
    for part in (struct.pack("<I", len(text)), text, *(a.tobytes() for a in arrays)):
        rest = memoryview(part)
        while rest:  # an unbuffered pipe may take less than all
            rest = rest[stream.write(rest) :]
    stream.flush()


def read_message(stream: Any) -> tuple[dict, list[np.ndarray]]:
    """The next header and its arrays, which may be written to.

    Raises:
        EOFError: the other side is gone.
    """
    (length,) = struct.unpack("<I", _read(stream, 4))
    header = json.loads(_read(stream, length).decode())
    arrays = []
    for text, shape in header["arrays"]:
        dtype = np.dtype(text)
        data = _read(stream, dtype.itemsize * math.prod(shape))
        arrays.append(np.frombuffer(data, dtype).reshape(shape))
    return header, arrays


def _read(stream: Any, size: int) -> bytearray:
    buffer = bytearray(size)
    rest = memoryview(buffer)
    while rest:
        count = stream.readinto(rest)
        if not count:
            raise EOFError
        rest = rest[count:]
    return buffer


def made(spec: str, options: str) -> Callable:
    """The reward that the function of this name makes of keyword arguments, given as JSON.

    Raises:
        Unusable: it cannot be found, or it raised.
    """
    maker = load(spec)
    try:
        return maker(**json.loads(options))
    except Exception as error:
        raise Unusable(f"cannot be made: {spec} raised {quoted(error)}") from error


def serve(spec: str, requests: Any, replies: Any, options: Any = None) -> None:
    """Load (or make) the reward, say hello, then answer one batch after the other."""
    try:
        log_reward = load(spec) if options is None else made(spec, options)
        use = condition_use(log_reward)
    except Unusable as error:
        return write_message(replies, {"unusable": str(error)})
    torch = _torch()
    bound = getattr(log_reward, "bound", None)
    write_message(replies, {"bound": bound if isinstance(bound, (int, float)) else None})
    while True:
        try:
            header, arrays = read_message(requests)
        except EOFError:
            return None
        write_message(replies, *_answer(log_reward, use, torch, header, arrays))


def _torch() -> Any:
    try:
        torch = importlib.import_module("torch")
    except ImportError:
        return None
    torch.set_grad_enabled(False)
    return torch


def _answer(log_reward: Callable, use: str, torch: Any, header: dict, arrays: list) -> tuple:
    samples = [torch.from_numpy(a) if torch else a for a in arrays] or [header["samples"]]
    x_0, condition = samples[0], samples[1] if len(samples) > 1 else header.get("texts")
    try:
        value = call(log_reward, use, x_0, condition)
        if torch and isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype is torch.bfloat16 else value).numpy()
        return {}, [to_array(value, len(x_0))]
    except Unusable as error:
        return {"unusable": str(error)}, []
    except Exception as error:
        return {"raised": quoted(error), "traceback": traceback.format_exc()}, []


def main() -> None:
    """Keep the two pipes to ourselves, and serve."""
    faulthandler.enable()
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    # Whatever the reward prints, in Python or C, goes to stderr; its own input is empty.
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        serve(sys.argv[1], requests, replies, *sys.argv[2:])
    except BrokenPipeError:
        os._exit(0)  # nobody is left to talk to


if __name__ == "__main__":
    main()
