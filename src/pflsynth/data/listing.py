"""List a site's images: by walking its folder with a layout, or from a CSV file that names them."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pflsynth.config import CONTRASTS
from pflsynth.data.layouts import Layout, Parts
from pflsynth.data.names import MASK, ImageName, alias_contrast, label, shown, split_nifti_name, without_prefix
from pflsynth.errors import DataError

_DEPTH = 10
_MOST_FOLDERS = 200_000
_EXAMPLES = 3
_BROKEN_LINK = "is a broken link, or leads to what is no file; restore what it leads to, or remove it"


@dataclass(frozen=True)
class Image:
    """An image file: where it is, what its name tells, and what keeps it from being read (empty if nothing)."""

    path: Path
    shown: str
    name: ImageName
    trouble: str = ""


@dataclass
class Listing:
    """A site's images.

    Attributes:
        images: all that were found, of any contrast.
        persons: subjects that have a folder, with or without images.
        bad: what is wrong with each subject, or folder, that cannot be looked into.
        notes: what was passed over.
    """

    images: list[Image] = field(default_factory=list)
    persons: list[str] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def list_folder(folder: Path, layout: Layout, own: Mapping[str, str], site: str) -> Listing:
    """Walk a site's folder; what a layout cannot use is passed over, with a note for each reason.

    Links are followed, each folder is read once. Hidden files and folders are skipped.

    Args:
        folder: the site's folder.
        layout: how it names its images.
        own: the site's own contrast names, as `names.own_names` gives them.
        site: named in errors.

    Raises:
        DataError: the folder itself cannot be read, or has far too many folders in it.
    """
    tree = _walk(folder, layout.enters, site)
    listing = Listing()
    for parts, reason in tree.unreadable.items():
        key = _subject_name(parts) if layout.subject_folders else show(parts)
        listing.bad[key] = f"site {site}, folder {show(parts)}: {reason}"
    passed = {"since they were read already in another folder": tree.twice, "since they lie too deep": tree.deep}
    dangling = set(tree.dangling)
    for parts in (*tree.files, *tree.dangling):
        if not split_nifti_name(Path(parts[-1]))[1]:
            if parts in dangling and layout.subject_folders and layout.enters(parts):
                listing.bad[_subject_name(parts)] = f"site {site}, folder {show(parts)}: {_BROKEN_LINK}"
            elif parts in dangling:
                passed.setdefault("since they are broken links", []).append(parts)
            continue
        name = layout.read(parts, own)
        if isinstance(name, str):
            passed.setdefault(name.replace("<site>", site), []).append(parts)
        elif not label(name.person):
            passed.setdefault("since the subject's name has neither letter nor digit", []).append(parts)
        else:
            trouble = _BROKEN_LINK if parts in dangling else _name_trouble(parts)
            listing.images.append(Image(folder.joinpath(*parts), show(parts), name, trouble))
    if layout.subject_folders:
        tops = sorted({without_prefix(parts[0], "sub-") for parts in tree.folders})
        listing.persons = [top for top in tops if label(top)]
    listing.notes = [
        f"passed over, {reason}: {enumerated([show(parts) for parts in sorted(paths)])}"
        for reason, paths in sorted(passed.items())
        if paths
    ]
    return listing


def list_csv(path: Path, folder: Path, own: Mapping[str, str], site: str) -> Listing:
    """Read a list of images: columns subject, contrast, path, and session if there are several; others are ignored.

    Args:
        path: UTF-8, separated by comma, semicolon or tab, with a header line.
        folder: the site's folder, which paths in the list are relative to (they can be absolute).
        own: the site's own contrast names, as `names.own_names` gives them.
        site: named in errors.

    Raises:
        DataError: no such file, no such columns, or what is wrong with each line.
    """
    where = f"site {site}: {path}"
    listing, problems = Listing(), []
    names: dict[ImageName, int] = {}
    paths: dict[Path, int] = {}
    for line, row in _rows(_csv_text(path, site), where):
        image = _listed(row, folder, own)
        if isinstance(image, str):
            problem = image
        elif names.setdefault(image.name, line) != line:
            problem = f"lists the image of line {names[image.name]} again; remove one of the two"
        elif paths.setdefault(image.path, line) != line:
            problem = f"lists the file of line {paths[image.path]} again; correct or remove one of the two"
        else:
            listing.images.append(image)
            continue
        problems.append(f"{where}, line {line}: {problem}")
    if problems:
        raise DataError("\n".join(problems))
    return listing


def enumerated(texts: list[str]) -> str:
    """The first few of the texts and how many more there are: "a, b, c and 7 more"."""
    more = len(texts) - _EXAMPLES
    return ", ".join(texts[:_EXAMPLES]) + (f" and {more} more" if more > 0 else "")


def show(parts: Parts) -> str:
    """A path relative to the site's folder, as it is shown to people."""
    return shown("/".join(parts))


