"""Flower is imported by the deployment alone, and there only where messages become Flower's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import pflsynth

SOURCE = Path(pflsynth.__file__).parent


def test_no_module_outside_the_deployment_names_flower() -> None:
    naming = {path.relative_to(SOURCE).parts[0] for path in SOURCE.rglob("*.py") if "flwr" in path.read_text()}
    assert naming == {"deployment"}


@pytest.mark.slow
def test_the_rest_runs_without_flower() -> None:
    modules = ("cli", "training", *(f"deployment.{name}" for name in ("messages", "status", "settings", "run_folder")))
    imports = "\n".join(f"import pflsynth.{name}" for name in modules)
    code = f"import sys\nsys.modules['flwr'] = None\n{imports}"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
