"""The run folder of one side of a federation: opened, or made, or made again if its making was killed."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from pflsynth.config import FederationConfig
from pflsynth.runs import RunDirectory
from pflsynth.training import check_same_agreement

_MADE_FIRST = {"shared", "sites", "federation.toml", "agreement.sha256", "local.json"}


def open_or_create(
    folder: Path,
    config: FederationConfig,
    *,
    prepared: Path | None,
    manifests: Mapping[str, str],
    trainers: Sequence[str],
    sites: Sequence[str],
) -> RunDirectory:
    """Open the run of this agreement, or make it.

    Args:
        folder: of the run.
        config: the agreement.
        prepared: folder of prepared data; ``None`` for the coordinator.
        manifests: SHA-256 of the manifest of each site whose data is here.
        trainers: whose bases the run keeps.
        sites: whose private states and models it keeps.

    Raises:
        UsageError: if the folder holds other things.
        ModelError: if the run is damaged or of another agreement; that is told key by key.
        DataError: if the prepared data is not what the run began with.
    """
    if (folder / "state.json").exists():
        run, recorded = RunDirectory.open(folder)
        check_same_agreement(folder, recorded, config)
        if prepared is not None:
            run.check_prepared(prepared, manifests)
        return run
    _remove_half_made(folder)
    return RunDirectory.create(folder, config, prepared, manifests, trainers, sites)


def _remove_half_made(folder: Path) -> None:
    """Remove what a killed :meth:`RunDirectory.create` left, and nothing else: its state is written last."""
    left = [path for path in folder.iterdir() if not path.name.endswith(".tmp")] if folder.is_dir() else []
    if {path.name for path in left} <= _MADE_FIRST and not any(folder.rglob("*.safetensors")):
        for path in left:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        for path in folder.glob(".*.tmp"):
            path.unlink()
