"""A relay of the tests' own on loopback, between a site and the coordinator's proxy.

It can be cut, stalled and restored. With certificates it ends the site's TLS and begins its own, and keeps every byte
that the site sends.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pflsynth.deployment.keyring import Keyring

Result = TypeVar("Result")
PIECE = 2**16


@dataclass
class Relay:
    """Passes connections of its own port on to another.

    Attributes:
        port: where it listens.
        target: port of the coordinator's proxy.
        connections: what the site sent in each connection, in clear if the relay has certificates.
    """

    port: int
    target: int
    ring: Keyring | None = None
    connections: list[bytearray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._flows = asyncio.Event()
        self._flows.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def sent(self) -> bytes:
        """All that the site sent."""
        return b"".join(self.connections)

    def restore(self) -> None:
        """Listen."""
        self._do(self._listen())

    def cut(self) -> None:
        """Break every connection off, and refuse new ones."""
        self._do(self._end())

    def stall(self) -> None:
        """Keep every connection, and take new ones, but pass nothing on."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def release(self) -> None:
        """Pass on again what was stalled."""
        self._loop.call_soon_threadsafe(self._flows.set)

    def start(self) -> None:
        self._thread.start()
        self.restore()

    def stop(self) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _listen(self) -> None:
        shown = None
        if self.ring is not None:
            shown = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            shown.load_cert_chain(self.ring.server_certificate, self.ring.server_key)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=shown)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        own = asyncio.current_task()
        assert own is not None
        self._tasks.add(own)
        writers, kept = [writer], bytearray()
        self.connections.append(kept)
        try:
            await self._flows.wait()
            trusted = None
            if self.ring is not None:
                trusted = ssl.create_default_context(cafile=str(self.ring.authority_certificate))
            there, onward = await asyncio.open_connection("127.0.0.1", self.target, ssl=trusted)
            writers.append(onward)
            ways = {
                asyncio.create_task(self._pump(reader, onward, kept)),
                asyncio.create_task(self._pump(there, writer, None)),
            }
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for each in writers:
                each.transport.abort()
                with suppress(OSError, asyncio.CancelledError):
                    await each.wait_closed()
            self._tasks.discard(own)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kept: bytearray | None) -> None:
        while piece := await reader.read(PIECE):
            if kept is not None:
                kept += piece
            await self._flows.wait()
            writer.write(piece)
            await writer.drain()


@contextmanager
def relay(target: int, keys: Path | None = None) -> Iterator[Relay]:
    """A relay that runs; with ``keys``, the folder of ``pflsynth keys``, one that reads along."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Relay(port, target, None if keys is None else Keyring(keys))
    made.start()
    try:
        yield made
    finally:
        made.stop()
