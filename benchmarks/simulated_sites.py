"""Many sites in one process, for benchmarks/federation_scale.py: no images, no training, every answer at once.

    python benchmarks/simulated_sites.py sites.json

Each site has its registered key and speaks Flower's fleet interface as a SuperNode does: it asks for messages every
three seconds, fetches a message's objects, confirms, and hands in its reply and the objects of it. ``train`` is
answered with the received parameters, moved a little and otherwise by each site, and so not one object is sent twice.
The process ends when all its sites have been told to finish; then it writes what they sent and received.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, PushMessagesRequest
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import pull_and_inflate_object_from_tree, push_objects
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufCall, ProtobufRequestContext
from flwr.supercore.retry import make_simple_http_retry_invoker
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from pflsynth.deployment.flower import from_message, to_records
from pflsynth.deployment.headers import Finish, Finished, Join, Joined, Train, Trained
from pflsynth.deployment.messages import SHARED, Packet

POLL_SECONDS = 3.0
"""Between two questions for messages, as in Flower's SuperNode."""

HEARTBEAT_SECONDS = 30.0


class Wire:
    """Counts requests and the bytes of their bodies, over all sites of the process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.counts: Counter[str] = Counter(sent_bytes=0, received_bytes=0, requests=0)

    def intercept(self, context: ProtobufRequestContext, call_next: ProtobufCall) -> httpx.Response:
        """Count one request and its answer."""
        response = call_next(context)
        with self._lock:
            self.counts["requests"] += 1
            self.counts["sent_bytes"] += len(context.request.content)
            self.counts["received_bytes"] += len(response.content)
        return response


class SimulatedSite:
    """One site: its connection, and what it answers."""

    def __init__(self, number: int, key: bytes, told: dict[str, Any], wire: Wire):
        """Describe the site; nothing is sent.

        Args:
            number: of the site, from 0; by it its updates differ from those of others.
            key: its private key, OpenSSH.
            told: address of the coordinator, file of the authority's certificate, agreement, and task.
            wire: counts.
        """
        self._number, self._told = number, told
        private = load_ssh_private_key(key, None)
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        self._public = public_key_to_bytes(private.public_key())
        self._client = FleetHttpClient.from_server_address(
            told["coordinator"],
            False,
            Path(told["authority"]).read_bytes(),
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(private, private.public_key()),
                wire,
            ],
            retry_invoker=make_simple_http_retry_invoker(),
        )
        self._node = Node()
        self._beat = 0.0

    def work(self) -> None:
        """Connect, and answer until told to finish."""
        activation = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_SECONDS)
        self._node = Node(node_id=self._client.ActivateNode(activation).node_id)
        self._beat = time.monotonic()
        time.sleep(POLL_SECONDS * (self._number % 16) / 16)  # not all at the same moment
        finished = False
        while not finished:
            self._heartbeat()
            found = self._client.PullMessages(PullMessagesRequest(node=self._node))
            if found.messages_list:
                message = message_from_proto(found.messages_list[0])
                finished = self._answer(message.metadata.run_id, found.message_object_trees[0])
            else:
                time.sleep(POLL_SECONDS)
        self._heartbeat(0.0)  # it leaves without a word: Flower drops the replies of a node that says that it goes

    def _heartbeat(self, after: float = HEARTBEAT_SECONDS / 2) -> None:
        if time.monotonic() - self._beat > after:
            self._client.SendNodeHeartbeat(
                SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_SECONDS)
            )
            self._beat = time.monotonic()

    def _answer(self, run: int, tree: ObjectTree) -> bool:
        """Fetch a message and reply to it; whether it was the last."""
        client, node = self._client, self._node
        message = pull_and_inflate_object_from_tree(
            tree,
            make_pull_object_fn_protobuf(client.PullObject, node, run),
            make_confirm_message_received_fn_protobuf(client.ConfirmMessageReceived, node, run),
            return_type=Message,
        )
        message.metadata.__dict__["_message_id"] = tree.object_id
        packet = self._packet(from_message(message))
        with no_object_id_recompute():
            reply = Message(to_records(packet), reply_to=message)
            del message
            reply.metadata.__dict__["_message_id"] = reply.object_id
            objects = get_all_nested_objects(reply)
            request = PushMessagesRequest(
                node=node,
                messages_list=[message_to_proto(remove_content_from_message(reply))],
                message_object_trees=[get_object_tree(reply)],
                clientapp_runtime_list=[0.0],
            )
            answer = client.PushMessages(request)
            push = make_push_object_fn_protobuf(client.PushObject, node, run, answer.session_id)
            push_objects(objects, push, object_ids_to_push=set(answer.objects_to_push))
        return isinstance(packet.header, Finished)

    def _packet(self, asked: Packet) -> Packet:
        """What a site answers that agrees with everything."""
        header, agreement = asked.header, self._told["agreement"]
        if isinstance(header, Join):
            return Packet(Joined(agreement=agreement))
        if isinstance(header, Finish):
            return Packet(Finished(agreement=agreement, round=header.round))
        if not isinstance(header, Train):
            raise ValueError(f'a "{header.kind}" is nothing that a simulated site can answer')
        trained = Trained(
            agreement=agreement,
            round=header.round,
            base=header.base,
            layout=header.layout,
            slices=100 + self._number % 100,
            metrics={f"l1/{self._told['task']}": 0.5},
        )
        moved = np.frombuffer(asked.arrays[SHARED], "<f4") + np.float32(1e-4 * (1 + self._number / 1000))
        return Packet(trained, {SHARED: moved.tobytes()})


def main() -> None:
    """Be the sites of a file, until they have finished."""
    told = json.loads(Path(sys.argv[1]).read_text())
    wire = Wire()
    sites = [SimulatedSite(number, key.encode(), told, wire) for number, key in told["sites"]]
    with ThreadPoolExecutor(len(sites)) as threads:
        for done in [threads.submit(site.work) for site in sites]:
            done.result()
    Path(told["counts"]).write_text(json.dumps(wire.counts))


if __name__ == "__main__":
    main()
