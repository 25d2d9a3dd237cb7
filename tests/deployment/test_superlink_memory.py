"""The coordinator's processes give the memory of messages back to the system when they are done with them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from pflsynth.deployment import superlink
from pflsynth.deployment.keyring import Keyring
from pflsynth.deployment.superlink import SuperLink

MESSAGES = """
import threading

def resident():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) / 1024 for line in file if line.startswith("VmRSS"))

def receive():  # messages in pieces of 5 MiB, and something small that stays between them
    for _ in range(8):
        pieces = [bytearray(b"x") * (5 * 2**20) for _ in range(5)]
        kept.append([bytes(2000) for _ in range(50)])
        pieces.clear()

kept, before = [], resident()
for _ in range(4):
    threads = [threading.Thread(target=receive) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(resident() - before)
"""


@pytest.mark.slow
def test_memory_of_messages_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.confstr("CS_GNU_LIBC_VERSION"):
        pytest.skip("the variables are glibc's")
    program = tmp_path / "program"
    program.write_text(f"#!{sys.executable}\n{MESSAGES}")
    program.chmod(0o700)
    monkeypatch.setattr(superlink, "flower_program", lambda name: program)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")
    child = SuperLink(tmp_path, Keyring(tmp_path / "keys"), {}).child
    child.start()
    until = time.monotonic() + 60
    while child.alive and time.monotonic() < until:
        time.sleep(0.05)
    child.stop()
    assert float(child.said()) < 50, "MB; without the variables more than 100 stay"
