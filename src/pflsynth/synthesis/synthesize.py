"""Synthesise the missing contrast of whole volumes: NIfTI in, NIfTI out, on the input's own grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pflsynth import __version__
from pflsynth.config import Task
from pflsynth.data.align import same_grid
from pflsynth.data.examine import on_grid, with_dark_background, without_bias
from pflsynth.data.grid import SliceGrid
from pflsynth.data.names import split_nifti_name
from pflsynth.data.normalizers import NORMALIZERS, measure_volume
from pflsynth.data.registration import grid_with_voxels, resample
from pflsynth.data.scaling import BACKGROUND
from pflsynth.data.subjects import contrast_in_layout
from pflsynth.data.volumes import FloatArray, Volume, load_volume, save_synthetic
from pflsynth.errors import DataError, PflsynthError, UsageError
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import sha256_of_file, write_json

NOTICE = "synthetic, not for diagnosis"


@dataclass(frozen=True)
class Synthesized:
    """One volume that was written, and what its JSON file says of it."""

    path: Path
    provenance: dict[str, Any]


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
    output = np.full((mask.shape[2], grid.size, grid.size), BACKGROUND, np.float32)
    output[shown] = model.synthesize(slices, task)
    scaled = np.where(mask, grid.to_volume(output, BACKGROUND), BACKGROUND)
    result = model.intensity.typical_scale(task.target).invert(scaled)
    if same_grid(image.grid, volume.grid):
        return result
    return resample(replace(image, data=result), volume.grid).data


def _check_brain(wanted: bool, brain: Volume | None, where: str) -> None:
    if wanted and brain is None:
        raise DataError(f"{where}: the site's data was prepared with brain masks; give this image's with --mask")
    if brain is not None and not wanted:
        raise DataError(f"{where}: the site's data was prepared without brain masks; leave --mask out")


def synthesize_file(
    source: Path,
    out: Path,
    model: PersonalisedModel,
    task: Task,
    *,
    mask: Path | None = None,
    force: bool = False,
) -> Synthesized:
    """Read a NIfTI volume, write the synthesised one and a JSON file beside it.

    Args:
        source: NIfTI volume of the task's source contrast.
        out: NIfTI file to write (``.nii`` or ``.nii.gz``).
        model: of the site that the volume is from.
        task: one of the site's tasks.
        mask: brain mask of the source, if the site's data was prepared with brain masks.
        force: overwrite.

    Raises:
        UsageError: if ``out`` exists (without ``force``), is ``source``, or is not named as NIfTI.
        DataError: if the volume cannot be used.
    """
    report = provenance_path(out)
    if out.exists() and source.exists() and out.samefile(source):
        raise UsageError(f"{out}: is the input itself; choose another --out")
    for path in (out, report):
        if path.exists() and not force:
            raise UsageError(f"{path}: exists already; choose another --out or overwrite with --force")
    volume = load_volume(source, f"site {model.site}, contrast {task.source}")
    brain = load_volume(mask, f"site {model.site}, brain mask") if mask is not None else None
    data = synthesize_volume(volume, model, task, brain)
    provenance = {
        "notice": NOTICE,
        "site": model.site,
        "task": str(task),
        "method": model.config.method,
        "model": "personalised",
        "round": model.round,
        "model_sha256": model.sha256,
        "agreement_sha256": model.config.agreement_sha256(),
        "input": source.name,
        "input_sha256": sha256_of_file(source),
        "normalizer": model.config.intensity.normalizer,
        "pflsynth": __version__,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    save_synthetic(out, data, like=source, description=f"pflsynth {__version__} {task}: {NOTICE}")
    write_json(report, provenance)
    return Synthesized(out, provenance)


def synthesize_folder(
    source: Path,
    out: Path,
    model: PersonalisedModel,
    task: Task,
    *,
    force: bool = False,
    on_file: Callable[[int, int, Path], None] | None = None,
) -> tuple[list[Synthesized], list[PflsynthError]]:
    """Synthesise for every volume of the source contrast below a folder, keeping its structure.

    Names are read in the site's layout, or else as BIDS. Files whose name says another contrast are left out; if no
    name says a contrast, all NIfTI files are taken. The
    brain mask of ``sub-01_T1w.nii.gz``, if masks are wanted, is ``sub-01_mask.nii.gz`` beside it.

    Returns:
        What was written, and the errors of the files that could not be used.

    Raises:
        DataError: if the folder has no volume of the source contrast.
    """
    volumes = sorted(path for path in source.rglob("*") if split_nifti_name(path)[1])
    own = model.config.sites[model.site]
    contrasts = {
        path: contrast_in_layout(path.relative_to(source), own.layout, model.site, own.contrast_names)
        for path in volumes
    }
    chosen = [path for path in volumes if contrasts[path] == task.source]
    if not any(contrasts.values()):
        chosen = volumes
    if not chosen:
        raise DataError(
            f"{source}: has no NIfTI volume of contrast {task.source} (such as sub-01_{task.source}.nii.gz)"
        )
    written: list[Synthesized] = []
    failed: list[PflsynthError] = []
    for number, path in enumerate(chosen):
        if on_file is not None:
            on_file(number, len(chosen), path)
        target = out / path.relative_to(source).with_name(target_name(path, task))
        try:
            mask = mask_path(path, task) if own.brain_mask else None
            written.append(synthesize_file(path, target, model, task, mask=mask, force=force))
        except PflsynthError as error:
            failed.append(error)
    return written, failed


def target_name(source: Path, task: Task) -> str:
    """File name of the synthesised volume: the source contrast's suffix replaced by the target's."""
    stem, ending = _split_ending(source)
    prefix = stem.removesuffix(f"_{task.source}")
    return f"{prefix}_{task.target}{ending}"


def mask_path(source: Path, task: Task) -> Path:
    """Where the brain mask of a source volume is looked for: its name with ``mask`` for the contrast's suffix."""
    stem, ending = _split_ending(source)
    return source.with_name(f"{stem.removesuffix(f'_{task.source}')}_mask{ending}")


def provenance_path(out: Path) -> Path:
    """The JSON file beside a NIfTI file."""
    return out.with_name(_split_ending(out)[0] + ".json")


def _split_ending(path: Path) -> tuple[str, str]:
    stem, ending = split_nifti_name(path)
    if not ending:
        raise UsageError(f"{path}: is not named as NIfTI; give a name that ends in .nii.gz or .nii")
    return stem, ending
