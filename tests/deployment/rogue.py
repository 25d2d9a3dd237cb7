"""A site whose key is real and whose code is not: it joins as it should, and answers its first training as it likes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import httpx
from cryptography.hazmat.primitives import serialization
from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.fleet_http_connection import http_request_response

from pflsynth.deployment.client import answer
from pflsynth.deployment.flower import ENCODING, KIND, from_message, to_records
from pflsynth.deployment.headers import Train, Trained
from pflsynth.deployment.messages import Packet
from pflsynth.deployment.settings import SiteSettings

PIECE = 5 * 2**20
"""Bytes of a tensor in one of Flower's objects."""


@dataclass(frozen=True)
class Parcel:
    """A message as it is pushed: its tree of objects, and what makes each of them, by identity."""

    message: Message
    tree: ObjectTree
    objects: dict[str, Callable[[], bytes]]


Answer = Callable[[Message], Parcel]


def honest(message: Message) -> Parcel:
    """A message as Flower would push it."""
    message.metadata.__dict__["_message_id"] = message.object_id
    objects = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
    return Parcel(message, get_object_tree(message), {name: _same(content) for name, content in objects.items()})


def swollen(pieces: int, order: Sequence[int]) -> Answer:
    """Makes an update's array one of so many pieces, put together in some order, in which a piece can recur."""

    def piece(number: int) -> Callable[[], bytes]:
        return lambda: _object("ArrayChunk", (), number.to_bytes(8, "big") * (PIECE // 8))

    def swell(message: Message) -> Parcel:
        parcel = honest(message)
        contents = {name: content() for name, content in parcel.objects.items()}
        chunks = {hashlib.sha256(piece(number)()).hexdigest(): piece(number) for number in range(pieces)}
        about = {"dtype": "uint8", "shape": [0], "stype": ENCODING, "arraychunk_ids": list(order)}
        replaced = _named(contents, "ArrayChunk")[0]
        old, _ = _named(contents, "Array")
        content = _object("Array", tuple(chunks), json.dumps(about, separators=(",", ":")).encode())
        made, below = dict[str, Callable[[], bytes]](chunks), [ObjectTree(object_id=name) for name in chunks]
        for kind in ("ArrayRecord", "RecordDict", "Message", None):
            new = hashlib.sha256(content).hexdigest()
            made[new] = _same(content)
            below = [ObjectTree(object_id=new, children=below)]
            if kind == "Message":
                header, config = _named(contents, "ConfigRecord")
                made[header] = _same(config)
                below = [ObjectTree(object_id=new, children=[ObjectTree(object_id=header), *below[0].children])]
            if kind is not None:
                name, content = _named(contents, kind)
                content, old = content.replace(old.encode(), new.encode()), name
        assert replaced not in made
        message.metadata.__dict__["_message_id"] = new
        return Parcel(message, below[0], made)

    return swell


def unasked(message: Message) -> Parcel:
    """An update of zeros that answers nothing, and names the coordinator as its sender and receiver."""
    packet = from_message(message)
    assert isinstance(packet.header, Trained)
    common = {name: loss for name, loss in packet.header.metrics.items() if name.endswith("/T1w->T2w")}
    zeros = {name: bytes(len(data)) for name, data in packet.arrays.items()}
    with patch.multiple(TaskIdentity, _run_id=message.metadata.run_id, _node_id=SUPERLINK_NODE_ID, _task_id=1):
        header = packet.header.model_copy(update={"metrics": common})
        return honest(Message(to_records(Packet(header, zeros)), SUPERLINK_NODE_ID, KIND, ttl=3600.0))


def _named(contents: dict[str, bytes], kind: str) -> tuple[str, bytes]:
    return next((name, content) for name, content in contents.items() if content.startswith(f"{kind} ".encode()))


def _object(kind: str, children: Sequence[str], body: bytes) -> bytes:
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\0" + body


def _same(content: bytes) -> Callable[[], bytes]:
    return lambda: content


@contextmanager
def rogue(
    port: int, hospital: Path, settings: SiteSettings, answers: Callable[[Message], list[Parcel]]
) -> Iterator[Any]:
    """A thread that takes part in a site's name until the end; ``answers`` makes what it pushes after a training."""
    stop = threading.Event()
    key = serialization.load_ssh_private_key((hospital / "site.key").read_bytes(), None)
    certificate = (hospital / "ca.crt").read_bytes()

    def take_part() -> None:
        address, keys = f"127.0.0.1:{port}", (key, key.public_key())  # type: ignore[union-attr]
        ended = (httpx.HTTPError, RunNotRunningException)  # the coordinator is gone, or its rounds are over
        with (
            suppress(*ended),
            http_request_response(address, False, certificate, keys, max_wait_time=60.0) as connection,  # type: ignore[arg-type]
        ):
            _, receive, send, _, _, pull, push, confirm = connection
            while not stop.wait(1.0):
                received = receive()
                if received is None:
                    continue
                told, tree = received
                run = told.metadata.run_id
                message = pull_and_inflate_object_from_tree(
                    tree,
                    lambda name, run=run: pull(run, name),
                    lambda name, run=run: confirm(run, name),
                    return_type=Message,
                )
                message.metadata.__dict__["_message_id"] = told.metadata.message_id
                reply = answer(message, settings)
                training = isinstance(from_message(message).header, Train)
                for parcel in answers(reply) if training else [honest(reply)]:
                    stop.wait(5.0)  # longer than the coordinator waits between two looks
                    wanted, session = send(parcel.message, parcel.tree, 1.0)
                    for name, content in parcel.objects.items():
                        if name in wanted:
                            push(run, session, name, content())

    thread = threading.Thread(target=take_part)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
