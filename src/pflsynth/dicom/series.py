"""Group DICOM images into series of one kind, and tell what is wrong with a series without naming anyone."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pflsynth.dicom.header import TEXT_TAGS, DamagedDicomError, Header, NotDicomError, read_header
from pflsynth.errors import DataError
from pflsynth.files import sha256_of_file

_GAP_TOLERANCE = 0.1
_SAME_PLACE_MM = 0.01
_PLANES = ("sagittal", "coronal", "axial")


@dataclass(frozen=True, repr=False)
class Series:
    """Images of one DICOM series with one echo time and one ImageType.

    A series that holds two echoes, or magnitude and phase, is thus several of these, each of which the rules judge by
    itself. Like :class:`Header` it holds identifying values and has no representation as text.

    Attributes:
        images: sorted by InstanceNumber; none of them twice.
        clashes: number of images that are there twice with different bytes.
    """

    images: tuple[Header, ...]
    clashes: int = 0

    @property
    def first(self) -> Header:
        """The first image, whose tags stand for the series."""
        return self.images[0]

    @property
    def count(self) -> int:
        """Number of images; each frame of a multi-frame image counts."""
        return sum(image.frames for image in self.images)

    @cached_property
    def orientations(self) -> tuple[tuple[float, ...], ...]:
        """The different orientations of the images: row and column direction, LPS."""
        return tuple(sorted({plane for image in self.images for plane in image.orientations}))

    @cached_property
    def plane(self) -> str:
        """The plane that the images come nearest to: "axial", "sagittal" or "coronal"; "" if the tag is missing."""
        if not self.orientations:
            return ""
        return _PLANES[int(np.argmax(np.abs(_normal(self.orientations[0]))))]

    @cached_property
    def texts(self) -> dict[str, str]:
        """What rules search: the text tags, and ``plane``."""
        return {**self.first.texts, "plane": self.plane}

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What rules compare: the number tags that are there, and ``images``."""
        return {**self.first.numbers, "images": float(self.count)}

    @property
    def agent(self) -> bool:
        """Whether a contrast agent is named."""
        return self.first.agent

    @property
    def likeness(self) -> tuple[object, ...]:
        """Equal for series that repeat one another: same texts, plane, times and flip angle."""
        times = [
            round(self.numbers.get(tag, 0.0), 1) for tag in ("RepetitionTime", "EchoTime", "InversionTime", "FlipAngle")
        ]
        return (tuple(self.texts[tag] for tag in TEXT_TAGS), self.plane, self.agent, tuple(times))

    def told(self) -> str:
        """The series for a report: its number and physical parameters, nothing else."""
        numbers = self.numbers
        parts = [f"{self.count} images", self.plane or "plane unknown"]
        parts += [
            f"{name} {numbers[tag]:g} {unit}"
            for name, tag, unit in (
                ("TR", "RepetitionTime", "ms"),
                ("TE", "EchoTime", "ms"),
                ("TI", "InversionTime", "ms"),
                ("flip angle", "FlipAngle", "degrees"),
            )
            if tag in numbers
        ]
        parts += ["contrast agent"] if self.agent else []
        number = self.first.series_number
        return f"series {'without number' if number is None else number} ({', '.join(parts)})"

    def problem(self) -> str | None:
        """Why the series is not one whole volume, or None."""
        cut = sum(not image.whole for image in self.images)
        if self.clashes:
            return f"{self.clashes} of its images are there twice with different contents; keep one copy of each"
        if cut:
            return f"{cut} of its {len(self.images)} files are cut short; export the series again"
        if len({(image.shape, image.spacing) for image in self.images}) > 1:
            return "its images differ in size or pixel spacing; export the series again, or skip it by a rule"
        placed = len(self._places) == self.count and all(len(place) == 3 for place in self._places)
        if not (self.first.spacing and self.orientations and placed):
            return "its images do not tell where they lie (spacing, orientation, position); export the original series"
        if self.count < 2:
            return "it has one image only; skip it by a rule"
        return self._stack_problem()

    def corners(self) -> npt.NDArray[np.float64]:
        """Centres of the eight corner voxels, (8, 3), mm, RAS, as the tags tell; for a series without problem."""
        rows, columns = self.first.shape
        along_row, along_column = np.array(self.orientations[0]).reshape(2, 3)
        right = along_row * self.first.spacing[1] * (columns - 1)
        down = along_column * self.first.spacing[0] * (rows - 1)
        places = np.array(sorted(self._places, key=lambda place: float(np.dot(place, _normal(self.orientations[0])))))
        ends = [places[0], places[-1]]
        found = [end + a * right + b * down for end in ends for a in (0, 1) for b in (0, 1)]
        return np.array(found) * (-1, -1, 1)

    @property
    def _places(self) -> list[tuple[float, ...]]:
        return [place for image in self.images for place in image.positions]

    def _stack_problem(self) -> str | None:
        distances = np.sort(np.array(self._places) @ _normal(self.orientations[0]))
        steps = np.diff(distances)
        if (steps < _SAME_PLACE_MM).any():
            places = int((steps >= _SAME_PLACE_MM).sum()) + 1
            return (
                f"its {self.count} images lie at {places} places only, so it holds several volumes (time points, "
                "directions); skip it by a rule"
            )
        usual = float(np.median(steps))
        wrong = np.abs(steps - usual) > _GAP_TOLERANCE * usual
        if wrong.any():
            return (
                f"its {self.count} images are {usual:.3g} mm apart, but {int(wrong.sum())} of the distances differ "
                f"(the largest is {steps.max():.3g} mm), so images are missing; export the series again"
            )
        return None


