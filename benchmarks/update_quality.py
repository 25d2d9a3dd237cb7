"""What lossy updates cost in quality: the same federation trained with each encoding and several seeds.

    python benchmarks/update_quality.py --config recipes/phantom-variable.toml --prepared PREPARED --out work/encodings
    python benchmarks/update_quality.py --config recipes/realdata.toml --prepared PREPARED --out work/encodings-real

Every encoding is trained into ``--out`` as ``pflsynth compare`` does (stopped? give the command again), ``workers`` of
them side by side. Differences are to ``float32`` of the same seed: mean over the people of the test split, then over
seeds. The bar is 0.05 dB lost with three seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import fmean
from typing import get_args

from ablations import Job, run

from pflsynth.config_files import load_config
from pflsynth.config_sections import Encoding
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.evaluate import Score
from pflsynth.workers import each

METRICS = ("psnr", "ssim")
BAR = 0.05


def mean_over_people(scores: tuple[Score, ...], metric: str) -> float:
    """Mean over people of the mean over their tasks."""
    people: dict[tuple[str, str], list[float]] = {}
    for score in scores:
        people.setdefault((score.site, score.subject), []).append(getattr(score, metric))
    return fmean(fmean(values) for values in people.values())


def line_of(encoding: str, found: Comparison, reference: Comparison) -> dict[str, object]:
    """One line of the table: means by seed, and their differences to the reference's."""
    entries = found.entries_of("pflsynth")
    line: dict[str, object] = {
        "encoding": encoding,
        "seeds": [entry.seed for entry in entries],
        "megabytes": max(entries[0].cost.megabytes.values()) if entries[0].cost else None,
    }
    for metric in METRICS:
        own, others = (
            [mean_over_people(entry.scores, metric) for entry in comparison.entries_of("pflsynth")]
            for comparison in (found, reference)
        )
        changes = [one - other for one, other in zip(own, others, strict=True)]
        line |= {metric: own, f"{metric}_changes": changes, f"{metric}_change": fmean(changes)}
    return line


def main() -> None:
    """Train what is missing, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    options = parser.parse_args()
    seeds = tuple(map(int, options.seeds.split(",")))
    encodings = get_args(Encoding)
    jobs = {
        name: Job(
            options.config,
            (*options.overrides, f'updates.encoding="{name}"'),
            seeds,
            options.prepared,
            options.out / name,
        )
        for name in encodings
    }
    workers = load_config(options.config, options.overrides).federation.workers
    for name, failure in each(run, jobs, workers):
        if failure is not None:
            raise SystemExit(f"{name}: {failure}")
    found = {name: open_comparison(options.out / name) for name in encodings}
    lines = [line_of(name, own, found["float32"]) for name, own in found.items()]
    (options.out / "encodings.json").write_text(json.dumps(lines, indent=2) + "\n")
    print("| encoding | MB a site and round | PSNR dB | change, by seed | mean change | SSIM | change |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for line in lines:
        by_seed = ", ".join(f"{change:+.3f}" for change in line["psnr_changes"])
        means = f"{fmean(line['psnr']):.2f} | {by_seed} | {line['psnr_change']:+.3f}"
        ssim = f"{fmean(line['ssim']):.4f} | {line['ssim_change']:+.4f}"
        print(f"| {line['encoding']} | {line['megabytes']:.2f} | {means} | {ssim} |")
    for line in lines[1:]:
        verdict = "met" if line["psnr_change"] >= -BAR else "missed"
        print(f"{line['encoding']}: at most {BAR} dB lost: {verdict}")


if __name__ == "__main__":
    main()
