"""One DICOM series to one NIfTI file that holds voxels and geometry, and no text."""

from __future__ import annotations

import gzip
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt

from pflsynth.dicom.series import Series
from pflsynth.errors import DataError

_OPTIONS = ("-b", "n", "-ba", "y", "-z", "n", "-m", "n", "-x", "i", "-g", "i", "-c", "", "-f", "image")
_WARNED = 1
_SECONDS = 1800


def check_packages() -> None:
    """Whether DICOM can be read and converted at all.

    Raises:
        DataError: pydicom or dcm2niix is not installed.
    """
    try:
        import dcm2niix  # noqa: F401
        import pydicom  # noqa: F401
    except ImportError as error:
        raise DataError(f'DICOM needs the package {error.name}: pip install "pflsynth[imaging]"') from None


def convert_series(series: Series, where: str) -> bytes:
    """Convert a series with dcm2niix to a gzipped NIfTI file.

    Nothing of its header but shape, type, scaling, geometry and units is kept, so that no text of the DICOM tags is.
    What dcm2niix prints, which quotes tags, is thrown away. The result is compared with the tags: number of voxels,
    and the place of the corner voxels.

    Args:
        series: one without :meth:`Series.problem`.
        where: site, subject, contrast and series, for errors.

    Returns:
        The bytes of a ``.nii.gz``; same series, same bytes.

    Raises:
        DataError: dcm2niix fails, gives no or several volumes, or one that disagrees with the tags.
    """
    with tempfile.TemporaryDirectory(prefix="pflsynth-") as name:
        folder = Path(name)
        source, target = folder / "dicom", folder / "nifti"
        source.mkdir()
        target.mkdir()
        for number, image in enumerate(series.images):
            (source / f"{number:06d}.dcm").symlink_to(image.path.absolute())
        code = _run([*_OPTIONS, "-o", str(target), str(source)], folder, where)
        made = sorted(target.glob("*.nii"))
        if code > _WARNED or not made:
            raise DataError(
                f"{where}: dcm2niix could not convert it (exit code {code}); export the series again, or skip it by "
                "a rule"
            )
        if len(made) > 1:
            raise DataError(
                f"{where}: dcm2niix makes {len(made)} volumes of it (echoes, phases, or parts that do not fit "
                "together); skip it by a rule, or export the series that you mean by itself"
            )
        volume: Any = nibabel.Nifti1Image.from_filename(made[0], mmap=False)
        _compare(volume, series, where)
        return gzip.compress(_clean(volume), compresslevel=1, mtime=0)


def _run(arguments: list[str], folder: Path, where: str) -> int:
    """Exit code of dcm2niix, which may read no settings but those given, and whose output is thrown away."""
    import dcm2niix

    environment = {**os.environ, "HOME": str(folder)}
    try:
        return subprocess.run(
            [str(dcm2niix.bin_path), *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        ).returncode
    except subprocess.TimeoutExpired:
        raise DataError(f"{where}: dcm2niix did not end within {_SECONDS} s; export the series again") from None
    except OSError as error:
        raise DataError(
            f'dcm2niix cannot be started ({error.strerror}); install it again: pip install "pflsynth[imaging]"'
        ) from None


def _compare(image: Any, series: Series, where: str) -> None:
    rows, columns = series.first.shape
    if len(image.shape) != 3 or int(np.prod(image.shape)) != rows * columns * series.count:
        raise DataError(
            f"{where}: dcm2niix made a volume of {' x '.join(map(str, image.shape))} voxels of {series.count} images "
            f"of {rows} x {columns}; export the series again, or skip it by a rule"
        )
    ends = [(0, size - 1) for size in image.shape]
    voxels = np.array(np.meshgrid(*ends, indexing="ij")).reshape(3, -1)
    made = (image.affine[:3, :3] @ voxels + image.affine[:3, 3:]).T
    off = max(float(np.linalg.norm(made - corner, axis=1).min()) for corner in series.corners())
    allowed = 0.5 * min(image.header.get_zooms()[:3])
    if not off <= allowed:
        raise DataError(
            f"{where}: dcm2niix puts a corner {off:.3g} mm away from where the DICOM tags say (allowed: {allowed:.3g} "
            "mm); export the series again"
        )


def _clean(image: Any) -> bytes:
    """A NIfTI file of the same voxels and geometry, whose header is filled anew: no text, no extension."""
    values: npt.NDArray[Any] = np.asarray(image.dataobj.get_unscaled())
    old = image.header
    header = nibabel.Nifti1Header()
    header.set_data_dtype(values.dtype.newbyteorder("="))
    header.set_data_shape(values.shape)
    header.set_zooms(old.get_zooms()[:3])
    header.set_xyzt_units("mm")
    header.set_qform(image.affine, code="scanner", strip_shears=True)
    header.set_sform(image.affine, code="scanner")
    clean = nibabel.Nifti1Image(values, image.affine, header)
    clean.header.set_slope_inter(image.dataobj.slope, image.dataobj.inter)
    content: bytes = clean.to_bytes()
    return content
