"""Ctrl-C while the command line is still being loaded ends like any other."""

import sys
from types import ModuleType

import pytest

from pflsynth.__main__ import main


def test_an_interrupt_while_loading_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Interrupted(ModuleType):
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "pflsynth.cli", Interrupted("pflsynth.cli"))
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
