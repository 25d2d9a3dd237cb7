"""Everything that leaves two sites in a real training, read along on the road to the coordinator's proxy: the shared
tensors, counts and metrics that the agreement names, and nothing private, no path, no subject, no image."""

from __future__ import annotations

import getpass
import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest

from pflsynth.data.slices import SliceStore
from pflsynth.deployment.headers import Finished, Joined, Scored, Trained, read_header
from pflsynth.deployment.messages import Layout
from pflsynth.deployment.proxy import FLEET_PATHS
from pflsynth.deployment.status import read_status
from pflsynth.federation.checkpoint import OPTIMIZER, RESIDUAL
from pflsynth.federation.methods import method_of
from pflsynth.files import load_tensors

from ..tiny import Silent, Tiny, changed, new_federation
from .real import Machines, machines
from .relay import relay
from .test_same_bytes import prepare

pytestmark = pytest.mark.slow

OF_EVERY_REQUEST = {"host", "accept-encoding"}
OF_A_SUPERNODE = OF_EVERY_REQUEST | {
    *("accept", "connection", "content-length", "content-type", "user-agent"),
    *("flwr-component-name", "flwr-package-name", "flwr-package-version"),
    *("flwr-public-key", "flwr-signature", "flwr-timestamp"),
}


@dataclass(frozen=True)
class Request:
    """A request of a site as it left the machine."""

    line: str
    headers: dict[str, str]
    body: bytes


def requests(stream: bytes) -> Iterator[Request]:
    """The requests that were sent in one connection; nothing of it is left over."""
    while stream:
        head, end, rest = stream.partition(b"\r\n\r\n")
        assert end
        line, *lines = head.decode("ascii").split("\r\n")
        headers = {name.lower(): value for name, _, value in (each.partition(": ") for each in lines)}
        size = int(headers.get("content-length", "0"))
        yield Request(line, headers, rest[:size])
        stream = rest[size:]


@dataclass(frozen=True)
class Watched:
    """A training, all bytes that each site sent, and what was in them.

    Attributes:
        made: the machines.
        prepared: the sites' data.
        sent: by site.
        requests: the same, taken apart.
        updates: the tensors of each site's updates as the agreement has them encoded, from training in one process.
    """

    made: Machines
    prepared: Path
    sent: dict[str, bytes]
    requests: dict[str, list[Request]]
    updates: dict[str, list[bytes]]

    @property
    def all_sent(self) -> bytes:
        return b"".join(self.sent.values())

    def bodies(self, site: str, path: str) -> list[bytes]:
        return [each.body for each in self.requests[site] if each.line == f"POST /v1/fleet/{path} HTTP/1.1"]

    def objects(self, site: str) -> list[bytes]:
        """The objects that a site sent; Flower takes one that it has already, also of another site, only once."""
        return [PushObjectRequest.FromString(body).object_content for body in self.bodies(site, "push-object")]

    def texts(self, site: str) -> list[str]:
        """The headers of pflsynth's own messages."""
        found = [re.findall(rb'\{"pflsynth":.*?"kind":.*?\}+', content) for content in self.objects(site)]
        return [text.decode() for texts in found for text in texts]

    def update_bytes(self, site: str) -> int:
        return len(self.updates[site][0])


