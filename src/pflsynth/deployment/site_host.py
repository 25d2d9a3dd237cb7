"""A site's machine: the SuperNode, started, watched, started again, and ended; only it connects to anything.

Flower's logs and folders are in ``RUN.flower`` beside the site's run folder; what the site was asked, and what came of
it, is a line of ``RUN.log.jsonl``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pflsynth.config_files import LoadedConfig
from pflsynth.deployment.client import check_site
from pflsynth.deployment.events import Follower
from pflsynth.deployment.flower_programs import (
    EXECUTOR,
    LOOPBACK,
    answers,
    flower_environment,
    flower_program,
    free_port,
)
from pflsynth.deployment.processes import Child, Keeper, end_members, plain_reading
from pflsynth.deployment.refusals import knock, refusal
from pflsynth.deployment.settings import SITE_VARIABLE, SiteSettings, log_of, work_of
from pflsynth.errors import ModelError, NetworkError, UsageError
from pflsynth.files import exclusive
from pflsynth.runs import RunDirectory

LOOK_SECONDS = 0.5
"""Between two looks at the process and its logs."""

KNOCK_SECONDS = 30.0
"""Between two tries of the road to the coordinator."""

START_SECONDS = 60.0
"""How long a SuperNode may take to start the process that starts our half of the app."""

HANG_SECONDS = 180.0
"""A SuperNode that has not answered for so long is started again."""

WAIT_SECONDS = 5.0
"""Between two tries while a coordinator is not there at the start."""

AGAIN_SECONDS = 15.0
"""Before a SuperNode that was refused is started again; its last connection is forgotten after about a minute."""

REFUSED_SECONDS = 180.0
"""A site that was refused for so long, without a connection between, gives up."""


LINGER_SECONDS = 60.0
"""How long a site that has its model remains connected, at most, so that the coordinator can fetch its last answer."""

LINGER_KNOCK_SECONDS = 3.0
"""Between two tries of the road then: a coordinator that is gone has fetched it."""


@dataclass(frozen=True)
class Connection:
    """How a site reaches its coordinator: address, certificate of the authority, and the site's private key."""

    coordinator: str
    certificate: Path
    key: Path


def site_settings(loaded: LoadedConfig) -> tuple[SiteSettings, Connection]:
    """What a ``site.toml`` says of this machine.

    Raises:
        UsageError: it is no ``site.toml``, or says too little to take part.
    """
    own = loaded.own
    if own is None:
        raise UsageError(f"{loaded.path}: is the agreement of all sites; a hospital joins with its own site.toml")
    if not (own.coordinator and own.certificate and own.key and own.prepared and own.run):
        names = ("coordinator", "certificate", "key", "prepared", "run")
        missing = ", ".join(name for name in names if getattr(own, name) is None)
        raise UsageError(f"{loaded.path}: joining needs the key(s) {missing}; the site.toml of a kit has them")
    for path in (own.certificate, own.key):
        if not path.is_file():
            raise UsageError(f"{path}: there is no such file; it is in the site's kit")
    settings = SiteSettings(loaded.path.absolute(), own.site, own.prepared, own.run)
    return settings, Connection(own.coordinator, own.certificate, own.key)


