"""Logs of lines: appended whole, followed from where one was, whatever happens to the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from pflsynth.deployment.events import EventLog, Follower


def test_events_are_appended_and_the_last_are_told(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "new" / "run.log.jsonl")
    assert log.last(2) == []
    for number in range(3):
        log(f"event {number}")
    assert [event["text"] for event in log.last(2)] == ["event 1", "event 2"]
    assert log.last(1)[0]["time"].endswith("+00:00")


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "log.jsonl")
    log("first")
    with log.path.open("a") as file:
        file.write('{"text": "cut\n[1]\n')
    log("second")
    assert [event["text"] for event in log.last(9)] == ["first", "second"]


def test_what_cannot_be_written_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    EventLog(tmp_path / "file" / "log.jsonl")("an event")
    assert capsys.readouterr().out.startswith("an event (")


def test_a_follower_gives_whole_lines_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("before\n")
    follower, all_of_it = Follower(path), Follower(path, from_start=True)
    assert list(follower.lines()) == []
    with path.open("a") as file:
        file.write("one\ntw")
    assert list(follower.lines()) == ["one"]
    with path.open("a") as file:
        file.write("o\n")
    assert list(follower.lines()) == ["two"]
    assert list(all_of_it.lines()) == ["before", "one", "two"]
    assert list(follower.lines()) == []


def test_a_follower_begins_anew_with_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    follower = Follower(path)
    assert list(follower.lines()) == []
    path.write_text("a long first line\n")
    assert list(follower.lines()) == ["a long first line"]
    path.write_text("short\n")
    assert list(follower.lines()) == ["short"]
