"""Suspect contrasts that were mixed up, by comparing each image with the other subjects of its site."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, islice, pairwise

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.quality.findings import Finding
from pflsynth.quality.signature import box_average

SWAPPED = -0.4
"""Two images of a subject are called swapped below this; 1 is what the others show, -1 the opposite."""

OTHER_CONTRAST = 0.75
"""An image is said to look like another contrast above this; 0 is half way between the two contrasts."""

FEWEST_FOR_SWAP = 3
FEWEST_FOR_IMAGE = 4
_MOST_OTHERS = 12

_PIXEL_MM = 2.0
_RIM = 0.22
_TEXTURE_DEPTH = 0.3
_TEXTURE_VOXELS = 5
_TEXTURE_PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
_BOXES = (9, 11, 6)
_RIM_BANDS = 4
_SHRINKAGE = 0.1
_SPREAD_FLOOR = 0.1
_TOLD_APART = 0.5

Key = tuple[str, str]
Vector = npt.NDArray[np.float64]


def contrast_features(volume: Volume, mask: BoolArray) -> FloatArray:
    """Measure what tells contrasts apart: which tissues are bright, where, and how fine structures stand out.

    All of it rests on the rank of a voxel among those of the inner head, or on ratios, so neither gain, offset nor
    unit of the scanner matters.

    Args:
        volume: the image.
        mask: its head (X, Y, Z), not empty.

    Returns:
        float32 (605,): mean rank in 9 x 11 x 6 boxes over the head; seven percentiles of the texture (image less its
        local mean), in units of their 5th to 95th; median rank in four bands of the rim, outside first.
    """
    steps = [max(1, int(_PIXEL_MM / spacing + 1e-3)) for spacing in volume.spacing_mm[:2]]
    data, head = volume.data[:: steps[0], :: steps[1]], mask[:: steps[0], :: steps[1]]
    if not head.any():
        data, head = volume.data, mask
    depth = _depth(head)
    inner = depth > _RIM
    ordered = np.sort(data[inner])
    rank = (np.searchsorted(ordered, data, "left") + np.searchsorted(ordered, data, "right")) / (2 * ordered.size) - 0.5
    pattern = box_average((rank * inner).astype(np.float32), head, _BOXES)
    local = ndimage.uniform_filter(data, (_TEXTURE_VOXELS, _TEXTURE_VOXELS, 1))
    texture = np.percentile((data - local)[depth > _TEXTURE_DEPTH], _TEXTURE_PERCENTILES)
    width = texture[5] - texture[1]
    edges = np.linspace(0, _RIM, _RIM_BANDS + 1)
    bands = [rank[head & (depth > low) & (depth <= high)] for low, high in pairwise(edges)]
    rim = [float(np.median(band)) if band.size else 0.0 for band in bands]
    return np.concatenate([pattern.ravel(), texture / width if width > 0 else 0 * texture, rim]).astype(np.float32)


def mixup_findings(features: Mapping[Key, FloatArray], site: str) -> list[Finding]:
    """Suspect swapped and wrongly labelled images.

    Two contrasts of a subject are suspected to be swapped if their difference points against that of the other
    subjects. One image is suspected if, seen against the subject's remaining contrasts, it lies where the other
    subjects have another contrast; a wrong image can make a right one of the subject look odd, so a finding may name
    several. The axes of comparison are linear discriminants with shrinkage, fitted without the subject itself and
    without images that are already suspected.

    Args:
        features: of each image, by subject and contrast, from :func:`contrast_features`.
        site: named in the findings.

    Returns:
        Suspicious findings, sorted by subject; none where fewer than three (swap) or four (one image) other subjects
        have the contrasts.
    """
    images = _SiteImages(_balanced(features))
    findings = []
    for subject, one, two, score in images.swaps():
        text = (
            f"site {site}, subject {subject}: {one} and {two} look swapped (their difference is {score:.2f} times that "
            f"of the site's other subjects, at least {SWAPPED:g} is usual); look at both images, and exchange the "
            "files if so"
        )
        findings.append(Finding("suspicious", "contrast mix-up", text, subject, (one, two)))
    for subject in images.subjects:
        likes = {
            name: images.likeliest_other(subject, name)
            for name in images.contrasts
            if (subject, name) in images.trusted
        }
        likes = {name: like for name, like in likes.items() if like[0] > OTHER_CONTRAST}
        if likes:
            claims = ", or ".join(
                f"{name} looks like {other} (by {score:.2f})" for name, (score, other) in likes.items()
            )
            text = (
                f"site {site}, subject {subject}: seen against the site's other subjects, {claims}; at most "
                f"{OTHER_CONTRAST:g} is usual; look at the subject's images, and rename or replace the wrong file"
            )
            findings.append(Finding("suspicious", "contrast mix-up", text, subject, tuple(likes)))
    return sorted(findings, key=lambda finding: (finding.subject or "", finding.contrasts))


class _SiteImages:
    """Balanced features of a site's images; ``trusted`` are those that are not suspected to be swapped."""

    def __init__(self, features: Mapping[Key, Vector]) -> None:
        self.features = features
        self.trusted = set(features)
        self.subjects = sorted({subject for subject, _ in features})
        self.contrasts = sorted({contrast for _, contrast in features})

    def swaps(self) -> list[tuple[str, str, str, float]]:
        """Pairs that look swapped, the clearest first; once suspected, an image is not trusted any more."""
        pairs = [(subject, *pair) for subject in self.subjects for pair in combinations(self.contrasts, 2)]
        swapped = []
        while pairs:
            scores = {pair: self._swap_score(*pair) for pair in pairs}
            pairs = sorted((pair for pair in pairs if scores[pair] < SWAPPED), key=lambda pair: (scores[pair], pair))
            if pairs:
                (subject, one, two), *pairs = pairs
                swapped.append((subject, one, two, scores[subject, one, two]))
                self.trusted -= {(subject, one), (subject, two)}
        return swapped

    def likeliest_other(self, subject: str, contrast: str) -> tuple[float, str]:
        """The other contrast that an image looks most like, after how much it does (minus infinity: cannot be told)."""
        others = (other for other in self.contrasts if other != contrast)
        return max(((self._likeness(subject, contrast, other), other) for other in others), default=(-np.inf, ""))

    def _swap_score(self, subject: str, one: str, two: str) -> float:
        """The difference of two contrasts in units of the others' mean difference; infinite if it cannot be told."""
        others = self._others(subject, (one, two))
        if len(others) < FEWEST_FOR_SWAP or not self._has(subject, (one, two)):
            return np.inf
        differences = np.array([self.features[other, one] - self.features[other, two] for other in others])
        mean = differences.mean(axis=0)
        axis = _discriminant(mean, differences - mean)
        unit = float(mean @ axis)
        return float((self.features[subject, one] - self.features[subject, two]) @ axis) / unit if unit > 0 else np.inf

    def _likeness(self, subject: str, contrast: str, rival: str) -> float:
        """How far beyond the middle from its contrast to a rival an image lies, in units of the spread of both.

        Minus infinity if the others are too few, or do not tell the two contrasts apart themselves.
        """
        base = [name for name in self.contrasts if name not in (contrast, rival) and self._has(subject, (name,))]
        others = self._others(subject, (contrast, rival, *base))
        if len(others) < FEWEST_FOR_IMAGE:
            return -np.inf
        own = np.array([self._against(other, contrast, base) for other in others])
        rivals = np.array([self._against(other, rival, base) for other in others])
        left_out = np.array(
            [
                _positions(np.delete(own, i, axis=0), np.delete(rivals, i, axis=0), np.stack([own[i], rivals[i]]))
                for i in range(len(others))
            ]
        )
        own_place, rival_place = left_out.mean(axis=0)
        if rival_place - own_place < _TOLD_APART:
            return -np.inf
        spread = float(left_out.std(axis=0).sum()) + _SPREAD_FLOOR
        position = float(_positions(own, rivals, self._against(subject, contrast, base)[None])[0])
        return (position - 0.5) / spread

    def _against(self, subject: str, contrast: str, base: Sequence[str]) -> Vector:
        """Features of an image less the mean of the same subject's base images, so that much of the subject cancels."""
        image = self.features[subject, contrast]
        return image - np.mean([self.features[subject, name] for name in base], axis=0) if base else image

    def _has(self, subject: str, contrasts: Sequence[str]) -> bool:
        return all((subject, contrast) in self.trusted for contrast in contrasts)

    def _others(self, subject: str, contrasts: Sequence[str]) -> list[str]:
        """The next subjects by name that have all of the contrasts, from the first again after the last."""
        place = self.subjects.index(subject)
        fit = (other for other in self.subjects[place + 1 :] + self.subjects[:place] if self._has(other, contrasts))
        return list(islice(fit, _MOST_OTHERS))


