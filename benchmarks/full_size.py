"""The main methods at the paper's size, in parts that fit a time limit: give the command again until it says finished.

    python benchmarks/full_size.py --out work/full --minutes 9

``pflsynth compare recipes/phantom-full.toml`` runs for at most ``--minutes`` and is then stopped as by Ctrl-C; the next
call goes on after the last whole round, to the same bytes. The end of each call says which runs are done. With
``--results FOLDER`` the tables, the scores and the report of a finished comparison are copied there, with a file that
names the machine. Needs a GPU of 16 GB or more; on another device give ``--set device=cpu``, for a trial only.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
METHODS = "pflsynth,local,fedavg,fedgan,fedbn,fedmri,pix2pix"


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return {"gpu": name, "processor": platform.machine(), "torch": torch.__version__, "python": sys.version.split()[0]}


def rounds_done(out: Path) -> dict[str, int]:
    """Whole rounds of every run that has begun."""
    states = sorted(out.glob("runs/*/seed-*/state.json"))
    return {str(path.parent.relative_to(out / "runs")): json.loads(path.read_text())["round"] for path in states}


def main() -> None:
    """Go on for some minutes; exit code 0 if the comparison is finished, 75 if there is more to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--recipe", type=Path, default=ROOT / "recipes" / "phantom-full.toml")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--results", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pflsynth", "compare", str(options.recipe), "--out", str(options.out)]
    command += ["--methods", options.methods, "--seeds", options.seeds]
    command += [word for override in options.overrides for word in ("--set", override)]
    process = subprocess.Popen(command)
    try:
        code = process.wait(60 * options.minutes)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
        code = 75
    print(json.dumps({"machine": machine(), "rounds": rounds_done(options.out)}, indent=2))
    if code == 0 and options.results is not None:
        shutil.copytree(options.out / "tables", options.results / "tables", dirs_exist_ok=True)
        for name in ("scores.csv", "comparison.json", "report.html"):
            shutil.copy(options.out / name, options.results / name)
        (options.results / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    print({0: "finished", 75: "time is up; give the command again to go on"}.get(code, f"failed with code {code}"))
    raise SystemExit(code)


if __name__ == "__main__":
    main()
