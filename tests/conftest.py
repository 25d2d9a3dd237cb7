"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("pflsynth", deadline=None, derandomize=True)
settings.load_profile("pflsynth")


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real MRI that PFLSYNTH_REALDATA names; without it the test is skipped, but fails where CI=true."""
    default = Path(__file__).parents[1] / ".." / "shared" / "realdata"
    folder = Path(os.environ.get("PFLSYNTH_REALDATA", default)).resolve()
    if not (folder / "manifest.csv").is_file():
        message = f"no real data in {folder}; set PFLSYNTH_REALDATA to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder
