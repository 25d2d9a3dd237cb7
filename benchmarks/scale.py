"""A site of 2,000 subjects: how long a training waits for its manifest, and how many files it keeps open.

    python benchmarks/scale.py --subjects 2000

A small site is prepared, and its subjects are repeated under other names (links to the same slices).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1]))

from pflsynth.data.manifest import MANIFEST_NAME, load_manifest
from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from pflsynth.data.subjects import find_subjects
from pflsynth.files import write_json
from tests.data_builders import federation, write_site

CONTRASTS = ("T1w", "T2w", "FLAIR")


def repeated(root: Path, subjects: int) -> Path:
    """A prepared folder of many subjects."""
    write_site(root / "here", 10, CONTRASTS)
    out = root / "prepared" / "here"
    config = federation(root, {"here": ["T1w->T2w", "T1w->FLAIR"]})
    prepare_site(config, "here", out)
    content = load_manifest(out).model_dump(mode="json")
    entries = []
    for number in range(subjects):
        entry = content["subjects"][number % 10]
        name = f"sub-{number:05d}"
        (out / f"{name}.safetensors").symlink_to(entry["file"])
        entries.append({**entry, "name": name, "person": name, "file": f"{name}.safetensors"})
    write_json(out / MANIFEST_NAME, {**content, "subjects": entries})
    return out


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--subjects", type=int, default=2000)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        out = repeated(Path(name), wanted.subjects)
        size = (out / MANIFEST_NAME).stat().st_size / 2**20
        start = time.perf_counter()
        store = SliceStore(out)
        seconds = time.perf_counter() - start
        print(f"manifest of {wanted.subjects} subjects, {size:.1f} MB: read in {seconds:.2f} s")
        start = time.perf_counter()
        for subject in store.manifest.subjects:
            store.slices(subject.name, "T1w")[0, 0, 0]
        seconds = time.perf_counter() - start
        process = psutil.Process()
        print(f"first slice of every subject: {seconds:.2f} s; files open {process.num_fds()}", end=", ")
        print(f"memory maps of slices {sum('safetensors' in part.path for part in process.memory_maps(grouped=False))}")
        raw = Path(name) / "raw"
        for number in range(wanted.subjects):
            subject = f"sub-{number:05d}"
            folder = raw / subject / "anat"
            folder.mkdir(parents=True)
            for contrast in CONTRASTS:
                (folder / f"{subject}_{contrast}.nii.gz").touch()
        start = time.perf_counter()
        found = find_subjects(raw, "bids", CONTRASTS, "here")
        print(f"{len(found.subjects)} subjects found in a BIDS folder: {time.perf_counter() - start:.2f} s")


if __name__ == "__main__":
    main()