@dataclass(frozen=True, repr=False)
class Found:
    """What a folder holds.

    Attributes:
        series: all series of MR images, sorted by patient, time of study, and series number.
        notes: how many files were passed over, and why.
    """

    series: tuple[Series, ...]
    notes: tuple[str, ...]


def find_series(folder: Path, site: str) -> Found:
    """Read the headers of all DICOM files below a folder and group them.

    Raises:
        DataError: there is no such folder, or no MR image in it.
    """
    if not folder.is_dir():
        raise DataError(f"site {site}: the folder given as --from-dicom does not exist; give the folder of DICOM files")
    counts: Counter[str] = Counter()
    images: list[Header] = []
    pool: dict[object, Any] = {}
    for path in _files(folder, counts):
        try:
            header = read_header(path)
        except NotDicomError:
            counts["not DICOM"] += 1
        except DamagedDicomError:
            counts["damaged, cut short in the header, or not permitted to read"] += 1
        else:
            if header.modality == "DICOMDIR":
                continue
            if header.modality != "MR":
                counts["DICOM, but not of modality MR"] += 1
            elif 0 in header.shape:
                counts["DICOM, but cut short before the pixels, or without pixels"] += 1
            else:
                images.append(_shared(header, pool))
    notes = tuple(
        f"{count} file{'' if count == 1 else 's'} passed over: {why}" for why, count in sorted(counts.items())
    )
    if not images:
        reasons = "; ".join(notes) or "it is empty"
        raise DataError(f"site {site}: the folder given as --from-dicom holds no MR image in DICOM format ({reasons})")
    return Found(tuple(sorted(_group(images), key=_order)), notes)


def _files(folder: Path, counts: Counter[str]) -> Iterator[Path]:
    def closed(error: OSError | None = None) -> None:
        counts["a place that is not permitted to look at"] += 1

    for parent, folders, names in os.walk(folder, onerror=closed):
        folders.sort()
        for path in (Path(parent, name) for name in sorted(names)):
            try:
                if path.is_file():
                    yield path
            except OSError:
                closed()


def _shared(image: Header, pool: dict[object, Any]) -> Header:
    """The image with those of its values that all images of a series share held in memory once."""
    return replace(
        image,
        texts=pool.setdefault(tuple(image.texts.items()), image.texts),
        numbers=pool.setdefault(tuple(image.numbers.items()), image.numbers),
        orientations=pool.setdefault(image.orientations, image.orientations),
        study=pool.setdefault(image.study, image.study),
        series=pool.setdefault(image.series, image.series),
    )


def _group(images: Iterable[Header]) -> list[Series]:
    groups: dict[tuple[object, ...], dict[str, list[Header]]] = defaultdict(lambda: defaultdict(list))
    for image in images:
        echo = round(image.numbers.get("EchoTime", -1.0), 1)
        groups[image.patient, image.study, image.series, echo, image.texts["ImageType"]][image.image].append(image)
    return [_series(list(group.values())) for group in groups.values()]


def _series(copies: Sequence[Sequence[Header]]) -> Series:
    """Images of a series, each with its copies; equal copies count once."""
    clashes = sum(len({sha256_of_file(copy.path) for copy in same}) > 1 for same in copies if len(same) > 1)
    images = sorted((same[0] for same in copies), key=lambda image: (image.instance, image.image))
    return Series(tuple(images), clashes)


def _order(series: Series) -> tuple[object, ...]:
    first = series.first
    number = -1 if first.series_number is None else first.series_number
    echo = first.numbers.get("EchoTime", 0.0)
    return (
        first.patient,
        first.study_time,
        first.study,
        number,
        first.series_time,
        first.series,
        echo,
        first.texts["ImageType"],
    )


def _normal(orientation: tuple[float, ...]) -> npt.NDArray[np.float64]:
    along_row, along_column = np.array(orientation, dtype=np.float64).reshape(2, 3)
    return np.cross(along_row, along_column)