def _csv_text(path: Path, site: str) -> str:
    where = f"site {site}: {path}"
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{where}: there is no such list; set sites.{site}.layout to its name") from None
    except UnicodeDecodeError:
        raise DataError(f"{where} is not UTF-8 text; save it as CSV UTF-8") from None
    except OSError as error:
        raise DataError(f"{where}: the list cannot be read ({error.strerror}); ask for read access") from None


def _rows(text: str, where: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and cells by column, without the header and empty lines."""
    header = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=header.count), strict=True)
    columns: list[str] = []
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if columns and any(cells):
                yield reader.line_num, dict(zip(columns, cells, strict=False))
            elif not columns:
                columns = [cell.casefold() for cell in cells]
                missing = [column for column in ("subject", "contrast", "path") if column not in columns]
                if missing:
                    raise DataError(
                        f"{where}, line {reader.line_num}: has no column {' and no '.join(missing)} (found: "
                        f"{shown(', '.join(cells))}); the header is subject,contrast,path or "
                        "subject,session,contrast,path"
                    )
    except csv.Error as error:
        raise DataError(f"{where}, line {reader.line_num}: is not CSV ({error}); save it as CSV UTF-8 again") from None


def _listed(row: Mapping[str, str], folder: Path, own: Mapping[str, str]) -> Image | str:
    """The image of a line, or what is wrong with the line."""
    empty = [column for column in ("subject", "contrast", "path") if not row.get(column)]
    if empty:
        return f"has no {' and no '.join(empty)}; fill it in, or remove the line"
    person, session = without_prefix(row["subject"], "sub-"), without_prefix(row.get("session", ""), "ses-")
    if not label(person):
        return f'subject "{shown(person)}" has neither letter nor digit; write another name'
    contrast = alias_contrast(row["contrast"], own)
    if contrast is None:
        return f'contrast "{shown(row["contrast"])}" is unknown; write one of {", ".join((*CONTRASTS, MASK))}'
    path = folder / row["path"]
    if not split_nifti_name(path)[1]:
        return f"{shown(row['path'])} is not named as NIfTI; list a file that ends in .nii.gz or .nii"
    try:
        trouble = "" if path.is_file() else "there is no such file; correct its path in the list"
    except OSError as error:
        trouble = f"cannot be reached ({error.strerror}); correct its path in the list, or ask for read access"
    return Image(path, shown(row["path"]), ImageName(person, session, contrast), trouble)


def _subject_name(parts: Parts) -> str:
    return f"sub-{label(without_prefix(parts[0], 'sub-'))}"


def _name_trouble(parts: Parts) -> str:
    try:
        "/".join(parts).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8; rename it"
    return ""


@dataclass
class _Tree:
    """What a walk finds, each as a path relative to where it started."""

    files: list[Parts] = field(default_factory=list)
    folders: list[Parts] = field(default_factory=list)
    dangling: list[Parts] = field(default_factory=list)
    unreadable: dict[Parts, str] = field(default_factory=dict)
    twice: list[Parts] = field(default_factory=list)
    deep: list[Parts] = field(default_factory=list)


def _walk(start: Path, enters: Callable[[Parts], bool], site: str) -> _Tree:
    """Every file in the folders that ``enters`` lets in; linked folders come last, so that the real ones are read."""
    tree = _Tree()
    seen: set[tuple[int, int]] = set()
    waiting: list[Parts] = [()]
    linked: list[Parts] = []
    while waiting or linked:
        parts = waiting.pop() if waiting else linked.pop(0)
        if len(parts) > _DEPTH:
            tree.deep.append(parts)
            continue
        if len(seen) > _MOST_FOLDERS:
            raise DataError(
                f"site {site}: {start} has more than {_MOST_FOLDERS} folders in it; set sites.{site}.data to the "
                "folder of the site's images alone"
            )
        try:
            status = start.joinpath(*parts).stat()
            if (status.st_dev, status.st_ino) in seen:
                tree.twice.append(parts)
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(start.joinpath(*parts)) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            reason = "no permission to read it" if isinstance(error, PermissionError) else str(error.strerror)
            reason += "; ask for read access to the folder"
            if not parts:
                raise DataError(f"site {site}, folder {start}: {reason}") from None
            tree.unreadable[parts] = reason
            continue
        if parts:
            tree.folders.append(parts)
        for entry in found:
            inner = (*parts, entry.name)
            if entry.name.startswith("."):
                continue
            kind = _kind(entry)
            if kind == "folder":
                if enters(inner):
                    (linked if entry.is_symlink() else waiting).append(inner)
            else:
                (tree.files if kind == "file" else tree.dangling).append(inner)
    return tree


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"
    except OSError:
        return "other"
