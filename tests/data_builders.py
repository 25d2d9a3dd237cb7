"""Small BIDS-like sites for tests: an ellipsoid head with two tissues, a few kilobytes a volume."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel
import numpy as np

from pflsynth.config import FederationConfig

SHAPE = (24, 28, 6)
AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
AFFINE[:3, 3] = (-12, -14, -9)


def head(shape: tuple[int, int, int] = SHAPE, bright: float = 200.0, seed: int = 0, noise: float = 0.0) -> np.ndarray:
    """An ellipsoid of 100 with a core of ``bright`` on a background of 0; Rician noise of ``noise``."""
    axes = [np.linspace(-1, 1, size) for size in shape]
    x, y, z = np.meshgrid(*axes, indexing="ij")
    radius = x**2 + y**2 + 0.6 * z**2
    data = np.where(radius < 0.64, 100.0, 0.0)
    data[radius < 0.2] = bright
    random = np.random.default_rng(seed)
    if noise:
        return np.hypot(data + random.normal(0, noise, shape), random.normal(0, noise, shape))
    return np.where(data > 0, data + random.integers(0, 10, shape), 0.0)


def tissue(anatomy: int, contrast: int) -> np.ndarray:
    """Factors around 1: a pattern that all subjects share in a contrast, times a subject's own in all contrasts."""
    common = np.random.default_rng(contrast).choice([0.75, 1.25], (6, 7, 3))
    own = np.random.default_rng(anatomy).choice([0.7, 0.9, 1.1, 1.3], (6, 7, 3))
    noise = np.random.default_rng((anatomy, contrast)).uniform(0.97, 1.03, SHAPE)
    return np.kron(common * own, np.ones((4, 4, 2))) * noise


def write_nifti(path: Path, data: np.ndarray, affine: np.ndarray = AFFINE, dtype: Any = np.float32) -> Path:
    """Write a NIfTI file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(data.astype(dtype), affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    return path


def image_path(site: Path, subject: str, contrast: str) -> Path:
    """Where :func:`write_site` puts a contrast."""
    return site / subject / "anat" / f"{subject}_{contrast}.nii.gz"


def write_site(
    site: Path,
    subjects: Mapping[str, Sequence[str]] | int,
    contrasts: Sequence[str] = ("T1w", "T2w"),
    first_seed: int = 0,
) -> Path:
    """Write a site; ``subjects`` is a number, or each subject's contrasts. Sites of one federation differ in seed."""
    if isinstance(subjects, int):
        subjects = {f"sub-{number:02d}": contrasts for number in range(1, subjects + 1)}
    for number, (subject, own) in enumerate(subjects.items()):
        seed = first_seed + 10 * number
        for place, contrast in enumerate(own):
            data = head(bright=200.0 + 50 * place, seed=seed + place) * tissue(seed, place)
            write_nifti(image_path(site, subject, contrast), data)
    return site


def federation(data_root: Path, tasks: Mapping[str, Sequence[str]] | None = None, **settings: Any) -> FederationConfig:
    """A federation over ``data_root``, by default of the one site "here" with T1w->T2w, slices of 32 x 32."""
    tasks = {"here": ["T1w->T2w"]} if tasks is None else tasks
    content: dict[str, Any] = {
        "name": "test",
        "contrasts": ("T1w", "T1ce", "T2w", "PDw", "FLAIR"),
        "image": {"size": 32},
        "data_root": data_root,
        "sites": {site: {"tasks": list(own)} for site, own in tasks.items()},
    }
    return FederationConfig.model_validate({**content, **settings})


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too, with its bytes."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@contextmanager
def small_disk(largest_file: int) -> Iterator[None]:
    """Files cannot grow beyond ``largest_file`` bytes, by the system's own limit: writes fail as on a full disk."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
