"""Read a NIfTI file once, as its bytes: neither more nor less than its header tells of."""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from pflsynth.data.nifti_header import NiftiHeader, parse_header, shape_text
from pflsynth.errors import DataError

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Nifti:
    """A whole file.

    Attributes:
        header: its header.
        stored: (X, Y, Z) values as stored, without slope; writable, X varies fastest in memory.
        sha256: of the file's bytes (hex).
    """

    header: NiftiHeader
    stored: npt.NDArray[Any]
    sha256: str


def read_header(path: Path, place: str) -> NiftiHeader:
    """Read and check the header alone.

    Args:
        path: a ``.nii`` or ``.nii.gz`` file; gzip is known by its first bytes, not by the name.
        place: what the file is, for errors, such as "site ixi, subject sub-01, contrast T1w: /data/x.nii.gz".

    Raises:
        DataError: as :func:`read_nifti`, as far as the header goes.
    """
    with _opened(path, place) as content:
        return parse_header(content.read, place)


def read_nifti(path: Path, place: str) -> Nifti:
    """Read a file once, never further than its header says that it goes.

    Args:
        path: as for :func:`read_header`.
        place: as for :func:`read_header`.

    Raises:
        DataError: missing, no permission, not NIfTI, cut short, longer than its header says, damaged, not one volume
            of real numbers, too large, or without one clear geometry: see :func:`read_header` and docs/data.md.
    """
    with _opened(path, place) as content:
        header = parse_header(content.read, place)
        content.read(header.offset - len(header.raw))
        size = math.prod(header.shape) * header.dtype.itemsize
        data = content.read(size)
        told = f"{header.offset + size} bytes of its header (shape {shape_text(header.shape)}, {header.dtype.name})"
        if len(data) < size:
            raise DataError(f"{place}: is cut short ({size - len(data)} of the {told} are missing); copy it again")
        if content.read(1):
            raise DataError(
                f"{place}: is longer than the {told}, so the header is of another file or damaged; export it again"
            )
        stored = np.frombuffer(data, header.dtype).reshape(header.shape[:3], order="F")
        return Nifti(header, stored, content.sha256())


class _Content:
    """A file's bytes in order, inflated if they are gzip, and the SHA-256 of the file as it is."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._input = self._chunk()
        self._gzip = self._input.startswith(b"\x1f\x8b")
        self._inflater = zlib.decompressobj(wbits=31)

    def read(self, count: int) -> bytearray:
        """The next ``count`` bytes, fewer at the end of the content; never more are inflated."""
        taken = bytearray()
        while len(taken) < count:
            piece = self._inflated(count - len(taken)) if self._gzip else self._plain(count - len(taken))
            if not piece:
                break
            taken += piece
        return taken

    def sha256(self) -> str:
        """Hash of what was read of the file: of all of it once :meth:`read` has come to the end."""
        return self._digest.hexdigest()

    def _chunk(self) -> bytes:
        chunk = self._file.read(_CHUNK_BYTES)
        self._digest.update(chunk)
        return chunk

    def _plain(self, most: int) -> bytes:
        available = self._input or self._chunk()
        self._input = available[most:]
        return available[:most]

    def _inflated(self, most: int) -> bytes:
        while True:
            piece = self._inflater.decompress(self._input, most)
            if not self._inflater.eof:
                self._input = self._inflater.unconsumed_tail
                if piece:
                    return piece
                if not self._input and not self._more():
                    raise EOFError("its compressed data ends early")
            else:
                self._input = self._inflater.unused_data
                self._skip_padding()
                if self._input:
                    self._inflater = zlib.decompressobj(wbits=31)
                if piece or not self._input:
                    return piece

    def _more(self) -> bool:
        self._input = self._chunk()
        return bool(self._input)

    def _skip_padding(self) -> None:
        """Pass over zeros after the compressed data, as gzip does."""
        self._input = self._input.lstrip(b"\0")
        while not self._input and self._more():
            self._input = self._input.lstrip(b"\0")


@contextmanager
def _opened(path: Path, place: str) -> Iterator[_Content]:
    """A file's content; whatever goes wrong with reading it becomes one sentence."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{place}: is a folder or a device, not a file; give the NIfTI file itself")
        with path.open("rb") as file:
            yield _Content(file)
    except FileNotFoundError:
        raise DataError(f"{place}: there is no such file") from None
    except PermissionError:
        raise DataError(f"{place}: no permission to read it; ask for read access to the file") from None
    except OSError as failure:
        raise DataError(
            f"{place}: cannot be read ({failure.strerror}); check its disk or link, or copy it again"
        ) from None
    except (EOFError, zlib.error) as failure:
        raise DataError(
            f"{place}: is cut short, damaged, or not a NIfTI file ({failure}); copy or export it again"
        ) from None
