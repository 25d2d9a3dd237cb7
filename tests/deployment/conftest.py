"""Fixtures of the tests that train two rounds with real processes."""

from __future__ import annotations

import pytest

from pflsynth.config import FederationConfig

from ..tiny import Tiny, changed, train


@pytest.fixture(scope="session")
def config(tiny: Tiny) -> FederationConfig:
    """Two rounds, each with both sites."""
    return changed(tiny.config, rounds=2)


@pytest.fixture(scope="session")
def expected(config: FederationConfig, tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The shared parameters that training in one process ends with."""
    run = tmp_path_factory.mktemp("in-process") / "run"
    train(config, tiny.prepared, run)
    return (run / "shared" / "round-0002.safetensors").read_bytes()
