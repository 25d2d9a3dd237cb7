"""Does the code do its work? The demo's federation trained with a live code, and the same with the code held constant.

    python benchmarks/ambiguous_pair.py --prepared demo/prepared --live demo/run --out work/ambiguous

``--live`` is a finished run with a live code; the run with ``model.code = []`` is trained into ``--out`` if it is not
there. At every site with one source and two targets, the gain in PSNR over the constant code is printed, and for every
test subject whether each output of the live model is nearer (mean squared error) to its own target than to the other's.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np

from pflsynth.console import Terminal, TrainingProgress
from pflsynth.data.slices import SliceStore
from pflsynth.evaluation.evaluate import PERSONALISED, evaluate_run, summarize
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.runs import RunDirectory
from pflsynth.training import train


def errors_to_targets(model: PersonalisedModel, store: SliceStore, subject: str, pair: tuple) -> np.ndarray:
    """Mean squared error of each output (row) to each target (column) of an ambiguous pair of tasks."""
    outputs = [model.synthesize(store.slices(subject, task.source), task) for task in pair]
    targets = [store.slices(subject, task.target) for task in pair]
    return np.array([[((output - target) ** 2).mean() for target in targets] for output in outputs])


def main() -> None:
    """Train what is missing, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--live", type=Path, required=True)
    parser.add_argument("--prepared", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    terminal = Terminal()
    _, config = RunDirectory.open(options.live)
    constant = config.model_copy(update={"model": config.model.model_copy(update={"code": ()})})
    constant_run = options.out / "constant-code"
    if not constant_run.exists():
        with terminal.progress() as bar:
            train(constant, options.prepared, constant_run, TrainingProgress(terminal, bar, config.rounds))
    psnr = {}
    for label, run in (("live", options.live), ("constant", constant_run)):
        rows = summarize(evaluate_run(run, "test", options.prepared))
        psnr[label] = {(row.site, row.task): row.mean["psnr"] for row in rows if row.model == PERSONALISED}
    results = []
    for site in config.site_names:
        model, store = open_personalised(options.live, site), SliceStore(options.prepared / site)
        for pair in itertools.combinations(config.sites[site].tasks, 2):
            if pair[0].source != pair[1].source:
                continue
            for task in pair:
                key = (site, str(task))
                live, fixed = psnr["live"][key], psnr["constant"][key]
                results.append({"site": site, "task": str(task), "live": live, "constant": fixed, "gain": live - fixed})
                print(
                    f"{site} {task}: live code {live:.2f} dB, constant code {fixed:.2f} dB, gain {live - fixed:+.2f} dB"
                )
            for subject in store.subjects("test"):
                if not all(subject.serves(task) for task in pair):
                    continue
                errors = errors_to_targets(model, store, subject.name, pair)
                own = bool(errors[0, 0] < errors[0, 1] and errors[1, 1] < errors[1, 0])
                results.append({"site": site, "subject": subject.name, "nearer_to_own_target": own})
                print(f"{site} {subject.name}: each output nearer to its own target: {'yes' if own else 'NO'}")
    (options.out / "ambiguous_pair.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
