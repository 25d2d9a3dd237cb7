"""DICOM series for tests, written with pydicom: small volumes of known values, full of identifying tags."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
SAGITTAL = (0.0, 1.0, 0.0, 0.0, 0.0, -1.0)
OBLIQUE = (0.96, 0.28, 0.0, -0.28, 0.96, 0.0)
IDENTITIES = (
    "JANE",
    "ROE",
    "SECRET",
    "PID",
    "19850706",
    "20200102",
    "20210304",
    "1999010",
    "235943",
    "GENERAL",
    "HOUSEOFMERCY",
    "1.2.826.0.1",
)
"""Every identifying text of the series begins with one of these."""

KINDS: dict[str, dict[str, Any]] = {
    "T1w": {"RepetitionTime": 500, "EchoTime": 12, "FlipAngle": 90, "ScanningSequence": "SE"},
    "T1ce": {
        "RepetitionTime": 500,
        "EchoTime": 12,
        "FlipAngle": 90,
        "ScanningSequence": "SE",
        "ContrastBolusAgent": "Gd",
    },
    "T2w": {"RepetitionTime": 4000, "EchoTime": 100, "FlipAngle": 150, "ScanningSequence": "SE"},
    "PDw": {"RepetitionTime": 3000, "EchoTime": 15, "FlipAngle": 150, "ScanningSequence": "SE"},
    "FLAIR": {
        "RepetitionTime": 9000,
        "EchoTime": 120,
        "InversionTime": 2500,
        "FlipAngle": 150,
        "ScanningSequence": ["SE", "IR"],
    },
    "DWI": {"RepetitionTime": 5000, "EchoTime": 80, "FlipAngle": 90, "ScanningSequence": "EP"},
}
"""Protocol tags of each kind of series."""


@dataclass(frozen=True)
class Patient:
    """A person with one study."""

    identity: str = "PID-111"
    name: str = "DOE^JANE"
    date: str = "20200102"
    born: str = "19850706"

    @property
    def study(self) -> str:
        """StudyInstanceUID."""
        return uid(self.identity, self.date)


JANE = Patient()
RICHARD = Patient("PID-222", "ROE^RICHARD", "20210304", "19850707")


@dataclass(frozen=True)
class Made:
    """A series to write: where its voxels lie, what they are, and its tags."""

    kind: str
    number: int
    patient: Patient = JANE
    description: str = "SECRET words"
    shape: tuple[int, int, int] = (8, 10, 12)  # slices, rows, columns
    spacing: tuple[float, float, float] = (3.0, 1.5, 0.75)  # between slices, rows, columns
    orientation: tuple[float, ...] = AXIAL
    origin: tuple[float, float, float] = (-20.0, -30.0, -40.0)  # LPS
    tags: dict[str, Any] = field(default_factory=dict)
    image: np.ndarray | None = None

    @property
    def values(self) -> np.ndarray:
        """Voxel values (slices, rows, columns), uint16: those of ``image``, or each its own."""
        if self.image is not None:
            return self.image.astype(np.uint16)
        size = int(np.prod(self.shape))
        return (np.arange(size) + 1000 * self.number).reshape(self.shape).astype(np.uint16)

    def place(self, slice_: float, row: float, column: float) -> np.ndarray:
        """Where a voxel lies, mm, RAS, by the definition of the DICOM tags."""
        along_row, along_column = np.array(self.orientation).reshape(2, 3)
        between, rows, columns = self.spacing
        normal = np.cross(along_row, along_column)
        lps = (
            np.array(self.origin) + slice_ * between * normal + row * rows * along_column + column * columns * along_row
        )
        return lps * (-1, -1, 1)

    def position(self, slice_: int) -> list[float]:
        """ImagePositionPatient of a slice."""
        return [float(part) for part in np.round(self.place(slice_, 0, 0) * (-1, -1, 1), 4)]


def uid(*parts: object) -> str:
    """A UID that depends on ``parts`` only."""
    return f"1.2.826.0.1.{int(hashlib.sha256(repr(parts).encode()).hexdigest()[:24], 16)}"


def datasets(made: Made) -> Iterator[Dataset]:
    """The images of a series, one a slice."""
    for slice_ in range(made.shape[0]):
        image = common(made, MRImageStorage, slice_)
        for tag, value in KINDS[made.kind].items():
            setattr(image, tag, value)
        image.SequenceVariant = "SK"
        image.InstanceNumber = slice_ + 1
        image.ImageOrientationPatient = list(made.orientation)
        image.ImagePositionPatient = made.position(slice_)
        image.PixelSpacing = list(made.spacing[1:])
        image.SliceThickness = made.spacing[0]
        image.PixelData = made.values[slice_].tobytes()
        for tag, value in made.tags.items():
            setattr(image, tag, value)
        yield image


def enhanced(made: Made) -> Dataset:
    """The series as one multi-frame image."""
    image = common(made, EnhancedMRImageStorage, 0)
    kind = KINDS[made.kind]
    image.NumberOfFrames = made.shape[0]
    image.InstanceNumber = 1
    image.EchoPulseSequence = "SPIN"
    image.InversionRecovery = "YES" if "InversionTime" in kind else "NO"
    shared = Dataset()
    timing, echo, modifier, measures, plane = Dataset(), Dataset(), Dataset(), Dataset(), Dataset()
    timing.RepetitionTime, timing.FlipAngle = kind["RepetitionTime"], kind["FlipAngle"]
    echo.EffectiveEchoTime = kind["EchoTime"]
    modifier.InversionTimes = [kind.get("InversionTime", 0)]
    measures.PixelSpacing, measures.SliceThickness = list(made.spacing[1:]), made.spacing[0]
    plane.ImageOrientationPatient = list(made.orientation)
    shared.MRTimingAndRelatedParametersSequence = Items([timing])
    shared.MREchoSequence = Items([echo])
    shared.MRModifierSequence = Items([modifier])
    shared.PixelMeasuresSequence = Items([measures])
    shared.PlaneOrientationSequence = Items([plane])
    image.SharedFunctionalGroupsSequence = Items([shared])
    frames = []
    for slice_ in range(made.shape[0]):
        frame, content, position = Dataset(), Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber = "1", slice_ + 1
        content.DimensionIndexValues = [1, slice_ + 1]
        position.ImagePositionPatient = made.position(slice_)
        frame.FrameContentSequence = Items([content])
        frame.PlanePositionSequence = Items([position])
        frames.append(frame)
    image.PerFrameFunctionalGroupsSequence = Items(frames)
    image.PixelData = made.values.tobytes()
    return image


def common(made: Made, storage: str, slice_: int) -> FileDataset:
    """Tags that every image has, the identifying ones among them."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = storage
    meta.MediaStorageSOPInstanceUID = uid(made.patient, made.number, slice_)
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    image.SOPClassUID, image.SOPInstanceUID = storage, meta.MediaStorageSOPInstanceUID
    image.Modality, image.Manufacturer = "MR", "SIEMENS"
    image.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    patient = made.patient
    image.PatientName, image.PatientID = patient.name, patient.identity
    image.PatientBirthDate, image.PatientSex = patient.born, "F"
    image.PatientComments = image.ImageComments = image.StudyDescription = f"SECRET of {patient.name}"
    image.InstitutionName, image.ReferringPhysicianName = "GENERAL HOSPITAL", "HOUSEOFMERCY^DR"
    image.StudyDate = image.SeriesDate = image.AcquisitionDate = image.ContentDate = patient.date
    image.StudyTime = image.SeriesTime = image.AcquisitionTime = image.ContentTime = "235943"
    image.StudyInstanceUID = patient.study
    image.SeriesInstanceUID = image.FrameOfReferenceUID = uid(patient, made.number)
    image.SeriesNumber, image.AcquisitionNumber = made.number, 1
    image.SeriesDescription = made.description
    image.ProtocolName = f"SECRET protocol of {patient.name}"
    image.AccessionNumber, image.StudyID = "SECRET-77", "SECRET-78"
    image.Rows, image.Columns = made.shape[1:]
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated = image.BitsStored = 16
    image.HighBit, image.PixelRepresentation = 15, 0
    image.PatientPosition = "HFS"
    return image


def save(image: Dataset, path: Path) -> Path:
    """Write one image, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, *series: Made) -> list[Path]:
    """Write series with file names that tell nothing of the order, under folders that tell of the patient."""
    paths = []
    for made in series:
        for image in datasets(made):
            name = hashlib.sha256(image.SOPInstanceUID.encode()).hexdigest()[:8]
            paths.append(save(image, folder / f"SECRET {made.patient.name}" / name[0] / name))
    return paths


def slice_path(folder: Path, made: Made, slice_: int) -> Path:
    """Where :func:`write_series` put a slice."""
    name = hashlib.sha256(uid(made.patient, made.number, slice_).encode()).hexdigest()[:8]
    return folder / f"SECRET {made.patient.name}" / name[0] / name
