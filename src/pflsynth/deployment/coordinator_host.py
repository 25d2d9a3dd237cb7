"""The coordinator's machine: SuperLink, proxy and ServerApp, started, watched, started again, and ended.

Whatever of them dies is started again, and the training goes on after its last whole round. Everything that they need
while they run is in ``RUN.flower`` beside the run folder; what people should hear of, theirs and ours, is a line of
``RUN.log.jsonl``.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pflsynth.deployment.disk import Disk
from pflsynth.deployment.events import EventLog, Follower
from pflsynth.deployment.flower_programs import EXECUTOR, SERVER_APP
from pflsynth.deployment.keyring import Keyring
from pflsynth.deployment.processes import Child, Keeper, end_members, members, program_of
from pflsynth.deployment.proxy import Limits, ProxySettings, check_config, proxy_command, write_config
from pflsynth.deployment.rounds_process import RoundsProcess
from pflsynth.deployment.server import open_run
from pflsynth.deployment.settings import COORDINATOR_VARIABLE, CoordinatorSettings, log_of, work_of
from pflsynth.deployment.status import SERVING, Status, mark_stopped, read_status
from pflsynth.deployment.superlink import SuperLink
from pflsynth.errors import NetworkError, UsageError
from pflsynth.federation.methods import method_of
from pflsynth.files import exclusive, write_json
from pflsynth.site_file import parse_address

LOOK_SECONDS = 0.5
"""Between two looks at the processes."""

START_SECONDS = 180.0
"""How long a SuperLink may take to answer before it is started again."""

HEALTH_SECONDS = 30.0
"""Between two questions to a SuperLink that answered the last one."""

SOON_DAYS = 30
"""A certificate that ends sooner is told of."""


class CoordinatorHost:
    """One run of ``pflsynth serve``."""

    def __init__(self, settings: CoordinatorSettings, keys: Path, listen: str, tell: Callable[[str], None]):
        """Check everything that can be checked without starting anything.

        Args:
            settings: of the rounds.
            keys: folder of ``pflsynth keys``.
            listen: address of the proxy, which faces the network, ``host:port``.
            tell: called with one line for every event.

        Raises:
            UsageError: keys that are missing or expired, nginx or Flower not installed, a method that cannot be trained
                across machines.
            ModelError: the run folder is damaged or of another agreement.
        """
        self._settings, self._ring, self._listen, self._show = settings, Keyring(keys), listen, tell
        self._config, self._run = open_run(settings)
        self._sites = method_of(self._config).trainers(self._config)
        log = log_of(settings.run)
        self._work, self._tell, self._events = work_of(settings.run), EventLog(log), Follower(log)
        _check_keys(self._ring, self._sites, settings.federation, self._tell)
        own = {COORDINATOR_VARIABLE: str(self._work / "coordinator.json")}
        self._superlink = SuperLink(self._work / "superlink", self._ring, own)
        self._proxy = Child("proxy", proxy_command(self._work / "proxy"), self._work / "proxy", {})
        self._keepers = Keeper(self._superlink.child, self._tell), Keeper(self._proxy, self._tell)
        self._app = RoundsProcess(self._superlink, settings, self._tell)
        self._disk = Disk(settings.run, self._tell, self._make_room)
        self._answers = self._registered = False
        self._asked = self._answered = 0.0
        self._certificate = self._ring.server_certificate.stat().st_mtime_ns

    def serve(self) -> Status:
        """Keep everything running until the training is finished and the sites have their models.

        Returns:
            The last status: ``waiting_for`` names sites that did not come for their model in time.

        Raises:
            UsageError: another process serves this run, or something else listens at the address.
            ModelError: the training cannot go on; the sentence tells why.
            KeyboardInterrupt: told to stop; the same command goes on.
        """
        busy = f"{self._settings.run}: another process serves this run; stop that one first"
        self._work.mkdir(mode=0o700, exist_ok=True)
        with exclusive(self._work / ".lock", busy):
            left = end_members(self._work)
            if left:
                self._tell(f"ended {left} process(es) that an earlier start had left")
            _check_listen(self._listen)  # not before: what was left may listen there
            self._superlink.remove_database()
            self._write_proxy()
            self._settings.write(self._work / "coordinator.json")
            certificate = str(self._ring.server_certificate.absolute())
            write_json(self._work / SERVING, {"listen": self._listen, "certificate": certificate})
            self._tell(f"listens on {self._listen} for {', '.join(self._sites)}")
            try:
                while not self._look():
                    self._pass_on()
                    time.sleep(LOOK_SECONDS)
            except BaseException as failure:
                self._end()
                mark_stopped(self._settings.run, str(failure) or "the coordinator was told to stop")
                raise
            self._end()
            return read_status(self._settings.run)

    def _look(self) -> bool:
        """Look after every process once; whether the training is finished."""
        superlink, proxy = self._keepers
        self._renewed()
        if not self._disk.has_room():
            return False
        if superlink.keep():
            self._answers = False
            self._app.lost()
        if not superlink.child.alive:
            return False
        if not self._answering():
            return False
        programs = {program_of(process) for process in members(superlink.child.folder)}
        if EXECUTOR not in programs:
            self._restart_after(START_SECONDS / 6, "cannot start the app any more")
            return False
        try:
            if not self._registered:
                self._superlink.register(self._sites)
                self._registered = True
            proxy.keep()
            return self._app.look(SERVER_APP in programs)
        except NetworkError as failure:
            self._tell(f"superlink: {failure}")
            self._restart_after(0.0, "is started again")
            return False

    def _make_room(self, problem: str) -> None:
        """End the SuperLink, and remove its database, which may be what fills the disk."""
        self._superlink.child.stop()
        self._superlink.remove_database()
        self._registered = False
        mark_stopped(self._settings.run, problem)

    def _answering(self) -> bool:
        """Whether the SuperLink has answered since its start; one that does not any more is started again."""
        now = time.monotonic()
        if self._answers and now - self._asked < HEALTH_SECONDS:
            return True
        self._asked = now
        if self._superlink.healthy:
            self._answers, self._answered = True, now
        elif now - max(self._answered, self._superlink.child.started) > START_SECONDS:
            self._restart_after(0.0, "does not answer, and is started again")
            return False
        return self._answers

    def _restart_after(self, seconds: float, why: str) -> None:
        child = self._superlink.child
        if time.monotonic() - child.started > seconds:
            self._tell(f"superlink: {why}")
            child.stop()

    def _renewed(self) -> None:
        """Let a renewed certificate be shown."""
        with suppress(FileNotFoundError):
            changed = self._ring.server_certificate.stat().st_mtime_ns
            if changed != self._certificate:
                self._certificate = changed
                self._tell("the server certificate was renewed: the proxy reads it, the superlink starts again with it")
                self._proxy.signal(signal.SIGHUP)
                self._superlink.child.stop()

    def _write_proxy(self) -> None:
        folder, ring = self._proxy.folder, self._ring
        limits = Limits.for_sites(len(self._sites))
        shown = ring.server_certificate, ring.server_key, ring.authority_certificate
        write_config(folder, ProxySettings(self._listen, self._superlink.address, *shown, limits))
        check_config(folder)

    def _end(self) -> None:
        self._pass_on()
        for child in (self._proxy, self._superlink.child):
            child.stop()
        self._superlink.remove_database()
        self._pass_on()

    def _pass_on(self) -> None:
        """Show the events that were logged since, by this process or the ServerApp."""
        for record in self._events.records():
            self._show(str(record.get("text")))


def _check_keys(ring: Keyring, sites: tuple[str, ...], federation: Path, tell: Callable[[str], None]) -> None:
    facts = ring.facts()
    days = facts.days_left()
    renewal = f"renew it with: pflsynth keys {federation} --out {ring.folder} --renew-server"
    if days < 0:
        raise UsageError(f"{ring.server_certificate}: expired on {facts.ends:%Y-%m-%d}; {renewal}")
    if days < SOON_DAYS:
        tell(f"the server certificate ends on {facts.ends:%Y-%m-%d}; {renewal}")
    missing = [site for site in sites if site not in ring.sites]
    if missing:
        raise UsageError(
            f"{ring.folder}: has no key of {', '.join(missing)}; make it with: pflsynth keys {federation} "
            f"--out {ring.folder} {' '.join(f'--site {site}' for site in missing)}"
        )


def _check_listen(listen: str) -> None:
    try:
        host, port = parse_address(listen)
    except ValueError as error:
        raise UsageError(f"--listen: {error}") from None
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as failure:
        raise UsageError(
            f"--listen {listen}: cannot listen there ({os.strerror(failure.errno or 0)}); stop what does, or choose "
            "another address or port"
        ) from None
