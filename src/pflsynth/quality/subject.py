"""Check one subject: its files, intensities, geometry and alignment, and what its strip on the page shows."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pflsynth.config import FederationConfig
from pflsynth.data.align import check_geometry, reference_contrast, same_grid
from pflsynth.data.alignment import SHIFT_GAIN, Alignment, likely_misplaced, measure_alignment, overlap
from pflsynth.data.examine import choose_slices
from pflsynth.data.grid import SliceGrid
from pflsynth.data.normalizers import measure_volume
from pflsynth.data.subjects import Subject
from pflsynth.data.volumes import BoolArray, FloatArray, Volume, load_volume
from pflsynth.errors import DataError
from pflsynth.quality.duplicates import Signature, signature
from pflsynth.quality.findings import Finding
from pflsynth.quality.geometry import geometry_findings
from pflsynth.quality.intensity import intensity_findings, measure_intensity
from pflsynth.quality.mixups import contrast_features
from pflsynth.quality.thumbnails import Thumbnail, thumbnails

LEAST_OVERLAP = 0.85
"""Share of the larger of two heads that both show, from which on nothing is said; real pairs have 0.93 and more."""


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
        slices: how many ``prepare`` would keep.
        signatures: of each readable contrast, to find copies.
        features: of each readable contrast, to find mixed-up ones.
        images: thumbnails, if they were asked for.
    """

    subject: Subject
    findings: tuple[Finding, ...]
    facts: str
    slices: int
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
    facts, slices = "", 0
    if volumes:
        findings += geometry_findings(volumes, where, subject.name)
        findings += _grid_findings(job, volumes, masks, where)
        findings += _alignment_findings(job, volumes, masks, where)
        reference, mask = _reference(job, volumes, masks)
        slices = len(choose_slices(mask, job.config.slices.min_area, job.config.slices.maximum))
        facts = _facts(volumes, reference, slices)
    return CheckedSubject(
        subject=subject,
        findings=tuple(findings),
        facts=facts,
        slices=slices,
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
    """Contrasts on one grid that show the head at different places, or different parts of it."""
    pairs: dict[tuple[str, str], Alignment] = {}
    findings = []
    for one, other in itertools.combinations(volumes, 2):
        if not same_grid(volumes[one].grid, volumes[other].grid):
            continue
        common = overlap(masks[one], masks[other])
        if common < LEAST_OVERLAP:
            text = (
                f"{where}: {one} and {other} show different parts of the head: {common:.0%} of the larger is common "
                f"(at least {LEAST_OVERLAP:.0%} is usual); look at both images"
            )
            findings.append(Finding("suspicious", "field of view", text, job.subject.name, (one, other)))
        pairs[one, other] = measure_alignment(volumes[one], volumes[other], masks[one] & masks[other])
    cure = (
        "register it before prepare, or set registration.transform to rigid"
        if job.config.registration.transform == "none"
        else "prepare will register it"
    )
    blamed, named = likely_misplaced(pairs), set[str]()
    for contrast, others in blamed.items():
        if contrast in named:
            continue
        equally = [other for other in others if blamed.get(other) == (contrast,) and others == (other,)]
        named |= {contrast, *equally}
        seen = "; ".join(_seen(pairs, contrast, other) for other in others)
        text = f"{where}, contrast {' or '.join((contrast, *equally))}: is misaligned: {seen}; {cure}"
        findings.append(Finding("suspicious", "alignment", text, job.subject.name, (contrast, *others)))
    return findings


def _seen(pairs: Mapping[tuple[str, str], Alignment], contrast: str, other: str) -> str:
    """How a contrast would fit another one better."""
    sign = -1 if (contrast, other) in pairs else 1
    pair = pairs[(contrast, other) if sign == -1 else (other, contrast)]
    if pair.gain <= SHIFT_GAIN:
        return (
            f"{contrast} seems to be turned against {other} (NMI {pair.nmi:.4f}, {pair.turn_gain:.0%} more if turned)"
        )
    shift = ", ".join(f"{sign * step:+.1f}" for step in pair.best_shift_mm)
    return (
        f"{contrast} fits {other} best when moved by {shift} mm to the right, front and top "
        f"(NMI {pair.nmi:.4f}, then {pair.best_nmi:.4f})"
    )


def _reference(
    job: CheckJob, volumes: Mapping[str, Volume], masks: Mapping[str, BoolArray]
) -> tuple[Volume, BoolArray]:
    """The volume whose grid the others come to, and the head of all that lie on it."""
    reference = volumes[reference_contrast(volumes, job.config.registration)]
    together = [masks[name] for name, volume in volumes.items() if same_grid(volume.grid, reference.grid)]
    return reference, np.logical_or.reduce(together)


def _facts(volumes: Mapping[str, Volume], reference: Volume, slices: int) -> str:
    shape = " x ".join(map(str, reference.data.shape))
    spacing = " x ".join(f"{step:.3g}" for step in reference.spacing_mm)
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
