"""What the conversion needs of one DICOM file, read without its pixels."""

from __future__ import annotations

import contextlib
import logging
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

TEXT_TAGS = (
    "SeriesDescription",
    "ProtocolName",
    "SequenceName",
    "ScanningSequence",
    "SequenceVariant",
    "ImageType",
    "BodyPartExamined",
)
NUMBER_TAGS = (
    "RepetitionTime",
    "EchoTime",
    "InversionTime",
    "FlipAngle",
    "MagneticFieldStrength",
    "SliceThickness",
)
AGENT_TAG = "ContrastBolusAgent"

_OTHER_TAGS = (
    "Modality",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "SeriesInstanceUID",
    "SeriesNumber",
    "SeriesTime",
    "SOPInstanceUID",
    "InstanceNumber",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "SamplesPerPixel",
    "PixelSpacing",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "ContrastBolusAgentSequence",
    "ComplexImageComponent",
    "PulseSequenceName",
    "EchoPulseSequence",
    "InversionRecovery",
    "EchoPlanarPulseSequence",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
)
# Where an enhanced (multi-frame) image keeps what a classic one has at the top: sequence, tag, classic tag.
_ENHANCED = (
    ("MRTimingAndRelatedParametersSequence", "RepetitionTime", "RepetitionTime"),
    ("MRTimingAndRelatedParametersSequence", "FlipAngle", "FlipAngle"),
    ("MREchoSequence", "EffectiveEchoTime", "EchoTime"),
    ("MRModifierSequence", "InversionTimes", "InversionTime"),
    ("PixelMeasuresSequence", "SliceThickness", "SliceThickness"),
    ("PixelMeasuresSequence", "PixelSpacing", "PixelSpacing"),
    ("PlaneOrientationSequence", "ImageOrientationPatient", "ImageOrientationPatient"),
)
_ENHANCED_SEQUENCES = {"SPIN": "SE", "GRADIENT": "GR", "BOTH": "SE\\GR"}
_NO_AGENT = ("", "NO", "NONE", "N/A", "NA", "0", "WITHOUT")
_DEFLATED = "1.2.840.10008.1.2.1.99"
Vector = tuple[float, ...]


class NotDicomError(Exception):
    """The file is not DICOM."""


class DamagedDicomError(Exception):
    """The file is DICOM, but its header cannot be read or lacks what every image has."""


@dataclass(frozen=True, repr=False, slots=True)
class Header:
    """One DICOM image, or one multi-frame image of many.

    It holds identifying values: it has no representation as text, and none of its fields but numbers of the
    acquisition is ever printed or written.

    Attributes:
        path: the file.
        modality: "MR" for magnetic resonance.
        patient: PatientID, stripped; may be empty.
        person: PatientBirthDate and PatientSex, to notice that one PatientID is used for several people.
        study: StudyInstanceUID.
        study_time: StudyDate and StudyTime as they stand, which sort by time.
        series: SeriesInstanceUID.
        series_number: SeriesNumber, or None.
        series_time: SeriesTime as it stands.
        image: SOPInstanceUID.
        instance: InstanceNumber, or 0.
        texts: value of each of ``TEXT_TAGS``; several values are joined by a backslash; "" if it is missing.
        numbers: value of those of ``NUMBER_TAGS`` that are there, in the units of DICOM (ms, degrees, T, mm).
        agent: whether a contrast agent is named.
        shape: (rows, columns); (0, 0) if it has no pixels.
        spacing: PixelSpacing, mm between rows and between columns; empty if it is missing or malformed.
        orientations: ImageOrientationPatient, rounded to 1e-3, of all frames without repetition.
        positions: ImagePositionPatient, mm, of each frame.
        frames: number of frames.
        whole: whether the file has all bytes of the pixels that its header tells of.
    """

    path: Path
    modality: str
    patient: str
    person: tuple[str, str]
    study: str
    study_time: tuple[str, str]
    series: str
    series_number: int | None
    series_time: str
    image: str
    instance: int
    texts: dict[str, str]
    numbers: dict[str, float]
    agent: bool
    shape: tuple[int, int]
    spacing: Vector
    orientations: tuple[Vector, ...]
    positions: tuple[Vector, ...]
    frames: int
    whole: bool


def read_header(path: Path) -> Header:
    """Read a DICOM file up to its pixels.

    Raises:
        NotDicomError: it has no DICOM preamble.
        DamagedDicomError: it cannot be opened or parsed, or lacks the UIDs of study, series or image.
    """
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    tags: list[Any] = [*TEXT_TAGS, *NUMBER_TAGS, AGENT_TAG, *_OTHER_TAGS]
    try:
        with quiet_pydicom(), path.open("rb") as file:
            dataset = dcmread(file, stop_before_pixels=True, specific_tags=tags)
            pixels_at = file.tell()
            header = _header(path, dataset, _is_whole(file, dataset, pixels_at))
    except InvalidDicomError:
        raise NotDicomError from None
    except Exception:  # pydicom raises errors of many classes for malformed values
        raise DamagedDicomError from None
    if not (header.study and header.series and header.image) and header.modality != "DICOMDIR":
        raise DamagedDicomError
    return header


@contextlib.contextmanager
def quiet_pydicom() -> Iterator[None]:
    """Keep pydicom's warnings and log lines, which quote values of tags, off the terminal and out of log files."""
    logger = logging.getLogger("pydicom")
    disabled, logger.disabled = logger.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.disabled = disabled


