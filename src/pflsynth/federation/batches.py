"""The order in which a site's slices are visited, their tasks and augmentation, and the batches made of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from pflsynth.config import SplitName, Task
from pflsynth.config_sections import TrainingConfig
from pflsynth.data.scaling import BACKGROUND
from pflsynth.data.slices import SliceStore


class UsableSlice(NamedTuple):
    """A slice of a site's subject, and the indices of the tasks it can serve."""

    site: str
    subject: str
    slice: int
    tasks: list[int]


@dataclass(frozen=True)
class Sample:
    """One slice of a subject, the task it is used for, and how it is augmented."""

    site: str
    subject: str
    slice: int
    task: int
    flip: bool = False
    shift: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Batch:
    """Images of B samples, float32 in [-1, 1].

    Attributes:
        source: (B, 1, H, W).
        target: (B, 1, H, W).
        tasks: (B,), the index of each sample's task; on the CPU always, where it is read.
        contrasts: (B, C, H, W), every contrast of the federation; background where there is none. Only if asked for.
        present: (B, C) bool, which of them there are.
    """

    source: torch.Tensor
    target: torch.Tensor
    tasks: torch.Tensor
    contrasts: torch.Tensor | None = None
    present: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its images on a device; those that are pinned go there in the background."""
        return self._each(lambda images: images.to(device, non_blocking=True))

    def pinned(self) -> Batch:
        """The same batch with its images in page-locked memory, from which a GPU takes them in the background."""
        return self._each(torch.Tensor.pin_memory)

    def first(self) -> Batch:
        """Its first sample."""
        return replace(self._each(lambda images: images[:1]), tasks=self.tasks[:1])

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Batch:
        return Batch(
            change(self.source),
            change(self.target),
            self.tasks,
            None if self.contrasts is None else change(self.contrasts),
            None if self.present is None else change(self.present),
        )


def usable_slices(
    stores: Mapping[str, SliceStore], tasks: Sequence[tuple[str, Task]], split: SplitName
) -> list[UsableSlice]:
    """All slices of a split with the tasks that they can serve; subjects that serve none are left out.

    Args:
        stores: prepared slices by site.
        tasks: (site, task); a task is served by subjects of its own site alone.
        split: of the subjects.
    """
    usable = []
    for site, store in stores.items():
        for subject in store.subjects(split):
            served = [i for i, (own, task) in enumerate(tasks) if own == site and subject.serves(task)]
            if served:
                usable += [UsableSlice(site, subject.name, index, served) for index in range(len(subject.slices))]
    return usable


def training_epoch(
    usable: Sequence[UsableSlice], training: TrainingConfig, generator: np.random.Generator
) -> list[Sample]:
    """Every usable slice once, in random order, each with a task drawn uniformly among those it can serve."""
    samples = []
    for position in generator.permutation(len(usable)):
        site, subject, index, served = usable[position]
        samples.append(
            Sample(
                site,
                subject,
                index,
                task=served[generator.integers(len(served))],
                flip=bool(generator.random() < training.flip),
                shift=tuple(generator.integers(-training.shift, training.shift, size=2, endpoint=True).tolist()),
            )
        )
    return samples


def mixed_pass(usable: Sequence[UsableSlice], generator: np.random.Generator) -> list[Sample]:
    """Every usable slice once, without augmentation, in random order, tasks taken in turn."""
    samples = []
    for turn, position in enumerate(generator.permutation(len(usable))):
        site, subject, index, served = usable[position]
        samples.append(Sample(site, subject, index, served[turn % len(served)]))
    return samples


def batches(
    stores: Mapping[str, SliceStore],
    tasks: Sequence[Task],
    samples: Sequence[Sample],
    batch_size: int,
    contrasts: Sequence[str] = (),
) -> Iterator[Batch]:
    """Cut ``samples`` into batches, in order; the last one may be smaller.

    Args:
        stores: prepared slices by site.
        tasks: what the samples' task indices mean.
        samples: in the order wanted.
        batch_size: most samples of a batch.
        contrasts: give batches all of these contrasts, in this order.
    """
    for start in range(0, len(samples), batch_size):
        chunk = samples[start : start + batch_size]
        size = stores[chunk[0].site].manifest.settings["image"]["size"]
        images = np.full((2 + len(contrasts), len(chunk), 1, size, size), BACKGROUND, dtype=np.float32)
        present = np.zeros((len(chunk), len(contrasts)), dtype=bool)
        for row, sample in enumerate(chunk):
            store, task = stores[sample.site], tasks[sample.task]
            for side, contrast in enumerate((task.source, task.target)):
                _place(images[side, row, 0], store.slices(sample.subject, contrast)[sample.slice], sample)
            for channel, contrast in enumerate(contrasts):
                if store.has(sample.subject, contrast):
                    present[row, channel] = True
                    _place(images[2 + channel, row, 0], store.slices(sample.subject, contrast)[sample.slice], sample)
        source, target, *others = torch.from_numpy(images)
        yield Batch(
            source,
            target,
            torch.tensor([sample.task for sample in chunk]),
            torch.cat(others, dim=1) if others else None,
            torch.from_numpy(present) if others else None,
        )


def prefetched(made: Iterator[Batch], finish: Callable[[Batch], Batch], ahead: int = 2) -> Iterator[Batch]:
    """The same batches in the same order, made by a thread while those before them are worked on.

    Args:
        made: the batches; the thread alone takes them.
        finish: what the thread does to each, such as :meth:`Batch.pinned`.
        ahead: batches that wait at most.
    """

    def take() -> Batch | None:
        batch = next(made, None)
        return None if batch is None else finish(batch)

    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(take) for _ in range(ahead))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(take))
            yield batch


def _place(canvas: np.ndarray, image: np.ndarray, sample: Sample) -> None:
    """Copy ``image`` (H, W) onto ``canvas``, flipped and shifted; what is shifted in is background."""
    if sample.flip:
        image = image[:, ::-1]
    rows, columns = (_overlap(offset, size) for offset, size in zip(sample.shift, image.shape, strict=True))
    canvas[rows[0], columns[0]] = image[rows[1], columns[1]]


def _overlap(offset: int, size: int) -> tuple[slice, slice]:
    """Where the two ends of a shift by ``offset`` overlap: (destination, origin)."""
    return slice(max(offset, 0), size + min(offset, 0)), slice(max(-offset, 0), size + min(-offset, 0))
