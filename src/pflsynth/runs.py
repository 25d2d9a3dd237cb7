"""The run directory: everything about one training, readable by people and resumable after any stop.

::

    federation.toml  agreement.sha256  local.json  state.json  metrics.jsonl  timings.jsonl
    shared/round-0042.safetensors
    sites/<site>/private-0042.safetensors  sites/<site>/personalised-0042.safetensors

``state.json`` is written last in a round: what it names exists, and what is newer is done again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pflsynth.config import FederationConfig, SplitName
from pflsynth.config_files import load_config, toml_bytes
from pflsynth.errors import DataError, ModelError, UsageError
from pflsynth.files import exclusive, read_json, write_atomic, write_json

STATE_FORMAT = 1


@dataclass(frozen=True)
class RunState:
    """How far a run is: the last whole round, each site's last accepted round, and the round selected so far."""

    round: int = 0
    bases: Mapping[str, int] = field(default_factory=dict)
    selected: int = 0
    selected_score: float | None = None
    selected_bases: Mapping[str, int] = field(default_factory=dict)

    def result(self, config: FederationConfig) -> tuple[int, Mapping[str, int]]:
        """The round that is a finished run's result, and the round of each site's private state in it."""
        if config.training.select == "validation" and self.selected:
            return self.selected, self.selected_bases
        return self.round, self.bases


