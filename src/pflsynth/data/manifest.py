"""``manifest.json``: what a folder of prepared slices holds, from which files, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pflsynth.config import SplitName, Task, TaskText
from pflsynth.data.normalizers import NORMALIZERS, Statistics
from pflsynth.data.scaling import Scale
from pflsynth.errors import DataError
from pflsynth.files import read_json

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 2


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Placement(_Record):
    """How a contrast came to lie on its subject's grid."""

    step: Literal["reference", "untouched", "registered"]
    reason: str
    matrix: tuple[tuple[float, float, float, float], ...] | None = None
    """4x4, millimetres (RAS) of the grid to millimetres of the file, if the contrast was registered"""
    kind: Literal["rigid", "affine"] | None = None
    metric_before: float | None = None
    metric_after: float | None = None
    iterations: int | None = None
    converged: bool | None = None
    stop: str | None = None
    """why the optimizer stopped"""
    doubtful: bool = False
    """whether a person should look: misaligned and not mended, or the optimizer did not converge"""


class VolumeRecord(_Record):
    """Where one contrast of a subject came from, how it was placed, and what was measured of its values."""

    source: str
    """path of the NIfTI file, relative to the site's data folder"""
    source_sha256: str
    voxels_sha256: str
    """SHA-256 of voxel values as they were read (every fourth row, float32, RAS): equal for copies of one image"""
    placement: Placement
    statistics: Statistics
    """what the normalizer measured"""


class SubjectRecord(_Record):
    """What was found out about a subject before its slices are written."""

    name: str
    person: str
    """all sessions of a person are in one split"""
    slices: tuple[int, ...]
    """indices along Z (RAS) of the slices that were kept"""
    shape: tuple[int, int, int]
    """(X, Y, Z) of the subject's grid in RAS orientation"""
    affine: tuple[tuple[float, float, float, float], ...]
    spacing_mm: tuple[float, float, float]
    contrasts: dict[str, VolumeRecord]

    @property
    def session(self) -> str:
        """ "ses-02" if the person has images of several sessions, else empty."""
        return self.name.removeprefix(self.person).removeprefix("_")

    def serves(self, task: Task) -> bool:
        """Whether the subject has both contrasts of a task."""
        return task.source in self.contrasts and task.target in self.contrasts


class PreparedSubject(SubjectRecord):
    """One subject's file of slices."""

    split: SplitName
    file: str
    """name of the safetensors file in the manifest's folder"""
    sha256: str
    bytes: int


class ContrastIntensity(_Record):
    """What the site's training subjects say of the intensities of a contrast."""

    reference: Statistics
    """the normalizer's reference; empty if it needs none"""
    typical: Statistics
    """median of the training volumes' statistics"""


class SiteIntensity(_Record):
    """How the intensities of a site's volumes become [-1, 1]; never computed from validation or test subjects."""

    normalizer: str
    contrasts: dict[str, ContrastIntensity]

    def scale(self, contrast: str, statistics: Statistics) -> Scale:
        """The scale of one volume, from its own statistics."""
        return NORMALIZERS[self.normalizer].scale(statistics, self.contrasts[contrast].reference)

    def typical_scale(self, contrast: str) -> Scale:
        """The scale of a typical volume, for one that is synthesised without a real one."""
        return self.scale(contrast, self.contrasts[contrast].typical)


class Manifest(_Record):
    """Everything about the prepared data of a site; the same input gives the same bytes."""

    format: Literal[2] = 2
    kind: Literal["prepared"] = "prepared"
    pflsynth: str
    """version of the program that prepared the data"""
    site: str
    settings: dict[str, Any]
    """:meth:`FederationConfig.preparation` of the site"""
    tasks: tuple[TaskText, ...]
    """the site's tasks: which contrasts were prepared"""
    split_source: Literal["fractions", "splits.json"]
    splits_sha256: str | None
    """SHA-256 of ``splits.json``, if it was used"""
    notes: tuple[str, ...]
    skipped: dict[str, str]
    """subjects that were passed over with ``--skip-bad``, and why"""
    intensity: SiteIntensity
    subjects: tuple[PreparedSubject, ...]

    def of_split(self, split: SplitName) -> tuple[PreparedSubject, ...]:
        """The subjects of a split, sorted by name."""
        return tuple(subject for subject in self.subjects if subject.split == split)


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder that ``prepare`` wrote.

    Raises:
        DataError: there is none, it is damaged, or it was written by a newer pflsynth.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise DataError(f"{folder}: holds no prepared data ({MANIFEST_NAME} is missing); run: pflsynth prepare")
    content = read_json(path, DataError)
    if not isinstance(content, dict) or content.get("kind") != "prepared":
        raise DataError(f"{path}: is not a manifest of prepared data; prepare the site again")
    if content.get("format") != FORMAT_VERSION:
        raise DataError(
            f"{path}: has format {content.get('format')}, this pflsynth reads {FORMAT_VERSION}: it was written by "
            "another version; prepare the site again, or update pflsynth"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as failure:
        first = failure.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: is damaged at {key} ({first['msg']}); prepare the site again") from None
