"""The coordinator's status for people: the verb, its documents, and the live page on loopback, in a browser too."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pflsynth.deployment.page import live_page
from pflsynth.deployment.settings import work_of
from pflsynth.deployment.status import NAME, StatusFile
from pflsynth.deployment.status_view import metrics_document, status_document
from pflsynth.errors import UsageError
from pflsynth.files import exclusive

from ..browser import open_page
from ..tiny import Tiny, pflsynth
from .status_builders import ago, write_coordinator


@pytest.fixture
def run(tmp_path: Path, tiny: Tiny) -> Path:
    return write_coordinator(tmp_path, tiny)


@pytest.fixture
def port(run: Path) -> Iterator[int]:
    with live_page(run, 0, lambda _: None) as own:
        yield own


def asked(port: int, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, headers={"Host": host or f"127.0.0.1:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read(), dict(answer.getheaders())
    finally:
        connection.close()


def test_the_status_tells_who_is_waited_for_how_long_and_of_the_certificate(run: Path) -> None:
    document = status_document(run)
    assert (document["round"], document["rounds"], document["waiting_for"]) == (3, 4, ["south"])
    assert 600 <= document["sites"]["south"]["waiting_s"] < 700
    assert document["sites"]["north"]["waiting_s"] is None
    assert document["certificate"]["days_left"] == 89
    assert document["certificate"]["hosts"][0] == "127.0.0.1"
    assert document["listen"] == "127.0.0.1:9092"
    assert document["running"] is False
    with exclusive(work_of(run) / ".lock", "busy"):
        assert status_document(run)["running"] is True


def test_the_status_is_told_without_what_is_gone(run: Path) -> None:
    certificate = Path(json.loads((work_of(run) / "serving.json").read_text())["certificate"])
    certificate.unlink()
    assert status_document(run)["certificate"] is None
    (work_of(run) / "serving.json").unlink()
    document = status_document(run)
    assert document["certificate"] is document["listen"] is None


def test_curves_are_means_over_tasks_and_costs_sums_over_sites(run: Path) -> None:
    document = metrics_document(run)
    first, second = document["rounds"]
    assert first["losses"] == pytest.approx({"north": 0.4, "south": 0.2})
    assert second["losses"] == pytest.approx({"north": 0.2, "south": 0.1})
    assert (first["validation"], second["validation"]) == ({}, {"north": 21.5, "south": None})
    assert (first["seconds"], first["sent"], first["received"]) == (20.0, 2_200_000, 2_200_000)
    texts = [event["text"] for event in document["events"]]
    assert texts == ["site north: joined", "round 1/4: 2 of 2 sites <b>bold</b>"]


def test_the_verb_prints_a_table(run: Path) -> None:
    ended = pflsynth("status", run)
    assert ended.code == 0
    assert "round 3 of 4: training, and the coordinator is not running" in ended.out
    assert "waits for: south" in ended.out
    assert "asked to train 6" in ended.out
    assert "3.3 / 2.2 MB" in ended.out
    assert "✓ certificate for 127.0.0.1, localhost: ends" in ended.out


def test_the_verb_tells_of_refusals_strangers_and_a_certificate_that_ends(tmp_path: Path, tiny: Tiny) -> None:
    run = write_coordinator(tmp_path, tiny, days=10)
    file = StatusFile(run, ["north"], rounds=4, quorum=1)
    file.now.strangers["node 7"] = "is not the name of a site that trains"
    file.site("north", refused="site north: it has another agreement: seed is 3 here, 4 there", seen=ago(1))
    file.write(phase="stopped", problem="the coordinator was told to stop")
    ended = pflsynth("status", run)
    assert "✗ site north: it has another agreement: seed is 3 here, 4 there" in ended.out
    assert "✗ the coordinator was told to stop" in ended.out
    assert "! node 7: is not the name of a site that trains" in ended.out
    assert "in 9 days; renew it with: pflsynth keys --renew-server" in ended.out


def test_the_verb_as_json_is_the_document(run: Path) -> None:
    ended = pflsynth("status", run, "--json")
    assert ended.document["sites"]["south"]["asked"] == "train"
    assert ended.document.keys() == status_document(run).keys()


def test_a_folder_without_status_is_refused(tmp_path: Path) -> None:
    ended = pflsynth("status", tmp_path)
    assert ended.code == 4
    assert f"error: {tmp_path}: has no status.json" in ended.err


def test_the_page_and_its_documents_are_served(run: Path, port: int) -> None:
    code, content, headers = asked(port, "/")
    assert (code, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    policy = headers["Content-Security-Policy"]
    nonce = policy.split("script-src 'nonce-")[1].split("'")[0]
    assert f'<script nonce="{nonce}">'.encode() in content
    assert policy.startswith("default-src 'none'; ")
    assert json.loads(asked(port, "/status.json")[1]).keys() == status_document(run).keys()
    assert json.loads(asked(port, "/metrics.json")[1]) == metrics_document(run)
    assert asked(port, "/status.json", "HEAD")[:2] == (200, b"")
    assert asked(port, "/", host=f"localhost:{port}")[0] == 200


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_the_page_can_only_be_read(port: int, method: str) -> None:
    assert asked(port, "/status.json", method)[0] == 405


@pytest.mark.parametrize("path", ["/run", "/metrics.jsonl", "/../status.json", "/status.json/", "/%73tatus.json"])
def test_no_other_path_is_served(port: int, path: str) -> None:
    assert asked(port, path)[0] == 404


def test_a_page_of_another_host_cannot_read_it(port: int) -> None:
    assert asked(port, "/status.json", host="attacker.example.org")[0] == 403
    assert asked(port, "/status.json", host=f"attacker.example.org:{port}")[0] == 403


def test_a_coordinator_that_has_not_begun_is_told_of(tmp_path: Path) -> None:
    with live_page(tmp_path, 0, lambda _: None) as port:
        code, content, _ = asked(port, "/status.json")
    assert code == 503
    assert "has no status.json" in json.loads(content)["problem"]


def test_the_page_says_where_it_is_and_no_page_is_none(tmp_path: Path) -> None:
    told: list[str] = []
    with live_page(tmp_path, 0, told.append) as port:
        assert told == [f"page: http://127.0.0.1:{port}"]
        with (
            pytest.raises(UsageError, match=rf"--page {port}: .*choose another port"),
            live_page(tmp_path, port, print),
        ):
            pass
    with live_page(tmp_path, None, told.append) as port:
        assert (port, len(told)) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_sites_rounds_curves_and_who_is_late(run: Path, port: int, scheme: str) -> None:
    address = f"http://127.0.0.1:{port}/"
    with open_page(address) as opened:
        page = opened.page
        page.emulate_media(color_scheme=scheme)
        page.get_by_role("heading", name="Round 3 of 4").wait_for()
        rows = page.locator("#sites tr").all_inner_texts()
        assert rows[0].split("\t")[:2] == ["north", "joined"]
        assert rows[1].split("\t")[:2] == ["south", "late"], "asked for thirty times as long as a round takes"
        assert "asked to train, 10 min ago" in rows[1]
        assert page.locator("#doing").inner_text() == "training: the coordinator is not running; waits for south"
        figures = page.locator("#curves figure")
        assert figures.count() == 2
        assert figures.first.locator("polyline").count() == 2
        assert all(box["width"] > 200 and box["height"] > 100 for box in (one.bounding_box() for one in figures.all()))
        assert page.locator("#events li").first.inner_text().endswith("round 1/4: 2 of 2 sites <b>bold</b>")
        assert page.locator("#progress").evaluate("own => own.value") == 2
        assert set(opened.requests) <= {f"{address}status.json", f"{address}metrics.json"}
        assert opened.messages == [], "the content security policy was breached"


@pytest.mark.slow
def test_a_browser_shows_what_changes_and_that_the_coordinator_is_gone(run: Path) -> None:
    with live_page(run, 0, lambda _: None) as port, open_page(f"http://127.0.0.1:{port}/") as opened:
        page = opened.page
        page.get_by_role("heading", name="Round 3 of 4").wait_for()
        assert not page.locator("#problem").is_visible()
        content = json.loads((run / NAME).read_text())
        (run / NAME).write_text(json.dumps({**content, "round": 4, "problem": "no quorum"}))
        page.get_by_role("heading", name="Round 4 of 4").wait_for()
        assert page.locator("#problem").inner_text() == "no quorum"
        (run / NAME).unlink()
        page.get_by_text("has no status.json").wait_for()


@pytest.mark.slow
def test_a_phone_scrolls_down_only(run: Path, port: int) -> None:
    with open_page(f"http://127.0.0.1:{port}/", width=390, height=844) as opened:
        page = opened.page
        page.get_by_role("heading", name="Round 3 of 4").wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
