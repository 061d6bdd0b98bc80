"""Files that survive a crash.

Everything is written beside its place, flushed to the disk and renamed, so that a reader sees the
old file or the new one and never a half. A *sealed folder* holds safetensors, JSON and, written
last, a ``manifest.json`` with the size and SHA-256 of each file: a flipped bit loads silently
from safetensors, and is seen here.

Nothing is ever unpickled.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from difftilt.errors import CheckpointError

MANIFEST = "manifest.json"
PICKLES = frozenset({".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle"})
HEADER_LIMIT = 100_000_000

Spec = tuple[int, ...]


class DamagedFile(CheckpointError):
    """A file is missing, cut off or altered; an older copy may serve."""


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text in which numbers that are not finite are null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False, ensure_ascii=False)


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step.

    Raises:
        CheckpointError: the disk is full or the folder not writable; the old file is intact.
    """
    write_text(path, to_json(value, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step.

    Raises:
        CheckpointError: the disk is full or the folder not writable; the old file is intact.
    """
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file in one step; raises as ``write_text``."""
    with _replacing(path, len(content)) as temporary:
        _write(temporary, content)


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DamagedFile: it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except (ValueError, OSError) as error:
        raise DamagedFile(f"{path} cannot be read as JSON ({error})") from None


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file in one step.

    Raises:
        CheckpointError: the disk is full or the folder not writable; the old file is intact.
    """
    with _replacing(path, _bytes_of(tensors)) as temporary:
        _save_tensors(temporary, tensors)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file without names given twice and without NaN.

    Raises:
        DamagedFile: it is missing or cut off.
        CheckpointError: a pickle, a name given twice, or NaN in a tensor.
    """
    refuse_pickle(path)
    tensor_shapes(path)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} cannot be read as safetensors ({error})") from None
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(tensor.isnan().any()):
            raise CheckpointError(f"tensor {name!r} of {path} holds NaN; it is not loaded")
    return tensors


def tensor_shapes(path: Path) -> dict[str, Spec]:
    """Names and shapes of a safetensors file, read from its header alone.

    Raises:
        DamagedFile: there is no readable header.
        CheckpointError: a name is given twice.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if length > min(HEADER_LIMIT, path.stat().st_size):
                raise DamagedFile(f"{path} is no safetensors file or is cut off")
            header = json.loads(file.read(length), object_pairs_hook=_each_once)
    except FileNotFoundError:
        raise DamagedFile(f"{path} is missing") from None
    except _GivenTwice as error:
        raise CheckpointError(
            f"tensor {error} of {path} is given twice; it is not loaded"
        ) from None
    except ValueError as error:
        raise DamagedFile(f"{path} is no safetensors file ({error})") from None
    return {k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"}


def seal(
    folder: Path, tensors: Mapping[str, Mapping[str, Tensor]], documents: Mapping[str, Any]
) -> None:
    """Write a sealed folder in one step; one of that name is replaced.

    Arguments:
        folder: where it will be.
        tensors: file name -> tensors.
        documents: file name -> JSON value.

    Raises:
        CheckpointError: the disk is full or the folder not writable; what was there is intact.
    """
    texts = {name: (to_json(value) + "\n").encode() for name, value in documents.items()}
    needed = sum(map(_bytes_of, tensors.values())) + sum(map(len, texts.values()))
    with _replacing(folder, needed) as temporary:
        temporary.mkdir()
        for name, named in tensors.items():
            _save_tensors(temporary / name, named)
        for name, text in texts.items():
            _write(temporary / name, text)
        files = {path.name: _fingerprint(path) for path in sorted(temporary.iterdir())}
        _write(temporary / MANIFEST, to_json({"files": files}, indent=2).encode())
        _sync(temporary)


def check_seal(folder: Path) -> None:
    """Compare every file of a sealed folder with its manifest.

    Raises:
        DamagedFile: a file is missing, cut off or altered.
        CheckpointError: the folder or a file is a symbolic link.
    """
    refuse_link(folder)
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict):
        raise DamagedFile(f"{folder / MANIFEST} lists no files")
    for name, expected in files.items():
        path = folder / Path(name).name
        refuse_link(path)
        if not path.is_file():
            raise DamagedFile(f"{path} is missing")
        if _fingerprint(path) != expected:
            raise DamagedFile(f"{path} differs from its checksum")


def refuse_link(path: Path) -> None:
    """Raises CheckpointError if a path is a symbolic link."""
    if path.is_symlink():
        raise CheckpointError(
            f"{path} is a symbolic link, which may lead out of the run; name the real one"
        )


def refuse_pickle(path: Path) -> None:
    """Raises CheckpointError if a path is, or a folder holds nothing but, pickled weights."""
    inside = [p for p in path.iterdir() if p.suffix in PICKLES] if path.is_dir() else []
    if inside and not any(path.glob("*/" + MANIFEST)) and not (path / MANIFEST).exists():
        path = inside[0]
    if path.suffix in PICKLES:
        raise CheckpointError(
            f"{path} is a pickle, which can run any program when it is loaded; difftilt reads "
            "safetensors only: convert it where you trust it, with safetensors.torch.save_file"
        )


def sweep(folder: Path, pattern: str = "*") -> None:
    """Remove what an interrupted write left in a folder."""
    for path in folder.glob(f".{pattern}.tmp"):
        remove(path)


@contextmanager
def _replacing(path: Path, needed: int) -> Iterator[Path]:
    """A temporary sibling that takes the place of ``path`` when the block ends well."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(temporary)
        yield temporary
        _put(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write {path}: {getattr(error, 'strerror', None) or error}; it needs "
            f"{needed:,} bytes; what was saved before is intact"
        ) from error
    finally:
        remove(temporary)


def _put(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)
        return
    # A folder cannot be renamed over a full one.
    aside = path.with_name(f".{path.name}.replaced.tmp")
    remove(aside)
    os.rename(path, aside)
    os.rename(temporary, path)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a file or a whole folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _write(path: Path, text: bytes) -> None:
    with path.open("wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, path)
    _sync(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _bytes_of(tensors: Mapping[str, Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors.values())


def _fingerprint(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"sha256": digest, "size": path.stat().st_size}


class _GivenTwice(Exception):
    pass


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _GivenTwice(repr(name))
        found[name] = value
    return found


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path | torch.dtype | torch.device) else value
