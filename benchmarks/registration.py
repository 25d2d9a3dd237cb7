"""Known offsets, applied to real volumes, and how well registration recovers them.

    python benchmarks/registration.py [--trials-per-pair 3] [--seed 0] [--workers 1] [--json registration.json]

The data is the folder that PFLSYNTH_REALDATA names, by default ../shared/realdata. The moving volume of each trial is
rotated (to 30 degrees, about a random axis), shifted (to 40 mm) and put on another grid (oblique, other voxels, another
field of view, which may cut the head). The error is the mean distance, over the brain, between where registration says
that a place lies and where it does. Pairs are taken as aligned as they were released: what they are not is counted as
error. Volumes of few thick slices (tcga_*) are rotated and shifted within the plane only. The last line of the table is
a pair of 1 mm voxels.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from pflsynth.data.registration import grid_with_voxels, register, resample
from pflsynth.data.volumes import Volume, VoxelGrid, load_volume
from pflsynth.files import write_json

THIN_SITES = ("lju3t", "lju15t", "brats4", "brats2013")
THICK_SITES = ("tcga_cs", "tcga_du", "tcga_fg", "tcga_ht")
PAIRS = (("T1w", "T2w"), ("T1w", "FLAIR"), ("T1ce", "FLAIR"))
MISALIGNED = {("brats4", "sub-01", "T1w"), ("brats4", "sub-02", "T2w")}
LARGEST_DEGREES, LARGEST_MM = 30.0, 40.0
OTHER_VOXELS_MM = (1.3, 1.1, 2.5)
LARGEST_TILT_DEGREES = 10.0
CUT, ADDED = 0.1, 0.15
GOOD_MM = 1.0


@dataclass(frozen=True)
class Trial:
    """One pair and one offset.

    Attributes:
        site: site and subject are folders.
        subject: see ``site``.
        fixed: contrast of the fixed volume.
        moving: contrast of the moving volume.
        seed: of the offset.
        in_plane: rotate about and shift across the slices' normal only.
        isotropic: bring both volumes to 1 mm voxels first.
    """

    site: str
    subject: str
    fixed: str
    moving: str
    seed: tuple[int, ...]
    in_plane: bool
    isotropic: bool = False


def find_trials(data: Path, per_pair: int, seed: int) -> list[Trial]:
    """All trials of all pairs; T1ce stands in for T1w at sites that have none."""
    trials = []
    for site in THIN_SITES + THICK_SITES:
        for folder in sorted((data / site).glob("sub-*")):
            for number, (fixed, moving) in enumerate(PAIRS):
                if fixed == "T1ce" and image(data, site, folder.name, "T1w").exists():
                    continue
                if {(site, folder.name, fixed), (site, folder.name, moving)} & MISALIGNED:
                    continue
                if image(data, site, folder.name, fixed).exists() and image(data, site, folder.name, moving).exists():
                    key = (seed, (THIN_SITES + THICK_SITES).index(site), int(folder.name[-2:]), number)
                    thick = site in THICK_SITES
                    trials += [
                        Trial(site, folder.name, fixed, moving, (*key, again), thick) for again in range(per_pair)
                    ]
    return trials


def image(data: Path, site: str, subject: str, contrast: str) -> Path:
    """The file of a contrast."""
    return data / site / subject / "anat" / f"{subject}_{contrast}.nii.gz"


def offset_volume(moving: Volume, trial: Trial, brain_mm: np.ndarray) -> tuple[Volume, np.ndarray]:
    """The moving volume, offset and on another grid, and the true matrix (4, 4) of fixed to moving millimetres."""
    random = np.random.default_rng(trial.seed)
    axis, direction = random.normal(size=3), random.normal(size=3)
    if trial.in_plane:
        axis[:2], direction[2] = 0, 0
    turn = np.deg2rad(random.uniform(0, LARGEST_DEGREES)) * axis / np.linalg.norm(axis)
    shift = random.uniform(0, LARGEST_MM) * direction / np.linalg.norm(direction)
    centre = brain_mm.mean(axis=0)
    truth = np.eye(4)
    truth[:3, :3] = Rotation.from_rotvec(turn).as_matrix()
    truth[:3, 3] = centre + shift - truth[:3, :3] @ centre

    voxels = np.array((1.0, 1.0, 1.0) if trial.isotropic else OTHER_VOXELS_MM)
    tilt = Rotation.from_rotvec(np.deg2rad(LARGEST_TILT_DEGREES) * random.uniform(-1, 1, 3)).as_matrix()
    if trial.in_plane:
        voxels[2], tilt = moving.spacing_mm[2], np.eye(3)
    placed = moved(truth, brain_mm) @ tilt
    low, high = placed.min(axis=0), placed.max(axis=0)
    below, above = random.uniform(-CUT, ADDED, (2, 3)) * (high - low)
    if trial.in_plane:
        below[2] = above[2] = 0
    low, high = low - below, high + above
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = tilt * voxels, tilt @ low
    x, y, z = np.rint((high - low) / voxels).astype(int) + 1
    return resample(moving, VoxelGrid((int(x), int(y), int(z)), affine), np.linalg.inv(truth)), truth


def moved(matrix: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A matrix (4, 4) applied to places (N, 3)."""
    return places @ matrix[:3, :3].T + matrix[:3, 3]


