"""How data folders name their images: each layout reads subject, session and contrast from a path.

``LAYOUTS`` has those that go by a name. A file name pattern is a layout too: see :func:`pattern_layout`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pflsynth.data.names import (
    MASK,
    ImageName,
    alias_contrast,
    bids_contrast,
    known_names,
    split_nifti_name,
    without_prefix,
)
from pflsynth.errors import DataError

Parts = tuple[str, ...]
"""A path relative to the site's folder, in its parts."""

NO_CONTRAST = "since their names tell none of the contrasts (sites.<site>.contrast_names names a site's own)"
NOT_FITTING = "since their names do not fit the layout, or tell no known contrast"
CONTRADICTORY = "since folder and file name tell different subjects or sessions"
OTHER_MASKS = "since they are masks of something else than the brain"


@dataclass(frozen=True)
class Layout:
    """A way to name images.

    Attributes:
        looked_for: the names that fit, for messages.
        read: from a NIfTI file's path and the site's own contrast names (keys as `names.plain` makes them) to what
            the path tells, or to the reason why the file is passed over.
        enters: whether a folder can hold images.
        subject_folders: whether each folder at the top is a subject, even without images.
    """

    looked_for: str
    read: Callable[[Parts, Mapping[str, str]], ImageName | str]
    enters: Callable[[Parts], bool] = lambda parts: True
    subject_folders: bool = False


def layout_named(text: str, own: Mapping[str, str], site: str) -> Layout:
    """The layout that a site's ``layout`` key names, or that it is as a file name pattern.

    Raises:
        DataError: an unknown name, or a pattern that cannot be used.
    """
    if "{" in text or "}" in text:
        return pattern_layout(text, own, site)
    if text not in LAYOUTS:
        close = difflib.get_close_matches(text.lower(), LAYOUTS, n=1)
        hint = f' did you mean "{close[0]}"?' if close else ""
        raise DataError(
            f'site {site}: layout "{text}" is unknown;{hint} known are {", ".join(LAYOUTS)}, a file name pattern such '
            'as "{subject}-{contrast}.nii.gz", and the name of a list that ends in .csv'
        )
    return LAYOUTS[text]


