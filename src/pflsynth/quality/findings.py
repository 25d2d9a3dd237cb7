"""What the verb ``check`` says: one finding, good, suspicious or wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "suspicious", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One line of ``check``.

    Attributes:
        level: "ok"; "suspicious": ``prepare`` goes on, but a person should look; "wrong": ``prepare`` refuses it.
        check: which check it is of, such as "alignment"; each has its part of ``docs/quality.md``.
        text: what was found, with the values, and what to do about it.
        subject: the subject that it is about, or None for the site.
        contrasts: the contrasts that it is about, if any.
    """

    level: Level
    check: str
    text: str
    subject: str | None = None
    contrasts: tuple[str, ...] = ()
