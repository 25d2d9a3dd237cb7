"""The live page of a coordinator: read-only, on loopback alone, asks for nothing but itself.

``GET`` and ``HEAD`` of ``/``, ``/status.json`` and ``/metrics.json``; any other method or path is refused, and so is a
request that names another host, which a page of the internet could make a browser on this machine send.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from pflsynth.deployment.status_view import metrics_document, status_document
from pflsynth.errors import PflsynthError, UsageError
from pflsynth.files import json_bytes

LOOPBACK = "127.0.0.1"

_DOCUMENTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "/status.json": status_document,
    "/metrics.json": metrics_document,
}


@contextmanager
def live_page(run: Path, port: int | None, tell: Callable[[str], None]) -> Iterator[int]:
    """Serve the page of a run while something else is done.

    Args:
        run: the coordinator's run folder; it need not be there yet.
        port: of loopback; 0 takes a free one, ``None`` serves nothing.
        tell: told the address.

    Yields:
        The port; 0 if nothing is served.

    Raises:
        UsageError: the port is taken.
    """
    if port is None:
        yield 0
        return

    class Handler(_Handler):
        folder = run

    try:
        server = ThreadingHTTPServer((LOOPBACK, port), Handler)
    except OSError as failure:
        raise UsageError(f"--page {port}: {failure.strerror}; choose another port") from None
    Handler.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True, name="page")
    thread.start()
    tell(f"page: http://{LOOPBACK}:{server.server_port}")
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def page_html(nonce: str) -> bytes:
    """The page: it asks every few seconds for the two documents, and draws them.

    Args:
        nonce: of its one script and its one style, for the content security policy.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("pflsynth.deployment", ".")
    environment = Environment(loader=loader, undefined=StrictUndefined, autoescape=True)
    return environment.get_template("page.html").render(nonce=nonce).encode()


class _Handler(BaseHTTPRequestHandler):
    """Answers one request."""

    folder: Path
    port: int
    server_version = "pflsynth"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the page or a document."""
        path = self.path.partition("?")[0]
        if self.headers.get("Host") not in (f"{LOOPBACK}:{self.port}", f"localhost:{self.port}"):
            self._answer(403, b"ask for this page by its own address\n", "text/plain")
        elif path == "/":
            nonce = secrets.token_urlsafe(16)
            self._answer(200, page_html(nonce), "text/html; charset=utf-8", nonce)
        elif path in _DOCUMENTS:
            try:
                self._answer(200, json_bytes(_DOCUMENTS[path](self.folder)), "application/json")
            except (PflsynthError, OSError) as failure:
                self._answer(503, json_bytes({"problem": str(failure)}), "application/json")
        else:
            self._answer(404, b"there is no such page\n", "text/plain")

    do_HEAD = do_GET  # noqa: N815

    def _refuse(self) -> None:
        self._answer(405, b"this page can only be read\n", "text/plain")

    do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = _refuse  # noqa: N815

    def _answer(self, code: int, content: bytes, kind: str, nonce: str = "") -> None:
        own = f"script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; " if nonce else ""
        policy = f"default-src 'none'; {own}connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Security-Policy", f"{policy}; frame-ancestors 'none'")
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Requests of one's own browser are not logged."""
