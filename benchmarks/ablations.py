"""What each part of pFLSynth is worth: the same federation trained without it.

    python benchmarks/ablations.py --config recipes/phantom-variable.toml --prepared PREPARED --out work/ablations

Every variant is trained into ``--out`` as ``pflsynth compare`` does (stopped? give the command again), ``workers`` of
them side by side, and compared with the full method over the test subjects: mean ± SD, mean difference, and the
two-sided Wilcoxon signed-rank test with Holm's correction over the variants of the table. ``--only A,B`` takes a part.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pflsynth.comparing import compare, plan
from pflsynth.comparison_verbs import RunLines
from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.evaluation.comparison import Comparison, open_comparison, person_values, rows, seed_means
from pflsynth.evaluation.statistics import paired_test, with_holm
from pflsynth.workers import each

FULL = "full"


def variants(config: FederationConfig) -> dict[str, tuple[str, ...]]:
    """Overrides of the configuration by the name of the variant; the full method comes first."""
    share_all = ("model.split_stage=1", "model.private_blocks=false", "model.private_discriminators=false")
    found: dict[str, tuple[str, ...]] = {
        FULL: (),
        "without-adain": ('model.blocks=["adacw"]',),
        "without-adacw": ('model.blocks=["adain"]',),
        "without-site-code": ('model.code=["task"]',),
        "without-task-code": ('model.code=["site"]',),
        "without-code": ("model.code=[]",),
        "dead-conditioning": ('model.conditioning="dead"',),
        "share-everything": share_all,
        "shared-blocks": ("model.private_blocks=false",),
        "shared-discriminators": ("model.private_discriminators=false",),
    }
    for depth in (1, 2, 4, 8):
        if depth != config.model.mapper_layers:
            found[f"mapper-{depth}"] = (f"model.mapper_layers={depth}",)
    for stage in range(1, config.model.stages + 2):
        if stage != config.model.first_shared_stage:
            found[f"split-{stage}"] = (f"model.split_stage={stage}",)
    return found


@dataclass(frozen=True)
class Job:
    """A variant to train with every seed."""

    config: Path
    overrides: tuple[str, ...]
    seeds: tuple[int, ...]
    prepared: Path
    out: Path


def run(job: Job) -> None:
    """Train and evaluate a variant, as far as it is not done."""
    config = load_config(job.config, (*job.overrides, "workers=1")).federation
    compare(plan(config, ("pflsynth",), job.seeds), job.prepared, job.out, RunLines(as_json=False))


def table(found: dict[str, Comparison]) -> list[dict[str, object]]:
    """One line for each variant, with its tests against the full method."""
    lines: dict[str, dict[str, object]] = {name: {"variant": name} for name in found}
    for metric in ("psnr", "ssim"):
        full = list(person_values(found[FULL], "pflsynth", metric).values())
        others = {
            name: list(person_values(own, "pflsynth", metric).values()) for name, own in found.items() if name != FULL
        }
        tests = dict(zip(others, with_holm([paired_test(own, full) for own in others.values()]), strict=True))
        for name, own in found.items():
            row = next(row for row in rows(own, metric, "all") if row.method == "pflsynth")
            lines[name] |= {metric: row.description.mean, f"{metric}_sd": row.description.deviation}
            lines[name] |= {f"{metric}_seed_sd": row.seed_deviation, "subjects": row.description.n}
            if name != FULL:
                test = tests[name]
                lines[name] |= {f"{metric}_change": test.difference, f"{metric}_p": test.p_holm}
    for name, own in found.items():
        costs = [sum((entry.cost.megabytes if entry.cost else {}).values()) for entry in own.entries_of("pflsynth")]
        lines[name]["mb_per_round"] = fmean(costs)
    return list(lines.values())


def arguments(description: str | None, seeds: str) -> argparse.ArgumentParser:
    """What every benchmark of variants is told; ``seeds`` are its default ones."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    return parser


def trained(options: argparse.Namespace, chosen: Mapping[str, tuple[str, ...]], workers: int) -> dict[str, Comparison]:
    """Train what is missing of the variants, given by their overrides, and open them all."""
    seeds = tuple(map(int, options.seeds.split(",")))
    jobs = {
        name: Job(options.config, (*options.overrides, *changes), seeds, options.prepared, options.out / name)
        for name, changes in chosen.items()
    }
    for name, failure in each(run, jobs, workers):
        if failure is not None:
            raise SystemExit(f"{name}: {failure}")
    return {name: open_comparison(options.out / name) for name in chosen}


def changes(found: Comparison, reference: Comparison) -> dict[str, object]:
    """Means of PSNR and SSIM by seed, differences to the reference of the same seed, and their means."""
    line: dict[str, object] = {"seeds": [entry.seed for entry in found.entries_of("pflsynth")]}
    for metric in ("psnr", "ssim"):
        own, others = (seed_means(comparison, "pflsynth", metric) for comparison in (found, reference))
        differences = [one - other for one, other in zip(own, others, strict=True)]
        line |= {metric: own, f"{metric}_changes": differences, f"{metric}_change": fmean(differences)}
    return line


def main() -> None:
    """Train what is missing, measure and print."""
    parser = arguments(__doc__, "0")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    base = load_config(options.config, options.overrides).federation
    chosen = variants(base)
    if options.only:
        chosen = {name: chosen[name] for name in dict.fromkeys((FULL, *options.only.split(",")))}
    lines = table(trained(options, chosen, base.workers))
    with (options.out / "ablations.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for line in lines for key in line))
        writer.writeheader()
        writer.writerows(lines)
    print("| variant | PSNR dB | change | p | SSIM | change | p | MB a round |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for line in lines:
        cells = [f"{line['psnr']:.2f} ± {line['psnr_sd']:.2f}", "", "", f"{line['ssim']:.3f} ± {line['ssim_sd']:.3f}"]
        cells += ["", "", f"{line['mb_per_round']:.1f}"]
        if line["variant"] != FULL:
            cells[1:3] = [f"{line['psnr_change']:+.2f}", _p(line["psnr_p"])]
            cells[4:6] = [f"{line['ssim_change']:+.3f}", _p(line["ssim_p"])]
        print(f"| {line['variant']} | " + " | ".join(cells) + " |")


def _p(value: object) -> str:
    return "–" if not isinstance(value, float) else "< 0.001" if value < 0.001 else f"{value:.3f}"


if __name__ == "__main__":
    main()
