"""Copies of one image where there should be two: between subjects, contrasts, and sites prepared on one machine."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from pflsynth.data.manifest import MANIFEST_NAME, Manifest, SubjectRecord, load_manifest
from pflsynth.data.workspace import FinishedSubject
from pflsynth.errors import DataError


def copies_within(site: str, finished: Mapping[str, FinishedSubject]) -> dict[str, str]:
    """Subjects with an image whose voxels are exactly those of another: of another contrast, or an earlier subject.

    Returns:
        What is wrong, by subject; the first subject that has an image is not among them.
    """
    seen: dict[str, tuple[str, str, str]] = {}
    bad: dict[str, str] = {}
    for name, done in finished.items():
        for contrast, volume in done.subject.contrasts.items():
            other = seen.setdefault(volume.voxels_sha256, (name, contrast, volume.source))
            if other[:2] != (name, contrast):
                bad[name] = (
                    f"site {site}, subject {name}, contrast {contrast}: {volume.source} holds the same voxels as "
                    f"subject {other[0]}, contrast {other[1]} ({other[2]}); keep the one that is right and remove or "
                    "replace the other"
                )
    return bad


def copies_elsewhere(site: str, subjects: Iterable[SubjectRecord], out: Path) -> None:
    """Refuse images that another site has, of those prepared beside this one on the same machine.

    Args:
        site: the site that is being prepared.
        subjects: its usable subjects.
        out: its output folder; the others are beside it.

    Raises:
        DataError: naming every pair of site, subject and contrast.
    """
    own = {
        volume.voxels_sha256: (subject.name, contrast)
        for subject in subjects
        for contrast, volume in subject.contrasts.items()
    }
    found = []
    for path in sorted(out.parent.glob(f"[!.]*/{MANIFEST_NAME}")):
        other = _manifest(path.parent)
        if other is None or other.site == site:
            continue
        for subject in other.subjects:
            for contrast, volume in subject.contrasts.items():
                if volume.voxels_sha256 in own:
                    name, own_contrast = own[volume.voxels_sha256]
                    found.append(
                        f"{name} {own_contrast} is {subject.name} {contrast} of site {other.site} ({path.parent})"
                    )
    if found:
        raise DataError(
            f"site {site}: {len(found)} image(s) are at another site too, so that training and test subjects could be "
            f"the same: {'; '.join(found[:10])}{'; ...' if len(found) > 10 else ''}; remove them from one of the sites"
        )


def _manifest(folder: Path) -> Manifest | None:
    """A manifest beside this site's, or None if it cannot be used: its own site will hear of that."""
    try:
        return load_manifest(folder)
    except DataError:
        return None
