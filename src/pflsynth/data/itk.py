"""The bridge to SimpleITK: volumes, transforms, and computing in one thread."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from pflsynth.data.volumes import FloatArray
from pflsynth.errors import DataError

_RAS_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_COMPUTING = threading.RLock()


def simpleitk() -> ModuleType:
    """The module SimpleITK.

    Raises:
        DataError: it is not installed.
    """
    try:
        import SimpleITK
    except ImportError:
        raise DataError(
            'registration, resampling and bias correction need SimpleITK: pip install "pflsynth[imaging]"'
        ) from None
    return SimpleITK


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """SimpleITK computes in one thread here, so that sums do not depend on timing; its setting is put back after.

    The setting is the process's, so threads of Python take turns.

    Raises:
        DataError: SimpleITK is not installed.
    """
    process = simpleitk().ProcessObject
    with _COMPUTING:
        before = process.GetGlobalDefaultNumberOfThreads()
        process.SetGlobalDefaultNumberOfThreads(1)
        try:
            yield
        finally:
            process.SetGlobalDefaultNumberOfThreads(before)


def to_itk(data: npt.NDArray[Any], affine: npt.NDArray[np.float64]) -> Any:
    """An array (X, Y, Z) with an RAS affine (4, 4) as SimpleITK image."""
    image = simpleitk().GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0)))
    place(image, affine)
    return image


def from_itk(image: Any) -> FloatArray:
    """The values of a SimpleITK image as float32 (X, Y, Z)."""
    data = simpleitk().GetArrayFromImage(image).transpose(2, 1, 0)
    return np.ascontiguousarray(data, dtype=np.float32)


def place(image: Any, affine: npt.NDArray[np.float64]) -> None:
    """Give a SimpleITK image the place that an RAS affine (4, 4) tells; SimpleITK's own coordinates are LPS."""
    lps = _RAS_LPS @ affine
    sizes = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetSpacing(sizes.tolist())
    image.SetDirection((lps[:3, :3] / sizes).ravel().tolist())


def to_transform(matrix: npt.NDArray[np.float64]) -> Any:
    """An RAS matrix (4, 4) as SimpleITK's affine transform."""
    lps = _RAS_LPS @ matrix @ _RAS_LPS
    transform = simpleitk().AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetTranslation(lps[:3, 3].tolist())
    return transform


def from_transform(transform: Any) -> npt.NDArray[np.float64]:
    """The RAS matrix (4, 4) of a linear SimpleITK transform whose centre is the origin."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(transform.GetMatrix()).reshape(3, 3)
    lps[:3, 3] = transform.GetTranslation()
    return _RAS_LPS @ lps @ _RAS_LPS
