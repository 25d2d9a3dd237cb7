"""Peak memory: of ``prepare`` against the number of subjects, and of ``train`` against the number of rounds.

    python benchmarks/memory.py [--out memory.json]

Each figure is the peak resident memory of a process of its own, on a phantom site. ``prepare`` holds one subject's
volumes at a time and ``train`` nothing from round to round, so both ratios should be close to 1.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIG = """
name = "memory"
contrasts = ["T1w", "T2w"]
rounds = {rounds}
data_root = "data-{subjects}"
threads = 2
[image]
spacing_mm = 2.4
size = 88
[slices]
maximum = 4
[model]
width = 16
residual_layers = 4
[training]
batch_size = 4
[sites.midas]
tasks = ["T1w->T2w", "T2w->T1w"]
"""


def peak_mb(*arguments: object) -> float:
    """Run ``pflsynth`` and return the peak resident memory of its process, in MB."""
    process = subprocess.Popen([sys.executable, "-m", "pflsynth", *map(str, arguments)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"pflsynth {' '.join(map(str, arguments))} failed")
    return usage.ru_maxrss / 1024


def make_phantom(folder: Path, subjects: int) -> None:
    """Write a phantom site in a process of its own: a child's peak memory begins with that of its parent."""
    code = f"from pathlib import Path; from pflsynth.data.phantom import write_phantom as w; w(Path({str(folder)!r}), "
    subprocess.run([sys.executable, "-c", code + f"subjects={{'midas': {subjects}}})"], check=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--few", type=int, default=4)
    parser.add_argument("--many", type=int, default=16)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for subjects, rounds in ((options.few, options.few), (options.many, options.many)):
            config = folder / f"{subjects}.toml"
            config.write_text(CONFIG.format(subjects=subjects, rounds=rounds))
            make_phantom(folder / f"data-{subjects}", subjects)
            results[f"prepare_{subjects}_subjects"] = peak_mb("prepare", config, "--out", folder / f"p{subjects}")
        for rounds in (options.few, options.many):
            run = ("--run", folder / f"r{rounds}", "--set", f"rounds={rounds}")
            results[f"train_{rounds}_rounds"] = peak_mb(
                "train", folder / f"{options.few}.toml", "--prepared", folder / f"p{options.few}", *run
            )
    for verb in ("prepare", "train"):
        few, many = (value for key, value in results.items() if key.startswith(verb))
        unit = "subjects" if verb == "prepare" else "rounds"
        results[f"{verb}_ratio"] = many / few
        print(
            f"{verb}: {few:.0f} MB with {options.few} {unit}, {many:.0f} MB with {options.many}, ratio {many / few:.3f}"
        )
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