class RunDirectory:
    """Paths and small files of a run; see the module's text."""

    def __init__(self, folder: Path):
        self.folder = folder

    @classmethod
    def create(
        cls,
        folder: Path,
        config: FederationConfig,
        prepared: Path | None,
        manifests: Mapping[str, str],
        trainers: Sequence[str],
        sites: Sequence[str] | None = None,
    ) -> RunDirectory:
        """Make a new run.

        Args:
            folder: must not exist, or be empty.
            config: the resolved configuration; kept as ``federation.toml``.
            prepared: folder of prepared data, recorded for ``--resume`` and ``evaluate``; ``None`` for a coordinator
                that has none.
            manifests: SHA-256 of every site's manifest.
            trainers: whose bases are kept: the participating sites, or the one place of a centralised method.
            sites: whose private states and models are kept; default: of trainers and participating sites.

        Raises:
            UsageError: if the folder holds something already.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(
                f"{folder}: exists already; go on with --resume, choose another --run, or start over with --force"
            )
        run = cls(folder)
        try:
            kept = {*config.participants, *trainers} if sites is None else sites
            for part in (run.shared_folder, folder / "sites", *map(run.site_folder, kept)):
                part.mkdir(parents=True, exist_ok=True)
            write_atomic(folder / "federation.toml", toml_bytes(config.model_dump(mode="json")))
            write_atomic(folder / "agreement.sha256", f"{config.agreement_sha256()}\n".encode())
            if prepared is not None:
                write_json(folder / "local.json", {"prepared": str(prepared.absolute()), "manifests": dict(manifests)})
            run.save_state(RunState(bases=dict.fromkeys(trainers, 0)))
        except BaseException:  # half a run could neither be resumed nor made again
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return run

    @classmethod
    def open(cls, folder: Path) -> tuple[RunDirectory, FederationConfig]:
        """Open a run that :meth:`create` made.

        Raises:
            ModelError: if it is no run, or its agreement was changed or is gone.
        """
        if not (folder / "state.json").is_file():
            raise ModelError(f"{folder}: is not a run folder (it has no state.json); make one with: pflsynth train")
        for name in ("federation.toml", "agreement.sha256"):
            if not (folder / name).is_file():
                raise ModelError(f"{folder / name}: is missing; restore it or start a new run")
        try:
            config = load_config(folder / "federation.toml").federation
        except UsageError as error:
            raise ModelError(f"{error}; restore it or start a new run") from None
        recorded = (folder / "agreement.sha256").read_text(encoding="utf-8").strip()
        if config.agreement_sha256() != recorded:
            raise ModelError(
                f"{folder / 'federation.toml'}: was changed after training began (hash "
                f"{config.agreement_sha256()[:12]}, recorded {recorded[:12]}); restore it or start a new run"
            )
        return cls(folder), config

    @property
    def shared_folder(self) -> Path:
        """Folder of the shared parameters."""
        return self.folder / "shared"

    def shared_path(self, round_number: int) -> Path:
        """Shared parameters after a round; round 0 is the common initialisation."""
        return self.shared_folder / f"round-{round_number:04d}.safetensors"

    def site_folder(self, site: str) -> Path:
        """Folder of a site's private state."""
        return self.folder / "sites" / site

    def evaluation_folder(self, split: SplitName) -> Path:
        """Scores of the finished models on one split."""
        return self.folder / "evaluation" / split

    def personalised_path(self, site: str, round_number: int) -> Path:
        """Finished personalised model of a site."""
        return self.site_folder(site) / f"personalised-{round_number:04d}.safetensors"

    def sites(self, config: FederationConfig) -> tuple[str, ...]:
        """Participating sites whose models are kept here: all, one at a hospital, none at a coordinator."""
        return tuple(site for site in config.participants if self.site_folder(site).is_dir())

    def local(self) -> dict[str, Any]:
        """Where the prepared data is on this machine, and the hashes of its manifests."""
        content = self._read_table("local.json")
        if not content.keys() >= {"prepared", "manifests"}:
            raise ModelError(f"{self.folder / 'local.json'}: is damaged; start a new run")
        return content

    def check_prepared(self, prepared: Path, manifests: Mapping[str, str]) -> None:
        """Refuse prepared data that is not what the run was trained on: subjects could have changed their split.

        Args:
            prepared: its folder.
            manifests: SHA-256 of every site's manifest in it.

        Raises:
            DataError: naming the site.
        """
        recorded = self.local()["manifests"]
        for site, found in manifests.items():
            if found != recorded.get(site):
                raise DataError(
                    f"{prepared / site}: the prepared data changed since {self.folder} began; restore it or start a "
                    "new run"
                )

    def state(self) -> RunState:
        """The last whole round; raises ModelError if ``state.json`` is damaged or of a newer format."""
        path, content = self.folder / "state.json", self._read_table("state.json")
        found = content.pop("format", None)
        if found != STATE_FORMAT:
            raise ModelError(
                f"{path}: has format {found}, this pflsynth reads {STATE_FORMAT}: "
                "it was written by a newer pflsynth; update pflsynth"
            )
        if content.keys() != {entry.name for entry in fields(RunState)}:
            raise ModelError(f"{path}: is damaged (it has the keys {', '.join(content)}); start a new run")
        try:
            return TypeAdapter(RunState).validate_python(content)
        except ValidationError as failure:
            first = failure.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise ModelError(f"{path}: is damaged at {key} ({first['msg']}); start a new run") from None

    def result(self, config: FederationConfig) -> tuple[int, Mapping[str, int]]:
        """The round that is the run's result, and the round of each site's private state in it.

        Raises:
            ModelError: if training is not finished.
        """
        state = self.state()
        if state.round < config.rounds:
            raise ModelError(
                f"{self.folder}: is not finished (round {state.round} of {config.rounds}); "
                f"go on with: pflsynth train --resume --run {self.folder}"
            )
        return state.result(config)

    def save_state(self, state: RunState) -> None:
        """Make a round whole: from now on the run resumes after it."""
        write_json(self.folder / "state.json", {"format": STATE_FORMAT, **asdict(state)})

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one line to ``metrics.jsonl`` or ``timings.jsonl`` and flush it to disk."""
        path = self.folder / name
        try:
            with path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            error.filename = str(path)  # a full disk is told of without saying where
            raise

    def records(self, name: str) -> list[dict[str, Any]]:
        """All lines of ``metrics.jsonl`` or ``timings.jsonl``; a last line cut short by a kill is left out."""
        path = self.folder / name
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        try:
            return [json.loads(line) for line in lines if line.endswith(b"\n")]
        except ValueError as failure:
            raise ModelError(f"{path}: is damaged ({failure}); restore it or start a new run") from None

    def drop_records_after(self, name: str, round_number: int) -> None:
        """Keep only the lines of rounds up to ``round_number``: later ones are of a round that was not finished."""
        kept = [record for record in self.records(name) if record["round"] <= round_number]
        write_atomic(self.folder / name, "".join(map(_line, kept)).encode())

    def remove_half_written(self) -> None:
        """Remove the temporary files that a kill left; only for the process that holds the lock."""
        for folder in (self.folder, self.shared_folder, *(self.folder / "sites").iterdir()):
            for path in folder.glob(".*.tmp"):
                path.unlink()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for one training process.

        Raises:
            UsageError: if another process trains in this run.
        """
        busy = f"{self.folder}: another process is training in this run; wait for it"
        with exclusive(self.folder / ".lock", busy):
            yield

    def _read_table(self, name: str) -> dict[str, Any]:
        content = read_json(self.folder / name)
        if not isinstance(content, dict):
            raise ModelError(f"{self.folder / name}: is damaged (it holds no table); start a new run")
        return content


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, sort_keys=True, allow_nan=True) + "\n"
