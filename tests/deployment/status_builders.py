"""A coordinator's run folder with status, metrics and events, without any training."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

from pflsynth.deployment.events import EventLog
from pflsynth.deployment.keyring import Keyring, make_keyring
from pflsynth.deployment.settings import log_of, work_of
from pflsynth.deployment.status import SERVING, StatusFile
from pflsynth.files import write_json

from ..tiny import Tiny


def ago(seconds: float) -> str:
    """That many seconds ago, as a status tells times."""
    then = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=seconds)
    return then.isoformat(timespec="seconds")


def write_coordinator(folder: Path, tiny: Tiny, days: int = 90) -> Path:
    """The third of four rounds: north's update is in, south is asked since ten minutes; rounds take 20 s.

    Args:
        folder: of everything.
        tiny: its agreement.
        days: that the certificate is valid.

    Returns:
        The run folder.
    """
    run = folder / "run"
    run.mkdir(parents=True)
    file = StatusFile(run, ["north", "south"], rounds=4, quorum=2)
    file.site("north", connected=True, joined=True, seen=ago(5), updated=ago(9), updated_round=3, sent=3_300_000)
    file.site("south", connected=True, joined=True, seen=ago(5), asked="train", asked_since=ago(600), sent=3_300_000)
    file.site("south", updated=ago(630), updated_round=2, received=2_200_000)
    file.write(phase="training", round=3, accepted=["north"], waiting_for=["south"])
    rounds, costs = [], []
    for number in (1, 2):
        losses = {
            "north": {"l1/T1w->T2w": 0.5 / number, "l1/T1w->FLAIR": 0.3 / number, "adversarial": 9.0},
            "south": {"l1/T1w->T2w": 0.2 / number},
        }
        rounds.append({"round": number, "losses": losses, "refused": {}, "distances": {"north": 1.0, "south": 1.0}})
        sent = {"north": 1_100_000, "south": 1_100_000}
        costs.append({"round": number, "seconds": 20.0, "sent_bytes": sent, "received_bytes": sent})
    rounds[1]["validation_psnr"] = {"north": 21.5, "south": None}
    for name, records in (("metrics.jsonl", rounds), ("timings.jsonl", costs)):
        (run / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    log = EventLog(log_of(run))
    log("site north: joined")
    log("round 1/4: 2 of 2 sites <b>bold</b>")
    make_keyring(tiny.config, folder / "keys", ["127.0.0.1"], 9092, days)
    work_of(run).mkdir()
    certificate = str(Keyring(folder / "keys").server_certificate)
    write_json(work_of(run) / SERVING, {"listen": "127.0.0.1:9092", "certificate": certificate})
    return run
