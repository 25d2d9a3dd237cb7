"""A stand-in for the prepared data of a site: slices of noise in the files that training reads, to measure with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from pflsynth import __version__
from pflsynth.config import FederationConfig
from pflsynth.data.manifest import MANIFEST_NAME, Manifest, Placement, PreparedSubject, SiteIntensity, VolumeRecord
from pflsynth.files import save_tensors, sha256_of_file, write_json

_WHY = "stand-in"


def write_stand_in(config: FederationConfig, site: str, folder: Path, slices: int, subjects: int = 1) -> None:
    """Write a folder that training takes for the site's prepared data.

    Args:
        config: the federation.
        site: one of its sites.
        folder: to make.
        slices: of a subject; it has the contrasts of all tasks of the site, and is for training.
        subjects: their number.
    """
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    names = [f"stand-in-{number}" for number in range(1, subjects + 1)]
    manifest = Manifest(
        pflsynth=__version__,
        site=site,
        settings=config.preparation(site),
        tasks=config.sites[site].tasks,
        split_source="fractions",
        splits_sha256=None,
        notes=(),
        skipped={},
        intensity=SiteIntensity(normalizer=config.intensity.normalizer, contrasts={}),
        subjects=tuple(_write_subject(config, site, folder, name, slices, random) for name in names),
    )
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))


def _write_subject(
    config: FederationConfig, site: str, folder: Path, name: str, slices: int, random: np.random.Generator
) -> PreparedSubject:
    size, tasks = config.image.size, config.sites[site].tasks
    contrasts = sorted({contrast for task in tasks for contrast in (task.source, task.target)})
    tensors: dict[str, npt.NDArray[np.float32] | npt.NDArray[np.uint8]] = {
        contrast: random.uniform(-1, 1, (slices, size, size)).astype(np.float32) for contrast in contrasts
    }
    tensors["mask"] = np.ones((slices, size, size), np.uint8)
    path = folder / f"{name}.safetensors"
    save_tensors(path, tensors, {"site": site, "subject": name, "slices": list(range(slices))}, kind="subject")
    record = VolumeRecord(
        source="",
        source_sha256="",
        voxels_sha256="",
        placement=Placement(step="untouched", reason=_WHY),
        statistics=(),
    )
    return PreparedSubject(
        name=name,
        person=name,
        slices=tuple(range(slices)),
        shape=(size, size, slices),
        affine=((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
        spacing_mm=(1, 1, 1),
        contrasts=dict.fromkeys(contrasts, record),
        split="train",
        file=path.name,
        sha256=sha256_of_file(path),
        bytes=path.stat().st_size,
    )
