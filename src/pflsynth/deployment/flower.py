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

ENCODING = "pflsynth.float32"
"""Flower's name for how an array's bytes are to be read: raw, with no header of their own that could claim a size."""

_ERRORS = {
    ErrorCode.LOAD_CLIENT_APP_EXCEPTION: "its process could not begin",
    ErrorCode.CLIENT_APP_RAISED_EXCEPTION: "its process ended with an error",
    ErrorCode.MESSAGE_UNAVAILABLE: "not all of its reply came",
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: "its reply was dropped",
    ErrorCode.NODE_UNAVAILABLE: "it is not connected any more",
    ErrorCode.CLIENT_APP_CRASHED: "its process was killed",
}


def to_records(packet: Packet) -> RecordDict:
    """A packet as Flower carries it."""
    arrays = {
        name: Array(dtype="float32", shape=(len(data) // 4,), stype=ENCODING, data=data)
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
        code = message.error.code  # its sentence can be the site's own words
        raise MessageRefused(f"Flower reports an error (code {code}): {_ERRORS.get(code, 'it says no more than that')}")
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
        if array.stype != ENCODING or array.dtype != "float32":
            raise MessageRefused("one of its arrays is not float32 as pflsynth sends it")
        if tuple(array.shape) != (len(array.data) // 4,) or len(array.data) % 4:
            claimed = tuple(array.shape)[:4]
            raise MessageRefused(f"one of its arrays claims the shape {claimed} and has {len(array.data)} bytes")
    return Packet(read_header(text), {name: array.data for name, array in arrays.items()})
