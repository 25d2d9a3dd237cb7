"""Packets in Flower's records, and back. One array record, one config record, nothing else."""

from __future__ import annotations

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import ErrorCode

from pflsynth.deployment.headers import MessageRefused, read_header
from pflsynth.deployment.messages import Packet

HEADER = "header"
ARRAYS = "arrays"

KIND = "train"
"""Flower's type of all our messages; the header tells what they are."""

ENCODING = "pflsynth.bytes"
"""Flower's name for how an array's bytes are to be read: raw, with no header of their own that could claim a size."""

_ERRORS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "its app could not be loaded; its supernode.log tells why",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "its app failed; its supernode.log tells why",
    ErrorCode.MESSAGE_UNAVAILABLE: "what it was asked is lost, as after a stop of the SuperLink, or came too late",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its answer is lost, as after a stop of the SuperLink, or came too late",
    ErrorCode.NODE_UNAVAILABLE: "its connection is lost: its machine, its network or its SuperNode stopped",
    ErrorCode.CLIENT_APP_CRASHED: "the process that was to answer was killed or has ended",
}
"""What Flower says in place of an answer, and what it means."""


def to_records(packet: Packet) -> RecordDict:
    """A packet as Flower carries it."""
    arrays = {
        name: Array(dtype="uint8", shape=(len(data),), stype=ENCODING, data=data)
        for name, data in packet.arrays.items()
    }
    return RecordDict({HEADER: ConfigRecord({HEADER: packet.text}), ARRAYS: ArrayRecord(arrays)})


def from_message(message: Message) -> Packet:
    """The packet that a message carries; arrays are not copied.

    Raises:
        MessageRefused: an error of Flower in its place, other records than ours, or an array that claims another size
            than it has.
    """
    if not message.has_content():
        code = message.error.code
        raise MessageRefused(_ERRORS.get(code, f"Flower reports an error (code {code})"))
    records = message.content
    if set(records) != {HEADER, ARRAYS}:
        raise MessageRefused("it does not hold the two records of a pflsynth message")
    header, arrays = records[HEADER], records[ARRAYS]
    if not isinstance(header, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise MessageRefused("its records are not of the types of a pflsynth message")
    text = header.get(HEADER)
    if not isinstance(text, str) or len(header) != 1:
        raise MessageRefused("its header is missing")
    for array in arrays.values():
        if array.stype != ENCODING or array.dtype != "uint8":
            raise MessageRefused("one of its arrays is not as pflsynth sends it")
        if tuple(array.shape) != (len(array.data),):
            claimed = tuple(array.shape)[:4]
            raise MessageRefused(f"one of its arrays claims the shape {claimed} and has {len(array.data)} bytes")
    return Packet(read_header(text), {name: array.data for name, array in arrays.items()})
