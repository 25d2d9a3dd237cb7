"""Arguments and options that several verbs of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigPath = Annotated[Path, typer.Argument(metavar="CONFIG", help="federation.toml, or a hospital's site.toml")]
Overrides = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="override a key of the config")]
DataRoot = Annotated[Path | None, typer.Option("--data-root", help="folder that holds the sites' data folders")]
AsJson = Annotated[bool, typer.Option("--json", help="print one JSON document on stdout, texts on stderr")]
Force = Annotated[bool, typer.Option("--force", help="replace what exists")]
RunFolder = Annotated[Path, typer.Option("--run", help="run folder")]
PreparedOrRuns = Annotated[Path | None, typer.Option("--prepared", help="folder of prepared data; default: the run's")]
Device = Annotated[str | None, typer.Option("--device", help="torch device; default: the run's")]
