"""A comparison whose runs have models: every method is trained on the tiny federation, evaluated, and opened."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pflsynth import training
from pflsynth.evaluation.comparison import Comparison, open_comparison
from pflsynth.evaluation.evaluate import evaluate_run, write_scores
from pflsynth.files import write_json

from .comparison_builders import base_agreement, make_costs, run_path, scores_path
from .tiny import Silent, Tiny, changed


def train_comparison(folder: Path, tiny: Tiny, methods: Sequence[str], seeds: Sequence[int] = (3,)) -> Comparison:
    """Train each method with each seed for two rounds, the second of which is validated, and open the comparison."""
    config = changed(tiny.config, rounds=2, training={"validate_every": 2})
    for method in methods:
        for seed in seeds:
            run = run_path(folder, method, seed)
            training.train(changed(config, method=method, seed=seed), tiny.prepared, run, Silent())
            scores = scores_path(run)
            scores.parent.mkdir(parents=True)
            write_scores(scores, evaluate_run(run, "test").scores)
    content = {
        "format": 1,
        "name": "tiny",
        "agreement": base_agreement(config),
        "methods": list(methods),
        "seeds": list(seeds),
        "split": "test",
        "held_out": None,
        "prepared": str(tiny.prepared),
        "costs": make_costs(methods, seeds, config),
    }
    write_json(folder / "comparison.json", content)
    return open_comparison(folder)
