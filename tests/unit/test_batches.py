"""The order of slices, their tasks and augmentation, and the batches made of them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from pflsynth.config import Task
from pflsynth.config_sections import TrainingConfig
from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.federation.batches import Sample, UsableSlice, batches, mixed_pass, training_epoch, usable_slices

from ..data_builders import federation, write_site

TASKS = tuple(Task.parse(text) for text in ("T1w->T2w", "T1w->FLAIR", "T2w->T1w"))
PAIRS = tuple(("here", task) for task in TASKS)
TRAINING = TrainingConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> SliceStore:
    """Four training subjects: two have all contrasts, two lack FLAIR."""
    folder = tmp_path_factory.mktemp("site")
    both, all_three = ("T1w", "T2w"), ("T1w", "T2w", "FLAIR")
    write_site(folder / "here", {"sub-1": all_three, "sub-2": both, "sub-3": both, "sub-4": all_three})
    config = federation(folder, {"here": [str(task) for task in TASKS]}, split={"validation": 0, "test": 0})
    prepare_site(config, "here", folder / "prepared")
    return SliceStore(folder / "prepared")


def test_usable_slices_name_the_tasks_that_each_subject_serves(store: SliceStore) -> None:
    usable = usable_slices({"here": store}, PAIRS, "train")
    served = {subject: tasks for _, subject, _, tasks in usable}
    assert served == {"sub-1": [0, 1, 2], "sub-2": [0, 2], "sub-3": [0, 2], "sub-4": [0, 1, 2]}
    per_subject = Counter(subject for _, subject, _, _ in usable)
    assert per_subject == {subject.name: len(subject.slices) for subject in store.subjects("train")}
    assert usable_slices({"here": store}, PAIRS, "test") == []


def test_subjects_that_serve_no_task_are_left_out(store: SliceStore) -> None:
    usable = usable_slices({"here": store}, [("here", Task.parse("FLAIR->T1w"))], "train")
    assert {subject for _, subject, _, _ in usable} == {"sub-1", "sub-4"}


def test_an_epoch_visits_every_slice_once(store: SliceStore) -> None:
    usable = usable_slices({"here": store}, PAIRS, "train")
    epoch = training_epoch(usable, TRAINING, np.random.default_rng(0))
    visited = [(sample.subject, sample.slice) for sample in epoch]
    assert sorted(visited) == sorted((subject, index) for _, subject, index, _ in usable)
    assert visited != [(subject, index) for _, subject, index, _ in usable]  # in random order
    assert epoch == training_epoch(usable, TRAINING, np.random.default_rng(0))
    assert epoch != training_epoch(usable, TRAINING, np.random.default_rng(1))


def test_tasks_are_drawn_uniformly_among_those_served() -> None:
    usable = [UsableSlice("here", "three", index, [0, 1, 2]) for index in range(3000)] + [
        UsableSlice("here", "two", index, [0, 2]) for index in range(2000)
    ]
    epoch = training_epoch(usable, TRAINING, np.random.default_rng(0))
    counts = Counter((sample.subject, sample.task) for sample in epoch)
    assert counts[("two", 1)] == 0
    for task in (0, 1, 2):
        assert counts[("three", task)] == pytest.approx(1000, abs=120)  # 4.6 standard deviations
    for task in (0, 2):
        assert counts[("two", task)] == pytest.approx(1000, abs=100)  # 4.5 standard deviations


def test_flips_and_shifts_are_drawn_as_configured() -> None:
    usable = [UsableSlice("here", "one", index, [0]) for index in range(2000)]
    epoch = training_epoch(usable, TrainingConfig(flip=0.25, shift=2), np.random.default_rng(0))
    assert sum(sample.flip for sample in epoch) == pytest.approx(500, abs=90)
    for axis in (0, 1):
        counts = Counter(sample.shift[axis] for sample in epoch)
        assert sorted(counts) == [-2, -1, 0, 1, 2]
        assert all(count == pytest.approx(400, abs=80) for count in counts.values())
    still = training_epoch(usable, TrainingConfig(flip=0, shift=0), np.random.default_rng(0))
    assert not any(sample.flip or any(sample.shift) for sample in still)


def test_a_mixed_pass_takes_every_slice_once_unaugmented_and_tasks_in_turn() -> None:
    usable = [UsableSlice("here", "one", index, [0, 2]) for index in range(10)] + [
        UsableSlice("here", "two", index, [1]) for index in range(10)
    ]
    samples = mixed_pass(usable, np.random.default_rng(0))
    assert sorted((sample.subject, sample.slice) for sample in samples) == sorted(entry[1:3] for entry in usable)
    assert not any(sample.flip or any(sample.shift) for sample in samples)
    for turn, sample in enumerate(samples):
        assert sample.task == (1 if sample.subject == "two" else (0, 2)[turn % 2])


def test_batches_follow_the_samples(store: SliceStore) -> None:
    samples = [
        Sample("here", "sub-1", 0, 0),
        Sample("here", "sub-4", 1, 1),
        Sample("here", "sub-2", 1, 2),
        Sample("here", "sub-1", 2, 0),
        Sample("here", "sub-3", 0, 0),
    ]
    made = list(batches({"here": store}, TASKS, samples, 2))
    assert [len(batch.tasks) for batch in made] == [2, 2, 1]
    assert torch.cat([batch.tasks for batch in made]).tolist() == [0, 1, 2, 0, 0]
    source, target = (torch.cat([getattr(batch, side) for batch in made]) for side in ("source", "target"))
    assert source.shape == target.shape == (5, 1, 32, 32)
    assert source.dtype == target.dtype == torch.float32
    for row, sample in enumerate(samples):
        task = TASKS[sample.task]
        assert np.array_equal(source[row, 0], store.slices(sample.subject, task.source)[sample.slice])
        assert np.array_equal(target[row, 0], store.slices(sample.subject, task.target)[sample.slice])
    assert not np.array_equal(source[0], target[0])


def test_batches_carry_all_contrasts_if_asked(store: SliceStore) -> None:
    """In the order asked for; background stands for what the subject lacks."""
    samples = [Sample("here", "sub-1", 0, 1), Sample("here", "sub-2", 1, 2), Sample("here", "sub-4", 2, 0)]
    names = ("FLAIR", "T1w", "PDw", "T2w")  # PDw is nowhere
    made = list(batches({"here": store}, TASKS, samples, 2, names))
    assert [batch.contrasts.shape for batch in made] == [(2, 4, 32, 32), (1, 4, 32, 32)]
    contrasts, present = (torch.cat([getattr(batch, name) for batch in made]) for name in ("contrasts", "present"))
    assert contrasts.dtype == torch.float32
    assert present.tolist() == [[True, True, False, True], [False, True, False, True], [True, True, False, True]]
    for row, sample in enumerate(samples):
        for channel, name in enumerate(names):
            if present[row, channel]:
                wanted = store.slices(sample.subject, name)[sample.slice]
                assert np.array_equal(contrasts[row, channel], wanted), (row, name)
            else:
                assert (contrasts[row, channel] == -1).all(), (row, name)
    source, target = (torch.cat([getattr(batch, side) for batch in made]) for side in ("source", "target"))
    for row, sample in enumerate(samples):
        task = TASKS[sample.task]
        for image, name in ((source, task.source), (target, task.target)):
            assert torch.equal(image[row, 0], contrasts[row, names.index(name)])


def test_batches_carry_no_other_contrasts_unless_asked(store: SliceStore) -> None:
    (batch,) = batches({"here": store}, TASKS, [Sample("here", "sub-1", 0, 0)], 1)
    assert batch.contrasts is None
    assert batch.present is None
    elsewhere = batch.to(torch.device("meta"))
    assert (elsewhere.contrasts, elsewhere.present) == (None, None)


def test_a_batch_goes_to_a_device_but_for_its_tasks(store: SliceStore) -> None:
    (batch,) = batches({"here": store}, TASKS, [Sample("here", "sub-1", 0, 0)], 1, ("T1w", "FLAIR"))
    elsewhere = batch.to(torch.device("meta"))
    tensors = (elsewhere.source, elsewhere.target, elsewhere.contrasts, elsewhere.present)
    assert all(tensor.device.type == "meta" for tensor in tensors)
    assert elsewhere.tasks.tolist() == batch.tasks.tolist()  # read at every step, so not waited for
    assert elsewhere.contrasts.shape == (1, 2, 32, 32)


class FourByFour:
    """A store of two hand-written slices."""

    def __init__(self, sign: int = 1) -> None:
        self.manifest = type("Manifest", (), {"settings": {"image": {"size": 4}}})
        self.sign = sign

    def has(self, subject: str, contrast: str) -> bool:
        return contrast in ("T1w", "T2w")

    def slices(self, subject: str, contrast: str) -> np.ndarray:
        numbers = self.sign * np.arange(16, dtype=np.float32).reshape(1, 4, 4) / 16
        return numbers if contrast == "T1w" else -numbers


def test_a_batch_may_hold_samples_of_several_sites() -> None:
    stores = {"north": FourByFour(), "south": FourByFour(-1)}
    samples = [Sample("south", "any", 0, 0), Sample("north", "any", 0, 1)]
    pairs = (Task.parse("T1w->T2w"), Task.parse("T2w->T1w"))
    (batch,) = batches(stores, pairs, samples, 2)  # type: ignore[arg-type]
    assert (batch.source[:, 0, 3, 3] * 16).tolist() == [-15, -15]  # T1w of the south, T2w of the north
    assert (batch.target[:, 0, 3, 3] * 16).tolist() == [15, 15]


def test_a_task_is_served_by_its_own_site_alone(store: SliceStore) -> None:
    """As a centralised method asks, which has the data and tasks of all sites."""
    twice = {"here": store, "there": store}
    usable = usable_slices(twice, [("there", TASKS[0]), ("here", TASKS[1]), ("there", TASKS[1])], "train")
    served = {(site, subject): tasks for site, subject, _, tasks in usable}
    assert served == {
        ("here", "sub-1"): [1],
        ("here", "sub-4"): [1],
        ("there", "sub-1"): [0, 2],
        ("there", "sub-2"): [0],
        ("there", "sub-3"): [0],
        ("there", "sub-4"): [0, 2],
    }


def placed(**augmentation: object) -> tuple[np.ndarray, np.ndarray]:
    """Source and target of one augmented sample, in sixteenths; background shows as -16."""
    (batch,) = batches({"here": FourByFour()}, TASKS[:1], [Sample("here", "any", 0, 0, **augmentation)], 1)  # type: ignore[arg-type]
    return batch.source[0, 0].numpy() * 16, batch.target[0, 0].numpy() * 16


def test_a_flip_is_left_to_right() -> None:
    source, _ = placed(flip=True)
    assert source.tolist() == [[3, 2, 1, 0], [7, 6, 5, 4], [11, 10, 9, 8], [15, 14, 13, 12]]


def test_a_shift_moves_background_in() -> None:
    source, target = placed(shift=(1, -2))  # one row down, two columns to the left
    assert source.tolist() == [[-16, -16, -16, -16], [2, 3, -16, -16], [6, 7, -16, -16], [10, 11, -16, -16]]
    assert target.tolist() == [[-16, -16, -16, -16], [-2, -3, -16, -16], [-6, -7, -16, -16], [-10, -11, -16, -16]]


def test_a_flip_comes_before_the_shift_and_both_sides_get_the_same() -> None:
    source, target = placed(flip=True, shift=(-3, 1))
    assert source.tolist() == [[-16, 15, 14, 13], [-16] * 4, [-16] * 4, [-16] * 4]
    assert target.tolist() == [[-16, -15, -14, -13], [-16] * 4, [-16] * 4, [-16] * 4]


@pytest.mark.parametrize(("flip", "shift"), [(False, (1, -2)), (True, (-1, 3)), (True, (0, 0))])
def test_all_contrasts_are_moved_alike(flip: bool, shift: tuple[int, int]) -> None:
    sample = Sample("here", "any", 0, 0, flip, shift)
    (batch,) = batches({"here": FourByFour()}, TASKS[:1], [sample], 1, ("T2w", "T1w", "PDw"))  # type: ignore[arg-type]
    assert torch.equal(batch.contrasts[:, 0], batch.target[:, 0])
    assert torch.equal(batch.contrasts[:, 1], batch.source[:, 0])
    assert (batch.contrasts[:, 2] == -1).all()


@pytest.mark.parametrize("shift", [(0, 0), (3, 3), (-3, -3), (0, -3)])
def test_shifts_only_move(shift: tuple[int, int]) -> None:
    source, _ = placed(shift=shift)
    rows, columns = shift
    for y in range(4):
        for x in range(4):
            inside = 0 <= y - rows < 4 and 0 <= x - columns < 4
            assert source[y, x] == (4 * (y - rows) + x - columns if inside else -16)


def test_slices_stay_as_they_are_on_disk(store: SliceStore) -> None:
    before = {subject.name: store.slices(subject.name, "T1w").copy() for subject in store.subjects("train")}
    for batch in batches({"here": store}, TASKS, [Sample("here", "sub-1", 0, 0, True, (1, 1))], 1):
        batch.source.fill_(0)
    store.verify()
    assert all(np.array_equal(store.slices(name, "T1w"), slices) for name, slices in before.items())
