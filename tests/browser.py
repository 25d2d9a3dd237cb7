"""Headless Chromium for tests: opens a page and records whatever it asks for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .missing import missing


@dataclass
class OpenPage:
    """A page that was opened.

    Attributes:
        page: playwright's page.
        requests: address of every request other than the page itself and ``data:`` or ``blob:`` addresses.
        messages: what the browser's console says, such as a breach of the content security policy.
    """

    page: Any
    requests: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)


@contextmanager
def open_page(path: Path | str, width: int = 1440, height: int = 900) -> Iterator[OpenPage]:
    """Open a file, or an address, in Chromium (``chromium`` of the path, or PFLSYNTH_CHROMIUM).

    Without Chromium or playwright the test is skipped, but fails where CI=true.
    """
    chromium = os.environ.get("PFLSYNTH_CHROMIUM") or shutil.which("chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("no playwright; install the extra dev")
    if not chromium:
        missing("no Chromium; install it, or set PFLSYNTH_CHROMIUM to its program")
    address = path if isinstance(path, str) else path.resolve().as_uri()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            opened = OpenPage(page)

            def record(request: Any) -> None:
                if request.url != address and not request.url.startswith(("data:", "blob:")):
                    opened.requests.append(request.url)

            page.on("request", record)
            page.on("console", lambda message: opened.messages.append(message.text))
            page.goto(address, wait_until="load")
            yield opened
        finally:
            browser.close()