def _positions(own: Vector, rival: Vector, images: Vector) -> Vector:
    """Where images lie on the axis from the mean of ``own`` (0) to that of ``rival`` (1)."""
    start, end = own.mean(axis=0), rival.mean(axis=0)
    axis = _discriminant(end - start, np.concatenate([own - start, rival - end]))
    length = (end - start) @ axis
    positions: Vector = (images - start) @ axis / (length if length > 0 else np.inf)
    return positions


def _discriminant(difference: Vector, residuals: Vector) -> Vector:
    """Fisher's linear discriminant (F,) with a covariance shrunk to a multiple of the identity, from (N, F)."""
    count = len(residuals)
    ridge = _SHRINKAGE * float(np.square(residuals).sum()) / count
    if ridge == 0:
        return difference
    gram = residuals @ residuals.T / count + ridge * np.eye(count)
    return difference - residuals.T @ np.linalg.solve(gram, residuals @ difference) / count


def _balanced(features: Mapping[Key, FloatArray]) -> dict[Key, Vector]:
    """Features of each image with pattern, texture and rim of equal spread over the site."""
    if not features:
        return {}
    table = np.array([features[key] for key in features], dtype=np.float64)
    pattern = int(np.prod(_BOXES))
    for block in np.split(table, (pattern, pattern + len(_TEXTURE_PERCENTILES)), axis=1):
        spread = np.sqrt(np.square(block - block.mean(axis=0)).sum(axis=1).mean())
        block /= spread if spread > 0 else 1.0
    return dict(zip(features, table, strict=True))


def _depth(head: BoolArray) -> FloatArray:
    """Depth below the head's outline in each axial slice, 1 for the deepest hundredth of its voxels; 0 outside."""
    planes = [ndimage.distance_transform_edt(np.pad(head[:, :, z], 1))[1:-1, 1:-1] for z in range(head.shape[2])]
    depth = np.stack(planes, axis=2).astype(np.float32)
    deepest: FloatArray = depth / np.percentile(depth[head], 99)
    return deepest
