"""Split a site's subjects into training, validation and test."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pflsynth.config import SPLITS, SplitConfig, SplitName
from pflsynth.errors import DataError
from pflsynth.seeding import derive_seed

SPLITS_NAME = "splits.json"

ExplicitSplits = Mapping[SplitName, Sequence[str]]


def split_subjects(
    names: Collection[str], config: SplitConfig, site: str, explicit: ExplicitSplits | None = None
) -> dict[str, SplitName]:
    """Give each subject its split.

    With fractions, subjects are ordered by a hash of (split seed, site, subject), so that the same names always get
    the same splits. From four subjects on, test and validation get their fraction, at least one subject (none if the
    fraction is 0); three subjects: one each; two: train and test; one: train.

    Args:
        names: the site's usable subjects.
        config: fractions and seed.
        site: the site's name.
        explicit: content of ``splits.json``; it may name more subjects than ``names``.

    Returns:
        Split of each subject, sorted by name; each subject is in exactly one.

    Raises:
        DataError: ``explicit`` lacks a subject.
    """
    if explicit is not None:
        listed = {name: split for split in SPLITS for name in explicit[split]}
        missing = sorted(set(names) - set(listed))
        if missing:
            raise DataError(
                f"site {site}: {SPLITS_NAME} does not list {', '.join(missing)}; add each subject to one of "
                f"{', '.join(SPLITS)}"
            )
        return {name: listed[name] for name in sorted(names)}
    ordered = sorted(names, key=lambda name: derive_seed(config.seed, site, name))
    test, validation = split_sizes(len(ordered), config)
    return {
        name: "test" if place < test else "validation" if place < test + validation else "train"
        for name, place in sorted((name, place) for place, name in enumerate(ordered))
    }


def split_sizes(subjects: int, config: SplitConfig) -> tuple[int, int]:
    """Number of test and of validation subjects among ``subjects``."""
    wants_test, wants_validation = config.test > 0, config.validation > 0
    if subjects < 4:
        return int(wants_test and subjects >= 2), int(wants_validation and subjects == 3)
    test = max(1, round(config.test * subjects)) if wants_test else 0
    validation = max(1, round(config.validation * subjects)) if wants_validation else 0
    return test, validation


def few_subjects_note(subjects: int) -> str | None:
    """What the manifest says about a split of fewer than four subjects."""
    shares = {1: "1 subject: training", 2: "2 subjects: training and test", 3: "3 subjects: one each"}
    return f"{shares[subjects]}, instead of the configured fractions" if subjects in shares else None


def read_splits(folder: Path, found: Collection[str], site: str) -> ExplicitSplits | None:
    """Read ``splits.json`` beside a site's data, if there is one.

    Args:
        folder: the site's data folder.
        found: names of the subjects in it.
        site: named in errors.

    Raises:
        DataError: not a JSON object of the three lists, or a subject that is unknown or listed twice.
    """
    path = folder / SPLITS_NAME
    if not path.exists():
        return None
    wanted = 'write it as {"train": ["sub-01", ...], "validation": [...], "test": [...]}'
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as failure:
        raise DataError(f"site {site}: {path} is not JSON ({failure}); {wanted}") from None
    if not isinstance(content, dict) or set(content) != set(SPLITS) or not all(map(_is_names, content.values())):
        raise DataError(f"site {site}: {path} does not hold three lists of subjects; {wanted}")
    listed = [name for split in SPLITS for name in content[split]]
    doubled = sorted({name for name in listed if listed.count(name) > 1})
    if doubled:
        raise DataError(f"site {site}: {path} lists {', '.join(doubled)} more than once; keep each subject in one list")
    unknown = sorted(set(listed) - set(found))
    if unknown:
        raise DataError(f"site {site}: {path} lists {', '.join(unknown)}, not in the folder; remove or rename them")
    return {split: tuple(content[split]) for split in SPLITS}


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
