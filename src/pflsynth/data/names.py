"""What the name of an image file tells: subject, session, contrast."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pflsynth.config import CONTRASTS
from pflsynth.errors import DataError

MASK = "mask"
"""The brain mask, found in the same ways as a contrast."""

ALIASES: dict[str, tuple[str, ...]] = {
    "T1w": ("t1", "t1w", "t1n", "t1_mprage", "t1mprage", "mprage", "t1w_mprage", "t1_pre", "t1pre", "t1_weighted"),
    "T1ce": (
        *("t1ce", "t1c", "t1gd", "t1post", "t1wce", "t1wgd", "t1km", "t1contrast"),
        *("t1_ce", "t1_gd", "t1_post", "t1w_ce", "t1w_gd", "t1w_post", "t1_km", "t1_contrast"),
    ),
    "T2w": ("t2", "t2w", "t2_tse", "t2tse", "t2w_tse", "t2_weighted"),
    "PDw": ("pd", "pdw", "pd_tse", "pd_weighted"),
    "FLAIR": ("flair", "t2f", "t2_flair", "t2flair", "t2w_flair", "flair_t2"),
    MASK: ("mask", "brainmask", "brain_mask"),
}
"""What the field calls each contrast, in any case, with "_", "-" or a space between the parts."""

_CONTRAST_OF_ALIAS = {alias: contrast for contrast, aliases in ALIASES.items() for alias in aliases}
_CONTRAST_OF_SUFFIX = {name.casefold(): name for name in (*CONTRASTS, MASK)}
_ENDINGS = (".nii.gz", ".nii")


@dataclass(frozen=True)
class ImageName:
    """What a path tells of an image; names are as they are written, without "sub-" and "ses-".

    Attributes:
        person: whose image it is.
        session: of which visit; empty if that is not told.
        contrast: one of the contrasts, or "mask".
        variant: what sets it apart from other images of the contrast in the session, such as "acq-mprage_rec-norm".
        run: number of a scan that was repeated; 0 if none is told.
    """

    person: str
    session: str
    contrast: str
    variant: str = ""
    run: int = 0


def split_nifti_name(path: Path) -> tuple[str, str]:
    """A file's name as stem and ending as written (``.nii.gz``, ``.NII``); the ending is empty if it is not NIfTI's."""
    length = next((len(ending) for ending in _ENDINGS if path.name.lower().endswith(ending)), 0)
    cut = len(path.name) - length
    return path.name[:cut], path.name[cut:]


def contrast_of(path: Path) -> str | None:
    """The contrast that a BIDS file name tells of, or None.

    It is the suffix T1w, T1ce, T2w, PDw or FLAIR, in any case. An entity ``ce-...`` (contrast agent) turns T1w into
    T1ce, and makes any other suffix unknown: an image with contrast agent is never taken for one without.
    """
    stem, ending = split_nifti_name(path)
    *entities, suffix = stem.split("_")
    contrast = bids_contrast(entities, suffix, {}) if ending else None
    return None if contrast == MASK else contrast


def bids_contrast(entities: list[str], suffix: str, own: Mapping[str, str]) -> str | None:
    """The contrast of a BIDS suffix among its entities ("sub-01", "ce-gd"), "mask", or None; see `contrast_of`."""
    contrast = own.get(plain(suffix)) or _CONTRAST_OF_SUFFIX.get(suffix.casefold())
    if any(entity.casefold().startswith("ce-") for entity in entities):
        return "T1ce" if contrast in ("T1w", "T1ce") else None
    return contrast


def alias_contrast(text: str, own: Mapping[str, str]) -> str | None:
    """The contrast, or "mask", that goes by this name at the site or in the field, or None."""
    return own.get(plain(text)) or _CONTRAST_OF_ALIAS.get(plain(text))


def known_names(own: Mapping[str, str]) -> list[str]:
    """All names that `alias_contrast` knows, in the form of `plain`, the longest first."""
    return sorted({*_CONTRAST_OF_ALIAS, *own}, key=lambda name: (-len(name), name))


def plain(text: str) -> str:
    """A contrast's name in the form in which names are compared: lower case, parts separated by "_"."""
    return re.sub(r"[-_\s]+", "_", text.strip()).casefold()


def own_names(contrast_names: Mapping[str, str], site: str) -> dict[str, str]:
    """A site's ``contrast_names``, its keys in the form of `plain`.

    Raises:
        DataError: a contrast that does not exist, or one name for two contrasts.
    """
    own: dict[str, str] = {}
    for name, contrast in contrast_names.items():
        if contrast not in (*CONTRASTS, MASK):
            raise DataError(
                f'site {site}: contrast_names says {name} = "{contrast}", which is no contrast; write one of '
                f"{', '.join((*CONTRASTS, MASK))}"
            )
        if own.setdefault(plain(name), contrast) != contrast:
            raise DataError(
                f"site {site}: contrast_names gives {name} as {own[plain(name)]} and as {contrast} (case and "
                '"-", "_", " " make no difference); keep one of them'
            )
    return own


def label(name: str) -> str:
    """A name as a BIDS label: ASCII letters and digits only.

    Accents and punctuation are dropped, other letters are written as "u" and their code: "Jörg 7" is "Jorg7".
    Two names may give one label; the label is empty if the name has neither letter nor digit.
    """
    letters = (letter for letter in unicodedata.normalize("NFKD", name) if letter.isalnum())
    return "".join(letter if letter.isascii() else f"u{ord(letter):04x}" for letter in letters)


def without_prefix(name: str, prefix: str) -> str:
    """``name`` without "sub-" or "ses-" before it, in any case."""
    return name[len(prefix) :] if name.casefold().startswith(prefix) else name


def shown(path: str) -> str:
    """A path as it is shown to people: what cannot be printed is written as its code."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "backslashreplace").decode("ascii")
        for letter in path
    )
