"""A federation as its people start it: ``serve`` and ``join`` as processes, over TLS with keys, all on loopback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pflsynth.config import FederationConfig
from pflsynth.config_files import toml_bytes
from pflsynth.deployment.coordinator_host import CoordinatorHost
from pflsynth.deployment.flower_programs import free_port
from pflsynth.deployment.keyring import make_keyring
from pflsynth.deployment.kits import open_kit, unpack
from pflsynth.deployment.processes import end_members, members, program_of
from pflsynth.deployment.settings import work_of
from pflsynth.deployment.site_host import SiteHost
from pflsynth.errors import ModelError
from pflsynth.runs import RunDirectory

from .network import nginx_or_skip

LONG = 900.0
"""Flower needs about a minute to notice a dead node, and the machine may be busy: nothing is asserted about time."""


@dataclass
class Machines:
    """The coordinator and the hospitals, each with a folder of its own."""

    folder: Path
    config: FederationConfig
    port: int
    started: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def run(self) -> Path:
        """The coordinator's run."""
        return self.folder / "coordinator" / "run"

    def hospital(self, site: str) -> Path:
        return self.folder / site

    def site_run(self, site: str) -> Path:
        return self.hospital(site) / "run"

    def send_through(self, site: str, port: int) -> None:
        """Let a site reach the coordinator at another port of loopback, such as a relay's."""
        site_toml = self.hospital(site) / "site.toml"
        before = site_toml.read_text()
        assert f'"127.0.0.1:{self.port}"' in before
        site_toml.write_text(before.replace(f'"127.0.0.1:{self.port}"', f'"127.0.0.1:{port}"'))

    def start(self, name: str, *words: object) -> None:
        """Start a verb in a session of its own; its output goes to a file of that name."""
        program = Path(sys.executable).with_name("pflsynth")
        with (self.folder / f"{name}.txt").open("ab") as output:
            self.started[name] = subprocess.Popen(
                [program, *map(str, words)], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )

    def serve(self, *words: object) -> None:
        patience = ("--gather", 120, "--retry", 1)
        keys = ("--keys", self.folder / "keys", "--listen", f"127.0.0.1:{self.port}")
        federation = self.folder / "federation.toml"
        self.start("serve", "serve", federation, "--run", self.run, *keys, *patience, *words)

    def join(self, site: str, *words: object) -> None:
        self.start(site, "join", self.hospital(site) / "site.toml", *words)

    def join_all(self) -> None:
        for site in self.config.participants:
            self.join(site)

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text()

    def wait(self, what: str, true: Callable[[], bool]) -> None:
        """Wait on a busy machine; what ended with an error fails the test."""
        until = time.monotonic() + LONG
        while not true():
            failed = [name for name, process in self.started.items() if process.poll()]
            assert not failed, f"{failed} ended before {what}:\n{self.everything()}"
            assert time.monotonic() < until, f"waited in vain for {what}:\n{self.everything()}"
            time.sleep(0.1)

    def end(self, name: str) -> int:
        """Wait for the end of a verb; its exit code."""
        process = self.started[name]
        try:
            return process.wait(LONG)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{name} does not end:\n{self.everything()}")

    def whole_rounds(self) -> int:
        with suppress(ModelError):
            return RunDirectory(self.run).state().round
        return 0

    def absences(self) -> dict[int, set[str]]:
        """Who was not in each round, as the coordinator recorded it."""
        records = RunDirectory(self.run).records("metrics.jsonl")
        return {record["round"]: set(self.config.participants) - record["losses"].keys() for record in records}

    def processes(self, name: str, program: str) -> list[int]:
        """Processes of ``serve`` or of a site that run a program."""
        run = self.run if name == "serve" else self.site_run(name)
        return [process for process in members(work_of(run)) if program_of(process).startswith(program)]

    def kill(self, name: str, program: str) -> None:
        """Wait until the program runs, and kill it without a warning."""
        self.wait(program, lambda: bool(self.processes(name, program)))
        with suppress(ProcessLookupError):
            os.kill(min(self.processes(name, program)), signal.SIGKILL)  # of nginx the master, not its worker

    def kill_verb(self, name: str) -> None:
        """Kill ``serve`` or a site's ``join`` without a warning; what it had started is left to itself."""
        verb = self.started.pop(name)
        verb.kill()
        verb.wait()

    def everything(self) -> str:
        paths = [*self.folder.glob("*.txt"), *self.folder.rglob("*.log"), *self.folder.rglob("*.log.jsonl")]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')[-2000:]}" for path in paths)


@contextmanager
def in_thread(host: CoordinatorHost | SiteHost, work: Callable[[], object]) -> Iterator[threading.Thread]:
    """What ``serve`` or ``join`` does, in a thread, so that a test can change its patience; stopped at the end."""
    look, stop = host._look, threading.Event()
    host._look = lambda: look() or stop.is_set()  # type: ignore[method-assign]
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield thread
    finally:
        stop.set()
        thread.join()


def check_end(made: Machines, expected: bytes) -> None:
    """Every verb ends well, the bytes are those of one process, every site has its model, and nothing is left."""
    assert made.end("serve") == 0, made.everything()
    assert (made.run / "shared" / "round-0002.safetensors").read_bytes() == expected
    for site in made.config.participants:
        assert made.end(site) == 0, made.everything()
        assert (made.site_run(site) / "sites" / site / "personalised-0002.safetensors").is_file()
    assert members(made.folder) == []
    assert list(made.folder.rglob("superlink.db*")) == []


@contextmanager
def machines(folder: Path, config: FederationConfig, prepared: Path) -> Iterator[Machines]:
    """Keys, and a hospital's folder for each site, from its kit; at the end nothing of it runs any more.

    Without nginx the test is skipped, but fails where CI=true.
    """
    nginx_or_skip()
    made = Machines(folder, config, free_port())
    made.run.parent.mkdir()
    (folder / "federation.toml").write_bytes(toml_bytes(config.agreement()))
    for kit in make_keyring(config, folder / "keys", ["127.0.0.1"], made.port, 90):
        hospital = made.hospital(kit.site)
        unpack(open_kit(kit.path, kit.passphrase), hospital)
        (hospital / "prepared").symlink_to(prepared)
        site_toml = hospital / "site.toml"
        site_toml.write_text(site_toml.read_text() + f"threads = {config.threads}\n")
    try:
        yield made
    finally:
        for process in made.started.values():
            process.terminate()
        for process in made.started.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        end_members(folder)
