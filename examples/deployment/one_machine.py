"""A federation on one machine, as it would run on many: a coordinator and its sites as processes over TLS, with keys.

    python examples/deployment/one_machine.py recipes/realdata-four.toml --data-root ../shared/realdata --out work/four

It gives the commands that a coordinator and its hospitals would give, and shows each: keys, unseal, prepare, serve,
join, synthesize. The sites' data must be in BIDS. What the sites say is in OUT/SITE/join.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.data.slices import SliceStore
from pflsynth.deployment.flower_programs import free_port

PFLSYNTH = [sys.executable, "-m", "pflsynth"]


def main() -> int:
    """Do everything, and return the exit code of the coordinator."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("federation", type=Path)
    options.add_argument("--data-root", type=Path, help="folder of the sites' data; default: the federation's")
    options.add_argument("--out", type=Path, required=True, help="new folder")
    given = options.parse_args()
    config = load_config(given.federation, (), given.data_root).federation
    out: Path = given.out
    out.mkdir(parents=True)

    port = free_port()
    keys = ("keys", given.federation, "--out", out / "keys", "--host", "127.0.0.1", "--port", port)
    for kit in json.loads(verb(*keys, "--json", capture=True))["kits"]:
        hospital = out / kit["site"]
        verb("unseal", kit["path"], "--to", hospital, PFLSYNTH_KIT_PASSPHRASE=kit["passphrase"])
        name_data(hospital / "site.toml", config, kit["site"])
        verb("prepare", hospital / "site.toml")

    federate(config, given.federation, out, port)

    for site in config.participants:
        synthesize_one(config, site, out / site)
    return 0


def name_data(site_toml: Path, config: FederationConfig, site: str) -> None:
    """Say where a site's images are, as its people would with an editor."""
    text = site_toml.read_text().replace(
        '\ndata = "data"', f"\ndata = {json.dumps(str(config.data_folder(site).resolve()))}"
    )
    site_toml.write_text(text + f"threads = {config.threads}\n")


def federate(config: FederationConfig, federation: Path, out: Path, port: int) -> None:
    """Start the coordinator and every site, and wait until all of them have ended."""
    serve = ("serve", federation, "--run", out / "run", "--keys", out / "keys", "--listen", f"127.0.0.1:{port}")
    processes = {"serve": subprocess.Popen(words(*serve))}
    try:
        for site in config.participants:
            with (out / site / "join.txt").open("wb") as said:
                command = words("join", out / site / "site.toml")
                processes[site] = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
        failed = [name for name, process in processes.items() if process.wait() != 0]
    finally:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            with suppress(KeyboardInterrupt):
                process.wait()
    if failed:
        sys.exit(f"not well ended: {', '.join(failed)}; see {out}/SITE/join.txt")


def synthesize_one(config: FederationConfig, site: str, hospital: Path) -> None:
    """Make the first task's target of a site's first test subject, from files that stayed at the site."""
    task = config.sites[site].tasks[0]
    subject = SliceStore(hospital / "prepared" / site).subjects("test")[0].name
    source = config.data_folder(site) / subject / "anat" / f"{subject}_{task.source}.nii.gz"
    target = hospital / f"{subject}_{task.target}.nii.gz"
    verb("synthesize", source, "--task", task, "--site", site, "--run", hospital / "run", "--out", target)


def words(*arguments: object) -> list[str]:
    """A command of pflsynth, which is shown."""
    line = [str(argument) for argument in arguments]
    print(f"\n$ pflsynth {shlex.join(line)}", flush=True)
    return [*PFLSYNTH, *line]


def verb(*arguments: object, capture: bool = False, **environment: str) -> str:
    """Give a command of pflsynth; its output if it is captured."""
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True} if capture else {}
    ended = subprocess.run(words(*arguments), check=True, env={**os.environ, **environment}, **options)
    return ended.stdout if capture else ""


if __name__ == "__main__":
    sys.exit(main())