@pytest.fixture(scope="module", params=["float32", "int8"])
def watched(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Watched:
    """A training with validation."""
    folder = tmp_path_factory.mktemp("watched")
    config = changed(
        tiny.config,
        rounds=2,
        split={"validation": 0.3},
        training={"validate_every": 1},
        updates={"encoding": request.param},
    )
    prepared = folder / "prepared"
    prepare(config, prepared)
    federation, updates = new_federation(config, prepared, folder / "one process"), dict[str, list[bytes]]()
    for site in federation.sites:
        site.train_round = _kept(site, updates.setdefault(site.name, []))  # type: ignore[method-assign]
    federation.train(Silent())
    with machines(folder, config, prepared) as made, ExitStack() as stack:
        relays = {site: stack.enter_context(relay(made.port, folder / "keys")) for site in config.participants}
        for site, own in relays.items():
            made.send_through(site, own.port)
        made.serve()
        made.join_all()
        for name in ("serve", *relays):
            assert made.end(name) == 0, made.everything()
    streams = {site: [bytes(stream) for stream in own.connections] for site, own in relays.items()}
    return Watched(
        made,
        prepared,
        {site: b"".join(own) for site, own in streams.items()},
        {site: [each for stream in own for each in requests(stream)] for site, own in streams.items()},
        updates,
    )


def _kept(site: Any, updates: list[bytes]) -> Any:
    train_round = site.train_round

    def trained(*words: Any) -> Any:
        update = train_round(*words)
        updates.append(Layout.of(update.tensors).pack(update.tensors))
        return update

    return trained


def test_the_shared_tensors_are_what_is_sent(watched: Watched) -> None:
    """As they are, so that what is searched for below would be found; and hardly anything else."""
    for site, updates in watched.updates.items():
        assert len(updates) == 2
        rest = watched.sent[site]
        for update in updates:
            assert rest.count(update) == 1
            rest = rest.replace(update, b"")
        per_request = 2000
        assert len(rest) < per_request * len(watched.requests[site])


def test_what_the_requests_tell(watched: Watched) -> None:
    """The same few headers of each; and a message's numbers, kind and times."""
    known = {f"POST {path} HTTP/1.1" for path in FLEET_PATHS}
    for site, sent in watched.requests.items():
        paths = {each.line for each in sent}
        assert {"GET /health HTTP/1.1"} < paths <= known | {"GET /health HTTP/1.1"}
        keys = set()
        for each in sent:
            if each.line.startswith("GET"):
                assert each.headers.keys() == OF_EVERY_REQUEST
                assert each.body == b""
                continue
            assert each.headers.keys() == OF_A_SUPERNODE
            assert re.fullmatch(r"python-httpx/[\d.]+", each.headers["user-agent"])
            told = tuple(each.headers[f"flwr-{name}"] for name in ("package-name", "package-version", "component-name"))
            assert (told[0], told[2]) == ("flwr", "SuperNode")
            assert re.fullmatch(r"[\d.]+", told[1])
            keys.add(each.headers["flwr-public-key"])
        assert len(keys) == 1
        groups = []
        for body in watched.bodies(site, "push-messages"):
            pushed = PushMessagesRequest.FromString(body)
            (message,) = pushed.messages_list
            assert not message.content.ListFields()
            assert not message.HasField("error")
            groups.append(message.metadata.group_id)
            fields = {field.name for field, _ in message.metadata.ListFields()}
            numbers = {"run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "dst_task_id"}
            assert fields == numbers | {"group_id", "message_type", "ttl", "created_at"}
        assert groups == ["join", "train", "validate", "train", "validate", "finish"]


def test_headers_hold_counts_and_the_agreed_metrics(watched: Watched) -> None:
    kinds: list[str] = []
    records = [json.loads(line) for line in (watched.made.run / "metrics.jsonl").read_text().splitlines()]
    for site in watched.sent:
        for header in map(read_header, watched.texts(site)):
            kinds.append(header.kind)
            assert isinstance(header, Joined | Trained | Scored | Finished)
            if isinstance(header, Joined):
                assert header.content is None
            if isinstance(header, Trained):
                tasks = {str(task) for task in watched.made.config.sites[site].tasks}
                losses = {f"{loss}/{task}" for loss in ("l1", "adversarial", "discriminator") for task in tasks}
                assert header.metrics.keys() == losses
                train = SliceStore(watched.prepared / site).subjects("train")
                assert header.slices == sum(len(subject.slices) for subject in train)
            if isinstance(header, Scored):
                assert header.score == records[header.round - 1]["validation_psnr"][site]
    once = {"joined", "finished"}  # of both sites the same bytes
    assert sorted(kind for kind in kinds if kind not in once) == ["scored"] * 4 + ["trained"] * 4
    assert once < set(kinds)


def test_no_private_name_path_or_subject(watched: Watched, tiny: Tiny) -> None:
    sent, config = watched.all_sent, watched.made.config
    for site in watched.sent:
        networks = method_of(config).networks(config, site)
        partition = method_of(config).sharing(config).partition(networks)
        assert partition.private
        for name in (*partition.private, *partition.shared):
            assert name.encode() not in sent
        for subject in SliceStore(watched.prepared / site).manifest.subjects:
            assert subject.name.encode() not in sent
            assert subject.file.encode() not in sent
            assert subject.sha256.encode() not in sent
    here = (watched.made.folder, tiny.folder, Path.home(), Path.cwd())
    for secret in (*map(str, here), *watched.sent, "safetensors", "private", "optimizer", ".nii", "PRIVATE"):
        assert secret.encode() not in sent, secret


def test_no_name_of_the_machine_or_of_its_user(watched: Watched) -> None:
    """Which can be two letters, so they are looked for among whole words."""
    told = [text for site in watched.sent for text in watched.texts(site)]
    for each in (each for sent in watched.requests.values() for each in sent):
        told += [value for name, value in each.headers.items() if name not in ("flwr-public-key", "flwr-signature")]
    words = {word for text in told for word in re.findall(r"[\w-]+", text)}
    assert {"SuperNode", "trained"} < words
    assert not {socket.gethostname(), getpass.getuser()} & words


def test_no_row_of_an_image(watched: Watched) -> None:
    sent, rows = watched.all_sent, 0
    for site in watched.sent:
        store = SliceStore(watched.prepared / site)
        for split in ("train", "validation", "test"):
            for subject in store.subjects(split):
                for contrast in subject.contrasts:
                    for row in store.slices(subject.name, contrast).reshape(-1, 32):
                        if len(np.unique(row)) > 8:
                            rows += 1
                            assert row[8:24].tobytes() not in sent
    assert rows > 1000


def test_no_private_number(watched: Watched) -> None:
    """No run of eight numbers of a private tensor, what updates lacked among them."""
    sent, looked, residuals = watched.all_sent, 0, 0
    for site in watched.sent:
        for path in (watched.made.site_run(site) / "sites" / site).glob("private-*"):
            for name, tensor in load_tensors(path, "private")[0].items():
                flat = tensor.flatten()[:8]
                if len(flat.unique()) == 8 and not name.startswith(OPTIMIZER):
                    looked += 1
                    residuals += name.startswith(RESIDUAL)
                    assert flat.numpy().tobytes() not in sent
    assert looked - residuals > 20
    assert (residuals > 10) == (watched.made.config.updates.encoding == "int8")


def test_the_bytes_of_every_round_are_recorded(watched: Watched) -> None:
    lines = [json.loads(line) for line in (watched.made.run / "timings.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    update = watched.update_bytes("north")
    shared = round(1e6 * method_of(watched.made.config).shared_megabytes(watched.made.config, "north"))
    for line in lines:
        assert line.keys() == {"round", "seconds", "peak_memory_mb", "sent_bytes", "received_bytes"}
        assert update < line["received_bytes"]["north"] < update + 2000
        assert 2 * shared < line["sent_bytes"]["north"] < 2 * shared + 6000, "to train, and to validate"
    status = read_status(watched.made.run)
    assert (status.phase, status.round, status.waiting_for) == ("finished", 2, [])
    for told in status.sites.values():
        assert told.finished
        assert told.joined
        assert told.updated_round == 2
        assert told.refused is None
        assert told.asked is None
