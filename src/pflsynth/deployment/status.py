"""``status.json`` in the coordinator's run folder: what it does, and what it knows of every site, after every event."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pflsynth.errors import ModelError
from pflsynth.files import read_json, write_json

NAME = "status.json"
FORMAT = 1

SERVING = "serving.json"
"""File beside the processes of a coordinator: where it listens, and its certificate."""

Phase = Literal["waiting", "training", "validating", "finishing", "finished", "stopped"]


@dataclass
class SiteStatus:
    """What the coordinator knows of a site.

    Attributes:
        connected: Flower has a connection of its key.
        joined: it runs the same version and has the same agreement.
        seen: when it was last connected, ISO 8601, UTC.
        asked: what it is being asked now: join, train, validate or finish.
        asked_since: since when.
        updated: when its last accepted update came.
        updated_round: of which round that was.
        refused: why its last answer was not used, or none came.
        lost_state: last round in which it had lost its private state and started from the shared parameters.
        finished: it has its personalised model.
        sent: bytes sent to it since the coordinator started.
        received: bytes received from it since then.
    """

    connected: bool = False
    joined: bool = False
    seen: str | None = None
    asked: str | None = None
    asked_since: str | None = None
    updated: str | None = None
    updated_round: int | None = None
    refused: str | None = None
    lost_state: int | None = None
    finished: bool = False
    sent: int = 0
    received: int = 0


@dataclass
class Status:
    """What the coordinator is doing.

    Attributes:
        phase: what it does; "stopped" if it ended by an error, which ``problem`` tells.
        round: the one it is in, or the last one.
        rounds: of the training.
        quorum: least accepted updates of a round.
        accepted: sites whose update of this round is in.
        waiting_for: sites that it waits for now.
        problem: what stands in the way of the whole training.
        lasting: whether that problem would come again if the coordinator just started again.
        strangers: connections that belong to no site that trains, and why they are not asked.
        sites: by name.
        started: when the coordinator started.
        time: of this status.
    """

    phase: Phase
    round: int
    rounds: int
    quorum: int
    accepted: list[str] = field(default_factory=list)
    waiting_for: list[str] = field(default_factory=list)
    problem: str | None = None
    lasting: bool = False
    strangers: dict[str, str] = field(default_factory=dict)
    sites: dict[str, SiteStatus] = field(default_factory=dict)
    started: str = ""
    time: str = ""


class StatusFile:
    """Keeps ``status.json`` up to date."""

    def __init__(self, folder: Path, sites: Sequence[str], rounds: int, quorum: int):
        self._path = folder / NAME
        self.now = Status("waiting", 0, rounds, quorum, sites={site: SiteStatus() for site in sites}, started=moment())

    def write(self, **changes: Any) -> None:
        """Change what is told of the whole training, and write everything."""
        for name, value in changes.items():
            setattr(self.now, name, value)
        self.now.time = moment()
        write_json(self._path, {"format": FORMAT, **asdict(self.now)})

    def site(self, site: str, **changes: Any) -> None:
        """Change what is told of one site, and write everything."""
        for name, value in changes.items():
            setattr(self.now.sites[site], name, value)
        self.write()


def mark_stopped(folder: Path, problem: str) -> None:
    """Say that nothing runs any more, unless the training is finished; the process that would say so may be killed."""
    with suppress(ModelError, OSError):  # a full disk may be the problem
        status = read_status(folder)
        if status.phase not in ("finished", "stopped"):
            status.phase, status.problem, status.time = "stopped", problem, moment()
            write_json(folder / NAME, {"format": FORMAT, **asdict(status)})


def moment() -> str:
    """This moment, ISO 8601, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def read_status(folder: Path) -> Status:
    """Read a run folder's status.

    Raises:
        ModelError: if there is none, or it is damaged or of another version.
    """
    path = folder / NAME
    if not path.is_file():
        raise ModelError(f"{folder}: has no {NAME}; give the run folder of a coordinator that was started")
    content = read_json(path)
    try:
        found = content.pop("format", None) if isinstance(content, dict) else None
        if isinstance(found, int) and found != FORMAT:
            raise ModelError(f"{path}: was written by another version of pflsynth; use that version")
        return TypeAdapter(Status).validate_python(content)
    except ValidationError:
        raise ModelError(f"{path}: is damaged; it is written again at the coordinator's next event") from None
