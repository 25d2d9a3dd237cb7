"""Find images that lie in a site twice: under two subjects, two sessions or two contrasts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.quality.findings import Finding
from pflsynth.quality.signature import box_average

Key = tuple[str, str]
"""Subject and contrast."""

NEARLY_EQUAL = 0.96
"""Two images of different subjects are called nearly equal from this similarity on."""

NEARLY_EQUAL_HEAD = 0.995
"""The same for two contrasts of a subject and for two sessions of a person, whose heads are alike anyway."""

_BOXES = (16, 16, 12)
_SMOOTH_BOXES = 1.5
_PERCENTILES = (0.5, 99.5)
_ROWS = 512
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Signature:
    """What is kept of an image to know it again.

    Attributes:
        sha256: hash of the voxel values (float32, RAS) and the shape.
        vector: float32 (3072,), mean 0 and norm 1 (or all 0 if the head is of one value): the fine part of the image's
            averages in 16 x 16 x 12 boxes over the head. The scalar product of two is their similarity, 1 at most.
    """

    sha256: str
    vector: FloatArray


@dataclass(frozen=True)
class Twin:
    """Two images that are, or seem to be, one.

    Attributes:
        one: subject and contrast of the first, in sorted order.
        other: subject and contrast of the second.
        identical: whether shape and every voxel value are equal.
        similarity: of the signatures; 1 if identical.
    """

    one: Key
    other: Key
    identical: bool
    similarity: float


def signature(volume: Volume, mask: BoolArray) -> Signature:
    """Make the signature of an image.

    The hash knows an exact copy. The vector does not change with the unit, gain or offset of the values, and little
    with their rounding, with noise, or with a row of voxels more or less around the head.

    Args:
        volume: the image.
        mask: its head (X, Y, Z), not empty.
    """
    data = np.ascontiguousarray(volume.data, dtype=np.float32)
    digest = hashlib.sha256(repr(data.shape).encode())
    digest.update(data.data)
    low, high = np.percentile(data[mask], _PERCENTILES)
    pattern = box_average(np.clip(data, min(low, np.median(data)), high), mask, _BOXES).astype(np.float64)
    brightest = float(np.abs(pattern).max())
    pattern -= ndimage.gaussian_filter(pattern, _SMOOTH_BOXES)
    pattern -= pattern.mean()
    norm = float(np.linalg.norm(pattern))
    scaled = pattern / norm if norm > _ROUNDING * brightest else np.zeros_like(pattern)
    return Signature(digest.hexdigest(), scaled.ravel().astype(np.float32))


def find_twins(signatures: Mapping[Key, Signature]) -> list[Twin]:
    """Find images that are equal or nearly equal, over all subjects and contrasts.

    Of several identical images each is told as a twin of the first only. Time grows with the square of the number of
    images; beside the signatures it needs a few rows of their table of similarities.

    Args:
        signatures: of each image, by subject and contrast.

    Returns:
        Identical twins first, then nearly equal ones, each sorted by subject and contrast.
    """
    first_of: dict[str, Key] = {}
    identical, distinct = [], []
    for key in sorted(signatures):
        first = first_of.setdefault(signatures[key].sha256, key)
        if first == key:
            distinct.append(key)
        else:
            identical.append(Twin(first, key, identical=True, similarity=1.0))
    near = [
        Twin(distinct[i], distinct[j], identical=False, similarity=round(min(similarity, 1.0), 4))
        for i, j, similarity in _similar(np.array([signatures[key].vector for key in distinct]))
        if similarity >= (NEARLY_EQUAL_HEAD if distinct[i][0] == distinct[j][0] else NEARLY_EQUAL)
    ]
    return identical + near


def twin_findings(twins: list[Twin], person_of: Mapping[str, str]) -> list[Finding]:
    """Say what twins mean.

    Identical images of two persons would stand in training and test at once, and identical images of two contrasts
    teach nothing: both are wrong. All else is suspicious. Each finding is about the later of the two subjects.

    Args:
        twins: from :func:`find_twins`.
        person_of: the person of each subject (session).
    """
    findings = []
    for twin in twins:
        (subject, contrast), (other, other_contrast) = twin.one, twin.other
        same_person = person_of.get(subject, subject) == person_of.get(other, other)
        if not twin.identical and same_person and twin.similarity < NEARLY_EQUAL_HEAD:
            continue
        both = f"subject {subject}, contrast {contrast}, and subject {other}, contrast {other_contrast}"
        likeness = (
            "have the same value in every voxel"
            if twin.identical
            else f"are nearly the same image (similarity {twin.similarity:.3f}, less than "
            f"{NEARLY_EQUAL_HEAD if same_person else NEARLY_EQUAL:g} is usual)"
        )
        wrong = twin.identical and (subject == other or not same_person)
        findings.append(
            Finding(
                "wrong" if wrong else "suspicious",
                "duplicate",
                f"{both}: {likeness}; {_advice(subject, other, same_person)}",
                other,
                tuple(dict.fromkeys((contrast, other_contrast))),
            )
        )
    return findings


def _advice(subject: str, other: str, same_person: bool) -> str:
    if subject == other:
        return "look at both, put in the right file, and remove the wrong one"
    if same_person:
        return "if a session was exported twice, remove one of them"
    return "if they are one person, remove one of them, or the person stands in two splits"


def _similar(vectors: npt.NDArray[np.float32]) -> Iterator[tuple[int, int, float]]:
    """Pairs of rows (i < j) whose scalar product reaches the lower threshold, in order."""
    for start in range(0, len(vectors), _ROWS):
        table = vectors[start : start + _ROWS] @ vectors[start:].T
        for i, j in np.argwhere(table >= NEARLY_EQUAL):
            if i < j:
                yield start + int(i), start + int(j), float(table[i, j])
