"""The coordinator under load: memory, time and bytes with 4, 16 and 64 sites of the paper's size, and 256 small ones.

    python benchmarks/federation_scale.py --out work/scale 4:64 16:64 64:64 256:8:128

Each word is sites:width[:wave]. For each, ``pflsynth serve`` is started as its users start it, over TLS with
registered keys, behind its proxy, on loopback; the sites are simulated (benchmarks/simulated_sites.py), so a round is
what the engine itself costs. Peak memory is what the kernel counted for ServerApp and SuperLink (VmHWM); the SuperLink
maps its database into memory, so what is its own is told too (RssAnon, looked at every half second).
Writes ``results.json``, and prints a Markdown table with the ratios to the first configuration of the same width.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from pflsynth.config import FederationConfig
from pflsynth.config_files import toml_bytes
from pflsynth.deployment.flower_programs import LOOPBACK, SERVER_APP, free_port
from pflsynth.deployment.keyring import Keyring, make_keyring
from pflsynth.deployment.kits import open_kit
from pflsynth.deployment.processes import Child, end_members, members, program_of
from pflsynth.deployment.refusals import knock
from pflsynth.deployment.settings import work_of
from pflsynth.errors import NetworkError
from pflsynth.runs import RunDirectory

TASK = "T1w->T2w"
LOOK_SECONDS = 0.5
SUPERLINK = "flower-superlink"
MB = 1e6


class Load(NamedTuple):
    """One configuration: sites, channels of the first stage, most sites that are asked at one time."""

    sites: int
    width: int
    wave: int = 8

    @classmethod
    def of(cls, word: str) -> Load:
        """From ``sites:width`` or ``sites:width:wave``."""
        return cls(*map(int, word.split(":")))

    def config(self, rounds: int) -> FederationConfig:
        """Its agreement: pFLSynth as in the paper but for the width, one task at every site."""
        return FederationConfig.model_validate(
            {
                "name": "scale",
                "contrasts": ["T1w", "T2w"],
                "rounds": rounds,
                "quorum": self.sites,
                "model": {"width": self.width, "mapper_layers": 6 if self.width >= 64 else 1},
                "sites": {f"site-{number:03d}": {"tasks": [TASK]} for number in range(self.sites)},
            }
        )


class Watch:
    """Highest memory and processor time of a coordinator's processes, by program, and its database's largest size."""

    def __init__(self, run: Path):
        self._work = work_of(run)
        self._seconds: dict[int, tuple[str, float]] = {}
        self.peak: Counter[str] = Counter()

    def look(self) -> None:
        """Look once."""
        for process in members(self._work):
            with suppress(OSError, KeyError):  # it ended meanwhile
                program = program_of(process)
                told = dict(
                    line.split(":", 1)
                    for line in Path(f"/proc/{process}/status").read_text().splitlines()
                    if ":" in line
                )
                self._higher(f"{program} VmHWM", int(told["VmHWM"].split()[0]) * 1024)
                self._higher(f"{program} RssAnon", int(told["RssAnon"].split()[0]) * 1024)
                times = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
                self._seconds[process] = program, (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        with suppress(FileNotFoundError):
            self._higher("database", sum(path.stat().st_size for path in self._work.glob("superlink/superlink.db*")))

    def _higher(self, name: str, value: int) -> None:
        self.peak[name] = max(self.peak[name], value)

    def seconds(self, program: str) -> float:
        """Processor time of a program."""
        return sum(seconds for own, seconds in self._seconds.values() if own == program)


def sites_of(folder: Path, load: Load, config: FederationConfig, processes: int) -> tuple[str, list[Child]]:
    """Make keys of all sites; where the coordinator listens, and the processes that are its sites, not yet started."""
    port = free_port()
    kits = make_keyring(config, folder / "keys", [LOOPBACK], port, 30)
    keys = [open_kit(kit.path, kit.passphrase).files["site.key"] for kit in kits]
    address = f"{LOOPBACK}:{port}"
    children = []
    for number in range(min(processes, load.sites)):
        own = folder / f"sites-{number}"
        own.mkdir()
        told = {
            "coordinator": address,
            "authority": str(Keyring(folder / "keys").authority_certificate),
            "agreement": config.agreement_sha256(),
            "task": TASK,
            "counts": str(own / "counts.json"),
            "sites": list(enumerate(keys))[number::processes],
        }
        (own / "sites.json").write_text(json.dumps(told))
        program = Path(__file__).with_name("simulated_sites.py")
        children.append(Child("sites", [sys.executable, program, own / "sites.json"], own, os.environ))
    return address, children


def measure(folder: Path, load: Load, rounds: int, processes: int) -> dict[str, Any]:
    """Run one federation to its end.

    Raises:
        SystemExit: if the coordinator ends by an error, or a process of sites does; their logs are told.
    """
    config, run = load.config(rounds), folder / "run"
    folder.mkdir(parents=True)
    federation = folder / "federation.toml"
    federation.write_bytes(toml_bytes(config.agreement()))
    address, children = sites_of(folder, load, config, processes)
    words = ["--run", run, "--keys", folder / "keys", "--listen", address, "--wave", load.wave, "--gather", 3600]
    command = [sys.executable, "-m", "pflsynth", "serve", federation, *map(str, words)]
    serve, watch = Child("serve", command, folder / "serve", os.environ), Watch(run)
    started, joined = time.monotonic(), False
    try:
        serve.start()
        while serve.alive:
            if not joined:
                with suppress(NetworkError):
                    knock(address, Keyring(folder / "keys").authority_certificate)
                    joined = True
                    for child in children:
                        child.start()
            watch.look()
            for child in children:
                if child.exit_code:
                    raise SystemExit(f"simulated sites ended with an error, see {child.log}")
            time.sleep(LOOK_SECONDS)
        if serve.exit_code:
            raise SystemExit(f"the coordinator ended with an error, see {serve.log}")
        until = time.monotonic() + 60
        while any(child.alive for child in children) and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
    finally:
        for child in (serve, *children):
            child.stop()
        end_members(folder)
    return record_of(load, watch, run, children, time.monotonic() - started)


def record_of(load: Load, watch: Watch, run: Path, children: list[Child], seconds: float) -> dict[str, Any]:
    """What was measured, as JSON values; bytes and memory in MB of 10**6 bytes."""
    timings, accepted = RunDirectory(run).records("timings.jsonl"), RunDirectory(run).records("metrics.jsonl")
    wire: Counter[str] = Counter()
    for child in children:
        wire.update(json.loads((child.folder / "counts.json").read_text()))
    last = timings[-1]
    return {
        **load._asdict(),
        "update_mb": round(max(last["received_bytes"].values()) / MB, 2),
        "accepted": [len(record["distances"]) for record in accepted],
        "round_seconds": [record["seconds"] for record in timings],
        "serverapp_mb": round(watch.peak[f"{SERVER_APP} VmHWM"] / MB, 1),
        "serverapp_mb_after_rounds": [round(record["peak_memory_mb"] * 2**20 / MB, 1) for record in timings],
        "superlink_mb": round(watch.peak[f"{SUPERLINK} VmHWM"] / MB, 1),
        "superlink_own_mb": round(watch.peak[f"{SUPERLINK} RssAnon"] / MB, 1),
        "database_mb": round(watch.peak["database"] / MB, 1),
        "processor_seconds": {name: round(watch.seconds(name), 1) for name in (SERVER_APP, SUPERLINK, "nginx")},
        "round_sent_mb": round(sum(last["sent_bytes"].values()) / MB, 1),
        "round_received_mb": round(sum(last["received_bytes"].values()) / MB, 1),
        "wire_sent_by_sites_mb": round(wire["sent_bytes"] / MB, 1),
        "wire_received_by_sites_mb": round(wire["received_bytes"] / MB, 1),
        "requests_of_sites": wire["requests"],
        "seconds": round(seconds, 1),
    }


def table(records: list[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    heads = (
        "sites",
        "update, MB",
        "wave",
        "seconds a round",
        "ServerApp, MB",
        "ratio",
        "SuperLink, MB (own)",
        "database, MB",
        "a round to / from sites, MB",
        "all over the wire, MB",
        "requests",
    )
    lines = [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
    first: dict[int, float] = {}
    for own in records:
        least = first.setdefault(own["width"], own["serverapp_mb"])
        cells = (
            own["sites"],
            own["update_mb"],
            own["wave"],
            f"{statistics.median(own['round_seconds'][1:] or own['round_seconds']):.0f}",
            f"{own['serverapp_mb']:.0f}",
            f"{own['serverapp_mb'] / least:.2f}",
            f"{own['superlink_mb']:.0f} ({own['superlink_own_mb']:.0f})",
            f"{own['database_mb']:.0f}",
            f"{own['round_sent_mb']:.0f} / {own['round_received_mb']:.0f}",
            f"{own['wire_received_by_sites_mb']:.0f} / {own['wire_sent_by_sites_mb']:.0f}",
            own["requests_of_sites"],
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "loads", nargs="*", default=["4:64", "16:64", "64:64", "256:8:128"], metavar="SITES:WIDTH[:WAVE]"
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="processes of simulated sites")
    wanted = parser.parse_args()
    out = wanted.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    records = []
    for number, word in enumerate(wanted.loads):
        folder = out / f"{number}-{word.replace(':', '-')}"
        shutil.rmtree(folder, ignore_errors=True)
        records.append(measure(folder, Load.of(word), wanted.rounds, wanted.processes))
        (out / "results.json").write_text(json.dumps(records, indent=1) + "\n")
        print(json.dumps(records[-1]), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
