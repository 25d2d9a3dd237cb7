"""Files that are either whole or absent: atomic writes, JSON, and tensors with a checked, versioned header."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from pflsynth.errors import ModelError, PflsynthError, UsageError

if TYPE_CHECKING:
    import torch

FORMAT_VERSION = 1
"""Version of the tensor files that :func:`save_tensors` writes."""

_HEADER_KEY = "pflsynth"


def write_atomic(path: Path, data: bytes, mode: int = 0o666) -> None:
    """Write ``data`` to ``path`` so that the file is, at any moment, the old one or the whole new one.

    A temporary file in the same folder is written, flushed to the disk and renamed.

    Args:
        path: the file.
        data: its content.
        mode: its permissions, less the umask; ``0o600`` for what only its owner may read.

    Raises:
        OSError: disk full, no permission, no such folder; the temporary file is then removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk is told of without saying where
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries (renames) to the disk; does nothing where the system has no such call."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(new: Path, folder: Path) -> None:
    """Rename a folder into the place of another, which is removed.

    A kill between the two renames leaves the old folder under a hidden name: see :func:`restore_folder`.

    Args:
        new: whole, in the same parent folder.
        folder: where it goes; it may be absent.
    """
    old = _replaced(folder)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def restore_folder(folder: Path) -> None:
    """Mend what a killed :func:`replace_folder` left: put the old folder back, or remove it if the new one is there."""
    old = _replaced(folder)
    if old.is_dir() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Make a folder that appears whole, in the place of the one that was there, or not at all.

    Yields:
        A new, empty folder beside ``folder`` to fill. It takes the place of ``folder`` at the end, and is removed if
        anything fails. A killed run leaves it behind under its hidden name: see :func:`clean_leftovers`.

    Raises:
        OSError: disk full, no permission.
    """
    temporary = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        replace_folder(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def clean_leftovers(folder: Path) -> None:
    """Remove what killed runs of :func:`replaced_folder` left, and put the old folder back if it was being replaced."""
    restore_folder(folder)
    for leftover in folder.parent.glob(f".{folder.name}.new-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _replaced(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.replaced")


@contextlib.contextmanager
def exclusive(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file; it is released however the process ends.

    Args:
        path: the lock file, made if it is absent.
        busy: text of the error.

    Raises:
        UsageError: another process holds it.
    """
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(busy) from None
        yield


def is_held(path: Path) -> bool:
    """Whether a process holds this lock file now."""
    if not path.exists():
        return False
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def sha256_of_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def json_bytes(content: object) -> bytes:
    """Readable canonical JSON: sorted keys, indent 2, UTF-8, ends with a newline, no NaN."""
    return (json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, content: object) -> None:
    """Write :func:`json_bytes` of ``content`` atomically."""
    write_atomic(path, json_bytes(content))


def read_json(path: Path, error: type[PflsynthError] = ModelError) -> Any:
    """Read a JSON file.

    Raises:
        PflsynthError: (class ``error``) if the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path}: there is no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise error(f"{path}: is not JSON, or was cut short: {failure}") from None


def save_tensors(
    path: Path,
    tensors: Mapping[str, torch.Tensor | npt.NDArray[Any]],
    metadata: Mapping[str, Any],
    kind: str,
) -> None:
    """Write named tensors and JSON metadata as one safetensors file, atomically; same content, same bytes.

    Args:
        path: file to write.
        tensors: any shapes and devices; stored contiguous, on the CPU, in their own type.
        metadata: JSON values; the names ``format`` and ``kind`` are taken.
        kind: what the file is ("subject", "shared", ...); :func:`load_tensors` refuses another kind.

    Raises:
        OSError: disk full, no permission, no such folder.
    """
    # One header key: safetensors writes several in random order.
    header = {**metadata, "format": FORMAT_VERSION, "kind": kind}
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    arrays = {name: np.ascontiguousarray(own) for name, own in tensors.items() if isinstance(own, np.ndarray)}
    if len(arrays) == len(tensors):
        content = safetensors.numpy.save(arrays, {_HEADER_KEY: text})
    else:
        content = _torch_bytes(tensors, {_HEADER_KEY: text})
    write_atomic(path, content)


def _torch_bytes(tensors: Mapping[str, torch.Tensor | npt.NDArray[Any]], header: dict[str, str]) -> bytes:
    """Torch is imported only where it is used: processes that prepare data start in a tenth of the time."""
    import safetensors.torch
    import torch

    # Contiguous CPU copies: safetensors refuses views and tensors that share memory.
    stored = {name: torch.as_tensor(own).detach().to("cpu", copy=True).contiguous() for name, own in tensors.items()}
    return bytes(safetensors.torch.save(stored, header))


def load_tensors(
    path: Path, kind: str, error: type[PflsynthError] = ModelError
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a file of :func:`save_tensors` into memory.

    Args:
        path: the file.
        kind: the kind that it must have.
        error: class of the error that is raised for a file that cannot be used.

    Returns:
        The tensors (on the CPU) and the metadata, without ``format`` and ``kind``.

    Raises:
        PflsynthError: (class ``error``) no such file; cut short or not safetensors; not by pflsynth; of another
            kind; of a newer format.
    """
    with open_tensors(path, kind, error) as (file, metadata):
        return {name: file.get_tensor(name).clone() for name in sorted(file.keys())}, metadata


@contextlib.contextmanager
def open_tensors(
    path: Path, kind: str, error: type[PflsynthError] = ModelError
) -> Iterator[tuple[Any, dict[str, Any]]]:
    """Open a file of :func:`save_tensors` without reading its tensors; checks and errors of :func:`load_tensors`.

    Yields:
        The open ``safetensors.safe_open`` (its ``get_tensor`` maps the file, so that pages are read when used), and
        the metadata without ``format`` and ``kind``.
    """
    if not path.is_file():
        raise error(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise error(f"{path}: is empty, so it was cut short; get a whole copy, or make it again")
    try:
        opened = safetensors.safe_open(path, framework="pt")
    except safetensors.SafetensorError as failure:
        raise error(
            f"{path}: is cut short or is not a safetensors file ({failure}); get a whole copy, or make it again"
        ) from None
    with opened as file:
        yield file, _checked_header(path, file.metadata(), kind, error)


def _checked_header(
    path: Path, header: Mapping[str, str] | None, kind: str, error: type[PflsynthError]
) -> dict[str, Any]:
    try:
        content = json.loads((header or {})[_HEADER_KEY])
        found_format, found_kind = content.pop("format"), content.pop("kind")
    except (KeyError, AttributeError, json.JSONDecodeError):
        raise error(f"{path}: was not written by pflsynth (its header has no pflsynth entry)") from None
    if found_format != FORMAT_VERSION:
        raise error(
            f"{path}: has format {found_format}, this pflsynth reads {FORMAT_VERSION}: "
            "it was written by a newer pflsynth; update pflsynth"
        )
    if found_kind != kind:
        raise error(f'{path}: holds "{found_kind}", but "{kind}" is wanted here')
    return dict(content)
