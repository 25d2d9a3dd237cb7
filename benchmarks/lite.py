"""The lite family against the full one: PSNR and SSIM against the operations and the bytes that they take.

    python benchmarks/lite.py --config recipes/phantom-variable.toml --prepared PREPARED --out work/lite --seeds 0,1,2
    python benchmarks/lite.py --config recipes/realdata.toml --prepared PREPARED --out work/lite-real --seeds 0,1,2

Each network (a family and a width, ``--networks``; default: both families at the configuration's width W, full at W/2,
lite at W/2) is trained into ``--out`` as ``pflsynth compare`` does (stopped? give the command again),
``workers`` of them side by side, all with the same slices in the same order. Differences are to the full network at W
of the same seed: mean over the people of the test split, then over seeds. The bar is at most 0.2 dB lost with at most
a quarter of the GFLOP, at the same width. Lite networks train with twice the configuration's learning rate, as their
recipes do; another factor is written after the width, as in ``full-16@2``.
"""

from __future__ import annotations

import json
from statistics import fmean

from ablations import arguments, changes, trained

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.evaluation.comparison import Comparison
from pflsynth.federation.methods import METHODS
from pflsynth.federation.operations import count_operations

MOST_LOST, MOST_GFLOP = 0.2, 0.25
RATES = {"full": 1.0, "lite": 2.0}
"""Factors on the configuration's learning rate."""


def networks_around(width: int) -> list[str]:
    """Names of the networks that are trained unless some are named."""
    half = max(8, width // 16 * 8)
    return [f"full-{width}", f"lite-{width}", f"full-{half}", f"lite-{half}"]


def overrides_of(name: str, learning_rate: float) -> tuple[str, ...]:
    """What a name such as ``lite-16`` or ``full-16@2`` changes in the configuration of that learning rate."""
    network, _, factor = name.partition("@")
    family, _, width = network.partition("-")
    rate = learning_rate * float(factor or RATES[family])
    return f'model.family="{family}"', f"model.width={width}", f"training.learning_rate={rate}"


def line_of(name: str, config: FederationConfig, found: Comparison, reference: Comparison) -> dict[str, object]:
    """One line of the table, without its share of the reference's GFLOP."""
    method = METHODS["pflsynth"]
    operations = count_operations(method, config)
    assert operations is not None
    return {
        "network": name,
        "gflop": operations.forward,
        "gflop_step": operations.step,
        "megabytes": max(method.sent_megabytes(config, site) for site in config.participants),
        **changes(found, reference),
    }


def main() -> None:
    """Train what is missing, measure, print and write."""
    parser = arguments(__doc__, "0")
    parser.add_argument("--networks", default="", help="such as full-16,lite-16,lite-24; full at W is always there")
    options = parser.parse_args()
    base = load_config(options.config, options.overrides).federation
    full = f"full-{base.model.width}"
    names = options.networks.split(",") if options.networks else networks_around(base.model.width)
    chosen = {name: overrides_of(name, base.training.learning_rate) for name in dict.fromkeys((full, *names))}
    found = trained(options, chosen, base.workers)
    lines = [
        line_of(name, load_config(options.config, (*options.overrides, *chosen[name])).federation, own, found[full])
        for name, own in found.items()
    ]
    for line in lines:
        line["share"] = line["gflop"] / lines[0]["gflop"]
    (options.out / "lite.json").write_text(json.dumps(lines, indent=2) + "\n")
    print(
        "| network | GFLOP | of full | GFLOP a step | MB a round | PSNR dB | change, by seed | mean | SSIM | change |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for line in lines:
        cost = f"{line['gflop']:.3g} | {line['share']:.1%} | {line['gflop_step']:.3g} | {line['megabytes']:.2f}"
        by_seed = ", ".join(f"{change:+.2f}" for change in line["psnr_changes"])
        psnr = f"{fmean(line['psnr']):.2f} | {by_seed} | {line['psnr_change']:+.2f}"
        print(f"| {line['network']} | {cost} | {psnr} | {fmean(line['ssim']):.4f} | {line['ssim_change']:+.4f} |")
    for line in lines:
        if line["network"] == f"lite-{base.model.width}":
            met = line["psnr_change"] >= -MOST_LOST and line["share"] <= MOST_GFLOP
            verdict = "met" if met else "missed"
            print(f"lite: at most {MOST_LOST} dB lost with at most {MOST_GFLOP:.0%} of the GFLOP: {verdict}")


if __name__ == "__main__":
    main()
