"""Everything that sites sent in a training, byte by byte: nothing private, no path, no subject, no image."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from pflsynth.deployment.headers import Finished, Joined, Scored, Trained, read_header
from pflsynth.federation.methods import method_of

from ..tiny import Tiny, changed
from .grid import Hospitals
from .test_same_bytes import prepare


@pytest.fixture(scope="module", params=["float32", "int8"])
def watched(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Hospitals:
    """A training with validation, of which every reply was kept as it went over the wire."""
    folder = tmp_path_factory.mktemp("watched")
    config = changed(
        tiny.config,
        rounds=2,
        split={"validation": 0.3},
        training={"validate_every": 1},
        updates={"encoding": request.param},
    )
    prepare(config, folder / "prepared")
    hospitals = Hospitals(folder, config, folder / "prepared")
    hospitals.serve()
    return hospitals


@pytest.mark.slow
def test_no_private_name_path_or_subject(watched: Hospitals, tiny: Tiny) -> None:
    sent = b"".join(data for _, data in watched.sent)
    for site in ("north", "south"):
        networks = method_of(watched.config).networks(watched.config, site)
        partition = method_of(watched.config).sharing(watched.config).partition(networks)
        assert partition.private
        for name in (*partition.private, *partition.shared):
            assert name.encode() not in sent
        for subject in tiny.store(site).manifest.subjects:
            assert subject.name.encode() not in sent
            assert subject.file.encode() not in sent
            assert subject.sha256.encode() not in sent
    for secret in (
        str(watched.folder),
        str(tiny.folder),
        str(Path.home()),
        "safetensors",
        "private",
        "optimizer",
        ".nii",
    ):
        assert secret.encode() not in sent


@pytest.mark.slow
def test_no_row_of_an_image(watched: Hospitals) -> None:
    from pflsynth.data.slices import SliceStore

    sent, rows = b"".join(data for _, data in watched.sent), 0
    for site in ("north", "south"):
        store = SliceStore(watched.prepared / site)
        for split in ("train", "validation", "test"):
            for subject in store.subjects(split):
                for contrast in subject.contrasts:
                    for row in store.slices(subject.name, contrast).reshape(-1, 32):
                        if len(np.unique(row)) > 8:
                            rows += 1
                            assert row[8:24].tobytes() not in sent
    assert rows > 1000


@pytest.mark.slow
def test_no_private_number(watched: Hospitals) -> None:
    """No run of eight numbers of a private tensor, what updates lacked among them."""
    from pflsynth.federation.checkpoint import OPTIMIZER, RESIDUAL
    from pflsynth.files import load_tensors

    sent, looked, residuals = b"".join(data for _, data in watched.sent), 0, 0
    for site in ("north", "south"):
        for path in (watched.run_of(site) / "sites" / site).glob("private-*"):
            for name, tensor in load_tensors(path, "private")[0].items():
                flat = tensor.flatten()[:8]
                if len(flat.unique()) == 8 and not name.startswith(OPTIMIZER):
                    looked += 1
                    residuals += name.startswith(RESIDUAL)
                    assert flat.numpy().tobytes() not in sent
    assert looked - residuals > 20
    assert (residuals > 10) == (watched.config.updates.encoding == "int8")


@pytest.mark.slow
def test_headers_hold_counts_and_the_agreed_metrics(watched: Hospitals) -> None:
    kinds = []
    for site, data in watched.sent:
        texts = re.findall(rb'\{"pflsynth":.*?"kind":.*?\}+', data)
        assert len(texts) == 1, data[:500]
        header = read_header(texts[0].decode())
        kinds.append(header.kind)
        assert isinstance(header, Joined | Trained | Scored | Finished)
        if isinstance(header, Joined):
            assert header.content is None
        if isinstance(header, Trained):
            tasks = {str(task) for task in watched.config.sites[site].tasks}
            losses = {f"{loss}/{task}" for loss in ("l1", "adversarial", "discriminator") for task in tasks}
            assert header.metrics.keys() == losses
            tensors = 1e6 * method_of(watched.config).sent_megabytes(watched.config, site)
            assert tensors < len(data) < tensors + 4000, "hardly more than the shared tensors"
        else:
            assert len(data) < 2000
    assert sorted(kinds) == ["finished"] * 2 + ["joined"] * 2 + ["scored"] * 4 + ["trained"] * 4


@pytest.mark.slow
def test_the_bytes_of_every_round_are_recorded(watched: Hospitals) -> None:
    lines = [json.loads(line) for line in (watched.coordinator / "timings.jsonl").read_text().splitlines()]
    method = method_of(watched.config)
    update = 1e6 * method.sent_megabytes(watched.config, "north")
    shared = 1e6 * method.shared_megabytes(watched.config, "north")
    for line in lines:
        assert line.keys() == {"round", "seconds", "peak_memory_mb", "sent_bytes", "received_bytes"}
        assert update < line["received_bytes"]["north"] < update + 2000
        assert 2 * shared < line["sent_bytes"]["north"] < 2 * shared + 6000, "to train, and to validate"
    status = watched.status()
    assert (status["phase"], status["round"], status["waiting_for"]) == ("finished", 2, [])
    for told in status["sites"].values():
        assert told["finished"]
        assert told["joined"]
        assert told["updated_round"] == 2
        assert told["refused"] is None
        assert told["asked"] is None
