"""The load driver: the real coordinator, and simulated sites that speak Flower's fleet interface themselves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .network import nginx_or_skip

DRIVER = Path(__file__).parents[2] / "benchmarks" / "federation_scale.py"


@pytest.mark.slow
def test_two_small_sites_are_measured(tmp_path: Path) -> None:
    nginx_or_skip()
    command = [sys.executable, DRIVER, "--out", tmp_path, "--rounds", "2", "--processes", "1", "2:8:1"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr
    (record,) = json.loads((tmp_path / "results.json").read_text())
    assert record["accepted"] == [2, 2], "both sites, in both rounds"
    assert len(record["round_seconds"]) == 2
    update = record["update_mb"]
    assert 0.1 < update < 1
    assert record["round_received_mb"] == pytest.approx(2 * update, abs=0.1)
    # two sites: an update in each of two rounds; the shared parameters in each of them and at the end
    assert record["wire_sent_by_sites_mb"] == pytest.approx(4 * update, rel=0.1)
    assert record["wire_received_by_sites_mb"] == pytest.approx(6 * update, rel=0.1)
    assert min(record["serverapp_mb"], record["superlink_mb"], record["superlink_own_mb"]) > 30
    assert record["database_mb"] > update
    assert "| 2 |" in ended.stdout
