"""``manifest.json``: what a folder of prepared slices holds, from which files, and with which settings."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pflsynth.config import SplitName, Task, TaskText
from pflsynth.data.scaling import Scale
from pflsynth.errors import DataError
from pflsynth.files import read_json

MANIFEST_NAME = "manifest.json"
FORMAT_VERSION = 1


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PreparedVolume(_Record):
    """Where one contrast of a subject came from, and how its values were scaled."""

    source: str
    """path of the NIfTI file, relative to the site's data folder"""
    source_sha256: str
    low: float
    high: float

    @property
    def scale(self) -> Scale:
        """The volume's own scale."""
        return Scale(self.low, self.high)


class PreparedSubject(_Record):
    """One subject's file of slices."""

    name: str
    split: SplitName
    file: str
    """name of the safetensors file in the manifest's folder"""
    sha256: str
    bytes: int
    slices: tuple[int, ...]
    """indices along Z (RAS) of the slices that were kept"""
    shape: tuple[int, int, int]
    """(X, Y, Z) of the volumes in RAS orientation"""
    affine: tuple[tuple[float, float, float, float], ...]
    spacing_mm: tuple[float, float, float]
    contrasts: dict[str, PreparedVolume]

    def serves(self, task: Task) -> bool:
        """Whether the subject has both contrasts of a task."""
        return task.source in self.contrasts and task.target in self.contrasts


class TypicalScale(_Record):
    """Median scale of a contrast over a site's training subjects."""

    low: float
    high: float


class Manifest(_Record):
    """Everything about the prepared data of a site; the same input gives the same bytes."""

    format: Literal[1] = 1
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
    typical: dict[str, TypicalScale]
    subjects: tuple[PreparedSubject, ...]

    def of_split(self, split: SplitName) -> tuple[PreparedSubject, ...]:
        """The subjects of a split, sorted by name."""
        return tuple(subject for subject in self.subjects if subject.split == split)

    def typical_scales(self) -> dict[str, Scale]:
        """Typical scale of each contrast, for volumes that are synthesised without a real one."""
        return {contrast: Scale(scale.low, scale.high) for contrast, scale in self.typical.items()}


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
            f"{path}: has format {content.get('format')}, this pflsynth reads {FORMAT_VERSION}: "
            "it was written by a newer pflsynth; update pflsynth"
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as failure:
        first = failure.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise DataError(f"{path}: is damaged at {key} ({first['msg']}); prepare the site again") from None
