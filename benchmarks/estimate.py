"""What ``pflsynth check`` says that a round takes and needs, against rounds that are really trained.

    python benchmarks/estimate.py --config demo/federation.toml --prepared demo/prepared [--out estimate.json]

``check`` and ``train`` run one after the other, ``--repetitions`` times, each in a process of its own as users start
them; the first round of each training warms up and is left out. Medians and their ratio are printed; the bar is 30 %.
On a machine that is busy with other things, seconds of the clock say little: take it on an idle one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

BAR = 0.3


def estimated(config: Path, overrides: list[str]) -> dict:
    """The estimate in the document of ``check --json``."""
    words = [sys.executable, "-m", "pflsynth", "check", config, "--json", *overrides]
    ended = subprocess.run(words, stdout=subprocess.PIPE, text=True)
    told = json.loads(ended.stdout)["estimate"] if ended.stdout else None
    if told is None:
        raise SystemExit(f"check gave no estimate (exit code {ended.returncode}); its reasons are above")
    return told


def trained(config: Path, prepared: Path, rounds: int, overrides: list[str], folder: Path) -> list[dict]:
    """The records of the rounds after the first."""
    words = [sys.executable, "-m", "pflsynth", "train", config, "--prepared", prepared, "--run", folder / "run"]
    subprocess.run([*words, *overrides, "--set", f"rounds={rounds}"], check=True, stdout=subprocess.DEVNULL)
    return [json.loads(line) for line in (folder / "run" / "timings.jsonl").read_text().splitlines()][1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    overrides = [word for own in (*options.overrides, "training.validate_every=0") for word in ("--set", own)]
    said, were = [], []
    for _ in range(options.repetitions):
        said.append(estimated(options.config, overrides))
        with tempfile.TemporaryDirectory() as folder:
            were.append(trained(options.config, options.prepared, options.rounds, overrides, Path(folder)))
    seconds = [record["seconds"] for records in were for record in records]
    memory = [records[-1]["peak_memory_mb"] for records in were]
    result = {}
    for name, unit, told, found in (
        ("round", "s", [own["round_seconds"] for own in said], seconds),
        ("memory", "MB", [own["peak_memory_mb"] for own in said], memory),
    ):
        estimate, real = statistics.median(told), statistics.median(found)
        verdict = "met" if abs(estimate / real - 1) <= BAR else "missed"
        result[name] = {"estimated": told, "real": found, "ratio": estimate / real, "unit": unit}
        print(
            f"{name}: estimated {estimate:.4g} {unit}, real {real:.4g} {unit}, ratio {estimate / real:.2f}: {verdict}"
        )
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
