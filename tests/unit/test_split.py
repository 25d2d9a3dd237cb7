"""Splits by subject."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pflsynth.config import SplitConfig
from pflsynth.data.split import read_splits, split_sizes, split_subjects
from pflsynth.errors import DataError

NAMES = [f"sub-{number:02d}" for number in range(1, 11)]


@pytest.mark.parametrize(
    ("subjects", "test", "validation"),
    [(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 1, 1), (9, 2, 1), (20, 4, 2), (100, 20, 10)],
)
def test_sizes_by_hand(subjects: int, test: int, validation: int) -> None:
    assert split_sizes(subjects, SplitConfig(validation=0.1, test=0.2)) == (test, validation)


@pytest.mark.parametrize("subjects", [2, 3, 10])
def test_a_fraction_of_zero_takes_no_subject(subjects: int) -> None:
    splits = split_subjects(NAMES[:subjects], SplitConfig(validation=0, test=0), "here")
    assert set(splits.values()) == {"train"}


def test_the_split_depends_on_seed_site_and_names_alone() -> None:
    config = SplitConfig()
    splits = split_subjects(NAMES, config, "here")
    assert split_subjects(list(reversed(NAMES)), config, "here") == splits
    assert list(splits) == NAMES
    others = [split_subjects(NAMES, config, "there"), split_subjects(NAMES, SplitConfig(seed=1), "here")]
    assert all(other != splits for other in others)


def test_an_explicit_list_is_followed(tmp_path: Path) -> None:
    content = {"train": NAMES[:5], "validation": NAMES[5:6], "test": NAMES[6:]}
    (tmp_path / "splits.json").write_text(json.dumps(content))
    explicit = read_splits(tmp_path, NAMES, "here")
    splits = split_subjects(NAMES[1:], SplitConfig(), "here", explicit)
    assert splits == {name: split for split, names in content.items() for name in names if name != NAMES[0]}
    assert read_splits(tmp_path / "elsewhere", NAMES, "here") is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "three lists"),
        ('{"train": []}', "three lists"),
        ('{"train": ["sub-01"], "validation": [], "test": "sub-02"}', "three lists"),
        ('{"train": ["sub-01", "sub-02"], "validation": [], "test": ["sub-02"]}', "lists sub-02 more than once"),
        ('{"train": ["sub-01"], "validation": ["sub-77"], "test": []}', "lists sub-77, not in the folder"),
    ],
)
def test_a_wrong_list_is_refused(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "splits.json").write_text(content)
    with pytest.raises(DataError, match=words) as caught:
        read_splits(tmp_path, NAMES, "here")
    assert "site here" in str(caught.value)


def test_a_subject_that_the_list_lacks_is_named() -> None:
    explicit = {"train": ["sub-01"], "validation": [], "test": []}
    with pytest.raises(DataError, match=r"does not list sub-02, sub-03; add each"):
        split_subjects(NAMES[:3], SplitConfig(), "here", explicit)  # type: ignore[arg-type]
