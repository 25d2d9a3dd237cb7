"""``prepare`` on the real sites."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.prepare import prepare_site
from pflsynth.data.slices import SliceStore
from tests.data_builders import federation

TCGA = ["T1w->FLAIR", "T1w->T1ce"]
TASKS = {
    "brats2013": ["FLAIR->T1ce"],
    "brats4": ["T1w->T2w", "T2w->FLAIR"],
    "lju15t": ["T1w->T2w", "FLAIR->T2w"],
    "lju3t": ["T1w->T2w", "T2w->FLAIR"],
    "tcga_cs": TCGA,
    "tcga_du": TCGA,
    "tcga_fg": TCGA,
    "tcga_ht": TCGA,
}
SUBJECTS = {
    "brats2013": 4,
    "brats4": 4,
    "lju15t": 3,  # sub-05 has no T2w, which both tasks need
    "lju3t": 2,
    "tcga_cs": 9,
    "tcga_du": 9,
    "tcga_fg": 7,
    "tcga_ht": 9,
}


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize("site", TASKS)
def test_a_real_site_is_prepared(realdata: Path, tmp_path: Path, site: str) -> None:
    config = federation(realdata, TASKS, image={"size": 96, "spacing_mm": 2.7})
    report = prepare_site(config, site, tmp_path / site)
    store = SliceStore(tmp_path / site)
    store.verify()
    store.check_settings(config)
    assert sum(map(len, report.subjects.values())) == SUBJECTS[site]
    assert not report.skipped
    for subject in store.manifest.subjects:
        mask = store.mask(subject.name)
        assert mask.any(axis=(1, 2)).all()
        for contrast in subject.contrasts:
            slices = store.slices(subject.name, contrast)
            assert np.isfinite(slices).all()
            # The head is in the mask, the background is dark, and the tissue uses the range.
            assert (slices[~mask] > -0.6).mean() < 0.005
            assert -0.6 < slices[mask].mean() < 0.6
            assert np.percentile(slices[mask], 99) > 0.3