class SiteHost:
    """One run of ``pflsynth join``."""

    def __init__(self, settings: SiteSettings, connection: Connection, tell: Callable[[str], None]):
        """Check what can be checked without a connection.

        Args:
            settings: where the site's things are.
            connection: how it reaches the coordinator.
            tell: called with one line for every event.

        Raises:
            UsageError: the configuration cannot be used, or Flower is not installed.
            DataError: the prepared data cannot be used.
            ModelError: the run folder is damaged or of another agreement.
        """
        self._settings, self._connection, self._tell = settings, connection, tell
        self.config = check_site(settings)
        self._work = work_of(settings.run)
        folder = self._work / "supernode"
        self._port, self._answered = free_port(), 0.0
        command: list[str | Path] = [
            flower_program("flower-supernode"),
            "--superlink",
            connection.coordinator,
            "--root-certificates",
            connection.certificate,
            "--auth-supernode-private-key",
            connection.key,
            "--host",
            LOOPBACK,
            "--port",
            str(self._port),
        ]
        own = {SITE_VARIABLE: str(self._work / "site.json")}
        self._node = Child("supernode", command, folder, flower_environment(folder / "home", own))
        self._keeper = Keeper(self._node, self._tell, self._why_ended, most_s=AGAIN_SECONDS)
        self._said = Follower(self._node.log)
        self._answers = Follower(log_of(settings.run))
        self._refused_since: float | None = None
        self._connected = self._busy = self._served = False
        self._reached, self._knocked = True, 0.0
        self._until: float | None = None

    @property
    def finished(self) -> bool:
        """Whether the site has its personalised model."""
        run = RunDirectory(self._settings.run)
        with suppress(ModelError):
            number, _ = run.result(self.config)
            return run.personalised_path(self._settings.site, number).is_file()
        return False

    def reach(self, wait: bool) -> None:
        """Try the road to the coordinator.

        Args:
            wait: for one that is not there now; what will not pass by itself is raised at once.

        Raises:
            NetworkError: naming the cause.
            UsageError: the certificate's file cannot be used.
        """
        told = ""
        while True:
            try:
                knock(self._connection.coordinator, self._connection.certificate)
                return
            except NetworkError as failure:
                if not (wait and failure.passing):
                    raise
                if str(failure) != told:
                    told = str(failure)
                    self._tell(f"{told}; waits for it")
                time.sleep(WAIT_SECONDS)

    def join(self, stay: bool = False) -> None:
        """Take part until the site has its personalised model.

        Args:
            stay: remain connected then, until told to stop.

        Raises:
            UsageError: another process takes part in this site's name here.
            NetworkError: the coordinator does not accept the site.
            KeyboardInterrupt: told to stop; the same command goes on.
        """
        self._work.mkdir(mode=0o700, parents=True, exist_ok=True)
        busy = f"{self._settings.run}: another pflsynth join of this site is running; stop that one first"
        with exclusive(self._work / ".lock", busy):
            end_members(self._work)
            self._settings.write(self._work / "site.json")
            try:
                while not self._look() or stay:
                    time.sleep(LOOK_SECONDS)
            finally:
                self._node.stop()

    def _look(self) -> bool:
        """Look after everything once; whether the site has its model, and the coordinator knows."""
        if self._keeper.keep():
            self._connected = self._busy = False
        for record in self._answers.records():
            self._tell(f"{record.get('message')}: {record.get('outcome')}")
            self._served |= str(record.get("outcome")).startswith("answered: finished")
        for line in self._said.lines():  # after the answers: a node is busy until it has sent the last of them
            self._heard(line)
        now = time.monotonic()
        if self._node.alive and now - self._node.started > START_SECONDS and not self._node.runs(EXECUTOR):
            self._tell("supernode: cannot start the app any more, and is started again")
            self._node.stop()
        if self._served and not self._busy:
            return self._left(now)
        if self._node.alive and now - max(self._knocked, self._node.started) > KNOCK_SECONDS:
            self._knocked = now
            self._knock()
            self._check_answers(now)
        return False

    def _check_answers(self, now: float) -> None:
        """Stop a SuperNode that hangs: its interface on loopback does not answer any more."""
        if answers(self._port):
            self._answered = now
        elif now - max(self._answered, self._node.started) > HANG_SECONDS:
            self._tell("supernode: does not answer, and is started again")
            self._node.stop()

    def _left(self, now: float) -> bool:
        """Whether the site can leave: Flower gives the coordinator no answer of a site that is not connected."""
        if self._until is None:
            self._tell("stays connected until the coordinator has fetched the last answer")
            self._until, self._knocked = now + LINGER_SECONDS, 0.0  # the last knock may be older than the answer
        if now - self._knocked > LINGER_KNOCK_SECONDS:
            self._knocked = now
            self._knock()
        return not self._reached or now > self._until

    def _heard(self, line: str) -> None:
        """What a line of the SuperNode's log tells."""
        if "SuperNode ID:" in line:
            self._connected, self._refused_since, self._knocked = True, None, time.monotonic()
            self._tell(f"connected to {self._connection.coordinator} as {self._settings.site}")
        elif "Receiving: " in line:
            self._busy = True
        elif any(text in line for text in ("Sent successfully", "Failed to send", "Failed to receive", "Ignoring ")):
            self._busy = False

    def _knock(self) -> None:
        try:
            knock(self._connection.coordinator, self._connection.certificate, timeout=5.0)
        except NetworkError as failure:
            if self._reached and self._until is None:
                self._tell(f"{failure}; goes on trying")
            self._reached, self._refused_since = False, None
        else:
            if not self._reached:
                self._tell(f"coordinator {self._connection.coordinator}: is there again")
            self._reached = True

    def _why_ended(self, node: Child) -> tuple[str, float]:
        """Why the SuperNode ended, and how long to wait before its next start.

        Raises:
            NetworkError: the site has been refused for too long.
        """
        said, (plainly, least) = node.said(), plain_reading(node)
        if (node.exit_code or 0) < 0:
            return plainly, least
        if self._connected and "terminated gracefully" in said:
            return "the coordinator does not know this connection any more, as after a start of its own", least
        why, now = refusal(said, self._connection.coordinator), time.monotonic()
        if self._refused_since is None:
            self._refused_since = now
        elif now - self._refused_since > REFUSED_SECONDS:
            raise why
        return str(why), AGAIN_SECONDS