def run_trial(data: Path, trial: Trial) -> dict[str, object]:
    """Offset, register and measure."""
    where = f"{trial.site} {trial.subject}"
    fixed, moving = (load_volume(image(data, *where.split(), name), where) for name in (trial.fixed, trial.moving))
    if trial.isotropic:
        grid = grid_with_voxels(fixed.grid, (1.0, 1.0, 1.0))
        fixed, moving = resample(fixed, grid), resample(moving, grid)
    brain_mm = moved(fixed.affine, np.argwhere(fixed.data > 0))
    offset, truth = offset_volume(moving, trial, brain_mm)
    start = time.perf_counter()
    result = register(fixed, offset, "rigid", where)
    seconds = time.perf_counter() - start
    # Taken back by the true offset, an error across the slices stays apart from one within them.
    error = moved(np.linalg.inv(truth) @ np.array(result.matrix), brain_mm) - brain_mm
    return {
        "site": trial.site,
        "subject": trial.subject,
        "pair": f"{trial.fixed}-{trial.moving}",
        "seed": list(trial.seed),
        "error_mm": float(np.linalg.norm(error, axis=1).mean()),
        "in_plane_error_mm": float(np.linalg.norm(error[:, :2], axis=1).mean()),
        "seconds": seconds,
        "converged": result.converged,
        "shape": list(fixed.data.shape),
    }


def summarise(name: str, results: Sequence[dict[str, object]]) -> dict[str, object]:
    """Figures of some trials, and print them as one line of the table."""
    errors = np.array([result["error_mm"] for result in results])
    in_plane = np.array([result["in_plane_error_mm"] for result in results])
    summary = {
        "trials": len(results),
        "share_under_1_mm": float((errors < GOOD_MM).mean()),
        "median_mm": float(np.median(errors)),
        "p95_mm": float(np.percentile(errors, 95)),
        "max_mm": float(errors.max()),
        "share_in_plane_under_1_mm": float((in_plane < GOOD_MM).mean()),
        "median_in_plane_mm": float(np.median(in_plane)),
        "median_seconds": float(np.median([result["seconds"] for result in results])),
    }
    print(
        f"{name:28s} {summary['trials']:6d} {100 * summary['share_under_1_mm']:7.1f}% {summary['median_mm']:7.2f} "
        f"{summary['p95_mm']:7.2f} {summary['max_mm']:7.2f} {100 * summary['share_in_plane_under_1_mm']:8.1f}% "
        f"{summary['median_in_plane_mm']:7.2f} {summary['median_seconds']:7.1f}"
    )
    return {"name": name, **summary}


def print_tables(results: Sequence[dict[str, object]], isotropic: dict[str, object]) -> list[dict[str, object]]:
    """Print a line for each site and pair, for all thin and all thick sites, and for the failures."""
    print(
        f"{'site, pair':28s} {'trials':>6s} {'< 1 mm':>8s} {'median':>7s} {'95 %':>7s} {'max':>7s} "
        f"{'xy < 1 mm':>9s} {'xy med.':>7s} {'seconds':>7s}"
    )
    summaries = []
    for group, sites in (("1 x 1 x 3 mm", THIN_SITES), ("thick slices", THICK_SITES)):
        own = [result for result in results if result["site"] in sites]
        for site, pair in dict.fromkeys((result["site"], result["pair"]) for result in own):
            some = [result for result in own if (result["site"], result["pair"]) == (site, pair)]
            summaries.append(summarise(f"{site} {pair}", some))
        if own:
            summaries.append(summarise(f"all of {group}", own))
    summaries.append(summarise(f"1 mm, {' x '.join(map(str, isotropic['shape']))}", [isotropic]))
    for result in results:
        if result["error_mm"] >= GOOD_MM:
            print(
                f"over 1 mm: {result['site']} {result['subject']} {result['pair']} seed {result['seed']}: "
                f"{result['error_mm']:.2f} mm, in plane {result['in_plane_error_mm']:.2f} mm"
            )
    return summaries


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials-per-pair", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="processes; more than one make each trial slower")
    parser.add_argument("--json", type=Path, help="file to write")
    options = parser.parse_args()
    data = Path(os.environ.get("PFLSYNTH_REALDATA", Path(__file__).parents[1] / ".." / "shared" / "realdata"))
    trials = find_trials(data, options.trials_per_pair, options.seed)
    if not trials:
        raise SystemExit(f"no real data in {data}; set PFLSYNTH_REALDATA to its folder")
    with ProcessPoolExecutor(options.workers) as pool:
        results = list(pool.map(run_trial, [data] * len(trials), trials))
    one_mm = run_trial(data, Trial("lju3t", "sub-01", "T1w", "T2w", (options.seed,), in_plane=False, isotropic=True))
    summaries = print_tables(results, one_mm)
    if options.json:
        write_json(options.json, {"summaries": summaries, "trials": [*results, one_mm]})


if __name__ == "__main__":
    main()
