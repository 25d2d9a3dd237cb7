"""A grid in one process: the real ServerApp's main and the real ClientApp, every message through Flower's own bytes."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

from pflsynth.config import FederationConfig
from pflsynth.deployment.app import client_app, server_app
from pflsynth.deployment.flower import from_message
from pflsynth.deployment.settings import COORDINATOR_VARIABLE, SITE_VARIABLE, CoordinatorSettings, SiteSettings
from pflsynth.runs import RunDirectory, RunState

Spoil = Callable[["Letter", Message], Message | None]
QUICK: dict[str, Any] = {"poll_s": 0.0, "retry_s": 0.0, "gather_s": 0.0, "patience_s": 20.0}


def carried(message: Message) -> tuple[Message, bytes]:
    """A message as it arrives elsewhere, and the bytes that went over the wire."""
    message.metadata.__dict__["_message_id"] = message.object_id
    contents = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, dict(contents))
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.object_id
    return arrived, b"".join(contents.values())


@dataclass
class Letter:
    """A message to a site that is on its way."""

    site: str
    message: Message
    looks: int = 0

    @property
    def header(self) -> Any:
        return from_message(self.message).header


@dataclass
class Hospitals(Grid):
    """All machines of a federation in one process.

    Attributes:
        folder: holds ``federation.toml``, and each machine's own folder.
        config: the agreement.
        prepared: folder of prepared data of all sites.
        spoil: changes a site's reply; ``None`` in its place for one that never comes.
        absent: sites that are not connected in a round.
        patience: how many times a letter must be asked for before its reply is there.
        strangers: further nodes, by identity, and their names.
        told: lines of the coordinator.
        sent: bytes of every reply, by site.
    """

    folder: Path
    config: FederationConfig
    prepared: Path
    spoil: Spoil = lambda letter, reply: reply
    absent: Callable[[int], set[str]] = lambda number: set()
    patience: Callable[[Letter], int] = lambda letter: 0
    strangers: dict[int, str] = field(default_factory=dict)
    sent: list[tuple[str, bytes]] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._letters: dict[str, Letter] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        content = self.config.model_dump(mode="json", exclude_none=True)
        self.federation.write_text(tomli_w.dumps(content))
        for site in self.config.participants:
            self.settings(site).write(self.folder / f"{site}.json")
        self.nodes = dict(enumerate(self.config.participants, 11))

    @property
    def federation(self) -> Path:
        return self.folder / "federation.toml"

    @property
    def coordinator(self) -> Path:
        """Run folder of the coordinator."""
        return self.folder / "coordinator"

    def settings(self, site: str) -> SiteSettings:
        return SiteSettings(self.federation, site, self.prepared, self.run_of(site))

    def run_of(self, site: str) -> Path:
        """Run folder of a site."""
        return self.folder / f"run of {site}"

    def serve(self, **changes: Any) -> RunState:
        """Run the ServerApp to its end."""
        settings = CoordinatorSettings(self.federation, self.coordinator, **{**QUICK, **changes})
        settings.write(self.folder / "coordinator.json")
        with (
            patch.multiple(TaskIdentity, _run_id=1, _node_id=1, _task_id=1),
            patch.dict(os.environ, {COORDINATOR_VARIABLE: str(self.folder / "coordinator.json")}),
        ):
            server_app.app(self, _context(1))
        return RunDirectory(self.coordinator).state()

    def status(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.coordinator / "status.json").read_text())
        return content

    # ------------------------------------------------------------------------------------------------ Flower's grid

    def get_nodes(self) -> Iterable[NodeInfo]:
        state = self.coordinator / "state.json"
        number = RunDirectory(self.coordinator).state().round + 1 if state.exists() else 1
        gone = self.absent(number)
        there = {node: name for node, name in self.nodes.items() if name not in gone}
        return [NodeInfo(node_id=node, name=name) for node, name in (there | self.strangers).items()]

    def get_node_ids(self) -> Iterable[int]:
        return [node.node_id for node in self.get_nodes()]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        identities = []
        for message in messages:
            arrived, _ = carried(message)
            site = (self.nodes | self.strangers)[arrived.metadata.dst_node_id]
            letter = Letter(site, arrived)
            self.asked.append((site, letter.header.kind))
            identity = arrived.metadata.message_id
            self._letters[identity] = letter
            identities.append(identity)
        return identities

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = []
        for identity in message_ids:
            letter = self._letters[identity]
            letter.looks += 1
            if letter.looks <= self.patience(letter):
                continue
            with patch.dict(os.environ, {SITE_VARIABLE: str(self.folder / f"{letter.site}.json")}):
                reply = self.spoil(
                    letter, client_app.app(letter.message, _context(letter.message.metadata.dst_node_id))
                )
            if reply is None:
                continue
            if letter.header.kind == "train":
                self.order.append(letter.site)
            arrived, data = carried(reply)
            self.sent.append((letter.site, data))
            replies.append(arrived)
        return replies

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *_: Any, **__: Any) -> Iterable[Message]:
        raise NotImplementedError


def _context(node: int) -> Context:
    return Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
