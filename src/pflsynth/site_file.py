"""A hospital's own file, ``site.toml``: which site it is, where things are on its machine, where the coordinator is."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import Field, field_validator

from pflsynth.config import DEVICE
from pflsynth.config_sections import Strict

_ADDRESS = re.compile(r"^(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):(?P<port>[0-9]{1,5})$")


def parse_address(text: str) -> tuple[str, int]:
    """Host (an IPv6 address without its brackets) and port of ``host:port`` or ``[host]:port``.

    Raises:
        ValueError: if the text is no address, or the port is not within 1 to 65535.
    """
    match = _ADDRESS.match(text)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise ValueError(f'"{text}" is no address; write it as "host:port", such as "coordinator.example.org:9092"')
    return match["host"].strip("[]"), int(match["port"])


class SiteFile(Strict):
    """A hospital's own ``site.toml``: which site it is, and where things are on its machine.

    The last keys are for taking part in a federation across machines. No key of it is part of the agreement.
    """

    site: str
    federation: Path = Field(strict=False, description="the agreement, relative to this file")
    data: Path = Field(strict=False, description="folder of images, relative to this file")
    layout: str | None = Field(None, description="how the folder names its images; default: the federation's")
    contrast_names: dict[str, str] | None = None
    device: str | None = Field(None, pattern=DEVICE)
    workers: int | None = Field(None, ge=1)
    threads: int | None = Field(None, ge=1)
    compile: bool | None = None
    checkpoint_activations: bool | None = None
    prepared: Path | None = Field(None, strict=False, description="folder of prepared data, relative to this file")
    run: Path | None = Field(None, strict=False, description="folder of the site's run, relative to this file")
    coordinator: str | None = Field(None, description="address of the coordinator, host:port")
    certificate: Path | None = Field(None, strict=False, description="certificate of the CA, relative to this file")
    key: Path | None = Field(None, strict=False, description="the site's private key, relative to this file")

    @field_validator("coordinator")
    @classmethod
    def _is_address(cls, value: str | None) -> str | None:
        if value is not None:
            parse_address(value)
        return value

    def within(self, folder: Path) -> SiteFile:
        """The same with every path absolute: relative ones start at ``folder``, where the file is."""
        paths = {key: getattr(self, key) for key in ("federation", "data", "prepared", "run", "certificate", "key")}
        return self.model_copy(
            update={key: (folder / path).absolute() for key, path in paths.items() if path is not None}
        )
