"""Split a site's subjects into training, validation and test."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

from pflsynth.config import SPLITS, SplitName, Task
from pflsynth.config_sections import SplitConfig
from pflsynth.errors import DataError
from pflsynth.files import write_json
from pflsynth.seeding import derive_seed

SPLITS_NAME = "splits.json"

ExplicitSplits = Mapping[SplitName, Sequence[str]]

_BY_NEED: tuple[SplitName, ...] = ("train", "test", "validation")


def tasks_served(tasks: Sequence[Task], images: Sequence[tuple[str, Iterable[str]]]) -> dict[str, set[Task]]:
    """The tasks that each person can serve, in at least one session.

    Args:
        tasks: the site's.
        images: person and contrasts of each session.
    """
    served: dict[str, set[Task]] = {person: set() for person, _ in images}
    for person, contrasts in images:
        have = set(contrasts)
        served[person] |= {task for task in tasks if task.source in have and task.target in have}
    return served


def split_subjects(
    served: Mapping[str, Collection[Task]], config: SplitConfig, site: str, explicit: ExplicitSplits | None = None
) -> dict[str, SplitName]:
    """Give each person their split; all of their sessions go with them.

    With fractions, persons are ordered by a hash of (split seed, site, name), so that the same names always get the
    same splits. From four persons on, test and validation get their fraction, at least one person (none if the
    fraction is 0); three persons: one each; two: train and test; one: train. Then two persons at a time change places
    as long as that gives one more task a person in training, else in test, else in validation.

    Args:
        served: the site's usable persons, and the tasks that each can serve.
        config: fractions and seed.
        site: the site's name.
        explicit: content of ``splits.json``; it may name more persons than ``served``.

    Returns:
        Split of each person, sorted by name; each is in exactly one.

    Raises:
        DataError: ``explicit`` lacks a person.
    """
    if explicit is not None:
        listed = {name: split for split in SPLITS for name in explicit[split]}
        missing = sorted(set(served) - set(listed))
        if missing:
            raise DataError(
                f"site {site}: {SPLITS_NAME} does not list {', '.join(missing)}; add each subject to one of "
                f"{', '.join(SPLITS)}"
            )
        return {name: listed[name] for name in sorted(served)}
    ordered = sorted(served, key=lambda name: derive_seed(config.seed, site, name))
    test, validation = split_sizes(len(ordered), config)
    splits: dict[str, SplitName] = {
        name: "test" if place < test else "validation" if place < test + validation else "train"
        for place, name in enumerate(ordered)
    }
    while (swap := _better_swap(splits, served)) is not None:
        one, other = swap
        splits[one], splits[other] = splits[other], splits[one]
    return {name: splits[name] for name in sorted(splits)}


def _better_swap(splits: Mapping[str, SplitName], served: Mapping[str, Collection[Task]]) -> tuple[str, str] | None:
    """Two persons of different splits whose change of places leaves fewest tasks without a person, or None."""
    tasks = {task for own in served.values() for task in own}
    counts = {split: Counter[Task]() for split in SPLITS}
    kinds: dict[tuple[SplitName, frozenset[Task]], str] = {}
    for name, split in splits.items():
        counts[split].update(served[name])
        kinds.setdefault((split, frozenset(served[name])), name)
    used = [split for split in _BY_NEED if split in splits.values()]

    def lacking(gone: str | None = None, come: str | None = None) -> list[int]:
        """Tasks that each split lacks, after two persons changed places."""
        result = []
        for split in used:
            present = counts[split].copy()
            for leaving, entering in ((gone, come), (come, gone)):
                if leaving is not None and entering is not None and splits[leaving] == split:
                    present.subtract(served[leaving])
                    present.update(served[entering])
            result.append(sum(present[task] == 0 for task in tasks))
        return result

    now = lacking()
    if not any(now):
        return None
    pairs = [(a, b) for a, b in itertools.combinations(kinds.values(), 2) if splits[a] != splits[b]]
    best = min(pairs, key=lambda pair: lacking(*pair), default=None)
    return best if best is not None and lacking(*best) < now else None


def split_sizes(subjects: int, config: SplitConfig) -> tuple[int, int]:
    """Number of test and of validation subjects among ``subjects``."""
    wants_test, wants_validation = config.test > 0, config.validation > 0
    if subjects < 4:
        return int(wants_test and subjects >= 2), int(wants_validation and subjects == 3)
    test = max(1, round(config.test * subjects)) if wants_test else 0
    validation = max(1, round(config.validation * subjects)) if wants_validation else 0
    return test, validation


def lacking_notes(
    splits: Mapping[str, SplitName], served: Mapping[str, Collection[Task]], tasks: Sequence[Task]
) -> list[str]:
    """Tasks that no person of a split serves, though the split has some: it will have no scores for them."""
    notes = []
    for task, split in itertools.product(tasks, SPLITS):
        members = [name for name, own in splits.items() if own == split]
        if members and not any(task in served[name] for name in members):
            every = sum(task in own for own in served.values())
            notes.append(f"task {task} has no {split} subject ({every} of {len(served)} subjects can serve it)")
    return notes


def check_training(
    splits: Mapping[str, SplitName], served: Mapping[str, Collection[Task]], tasks: Sequence[Task], site: str
) -> None:
    """Refuse a site without training subjects, or with a task that no training subject serves.

    Raises:
        DataError: naming the site, the task, and the subjects that do serve it.
    """
    if "train" not in splits.values():
        raise DataError(
            f"site {site}: no training subject is left ({len(splits)} usable in all); add subjects, lower "
            f"split.test and split.validation, or list them in {SPLITS_NAME}"
        )
    for task in tasks:
        able = {name: split for name, split in splits.items() if task in served[name]}
        if "train" not in able.values():
            others = ", ".join(f"{name} ({split})" for name, split in able.items())
            raise DataError(
                f"site {site}, task {task}: no training subject has both contrasts (elsewhere: {others or 'none'}); "
                f"add subjects, remove the task, or move one to train in {SPLITS_NAME}"
            )


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


def export_split(folder: Path, site: str, subjects: Mapping[SplitName, Sequence[str]]) -> Path:
    """Write a site's split to ``folder/<site>.json``, in the form of ``splits.json``, for publication.

    Raises:
        OSError: disk full, no permission.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{site}.json"
    write_json(path, {split: list(subjects[split]) for split in SPLITS})
    return path


def _is_names(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)
