"""Check one subject: its files, intensities, geometry and alignment, and what its strip on the page shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pflsynth.config import FederationConfig
from pflsynth.data.align import check_geometry, reference_contrast, same_grid
from pflsynth.data.alignment import Alignment, likely_misplaced, measure_alignment
from pflsynth.data.examine import choose_slices
from pflsynth.data.grid import SliceGrid
from pflsynth.data.normalizers import measure_volume
from pflsynth.data.subjects import Subject
from pflsynth.data.volumes import BoolArray, FloatArray, Volume, load_volume
from pflsynth.errors import DataError
from pflsynth.quality.duplicates import Signature, signature
from pflsynth.quality.findings import Finding
from pflsynth.quality.intensity import geometry_findings, intensity_findings, measure_intensity
from pflsynth.quality.mixups import contrast_features
from pflsynth.quality.thumbnails import Thumbnail, thumbnails


@dataclass(frozen=True)
class CheckJob:
    """What a process needs to know to check one subject."""

    config: FederationConfig
    site: str
    subject: Subject
    pictures: bool


@dataclass(frozen=True)
class CheckedSubject:
    """What was found out about a subject.

    Attributes:
        subject: its files.
        findings: what is wrong or suspicious; empty if all is well.
        facts: its grid and slices in a few words.
        signatures: of each readable contrast, to find copies.
        features: of each readable contrast, to find mixed-up ones.
        images: thumbnails, if they were asked for.
    """

    subject: Subject
    findings: tuple[Finding, ...]
    facts: str
    signatures: Mapping[str, Signature]
    features: Mapping[str, FloatArray]
    images: tuple[Thumbnail, ...]

    @property
    def usable(self) -> bool:
        """Whether ``prepare`` will take it."""
        return all(finding.level != "wrong" for finding in self.findings)


def check_subject(job: CheckJob) -> CheckedSubject:
    """Check a subject as ``prepare`` would, and more; nothing is registered. Bad images give findings, no error."""
    subject, where = job.subject, f"site {job.site}, subject {job.subject.name}"
    volumes: dict[str, Volume] = {}
    masks: dict[str, BoolArray] = {}
    findings: list[Finding] = []
    for contrast, path in subject.volumes.items():
        place = f"{where}, contrast {contrast}"
        try:
            volume = load_volume(path, place)
            masks[contrast] = measure_volume(volume.data, job.config.intensity.normalizer, f"{place}: {path}")[1]
        except DataError as error:
            findings.append(Finding("wrong", "image", str(error), subject.name, (contrast,)))
            continue
        volumes[contrast] = volume
        measures = measure_intensity(volume, masks[contrast])
        findings += intensity_findings(measures, volume, where, subject.name, contrast)
    facts = ""
    if volumes:
        findings += geometry_findings(volumes, where, subject.name)
        findings += _grid_findings(job, volumes, masks, where)
        findings += _alignment_findings(job, volumes, masks, where)
        facts = _facts(job, volumes, masks)
    return CheckedSubject(
        subject=subject,
        findings=tuple(findings),
        facts=facts,
        signatures={name: signature(volume, masks[name]) for name, volume in volumes.items()},
        features={name: contrast_features(volume, masks[name]) for name, volume in volumes.items()},
        images=_pictures(job, volumes, masks) if job.pictures and volumes else (),
    )


def _grid_findings(
    job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray], where: str
) -> list[Finding]:
    """Whether the contrasts can share a grid, and the head fits the slices."""
    findings = []
    if job.config.registration.transform == "none":
        try:
            check_geometry(volumes, where)
        except DataError as error:
            findings.append(Finding("wrong", "grid", str(error), job.subject.name, tuple(volumes)))
    reference, mask = _reference(job, volumes, masks)
    try:
        SliceGrid.of(reference, job.config.image).check_head_fits(mask, where)
    except DataError as error:
        findings.append(Finding("wrong", "head", str(error), job.subject.name))
    return findings


def _alignment_findings(
    job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray], where: str
) -> list[Finding]:
    """Contrasts that fit the others better when they are shifted, of those on one grid."""
    pairs: dict[tuple[str, str], Alignment] = {}
    for one, other in itertools.combinations(volumes, 2):
        if same_grid(volumes[one].grid, volumes[other].grid):
            pairs[one, other] = measure_alignment(volumes[one], volumes[other], masks[one])
    cure = (
        "register it before prepare, or set registration.transform to rigid"
        if job.config.registration.transform == "none"
        else "prepare will register it"
    )
    findings = []
    for contrast, others in likely_misplaced(pairs).items():
        seen = []
        for other in others:
            pair = pairs[(contrast, other) if (contrast, other) in pairs else (other, contrast)]
            shift = " x ".join(f"{step:+.1f}" for step in pair.best_shift_mm)
            seen.append(f"{shift} mm against {other} (NMI {pair.nmi:.4f}, then {pair.best_nmi:.4f})")
        text = f"{where}, contrast {contrast}: is misaligned: best at {', '.join(seen)}; {cure}"
        findings.append(Finding("suspicious", "alignment", text, job.subject.name, (contrast, *others)))
    return findings


def _reference(
    job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray]
) -> tuple[Volume, BoolArray]:
    """The volume whose grid the others come to, and the head of all that lie on it."""
    reference = volumes[reference_contrast(volumes, job.config.registration)]
    together = [masks[name] for name, volume in volumes.items() if same_grid(volume.grid, reference.grid)]
    return reference, np.logical_or.reduce(together)


def _facts(job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray]) -> str:
    reference, mask = _reference(job, volumes, masks)
    shape = " x ".join(map(str, reference.data.shape))
    spacing = " x ".join(f"{step:.3g}" for step in reference.spacing_mm)
    slices = len(choose_slices(mask, job.config.slices.min_area, job.config.slices.maximum))
    apart = [name for name, volume in volumes.items() if not same_grid(volume.grid, reference.grid)]
    text = f"{shape} voxels of {spacing} mm; {slices} slices"
    return f"{text}; to be registered: {', '.join(apart)}" if apart else text


def _pictures(job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray]) -> tuple[Thumbnail, ...]:
    """Thumbnails of the contrasts on the reference's grid together, and of each other one by itself."""
    name = reference_contrast(volumes, job.config.registration)
    grid = volumes[name].grid
    together = {contrast: volume for contrast, volume in volumes.items() if same_grid(volume.grid, grid)}
    mask = np.logical_or.reduce([masks[contrast] for contrast in together])
    alone = (
        thumbnails({contrast: volume}, masks[contrast], None)
        for contrast, volume in volumes.items()
        if contrast not in together
    )
    return (*thumbnails(together, mask, name), *itertools.chain.from_iterable(alone))
