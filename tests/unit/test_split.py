"""Splits by subject."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pflsynth.config import SPLITS, SplitName, Task
from pflsynth.config_sections import SplitConfig
from pflsynth.data.split import (
    check_training,
    export_split,
    lacking_notes,
    read_splits,
    split_sizes,
    split_subjects,
    tasks_served,
)
from pflsynth.errors import DataError

NAMES = [f"sub-{number:02d}" for number in range(1, 11)]
FORTH, BACK = Task.parse("T1w->T2w"), Task.parse("T2w->FLAIR")


def served(names: Sequence[str], task: Task = FORTH) -> dict[str, set[Task]]:
    return {name: {task} for name in names}


@pytest.mark.parametrize(
    ("subjects", "test", "validation"),
    [(0, 0, 0), (1, 0, 0), (2, 1, 0), (3, 1, 1), (4, 1, 1), (9, 2, 1), (20, 4, 2), (100, 20, 10)],
)
def test_sizes_by_hand(subjects: int, test: int, validation: int) -> None:
    assert split_sizes(subjects, SplitConfig(validation=0.1, test=0.2)) == (test, validation)


@pytest.mark.parametrize("subjects", [2, 3, 10])
def test_a_fraction_of_zero_takes_no_subject(subjects: int) -> None:
    splits = split_subjects(served(NAMES[:subjects]), SplitConfig(validation=0, test=0), "here")
    assert set(splits.values()) == {"train"}


def test_the_split_depends_on_seed_site_and_names_alone() -> None:
    config = SplitConfig()
    splits = split_subjects(served(NAMES), config, "here")
    assert split_subjects(served(NAMES[::-1]), config, "here") == splits
    assert list(splits) == NAMES
    others = [
        split_subjects(served(NAMES), config, "there"),
        split_subjects(served(NAMES), SplitConfig(seed=1), "here"),
    ]
    assert all(other != splits for other in others)


def test_an_explicit_list_is_followed(tmp_path: Path) -> None:
    content = {"train": NAMES[:5], "validation": NAMES[5:6], "test": NAMES[6:]}
    (tmp_path / "splits.json").write_text(json.dumps(content))
    explicit = read_splits(tmp_path, NAMES, "here")
    splits = split_subjects(served(NAMES[1:]), SplitConfig(), "here", explicit)
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
        split_subjects(served(NAMES[:3]), SplitConfig(), "here", explicit)  # type: ignore[arg-type]


def test_every_task_keeps_subjects_in_every_split_where_that_is_possible() -> None:
    # Three of ten subjects serve the second task; by their hashes alone they would not be spread over the splits.
    for seed in range(30):
        rare = {name: {FORTH, BACK} if name in NAMES[:3] else {FORTH} for name in NAMES}
        splits = split_subjects(rare, SplitConfig(seed=seed), "here")
        assert {splits[name] for name in NAMES[:3]} == set(SPLITS)
        assert sorted(splits.values()).count("test") == 2
        assert lacking_notes(splits, rare, [FORTH, BACK]) == []


@given(
    st.lists(st.sets(st.sampled_from([FORTH, BACK]), min_size=1), min_size=4, max_size=7),
    st.integers(0, 5),
)
def test_no_other_split_of_the_same_sizes_serves_more(sets: list[set[Task]], seed: int) -> None:
    names = dict(zip(NAMES, sets, strict=False))
    splits = split_subjects(names, SplitConfig(seed=seed), "here")

    def lacking(chosen: dict[str, SplitName]) -> list[int]:
        tasks = {task for own in names.values() for task in own}
        return [
            sum(not any(task in names[name] for name, own in chosen.items() if own == split) for task in tasks)
            for split in ("train", "test", "validation")
        ]

    every = (dict(zip(names, order, strict=True)) for order in set(itertools.permutations(splits.values())))
    assert lacking(splits) == min(map(lacking, every))


def test_what_a_split_lacks_is_said_with_the_task() -> None:
    names = {"sub-01": {FORTH, BACK}, "sub-02": {FORTH}, "sub-03": {FORTH}}
    splits: dict[str, SplitName] = {"sub-01": "train", "sub-02": "test", "sub-03": "train"}
    assert lacking_notes(splits, names, [FORTH, BACK]) == [
        "task T2w->FLAIR has no test subject (1 of 3 subjects can serve it)"
    ]
    check_training(splits, names, [FORTH, BACK], "here")
    splits["sub-01"] = "test"
    with pytest.raises(DataError, match=r"task T2w->FLAIR: no training subject .* \(elsewhere: sub-01 \(test\)\)"):
        check_training(splits, names, [FORTH, BACK], "here")


def test_the_tasks_of_a_person_are_those_of_single_sessions() -> None:
    images = [("sub-01", ["T1w", "T2w"]), ("sub-01", ["FLAIR"]), ("sub-02", ["T2w", "FLAIR"])]
    assert tasks_served([FORTH, BACK], images) == {"sub-01": {FORTH}, "sub-02": {BACK}}


def test_an_exported_split_can_be_read_back(tmp_path: Path) -> None:
    lists: dict[SplitName, tuple[str, ...]] = {"train": ("sub-01",), "validation": (), "test": ("sub-02",)}
    path = export_split(tmp_path / "splits", "here", lists)
    path.rename(tmp_path / "splits.json")
    assert read_splits(tmp_path, ["sub-01", "sub-02"], "here") == lists
