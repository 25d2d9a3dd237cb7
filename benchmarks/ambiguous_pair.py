"""Does the code do its work, and what does the public code's dead conditioning cost?

    python benchmarks/ambiguous_pair.py --config demo/federation.toml --prepared demo/prepared --out work/ambiguous

Three runs are trained into ``--out`` unless they are there: ``live``; ``dead``, in which every linear layer starts at
N(0, 0.02) as in the public code (``model.conditioning = "dead"``); ``constant``, whose code is always zero
(``model.code = []``). The mean PSNR of all sites and tasks is printed, and for every site with one source and two
targets that of each task, and whether each test subject's outputs are nearer (mean squared error) to their own target
than to the other's.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path
from statistics import fmean

import numpy as np

from pflsynth.config_files import load_config
from pflsynth.console import Terminal, TrainingProgress
from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.evaluate import PERSONALISED, evaluate_run, summarize
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.training import train


def errors_to_targets(model: PersonalisedModel, store: SliceStore, subject: str, pair: tuple) -> np.ndarray:
    """Mean squared error of each output (row) to each target (column) of an ambiguous pair of tasks."""
    outputs = [model.synthesize(store.slices(subject, task.source), task) for task in pair]
    targets = [store.slices(subject, task.target) for task in pair]
    return np.array([[((output - target) ** 2).mean() for target in targets] for output in outputs])


VARIANTS: dict[str, dict[str, object]] = {"live": {}, "dead": {"conditioning": "dead"}, "constant": {"code": ()}}


def main() -> None:
    """Train what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    terminal, base = Terminal(), load_config(options.config).federation
    psnr: dict[str, dict[tuple[str, str], float]] = {}
    for label, changes in VARIANTS.items():
        config, run = base.model_copy(update={"model": base.model.model_copy(update=changes)}), options.out / label
        if not run.exists():
            with terminal.progress() as bar:
                train(config, options.prepared, run, TrainingProgress(terminal, bar, config.rounds))
        rows = summarize(evaluate_run(run, "test", options.prepared).scores)
        psnr[label] = {(row.site, row.task): row.mean["psnr"] for row in rows if row.model == PERSONALISED}
    results: list[dict[str, object]] = [{label: fmean(scores.values()) for label, scores in psnr.items()}]
    print("| site | task | " + " | ".join(f"{label}: PSNR dB" for label in VARIANTS) + " |")
    print("| --- | --- |" + " --- |" * len(VARIANTS))
    for key in [*psnr["live"], None]:
        scores = {label: own[key] if key else fmean(own.values()) for label, own in psnr.items()}
        site, task = key or ("**mean**", "")
        print(f"| {site} | {task} | " + " | ".join(f"{score:.2f}" for score in scores.values()) + " |")
        results.append({"site": site, "task": task, **scores})
    for label, site in itertools.product(VARIANTS, base.site_names):
        model, store = open_personalised(options.out / label, site), SliceStore(options.prepared / site)
        for pair in itertools.combinations(base.sites[site].tasks, 2):
            if pair[0].source != pair[1].source:
                continue
            subjects = [own for own in store.subjects("test") if all(own.serves(task) for task in pair)]
            errors = [errors_to_targets(model, store, subject.name, pair) for subject in subjects]
            right = sum(bool(own[0, 0] < own[0, 1] and own[1, 1] < own[1, 0]) for own in errors)
            print(
                f"{label}, {site}, {pair[0]} and {pair[1]}: both outputs nearest to their own target in "
                f"{right} of {len(subjects)} test subjects"
            )
            results.append({"variant": label, "site": site, "right": right, "subjects": len(subjects)})
    (options.out / "ambiguous_pair.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
