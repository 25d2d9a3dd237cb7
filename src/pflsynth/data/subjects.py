"""Find subjects and their contrasts in a BIDS-like folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pflsynth.config import CONTRASTS
from pflsynth.errors import DataError

_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class Subject:
    """The images of one session of a person at a site.

    Attributes:
        name: unique at the site: "sub-01", or "sub-01_ses-02" if the person has images of several sessions.
        person: "sub-01"; all sessions of a person stay in one split.
        volumes: NIfTI file of each contrast that the subject has.
        mask: NIfTI file of the brain mask that came with the images, or None.
    """

    name: str
    person: str
    volumes: dict[str, Path]
    mask: Path | None = None


def split_nifti_name(path: Path) -> tuple[str, str]:
    """A file's name as stem and ending (``.nii.gz`` or ``.nii``); the ending is empty if it is not named as NIfTI."""
    ending = next((ending for ending in _ENDINGS if path.name.endswith(ending)), "")
    return path.name.removesuffix(ending), ending


def contrast_of(path: Path) -> str | None:
    """The contrast that a BIDS file name tells of, or None.

    It is the suffix T1w, T1ce, T2w, PDw or FLAIR. An entity ``ce-...`` (contrast agent) turns T1w into T1ce, and
    makes any other suffix unknown: an image with contrast agent is never taken for one without.
    """
    stem, ending = split_nifti_name(path)
    *entities, suffix = stem.split("_")
    if not ending or suffix not in CONTRASTS:
        return None
    if any(entity.startswith("ce-") for entity in entities):
        return "T1ce" if suffix in ("T1w", "T1ce") else None
    return suffix


def subject_folders(folder: Path, site: str) -> list[Path]:
    """The folders ``sub-*`` of a site, sorted by name.

    Raises:
        DataError: the folder does not exist, or has no such folders.
    """
    if not folder.is_dir():
        raise DataError(f"site {site}: there is no folder {folder}; set sites.{site}.data, data_root or --data-root")
    found = sorted(entry for entry in folder.glob("sub-*") if entry.is_dir())
    if not found:
        raise DataError(
            f"site {site}: {folder} has no subjects; looked for folders sub-<name>, with images in "
            "sub-<name>/anat/ or sub-<name>/ses-<name>/anat/"
        )
    return found


def read_subject(folder: Path, contrasts: Sequence[str], site: str) -> Subject:
    """Look up a subject's file of each contrast in ``[ses-*/][anat/]``.

    Args:
        folder: the subject's folder, ``.../sub-01``.
        contrasts: those that are of interest, in the order of the result; others are passed over.
        site: named in errors.

    Raises:
        DataError: a contrast has more than one candidate.
    """
    name = folder.name
    candidates: dict[str, list[Path]] = {}
    for pattern in ("", "anat/", "ses-*/", "ses-*/anat/"):
        for path in folder.glob(f"{pattern}{name}_*"):
            contrast = contrast_of(path)
            if contrast in contrasts and path.is_file():
                candidates.setdefault(str(contrast), []).append(path)
    problems = [
        f"site {site}, subject {name}, contrast {contrast}: {len(paths)} files fit, "
        f"{' and '.join(path.relative_to(folder).as_posix() for path in sorted(paths))}; keep the one to use in "
        f"{folder} and move the others out"
        for contrast, paths in sorted(candidates.items())
        if len(paths) > 1
    ]
    if problems:
        raise DataError("\n".join(problems))
    return Subject(name, name, {contrast: candidates[contrast][0] for contrast in contrasts if contrast in candidates})


def find_subjects(folder: Path, contrasts: Sequence[str], site: str) -> list[Subject]:
    """All subjects of a site, sorted by name; one that lacks some or all contrasts is among them.

    Args:
        folder: the site's BIDS-like folder.
        contrasts: those that are of interest.
        site: named in errors.

    Raises:
        DataError: no folder, no subjects, or a contrast with more than one candidate (all of them are listed).
    """
    subjects, problems = [], []
    for subject_folder in subject_folders(folder, site):
        try:
            subjects.append(read_subject(subject_folder, contrasts, site))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return subjects