def pattern_layout(pattern: str, own: Mapping[str, str], site: str) -> Layout:
    """The layout of a file name pattern, such as ``{subject}/{session}/{subject}-{contrast}.nii.gz``.

    It is matched against the last parts of a path, as many as it has itself, in any case, for ``.nii`` and
    ``.nii.gz`` alike. ``*`` stands for any text within a name. A placeholder that stands twice must match twice the
    same. ``{contrast}`` matches the site's own names of contrasts, and the field's.

    Raises:
        DataError: no ``{subject}`` or no ``{contrast}``, or another placeholder.
    """
    pieces = re.split(r"(\{[^{}]*\}|\*)", _without_ending(pattern.strip("/")))
    fields = [piece for piece in pieces if piece.startswith("{")]
    unknown = [field for field in fields if field not in ("{subject}", "{session}", "{contrast}")]
    missing = [field for field in ("{subject}", "{contrast}") if field not in fields]
    braces = any(brace in piece for piece in pieces if piece not in fields for brace in "{}")
    if unknown or missing or braces:
        wrong = f"has no {' and no '.join(missing)}" if missing else f"has {', '.join(unknown) or 'a stray brace'}"
        raise DataError(
            f'site {site}: the pattern "{pattern}" in layout {wrong}; write {{subject}} and {{contrast}}, and '
            '{session} if there are several, as in "{subject}/{subject}-{contrast}.nii.gz"'
        )
    contrasts = "|".join(re.escape(name).replace("_", r"[-_\s]") for name in known_names(own))
    groups = {"{subject}": "[^/]+?", "{session}": "[^/]+?", "{contrast}": contrasts}
    expression = ""
    for place, piece in enumerate(pieces):
        if piece == "*":
            expression += "[^/]*"
        elif piece not in groups:
            expression += re.escape(piece)
        elif piece in pieces[:place]:
            expression += f"(?P={piece[1:-1]})"
        else:
            expression += f"(?P<{piece[1:-1]}>{groups[piece]})"
    matcher = re.compile(expression, re.IGNORECASE)
    depth = pattern.strip("/").count("/") + 1

    def read(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
        match = matcher.fullmatch(_without_ending("/".join(parts[-depth:])))
        if match is None:
            return NOT_FITTING
        session = match["session"] if "{session}" in fields else ""
        contrast = alias_contrast(match["contrast"], own)
        person, session = without_prefix(match["subject"], "sub-"), without_prefix(session, "ses-")
        return ImageName(person, session, contrast) if contrast else NO_CONTRAST

    return Layout(f'files named "{pattern}"', read)


def _without_ending(path: str) -> str:
    return path[: len(path) - len(split_nifti_name(Path(path))[1])]


_FOLDER = re.compile(r"sub-(?P<person>.+)|ses-(?P<session>.+)|(?P<oasis>OAS\d+)_MR_(?P<day>d\d+)", re.IGNORECASE)


def _bids(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
    """Entities and suffix of a BIDS name; the session may be told by the folder alone."""
    *texts, suffix = _without_ending(parts[-1]).split("_")
    if not all("-" in text for text in texts):
        return NOT_FITTING
    entities = {key.casefold(): value for key, value in (text.split("-", 1) for text in texts)}
    if "sub" not in entities:
        return NOT_FITTING
    folders = [match for match in map(_FOLDER.fullmatch, parts[:-1]) if match]
    persons = [match["person"] or match["oasis"] for match in folders if match["person"] or match["oasis"]]
    sessions = [match["session"] or match["day"] for match in folders if match["session"] or match["day"]]
    persons.append(entities.pop("sub"))
    sessions += [entities.pop(key) for key in ("ses", "sess") if key in entities]
    if any(len({name.casefold() for name in names}) > 1 for names in (persons, sessions)):
        return CONTRADICTORY
    contrast = bids_contrast(texts, suffix, own)
    if contrast is None:
        return NO_CONTRAST
    if contrast == MASK and any(entities.get(key, "brain").casefold() != "brain" for key in ("desc", "label")):
        return OTHER_MASKS
    run = entities.pop("run") if entities.get("run", "").isdecimal() else "0"
    variant = "_".join(f"{key}-{value}" for key, value in entities.items())
    return ImageName(persons[0], sessions[0] if sessions else "", contrast, variant, int(run))


def _bids_in_folders(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
    return _bids(parts, own) if len(parts) > 1 else NOT_FITTING


def _bids_enters(parts: Parts) -> bool:
    """Whether it is ``sub-*/[ses-*/][anat/]``."""
    subject, *inner = (part.casefold() for part in parts)
    if inner and inner[0].startswith("ses-"):
        del inner[0]
    return subject.startswith("sub-") and inner in ([], ["anat"])


def _oasis3(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
    """BIDS names of OASIS-3 (also with "sess-"), in whatever folders the download made."""
    name = _bids(parts, own)
    if isinstance(name, ImageName) and not re.fullmatch(r"OAS\d+", name.person, re.IGNORECASE):
        return NOT_FITTING
    return name


_IXI = re.compile(r"(?P<person>IXI\d+)(-(?P<variant>[a-z]+-\d+))?-(?P<contrast>.+)", re.IGNORECASE)


def _ixi(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
    match = _IXI.fullmatch(_without_ending(parts[-1]))
    if match is None:
        return NOT_FITTING
    contrast = alias_contrast(match["contrast"], own)
    return ImageName(match["person"].upper(), "", contrast, match["variant"] or "") if contrast else NO_CONTRAST


_BRATS_CASES = [
    re.compile(case, re.IGNORECASE)
    for case in (
        r"(?P<person>brats-[a-z]+(-[a-z]+)*-\d+)(-(?P<session>\d{1,3}))?",  # 2023 on: BraTS-GLI-00000-000
        r"(?P<person>bratsreg_\d+)_(?P<session>\d+_\d+)",  # BraTSReg_001_01_0106
        r"(?P<person>brats_[a-z0-9]+_pat\d+)_(?P<session>\d+)",  # 2013 to 2016: brats_tcia_pat101_0001
        r"(?P<person>brats1[6-9]_[a-z0-9]+_[a-z0-9]+)_(?P<session>\d+)",  # Brats17_TCIA_105_1
        r"(?P<person>brats\d+(_[a-z]+)?_\d+)",  # BraTS20_Training_001, BraTS2021_00000
    )
]
_VSD = re.compile(r"VSD\.Brain.*?\.(MR_)?(?P<contrast>[a-z0-9]+)(\.\d+)?", re.IGNORECASE)


def _brats(parts: Parts, own: Mapping[str, str]) -> ImageName | str:
    """``<case>_<contrast>``, ``<case>-<contrast>``, ``<case>/<contrast>``, or VSD.Brain.XX.O.MR_T1c.54514 in a case."""
    stem = _without_ending(parts[-1])
    for case in _BRATS_CASES:
        match = re.fullmatch(rf"{case.pattern}[-_](?P<contrast>.+)", stem, re.IGNORECASE)
        if match is not None:
            return _brats_image(match, match["contrast"], own)
    vsd = _VSD.fullmatch(stem)
    folders = [part for part in parts[:-1] if not part.upper().startswith("VSD.")]
    for case in _BRATS_CASES:
        match = case.fullmatch(folders[-1]) if folders else None
        if match is not None:
            return _brats_image(match, vsd["contrast"] if vsd else stem, own)
    if vsd is None or not folders:
        return NOT_FITTING
    contrast = alias_contrast(vsd["contrast"], own)
    # 2013: the folders HG/0001 and LG/0001 are two patients.
    return ImageName("_".join(folders[-2:]), "", contrast) if contrast else NO_CONTRAST


def _brats_image(case: re.Match[str], text: str, own: Mapping[str, str]) -> ImageName | str:
    contrast = alias_contrast(text, own)
    session = case.groupdict().get("session") or ""
    return ImageName(case["person"], session, contrast) if contrast else NO_CONTRAST


LAYOUTS: dict[str, Layout] = {
    "bids": Layout(
        "folders sub-<name>, with images in sub-<name>/anat/ or sub-<name>/ses-<name>/anat/",
        _bids_in_folders,
        _bids_enters,
        subject_folders=True,
    ),
    "ixi": Layout("files such as IXI-T1/IXI002-Guys-0828-T1.nii.gz", _ixi),
    "brats": Layout(
        "files such as BraTS20_Training_001_t1ce.nii.gz, BraTS-GLI-00000-000-t1c.nii.gz or "
        "brats_2013_pat0001_1/VSD.Brain.XX.O.MR_T1c.54514.nii.gz",
        _brats,
    ),
    "oasis3": Layout("files such as sub-OAS30001_ses-d0129_T1w.nii.gz", _oasis3),
}
"""The layouts that go by a name."""
