"""Everything that is to be measured on one GPU, in one call; give it again until it says finished.

    python benchmarks/gpu.py --out work/gpu [--minutes 9] [--public-code PATH]

Three parts, each of which is left out once its file is there: training slices a second and peak memory against the
plain eager loop (``step.py``), a volume of 240 × 240 × 155 file to file (``synthesis.py``), and PSNR after equal slices
seen, trained plainly and with every option that is fast (``FAST``; ``compare`` on recipes/phantom-full.toml, which
goes on where the last call was stopped). Bars: 8 × the slices a second, 0.6 × the memory a slice, 2 s for the volume,
0.1 dB. ``--device cpu`` with a small ``--config`` and ``--set`` is for a trial of the script.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import fmean

from ablations import changes
from full_size import machine
from step import FAST_ROW, OURS, PLAIN

from pflsynth.evaluation.comparison import open_comparison

HERE = Path(__file__).parent
FAST = ("training.precision=bfloat16", "compile=true")
VARIANTS: dict[str, tuple[str, ...]] = {"plain": (), "fast": FAST}
SLICES = 155


def run(command: list[str | Path], until: float) -> bool:
    """Run a command until a time at most; stopped as by Ctrl-C, it goes on when it is given again."""
    process = subprocess.Popen([sys.executable, *map(str, command)])
    try:
        code = process.wait(max(1.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        return False
    if code:
        raise SystemExit(f"{command[0]}: ended with exit code {code}")
    return True


def verdicts(out: Path) -> list[str]:
    """The bars of what is measured so far."""
    lines = []
    if (out / "step.json").is_file():
        rows = json.loads((out / "step.json").read_text())["rows"]
        speed = rows[PLAIN]["seconds_a_slice"] / rows[FAST_ROW]["seconds_a_slice"]
        memory = (rows[FAST_ROW]["peak_mb"] / rows[FAST_ROW]["slices"]) / rows[PLAIN]["peak_mb"]
        lines += [f"slices a second: {speed:.1f} x the plain loop (bar 8)", f"memory a slice: {memory:.2f} x (bar 0.6)"]
    if (out / "synthesis.json").is_file():
        seconds = json.loads((out / "synthesis.json").read_text())["rows"]["file to file"]["seconds"]
        lines.append(f"volume, file to file, warm: {seconds:.2f} s (bar 2)")
    if all((out / name / "comparison.json").is_file() for name in VARIANTS):
        plain, fast = (open_comparison(out / name) for name in VARIANTS)
        difference = fmean(changes(fast, plain)["psnr_changes"])
        lines.append(f"PSNR after equal slices seen: {difference:+.2f} dB (bar 0.1)")
    return lines


def main() -> None:
    """Go on for some minutes; exit code 0 if all is measured, 75 if there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--config", type=Path, default=HERE.parent / "recipes" / "phantom-full.toml")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--slices", type=int, default=SLICES)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--public-code", type=Path)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * options.minutes
    overrides = [word for own in options.overrides for word in ("--set", own)]
    sized = ["--config", options.config, "--device", options.device, *overrides]
    public = ["--public-code", options.public_code] if options.public_code else []
    commands: dict[str, list[str | Path]] = {
        "step.json": [HERE / "step.py", *sized, "--memory", *public, "--rows", OURS, FAST_ROW],
        "synthesis.json": [HERE / "synthesis.py", *sized, "--slices", str(options.slices)],
    }
    done = True
    for name, command in commands.items():
        if done and not (options.out / name).is_file():
            done = run([*command, "--out", options.out / name], until)
    for name, fast in VARIANTS.items():
        if done:
            words = [word for own in (f"device={options.device}", *fast) for word in ("--set", own)]
            command = ["-m", "pflsynth", "compare", options.config, "--methods", "pflsynth", "--seeds", options.seeds]
            done = run([*command, *overrides, *words, "--out", options.out / name], until)
    print("\n".join([json.dumps(machine()), *verdicts(options.out)]))
    print("finished" if done else "time is up; give the command again to go on")
    raise SystemExit(0 if done else 75)


if __name__ == "__main__":
    main()
