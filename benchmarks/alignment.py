"""How every pair of contrasts lies: the gains that the thresholds of ``pflsynth.data.alignment`` were set by.

    python benchmarks/alignment.py --data shared/realdata

``--data`` is a folder of sites in BIDS. Each pair of a subject is printed with its shift, its gains and its time. With
``--displace`` each pair is also displaced on purpose, and how often that is found is printed.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage

from pflsynth.data.alignment import likely_misplaced, measure_alignment, overlap
from pflsynth.data.scaling import head_mask
from pflsynth.data.volumes import BoolArray, Volume, load_volume

SHIFTS = {"2 voxels in x": (2, 0, 0), "2 voxels in y": (0, -2, 0), "1 slice in z": (0, 0, 1)}
TURNS = {"z": (0, 1), "x": (1, 2), "y": (0, 2)}
DEGREES = 5.0


def turned(data: np.ndarray, spacing: tuple[float, float, float], axes: tuple[int, int]) -> np.ndarray:
    """A volume turned about its centre in millimetres, linear interpolation."""
    angle = np.deg2rad(DEGREES)
    rotation = np.eye(3)
    one, other = axes
    rotation[one, one] = rotation[other, other] = np.cos(angle)
    rotation[one, other], rotation[other, one] = -np.sin(angle), np.sin(angle)
    matrix = np.diag(1 / np.array(spacing)) @ rotation @ np.diag(spacing)
    centre = (np.array(data.shape) - 1) / 2
    return ndimage.affine_transform(data, matrix, centre - matrix @ centre, order=1)


def displaced(moving: Volume, mask: BoolArray) -> Iterator[tuple[str, Volume, BoolArray]]:
    """Each displacement by name, with the volume and its mask."""
    for name, step in SHIFTS.items():
        yield name, replace(moving, data=np.roll(moving.data, step, (0, 1, 2))), np.roll(mask, step, (0, 1, 2))
    for axis, plane in TURNS.items():
        data = turned(moving.data, moving.spacing_mm, plane)
        inside = turned(mask.astype(np.float32), moving.spacing_mm, plane) > 0.5
        yield f"{DEGREES:g} degrees about {axis}", replace(moving, data=data), inside


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--displace", action="store_true", help="also displace each pair on purpose (minutes)")
    options = parser.parse_args()
    found: dict[str, list[bool]] = {}
    seconds = []
    for site in sorted(entry.name for entry in options.data.iterdir() if entry.is_dir()):
        for folder in sorted((options.data / site).glob("sub-*")):
            files = sorted((folder / "anat").glob("*.nii.gz"))
            names = [path.name.removesuffix(".nii.gz").split("_")[-1] for path in files]
            volumes = {name: load_volume(path, f"site {site}") for name, path in zip(names, files, strict=True)}
            masks = {contrast: head_mask(volume.data) for contrast, volume in volumes.items()}
            pairs = {}
            for one, other in itertools.combinations(volumes, 2):
                start = time.process_time()
                pair = measure_alignment(volumes[one], volumes[other], masks[one] & masks[other])
                seconds.append(time.process_time() - start)
                pairs[one, other] = pair
                shift = " ".join(f"{step:6.2f}" for step in pair.best_shift_mm)
                print(
                    f"{site:10} {folder.name} {one:5} {other:5} nmi {pair.nmi:.4f} shift {shift} mm "
                    f"gain {pair.gain:.3f} turn {pair.turn_gain:.3f} overlap {overlap(masks[one], masks[other]):.3f} "
                    f"{seconds[-1]:.2f} s" + ("" if pair.aligned else " MISALIGNED")
                )
                for name, moving, mask in displaced(volumes[other], masks[other]) if options.displace else ():
                    result = measure_alignment(volumes[one], moving, masks[one] & mask)
                    found.setdefault(name, []).append(not result.aligned)
            for contrast, others in likely_misplaced(pairs).items():
                print(f"{site:10} {folder.name} {contrast} disagrees with {', '.join(others)}")
    for name, hits in found.items():
        print(f"displaced by {name}: {sum(hits)} of {len(hits)} pairs found")
    print(f"time on one core: mean {np.mean(seconds):.2f} s, at most {max(seconds):.2f} s")


if __name__ == "__main__":
    main()
