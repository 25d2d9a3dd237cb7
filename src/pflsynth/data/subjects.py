"""Find subjects and their images in a site's folder, whatever its layout."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pflsynth.data.layouts import LAYOUTS, layout_named
from pflsynth.data.listing import Image, Listing, enumerated, list_csv, list_folder
from pflsynth.data.names import MASK, ImageName, contrast_of, label, own_names, shown
from pflsynth.errors import DataError


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


@dataclass(frozen=True)
class Found:
    """The subjects of a site.

    Attributes:
        subjects: sorted by name; one that lacks some or all contrasts is among them.
        bad: what is wrong with each subject (or folder that cannot be read) that cannot be used.
        notes: what was passed over, and which of several candidates was taken.
    """

    subjects: tuple[Subject, ...]
    bad: dict[str, str]
    notes: tuple[str, ...]


def find_subjects(
    folder: Path,
    layout: str,
    contrasts: Sequence[str],
    site: str,
    contrast_names: Mapping[str, str] | None = None,
) -> Found:
    """All subjects of a site, whose contrasts are paired within a session.

    Names are made of ASCII letters and digits: "sub-IXI002". Of several runs of one image the last is taken, since a
    repeated scan replaces the one before. Other candidates for one image are a question to the user: the subject is
    bad. If "mask" is not among the contrasts, several masks only leave the subject without one.

    Args:
        folder: the site's folder.
        layout: a name in ``LAYOUTS``, a file name pattern (see `layouts.pattern_layout`), or the name of a CSV list
            in the folder (see `listing.list_csv`).
        contrasts: those that are of interest, in the order of ``volumes``; "mask" asks for brain masks.
        site: named in errors.
        contrast_names: the site's own names of contrasts, such as ``{"MPRAGE": "T1w"}``; they come before the usual.

    Raises:
        DataError: no such folder, no subjects, an unknown layout, a pattern or list that cannot be used.
    """
    if not folder.is_dir():
        raise DataError(f"site {site}: there is no folder {folder}; set sites.{site}.data, data_root or --data-root")
    own = own_names(contrast_names or {}, site)
    if layout.casefold().endswith(".csv"):
        listing, looked_for = list_csv(folder / layout, folder, own, site), f"lines in {layout}"
    else:
        named = layout_named(layout, own, site)
        listing, looked_for = list_folder(folder, named, own, site), named.looked_for
    hint = "" if listing.images else _other_layouts(folder, layout, own, site)
    if not (listing.images or listing.persons or listing.bad):
        text = f"site {site}: {folder} has no subjects; looked for {looked_for}"
        raise DataError(f"{text}; {hint}" if hint else text)
    groups = _Groups(site, tuple(contrasts))
    groups.add(listing)
    notes = [*listing.notes, hint]
    if groups.repeated:
        notes.append(f"repeated scans, of which the last run is taken: {enumerated(groups.repeated)}")
    if groups.unclear_masks:
        notes.append(f"no brain mask is taken where several files fit: {enumerated(groups.unclear_masks)}")
    subjects = sorted(groups.subjects, key=lambda subject: subject.name)
    return Found(tuple(subjects), dict(sorted(groups.bad.items())), tuple(filter(None, notes)))


def contrast_in_layout(
    path: Path, layout: str, site: str, contrast_names: Mapping[str, str] | None = None
) -> str | None:
    """The contrast that a path tells of in a layout, or else as a BIDS name; None if it tells none.

    Args:
        path: relative to the folder that is laid out.
        layout: as in :func:`find_subjects`; a list names other files, so with one BIDS names alone count.
        site: named in errors.
        contrast_names: the site's own names of contrasts.

    Raises:
        DataError: an unknown layout, or a pattern that cannot be used.
    """
    if not layout.lower().endswith(".csv"):
        own = own_names(contrast_names or {}, site)
        named = layout_named(layout, own, site).read(path.parts, own)
        if isinstance(named, ImageName):
            return named.contrast
    return contrast_of(path)


def _other_layouts(folder: Path, layout: str, own: Mapping[str, str], site: str) -> str:
    """Which named layouts would find subjects, or an empty text."""
    found = []
    for name in LAYOUTS.keys() - {layout}:
        persons = {label(image.name.person) for image in list_folder(folder, LAYOUTS[name], own, site).images}
        if persons:
            found.append(f"found {len(persons)} subject{'s' * (len(persons) > 1)} in layout {name}")
    return f"{', '.join(sorted(found))}: set sites.{site}.layout" if found else ""


@dataclass
class _Groups:
    """Images grouped into subjects; what is wrong with the bad ones; and what is to be noted."""

    site: str
    contrasts: tuple[str, ...]
    subjects: list[Subject] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    repeated: list[str] = field(default_factory=list)
    unclear_masks: list[str] = field(default_factory=list)

    def add(self, listing: Listing) -> None:
        """Group by person, then by session."""
        self.bad |= listing.bad
        named: list[tuple[str, Image | None]] = [(person, None) for person in listing.persons]
        named += [(image.name.person, image) for image in listing.images]
        for names, images in _by_label(named):
            person = f"sub-{label(names[0])}"
            sessions = _by_label([(image.name.session, image) for image in images])
            clashes = [clash for clash in (names, *(written for written, _ in sessions)) if len(clash) > 1]
            if clashes:
                self.bad[person] = "\n".join(
                    f"site {self.site}, subject {person}: {' and '.join(map(shown, clash))} are too alike to be told "
                    "apart (only letters and digits count, not their case); rename the files of one of them"
                    for clash in clashes
                )
            elif person not in self.bad:
                self._add_person(person, sessions)

    def _add_person(self, person: str, sessions: Sequence[tuple[list[str], list[Image]]]) -> None:
        with_images = [group for group in sessions if any(image.name.contrast != MASK for image in group[1])]
        for names, images in with_images or [([""], [])]:
            session = label(names[0])
            self._add_session(f"{person}_ses-{session}" if session and len(with_images) > 1 else person, person, images)

    def _add_session(self, name: str, person: str, images: Sequence[Image]) -> None:
        chosen: dict[str, Path] = {}
        problems = []
        for contrast in dict.fromkeys((*self.contrasts, MASK)):
            candidates = sorted((image for image in images if image.name.contrast == contrast), key=_shown)
            image = _choose(candidates) if candidates else None
            if isinstance(image, str) and contrast in self.contrasts:
                problems.append(f"site {self.site}, subject {name}, contrast {contrast}: {image}")
            elif isinstance(image, str):
                self.unclear_masks.append(name)
            elif image is not None:
                chosen[contrast] = image.path
                if len(candidates) > 1:
                    self.repeated.append(f"{name} {contrast} ({image.shown}, of {len(candidates)})")
        mask = chosen.pop(MASK, None)
        if problems:
            self.bad[name] = "\n".join(problems)
        else:
            self.subjects.append(Subject(name, person, chosen, mask))


def _by_label(named: Iterable[tuple[str, Image | None]]) -> list[tuple[list[str], list[Image]]]:
    """Images by the label of their person or session (in any case), with the names as they are written, sorted."""
    groups: dict[str, tuple[list[str], list[Image]]] = {}
    for written, image in named:
        name = unicodedata.normalize("NFC", written)
        names, images = groups.setdefault(label(name).casefold(), ([], []))
        if name not in names:
            names.append(name)
            names.sort()
        if image is not None:
            images.append(image)
    return [groups[key] for key in sorted(groups)]


def _shown(image: Image) -> str:
    return image.shown


def _choose(candidates: Sequence[Image]) -> Image | str:
    """The image to use, or what is wrong."""
    troubled = [f"{image.shown}: {image.trouble}" for image in candidates if image.trouble]
    if troubled:
        return "; ".join(troubled)
    last = max(image.name.run for image in candidates)
    newest = [image for image in candidates if image.name.run == last]
    if len(newest) == 1 and len({image.name.variant for image in candidates}) == 1:
        return newest[0]
    return (
        f"{len(candidates)} files fit, {' and '.join(image.shown for image in candidates)}; keep one and move the "
        "others out, or list the one to use in a .csv layout"
    )
