"""Asking sites over Flower's grid: who is there, requests in waves, replies one at a time, and a deadline for each."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import httpx
from flwr.app import Message
from flwr.serverapp import Grid

from pflsynth.deployment.flower import KIND, from_message, to_records
from pflsynth.deployment.headers import REASONS, Declined, MessageRefused, printable
from pflsynth.deployment.memory import free_after_failure
from pflsynth.deployment.messages import Packet, check_version
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.status import StatusFile, moment


@dataclass(frozen=True)
class Reply:
    """What came of asking a site: a packet, or why there is none."""

    site: str
    packet: Packet | None
    failure: str = ""


@dataclass(frozen=True)
class _Asked:
    site: str
    until: float


class Exchange:
    """The sites as they are reached through a grid."""

    def __init__(self, grid: Grid, sites: Sequence[str], settings: CoordinatorSettings, status: StatusFile):
        """Describe the exchange; nothing is sent.

        Args:
            grid: Flower's.
            sites: that train; a node belongs to the one that its key was registered for.
            settings: deadline, wave and time between two looks.
            status: told of every event.
        """
        self._grid, self._sites, self._settings, self._status = grid, sites, settings, status

    def connected(self) -> dict[str, int]:
        """Node of each site that is connected, by the name under which its key is registered.

        A name that two nodes have is not believed of either, and other names are no sites; both are told in the status.
        """
        nodes: dict[str, list[int]] = {}
        for node in self._grid.get_nodes():
            nodes.setdefault(node.name or f"node {node.node_id}", []).append(node.node_id)
        unknown = {name: "is not the name of a site that trains" for name in nodes if name not in self._sites}
        double = {name: f"{len(ids)} nodes have this name" for name, ids in nodes.items() if len(ids) > 1}
        found = {name: nodes[name][0] for name in self._sites if name in nodes and name not in double}
        self._status.now.strangers = {printable(name, 60): text for name, text in (unknown | double).items()}
        for site in self._sites:
            told = self._status.now.sites[site]
            told.connected = site in found
            if told.connected:
                told.seen = moment()
            else:
                told.joined = False
        self._status.write()
        return found

    def ask(self, nodes: dict[str, int], request: Callable[[str], Packet], deadline_s: float) -> Iterator[Reply]:
        """Ask sites, at most a wave at one time, and yield what comes of each, as it comes.

        Replies are fetched one at a time, so that one is in memory. What comes after the deadline is never fetched.

        Args:
            nodes: whom to ask.
            request: what to ask a site; called just before it is sent.
            deadline_s: how long each has to answer, from when it is asked.
        """
        waiting = sorted(nodes)
        asked: dict[str, _Asked] = {}
        while waiting or asked:
            while waiting and len(asked) < self._settings.wave:
                site = waiting.pop(0)
                identity = self._send(site, nodes[site], request(site), deadline_s)
                if identity is None:
                    yield self._reply(site, None, "the message could not be handed to Flower")
                else:
                    asked[identity] = _Asked(site, time.monotonic() + deadline_s)
            self._status.write(waiting_for=sorted({*waiting, *(each.site for each in asked.values())}))
            came = False
            for identity, each in list(asked.items()):
                reply = self._fetch(identity, each, deadline_s)
                if reply is not None:
                    del asked[identity]
                    came = True
                    yield reply
            if asked and not came:
                time.sleep(self._settings.poll_s)
        self._status.write(waiting_for=[])

    def _send(self, site: str, node: int, packet: Packet, deadline_s: float) -> str | None:
        lifetime = max(deadline_s, 1.0) + 3 * self._settings.poll_s  # Flower keeps nothing longer; ours ends first
        message = Message(to_records(packet), node, KIND, ttl=lifetime, group_id=packet.header.kind)
        sent = self._status.now.sites[site].sent + packet.size
        self._status.site(site, asked=packet.header.kind, asked_since=moment(), sent=sent)
        identities = list(self._grid.push_messages([message]))
        return identities[0] if identities and identities[0] else None

    def _fetch(self, identity: str, each: _Asked, deadline_s: float) -> Reply | None:
        """The reply to one message, if it is there or its time is over."""
        threads = threading.enumerate()
        try:
            for message in self._grid.pull_messages([identity]):
                if message.metadata.reply_to_message_id == identity:  # Flower hands out what sites send unasked, too
                    return self._read(each.site, message)
            failure = ""
        except (httpx.HTTPError, OSError):
            raise  # Flower's server is gone: nothing that a site did
        except MessageRefused as refusal:
            failure = str(refusal)
        except MemoryError:
            failure = "its reply needs more memory than a reply can; it is not one of ours"
        except Exception as error:
            failure = f"its reply cannot be read ({type(error).__name__})"
        if failure:
            free_after_failure(threads)
            return self._reply(each.site, None, failure)
        if time.monotonic() < each.until:
            return None
        return self._reply(each.site, None, f"no answer within {deadline_s:g} seconds")

    def _read(self, site: str, message: Message) -> Reply:
        packet = from_message(message)
        self._status.now.sites[site].received += packet.size
        check_version(packet.header)
        if isinstance(packet.header, Declined):
            return self._reply(site, None, f"{REASONS[packet.header.reason]}; its own log tells more")
        return self._reply(site, packet)

    def _reply(self, site: str, packet: Packet | None, failure: str = "") -> Reply:
        self._status.site(site, asked=None, asked_since=None)
        return Reply(site, packet, failure)
