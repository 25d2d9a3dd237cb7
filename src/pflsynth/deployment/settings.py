"""What each side of a federation is told about itself, as a JSON file that an environment variable names.

Flower starts the two apps in processes of its own, so they cannot be given arguments. Neither file leaves its machine.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Self

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from pflsynth.errors import UsageError
from pflsynth.files import read_json, write_json

COORDINATOR_VARIABLE = "PFLSYNTH_COORDINATOR"
SITE_VARIABLE = "PFLSYNTH_SITE"

Seconds = Annotated[float, Field(ge=0)]


def work_of(run: Path) -> Path:
    """Folder of the processes beside a run: their logs, and what Flower and the proxy keep while they run."""
    return run.absolute().with_name(f"{run.absolute().name}.flower")


def log_of(run: Path) -> Path:
    """JSON lines beside a run: what people should hear of."""
    return run.absolute().with_name(f"{run.absolute().name}.log.jsonl")


class _File:
    """Settings that are written for a process, and read by it."""

    def write(self, path: Path) -> None:
        """Write the settings as JSON, atomically."""
        content = asdict(self)  # type: ignore[call-overload]
        write_json(path, {key: str(value) if isinstance(value, Path) else value for key, value in content.items()})

    @classmethod
    def _from(cls, variable: str) -> Self:
        named = os.environ.get(variable)
        if not named:
            raise UsageError(f"the environment variable {variable} is not set; it names the settings of this process")
        try:
            return TypeAdapter(cls).validate_python(read_json(Path(named), UsageError))
        except ValidationError as failure:
            first = failure.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UsageError(f"{named}: {place}: {first['msg']}; write these settings again") from None


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class CoordinatorSettings(_File):
    """How the coordinator runs the rounds. None of it is part of the agreement, and none changes a byte of an update.

    Attributes:
        federation: ``federation.toml``.
        run: folder of the run, made if it is absent, resumed if it is there.
        deadline_s: how long a site has for a round, in seconds from the moment it is asked.
        answer_s: how long it has to answer whether it agrees.
        wave: most sites that are asked at one time, and train at one time; bounds what Flower keeps unread.
        gather_s: how long the first round after a start, and the end, wait for sites beyond the quorum.
        retry_s: how long after a failure the same site is asked again.
        patience_s: how long a round may lack a quorum before the coordinator gives up; default: for ever.
        poll_s: time between two looks for replies.
    """

    federation: Path
    run: Path
    deadline_s: Seconds = 6 * 3600.0
    answer_s: Seconds = 120.0
    wave: Annotated[int, Field(ge=1)] = 32
    gather_s: Seconds = 300.0
    retry_s: Seconds = 60.0
    patience_s: Seconds | None = None
    poll_s: Seconds = 3.0

    @classmethod
    def from_environment(cls) -> CoordinatorSettings:
        """Read the file that ``PFLSYNTH_COORDINATOR`` names.

        Raises:
            UsageError: if there is none, or a value is not possible.
        """
        return cls._from(COORDINATOR_VARIABLE)


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class SiteSettings(_File):
    """Where a site's things are on its own machine.

    Attributes:
        federation: ``federation.toml`` or ``site.toml``.
        site: its name in the agreement.
        prepared: folder of prepared data, with a folder of the site's name in it.
        run: folder of the site's run, made if it is absent.
    """

    federation: Path
    site: str
    prepared: Path
    run: Path

    @classmethod
    def from_environment(cls) -> SiteSettings:
        """Read the file that ``PFLSYNTH_SITE`` names.

        Raises:
            UsageError: if there is none, or a value is not possible.
        """
        return cls._from(SITE_VARIABLE)
