"""Fixtures for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from pflsynth import training

from .missing import missing
from .tiny import Silent, Tiny, prepare_tiny

settings.register_profile("pflsynth", deadline=None, derandomize=True)
settings.load_profile("pflsynth")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Small networks are many times faster with one thread where other programs want the cores too."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real MRI that PFLSYNTH_REALDATA names; without it the test is skipped, but fails where CI=true."""
    default = Path(__file__).parents[1] / ".." / "shared" / "realdata"
    folder = Path(os.environ.get("PFLSYNTH_REALDATA", default)).resolve()
    if not (folder / "manifest.csv").is_file():
        missing(f"no real data in {folder}; set PFLSYNTH_REALDATA to its folder")
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """The tiny federation, prepared; tests do not change its folder."""
    return prepare_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def trained(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the tiny federation, finished; tests do not change it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    training.train(tiny.config, tiny.prepared, run, Silent())
    return run
