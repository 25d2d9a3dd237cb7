"""What re-estimating batch-norm statistics is worth: raw, re-estimated and batch statistics of the same models.

    python benchmarks/batch_norm.py --run demo/run --prepared demo/prepared --split test

``raw``: running statistics as they are after aggregation. ``re-estimated``: what pflsynth evaluates and saves.
``batch``: each slice normalised by itself, as in training at batch 1 (depends on what is in the batch).
Mean PSNR and SSIM over the subjects of each site and task, over the slice.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import replace
from pathlib import Path

from unfolded import slice_by_slice

from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.evaluate import PERSONALISED, evaluate_site, summarize
from pflsynth.federation.batch_norm import batch_norms
from pflsynth.federation.checkpoint import Provenance, load_shared
from pflsynth.federation.methods import method_of
from pflsynth.federation.personalised import open_personalised
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--split", default="test")
    options = parser.parse_args()
    run, config = RunDirectory.open(options.run)
    round_number, bases = run.state().result(config)
    shared = load_shared(run.shared_path(round_number), Provenance(config.agreement_sha256(), round_number))
    rows = {}
    for name in config.site_names:
        store = SliceStore(options.prepared / name)
        site = Site(config, name, {name: store}, run.site_folder(name))
        held = {key: shared[key] for key in method_of(config).initial_shared(config, name)}
        model = open_personalised(options.run, name)
        raw = replace(model, generator=site.personalised(held, bases[name], reestimate=False))
        batch = replace(model, generator=site.personalised(held, bases[name], reestimate=False))
        for norm in batch_norms(batch.generator):
            norm.train()
        for label, variant in (("raw", raw), ("re-estimated", model), ("batch", batch)):
            for row in summarize(evaluate_site(slice_by_slice(variant), store, options.split)):
                if row.model == PERSONALISED:
                    rows.setdefault((name, row.task), {})[label] = (row.mean["psnr"], row.mean["ssim"])
    labels = ("raw", "re-estimated", "batch")
    print("| site | task | " + " | ".join(f"{label}: PSNR dB / SSIM" for label in labels) + " |")
    print("| --- | --- |" + " --- |" * len(labels))
    for (site_name, task), values in rows.items():
        cells = " | ".join(f"{values[label][0]:.2f} / {values[label][1]:.3f}" for label in labels)
        print(f"| {site_name} | {task} | {cells} |")
    means = [[statistics.fmean(v[label][i] for v in rows.values()) for i in (0, 1)] for label in labels]
    print("| **mean** | | " + " | ".join(f"**{psnr:.2f} / {ssim:.3f}**" for psnr, ssim in means) + " |")


if __name__ == "__main__":
    main()