def _header(path: Path, dataset: Any, whole: bool) -> Header:
    shared = _first(dataset, "SharedFunctionalGroupsSequence")
    frames = _items(dataset, "PerFrameFunctionalGroupsSequence")
    groups = [group for group in (shared, *frames[:1]) if group is not None]
    found = {tag: _numbers(dataset, tag) for tag in (*NUMBER_TAGS, "PixelSpacing", "ImageOrientationPatient")}
    for sequence, tag, classic in _ENHANCED:
        for group in groups:
            found[classic] = found[classic] or _numbers(_first(group, sequence), tag)
    positions = [_numbers(_first(frame, "PlanePositionSequence"), "ImagePositionPatient") for frame in frames]
    planes = [_numbers(_first(frame, "PlaneOrientationSequence"), "ImageOrientationPatient") for frame in frames]
    is_directory = str(getattr(dataset.file_meta, "MediaStorageSOPClassUID", "")) == "1.2.840.10008.1.3.10"
    return Header(
        path=path,
        modality="DICOMDIR" if is_directory else _text(dataset, "Modality").upper(),
        patient=_text(dataset, "PatientID"),
        person=(_text(dataset, "PatientBirthDate"), _text(dataset, "PatientSex")),
        study=_text(dataset, "StudyInstanceUID"),
        study_time=(_text(dataset, "StudyDate"), _text(dataset, "StudyTime")),
        series=_text(dataset, "SeriesInstanceUID"),
        series_number=_integer(dataset, "SeriesNumber"),
        series_time=_text(dataset, "SeriesTime"),
        image=_text(dataset, "SOPInstanceUID"),
        instance=_integer(dataset, "InstanceNumber") or 0,
        texts=_texts(dataset),
        numbers={tag: found[tag][0] for tag in NUMBER_TAGS if found[tag]},
        agent=_text(dataset, AGENT_TAG).upper() not in _NO_AGENT or bool(_items(dataset, "ContrastBolusAgentSequence")),
        shape=(_integer(dataset, "Rows") or 0, _integer(dataset, "Columns") or 0),
        spacing=found["PixelSpacing"] if len(found["PixelSpacing"]) == 2 else (),
        orientations=tuple(
            sorted({_rounded(plane) for plane in (*planes, found["ImageOrientationPatient"]) if len(plane) == 6})
        ),
        positions=tuple(positions) if frames else (_numbers(dataset, "ImagePositionPatient"),),
        frames=_integer(dataset, "NumberOfFrames") or 1,
        whole=whole,
    )


def _texts(dataset: Any) -> dict[str, str]:
    """Values of ``TEXT_TAGS``; those of an enhanced image are put in the words of a classic one."""
    texts = {tag: _text(dataset, tag) for tag in TEXT_TAGS}
    texts["SequenceName"] = texts["SequenceName"] or _text(dataset, "PulseSequenceName")
    if not texts["ScanningSequence"]:
        parts = [_ENHANCED_SEQUENCES.get(_text(dataset, "EchoPulseSequence"), "")]
        parts += ["IR"] if _text(dataset, "InversionRecovery") == "YES" else []
        parts += ["EP"] if _text(dataset, "EchoPlanarPulseSequence") == "YES" else []
        texts["ScanningSequence"] = "\\".join(part for part in parts if part)
    component = _text(dataset, "ComplexImageComponent")
    if component not in ("", "MAGNITUDE"):
        texts["ImageType"] += f"\\{component}"
    return texts


def _is_whole(file: BinaryIO, dataset: Any, pixels_at: int) -> bool:
    """Whether the file reaches as far as its pixels do; compressed pixels end with a sequence delimiter."""
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax == _DEFLATED:
        return True
    size = os.fstat(file.fileno()).st_size
    if syntax.is_encapsulated:
        return _has_all_fragments(file, pixels_at + 12, size)
    values = [_integer(dataset, tag) or 0 for tag in ("Rows", "Columns", "BitsAllocated")]
    bits = values[0] * values[1] * values[2] * (_integer(dataset, "SamplesPerPixel") or 1)
    element = 8 if syntax.is_implicit_VR else 12
    return size >= pixels_at + element + bits * (_integer(dataset, "NumberOfFrames") or 1) // 8


def _has_all_fragments(file: BinaryIO, place: int, size: int) -> bool:
    while place + 8 <= size:
        file.seek(place)
        group, element, length = struct.unpack("<HHL", file.read(8))
        if (group, element) == (0xFFFE, 0xE0DD):
            return True
        if (group, element) != (0xFFFE, 0xE000):
            return False
        place += 8 + length
    return False


def _value(dataset: Any, tag: str) -> Any:
    """A tag's value, or None if it is missing, empty or malformed."""
    try:
        value = None if dataset is None else dataset.get(tag)
    except Exception:  # as above
        return None
    return None if value is None or value == "" else value


def _text(dataset: Any, tag: str) -> str:
    value = _value(dataset, tag)
    if value is None:
        return ""
    parts = [value] if isinstance(value, str) or not hasattr(value, "__iter__") else list(value)
    return "\\".join(str(part) for part in parts).strip(" \0")


def _numbers(dataset: Any, tag: str) -> Vector:
    value = _value(dataset, tag)
    if value is None:
        return ()
    try:
        return tuple(float(part) for part in (value if hasattr(value, "__iter__") else (value,)))
    except (ValueError, TypeError):
        return ()


def _integer(dataset: Any, tag: str) -> int | None:
    numbers = _numbers(dataset, tag)
    return int(numbers[0]) if numbers else None


def _items(dataset: Any, tag: str) -> list[Any]:
    value = _value(dataset, tag)
    return [] if value is None or isinstance(value, (str, bytes)) else list(value)


def _first(dataset: Any, tag: str) -> Any:
    items = _items(dataset, tag)
    return items[0] if items else None


def _rounded(vector: Vector) -> Vector:
    return tuple(round(part, 3) + 0.0 for part in vector)
