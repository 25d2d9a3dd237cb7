"""The order in which a site's slices are visited, their tasks and augmentation, and the batches made of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pflsynth.config import SplitName, Task, TrainingConfig
from pflsynth.data.scaling import BACKGROUND
from pflsynth.data.slices import SliceStore


@dataclass(frozen=True)
class Sample:
    """One slice of a subject, the task it is used for, and how it is augmented."""

    subject: str
    slice: int
    task: int
    flip: bool = False
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Batch:
    """Source and target slices, (B, 1, H, W) float32 in [-1, 1], and the index of each sample's task, (B,)."""

    source: torch.Tensor
    target: torch.Tensor
    tasks: torch.Tensor


def usable_slices(store: SliceStore, tasks: Sequence[Task], split: SplitName) -> list[tuple[str, int, list[int]]]:
    """All (subject, slice, tasks it can serve) of a split; subjects that serve no task are left out."""
    usable = []
    for subject in store.subjects(split):
        served = [i for i, task in enumerate(tasks) if subject.serves(task)]
        if served:
            usable += [(subject.name, index, served) for index in range(len(subject.slices))]
    return usable


def training_epoch(
    usable: Sequence[tuple[str, int, list[int]]], training: TrainingConfig, generator: np.random.Generator
) -> list[Sample]:
    """Every usable slice once, in random order, each with a task drawn uniformly among those it can serve."""
    samples = []
    for position in generator.permutation(len(usable)):
        subject, index, served = usable[position]
        samples.append(
            Sample(
                subject,
                index,
                task=served[generator.integers(len(served))],
                flip=bool(generator.random() < training.flip),
                shift=tuple(generator.integers(-training.shift, training.shift, size=2, endpoint=True).tolist()),
            )
        )
    return samples


def mixed_pass(usable: Sequence[tuple[str, int, list[int]]], generator: np.random.Generator) -> list[Sample]:
    """Every usable slice once, without augmentation, in random order, tasks taken in turn."""
    return [
        Sample(usable[position][0], usable[position][1], usable[position][2][turn % len(usable[position][2])])
        for turn, position in enumerate(generator.permutation(len(usable)))
    ]


def batches(store: SliceStore, tasks: Sequence[Task], samples: Sequence[Sample], batch_size: int) -> Iterator[Batch]:
    """Cut ``samples`` into batches, in order; the last one may be smaller."""
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        size = store.manifest.settings["image"]["size"]
        images = np.full((2, len(chunk), 1, size, size), BACKGROUND, dtype=np.float32)
        for row, sample in enumerate(chunk):
            task = tasks[sample.task]
            for side, contrast in enumerate((task.source, task.target)):
                _place(images[side, row, 0], store.slices(sample.subject, contrast)[sample.slice], sample)
        source, target = torch.from_numpy(images)
        yield Batch(source, target, torch.tensor([sample.task for sample in chunk]))


def _place(canvas: np.ndarray, image: np.ndarray, sample: Sample) -> None:
    """Copy ``image`` (H, W) onto ``canvas``, flipped and shifted; what is shifted in is background."""
    if sample.flip:
        image = image[:, ::-1]
    rows, columns = (_overlap(offset, size) for offset, size in zip(sample.shift, image.shape, strict=True))
    canvas[rows[0], columns[0]] = image[rows[1], columns[1]]


def _overlap(offset: int, size: int) -> tuple[slice, slice]:
    """Where the two ends of a shift by ``offset`` overlap: (destination, origin)."""
    return slice(max(offset, 0), size + min(offset, 0)), slice(max(-offset, 0), size + min(-offset, 0))
