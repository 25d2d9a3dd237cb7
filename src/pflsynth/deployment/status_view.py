"""What a coordinator is doing, for people and machines: the verb ``status``, and the live page."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pflsynth.deployment.events import EventLog
from pflsynth.deployment.settings import log_of, work_of
from pflsynth.deployment.status import SERVING, read_status
from pflsynth.errors import PflsynthError, UsageError
from pflsynth.files import is_held, read_json
from pflsynth.runs import RunDirectory

MOST_EVENTS = 30
"""How many of the last events the page shows."""


def status_document(run: Path) -> dict[str, Any]:
    """Everything about a coordinator, as JSON values.

    Args:
        run: its run folder.

    Returns:
        The keys of :class:`~pflsynth.deployment.status.Status`, and ``run``, ``running`` (whether ``pflsynth serve``
        is running), ``listen`` and ``certificate`` (hosts, end, days left; ``None`` if it is not there any more). Each
        of ``sites`` has ``waiting_s`` too: seconds since it was asked what it has not answered.

    Raises:
        ModelError: if there is no status, or it is damaged.
    """
    now = datetime.datetime.now(datetime.UTC)
    document = asdict(read_status(run))
    for told in document["sites"].values():
        asked = told["asked_since"]
        told["waiting_s"] = (now - datetime.datetime.fromisoformat(asked)).total_seconds() if asked else None
    serving: Mapping[str, Any] = {}
    with suppress(PflsynthError):
        serving = read_json(work_of(run) / SERVING)
    running = is_held(work_of(run) / ".lock")
    certificate = _certificate(Path(serving["certificate"])) if "certificate" in serving else None
    return {
        "run": str(run),
        "running": running,
        "listen": serving.get("listen"),
        "certificate": certificate,
        **document,
    }


def metrics_document(run: Path) -> dict[str, Any]:
    """The curves of a run and its last events, as JSON values.

    Returns:
        ``rounds``: for each whole round its number, mean L1 distance by site, validation PSNR in dB by site (empty
        where it was not validated), seconds, and bytes sent and received. ``events``: time and text, the last last.

    Raises:
        ModelError: if a file is damaged.
    """
    folder = RunDirectory(run)
    costs = {record["round"]: record for record in folder.records("timings.jsonl")}
    rounds = []
    for record in folder.records("metrics.jsonl"):
        cost = costs.get(record["round"], {})
        rounds.append(
            {
                "round": record["round"],
                "losses": {site: _mean_l1(losses) for site, losses in sorted(record["losses"].items())},
                "validation": record.get("validation_psnr", {}),
                "seconds": cost.get("seconds"),
                "sent": sum(cost.get("sent_bytes", {}).values()),
                "received": sum(cost.get("received_bytes", {}).values()),
            }
        )
    return {"rounds": rounds, "events": EventLog(log_of(run)).last(MOST_EVENTS)}


def _certificate(path: Path) -> dict[str, Any] | None:
    from pflsynth.deployment.certificates import read_certificate

    try:
        facts = read_certificate(path)
    except UsageError:
        return None
    return {"hosts": list(facts.hosts), "ends": facts.ends.isoformat(), "days_left": facts.days_left()}


def _mean_l1(losses: Mapping[str, float]) -> float | None:
    values = [value for name, value in losses.items() if name.startswith("l1/")]
    return sum(values) / len(values) if values else None
