"""A federation of four simulated sites, written as BIDS folders of NIfTI files. Described in ``docs/phantom.md``.

It is a phantom: the ICBM-152 anatomy that the nilearn package ships, deformed at random for each subject, scanned by
MR signal equations. It holds no data of the data sets whose names the sites carry.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel import orientations

from pflsynth.data.anatomy import add_lesion, draw_deformation, healthy_fractions, load_atlas
from pflsynth.data.protocols import PHANTOM_SITES, PulseSequence, SiteProtocol, Tissue, vary_timing, vary_tissue
from pflsynth.data.signal import FloatArray, bias_field, rician_noise
from pflsynth.errors import DataError, UsageError
from pflsynth.seeding import numpy_generator

__all__ = ["PHANTOM_SITES", "SiteProtocol", "scan", "site_affine", "site_shape", "tissue_fractions", "write_phantom"]

#: Field of view (mm) and its centre in the coordinates of the atlas: the head with air around it.
FIELD_OF_VIEW = (200.0, 230.0, 200.0)
CENTRE = (0.0, -17.0, 7.0)
#: Thin slices that are averaged to one thick slice.
SUB_SLICES = 3
#: Relative standard deviation of PD, T1 and T2 of each tissue between subjects, cut at two standard deviations.
TISSUE_VARIATION = (0.015, 0.03, 0.04)
#: Standard deviation of the logarithm of the intensity scale from scan to scan.
SCALE_JITTER = 0.15


def site_shape(protocol: SiteProtocol) -> tuple[int, int, int]:
    """Return the voxel counts (x, y, z) of the scans of a site, in RAS order."""
    x, y, z = (round(extent / size) for extent, size in zip(FIELD_OF_VIEW, protocol.voxel_size, strict=True))
    return x, y, z


def site_affine(protocol: SiteProtocol) -> npt.NDArray[np.float64]:
    """Return the 4 × 4 RAS affine (mm) of the scans of a site, the field of view centred on the head."""
    size, shape = np.asarray(protocol.voxel_size), np.asarray(site_shape(protocol))
    affine = np.diag([*protocol.voxel_size, 1.0])
    affine[:3, 3] = np.asarray(CENTRE) - size * (shape - 1) / 2
    return affine


def tissue_fractions(protocol: SiteProtocol, *, seed: int, site: str, subject: str) -> dict[str, FloatArray]:
    """Return how much of each voxel of a subject is which tissue.

    Args:
        protocol: the protocol of the site: grid, and whether subjects have lesions.
        seed: seed of the phantom.
        site: name of the site; with ``subject`` it selects the random stream.
        subject: BIDS label such as ``"sub-01"``.

    Returns:
        Tissue name (``wm gm csf`` and, with lesions, ``core necrosis oedema``) to float32 (X, Y, Z) in RAS order,
        in [0, 1]. The sum over tissues is 1 inside the brain and 0 in air.

    Raises:
        DataError: nilearn is not installed.
    """
    affine, shape = site_affine(protocol), site_shape(protocol)
    counts = (shape[0], shape[1], shape[2] * SUB_SLICES)
    steps = (protocol.voxel_size[0], protocol.voxel_size[1], protocol.voxel_size[2] / SUB_SLICES)
    first = affine[:3, 3] - (0, 0, (SUB_SLICES - 1) / 2 * steps[2])
    axes = [(first[i] + steps[i] * np.arange(counts[i])).astype(np.float32) for i in range(3)]
    deformation = draw_deformation(numpy_generator(seed, "phantom", site, subject, "deformation"))
    fractions = healthy_fractions(load_atlas(), deformation.atlas_points(axes))
    if protocol.lesions:
        fractions = add_lesion(fractions, axes, numpy_generator(seed, "phantom", site, subject, "lesion"))
    return {name: part.reshape(*shape, SUB_SLICES).mean(axis=3) for name, part in fractions.items()}


def scan(
    fractions: Mapping[str, FloatArray],
    tissues: Mapping[str, Tissue],
    sequence: PulseSequence,
    *,
    sensitivity: FloatArray,
    noise: float,
    scale: float,
    rng: np.random.Generator,
) -> npt.NDArray[np.int16]:
    """Return one scan of a subject in scanner units: int16 (X, Y, Z), never negative.

    Args:
        fractions: tissue name to float32 (X, Y, Z), from :func:`tissue_fractions`.
        tissues: values of at least these tissues.
        sequence: the pulse sequence.
        sensitivity: positive receive sensitivity (X, Y, Z).
        noise: standard deviation of the noise per channel as a fraction of the largest noise-free value.
        scale: stored value of the largest noise-free value.
        rng: source of the noise.
    """
    signal = np.zeros(sensitivity.shape, np.float32)
    for name, part in fractions.items():
        signal += np.float32(sequence.signal(tissues[name])) * part
    signal *= sensitivity
    signal *= np.float32(scale / np.abs(signal).max())
    noisy = rician_noise(signal, noise * scale, rng)
    return np.clip(np.rint(noisy), 0, np.iinfo(np.int16).max).astype(np.int16)


def _subject_scans(site: str, protocol: SiteProtocol, subject: str, seed: int) -> dict[str, npt.NDArray[np.int16]]:
    """Return contrast → int16 array (RAS order) of one subject."""
    fractions = tissue_fractions(protocol, seed=seed, site=site, subject=subject)
    rng = numpy_generator(seed, "phantom", site, subject, "tissues")
    tissues = {
        name: vary_tissue(tissue, *(1 + np.asarray(TISSUE_VARIATION) * np.clip(rng.normal(size=3), -2, 2)))
        for name, tissue in protocol.tissues.items()
    }
    coil = numpy_generator(seed, "phantom", site, subject, "bias")
    sensitivity = bias_field(site_shape(protocol), protocol.bias, coil)
    scans = {}
    for contrast, sequence in protocol.sequences.items():
        rng = numpy_generator(seed, "phantom", site, subject, contrast)
        timing, gain = np.clip(rng.normal(size=2), -2, 2)
        scans[contrast] = scan(
            fractions,
            tissues,
            vary_timing(sequence, 1 + protocol.timing_jitter * timing),
            sensitivity=sensitivity,
            noise=protocol.noise,
            scale=protocol.scale * float(np.exp(SCALE_JITTER * gain)),
            rng=rng,
        )
    return scans


def _write_nifti(path: Path, array: npt.NDArray[np.int16], affine: npt.NDArray[np.float64], orientation: str) -> None:
    """Write a RAS ``array`` in the given ``orientation``; the same array gives the same bytes."""
    image = nib.Nifti1Image(array, affine)
    target = orientations.axcodes2ornt(tuple(orientation))
    stored = image.as_reoriented(orientations.ornt_transform(orientations.io_orientation(affine), target))
    stored.set_sform(stored.affine, code=1)
    stored.set_qform(stored.affine, code=1)
    stored.header.set_xyzt_units("mm")
    path.write_bytes(gzip.compress(stored.to_bytes(), compresslevel=4, mtime=0))


def _subject_counts(subjects: int | Mapping[str, int], sites: Sequence[str] | None) -> dict[str, int]:
    """Return site → number of subjects, checked."""
    if sites is None:
        sites = list(PHANTOM_SITES) if isinstance(subjects, int) else list(subjects)
    for site in sites:
        if site not in PHANTOM_SITES:
            raise UsageError(f"There is no phantom site {site!r}; the sites are {', '.join(PHANTOM_SITES)}.")
        if not isinstance(subjects, int) and site not in subjects:
            raise UsageError(f"subjects does not say how many subjects site {site!r} has.")
    counts = {site: subjects if isinstance(subjects, int) else subjects[site] for site in sites}
    for site, count in counts.items():
        if count < 1:
            raise UsageError(f"Site {site!r} would have {count} subjects; at least 1 is needed.")
    return counts


def write_phantom(
    folder: Path,
    *,
    subjects: int | Mapping[str, int] = 8,
    seed: int = 0,
    sites: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Path]:
    """Write the phantom federation: one BIDS folder for each site under ``folder``.

    The same seed gives the same arrays and the same file bytes; a subject does not depend on how many others there
    are.

    Args:
        folder: is created; must not exist or be empty.
        subjects: subjects of every site, or site → number.
        seed: seed of everything random.
        sites: which of ``PHANTOM_SITES`` to write; all by default, or those that ``subjects`` names.
        progress: called with a short text such as ``"ixi sub-01"`` after each subject.

    Returns:
        Site name to its folder, with ``sub-01/anat/sub-01_T1w.nii.gz`` and so on inside.

    Raises:
        DataError: ``folder`` is not empty or not a folder, or nilearn is not installed.
        UsageError: an unknown site, or a number of subjects below 1.
    """
    counts = _subject_counts(subjects, sites)
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} already exists and is not an empty folder; name a new folder for the phantom.")
    load_atlas()
    written = {}
    for site, count in counts.items():
        protocol, root = PHANTOM_SITES[site], folder / site
        root.mkdir(parents=True)
        description = {
            "Name": f"pflsynth phantom, site {site} (simulated; no data of any real subject)",
            "BIDSVersion": "1.8.0",
            "DatasetType": "raw",
        }
        (root / "dataset_description.json").write_text(json.dumps(description, indent=2) + "\n")
        names = [f"sub-{number:02d}" for number in range(1, count + 1)]
        (root / "participants.tsv").write_text("\n".join(["participant_id", *names]) + "\n")
        for subject in names:
            anat = root / subject / "anat"
            anat.mkdir(parents=True)
            for contrast, array in _subject_scans(site, protocol, subject, seed).items():
                path = anat / f"{subject}_{contrast}.nii.gz"
                _write_nifti(path, array, site_affine(protocol), protocol.orientation)
            if progress is not None:
                progress(f"{site} {subject}")
        written[site] = root
    return written
