"""From a volume to the slices that a network sees, and from what it made of them back to the volume's own grid."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from pflsynth.config import Task
from pflsynth.data.align import same_grid
from pflsynth.data.examine import on_grid, with_dark_background, without_bias
from pflsynth.data.grid import SliceGrid
from pflsynth.data.normalizers import NORMALIZERS, measure_volume
from pflsynth.data.registration import grid_with_voxels, resample
from pflsynth.data.scaling import BACKGROUND
from pflsynth.data.volumes import BoolArray, FloatArray, Volume
from pflsynth.errors import DataError
from pflsynth.federation.personalised import PersonalisedModel


@dataclass(frozen=True)
class SeenVolume:
    """What a network sees of a volume, and what leads back.

    Attributes:
        volume: as it was read.
        image: the volume whose slices are seen; another one where the agreement corrects bias or resamples.
        mask: the head (X, Y, Z) in the image.
        grid: of the slices.
        shown: indices of the slices that show head. The others are not given to the network: all of them is background
            in the result anyway.
        slices: (S, size, size) float32 in [-1, 1], those of ``shown``.
    """

    volume: Volume
    image: Volume
    mask: BoolArray
    grid: SliceGrid
    shown: list[int]
    slices: FloatArray


def synthesize_volume(volume: Volume, model: PersonalisedModel, task: Task, brain: Volume | None = None) -> FloatArray:
    """Synthesise a task's target contrast; the network sees the same numbers that ``prepare`` stores.

    Args:
        volume: the source contrast, RAS.
        model: of the site that the volume is from.
        task: one of the site's tasks.
        brain: the brain mask, RAS; wanted if the site's data was prepared with brain masks.

    Returns:
        (X, Y, Z) float32 on the volume's grid, in the site's typical units of the target contrast; background
        outside the head mask.

    Raises:
        DataError: no head is seen, or it does not fit the model's slices; a brain mask is missing, or not wanted.
    """
    seen = see_volume(volume, model, task, brain)
    return to_volume(seen, model.synthesize(seen.slices, task), model, task)


def see_volume(volume: Volume, model: PersonalisedModel, task: Task, brain: Volume | None = None) -> SeenVolume:
    """Make what a network sees of a volume; arguments and errors as in :func:`synthesize_volume`."""
    config, where = model.config, str(volume.path)
    _check_brain(config.sites[model.site].brain_mask, brain, where)
    image = without_bias(volume, where) if config.intensity.bias_correction else volume
    if config.registration.voxel_mm is not None:
        image = resample(image, grid_with_voxels(image.grid, config.registration.voxel_mm))
    if brain is not None:
        image = with_dark_background(image, on_grid(brain, image.grid, where))
    statistics, mask = measure_volume(image.data, config.intensity.normalizer, where)
    grid = SliceGrid.of(image, config.image)
    grid.check_head_fits(mask, where)
    shown = np.flatnonzero(mask.any(axis=(0, 1))).tolist()
    head = mask if NORMALIZERS[config.intensity.normalizer].masked else None
    slices = grid.scaled_slices(image, model.intensity.scale(task.source, statistics), shown, head)
    return SeenVolume(volume, image, mask, grid, shown, slices)


def to_volume(seen: SeenVolume, slices: FloatArray, model: PersonalisedModel, task: Task) -> FloatArray:
    """Put synthesised slices onto the grid of the volume that they are of.

    Args:
        seen: the volume.
        slices: (S, size, size) float32 in [-1, 1], made of ``seen.slices``.
        model: that made them.
        task: whose target they show.

    Returns:
        As :func:`synthesize_volume`.
    """
    output = np.full((seen.mask.shape[2], seen.grid.size, seen.grid.size), BACKGROUND, np.float32)
    output[seen.shown] = slices
    scaled = np.where(seen.mask, seen.grid.to_volume(output, BACKGROUND), BACKGROUND)
    result = model.intensity.typical_scale(task.target).invert(scaled)
    if same_grid(seen.image.grid, seen.volume.grid):
        return result
    return resample(replace(seen.image, data=result), seen.volume.grid).data


def _check_brain(wanted: bool, brain: Volume | None, where: str) -> None:
    if wanted and brain is None:
        raise DataError(f"{where}: the site's data was prepared with brain masks; give this image's with --mask")
    if brain is not None and not wanted:
        raise DataError(f"{where}: the site's data was prepared without brain masks; leave --mask out")
