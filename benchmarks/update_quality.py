"""What lossy updates cost in quality: the same federation trained with each encoding and several seeds.

    python benchmarks/update_quality.py --config recipes/phantom-variable.toml --prepared PREPARED --out work/encodings
    python benchmarks/update_quality.py --config recipes/realdata.toml --prepared PREPARED --out work/encodings-real

Every encoding is trained into ``--out`` as ``pflsynth compare`` does (stopped? give the command again), ``workers`` of
them side by side. Differences are to ``float32`` of the same seed: mean over the people of the test split, then over
seeds. The bar is 0.05 dB lost with three seeds.
"""

from __future__ import annotations

import json
from statistics import fmean
from typing import get_args

from ablations import arguments, changes, trained

from pflsynth.config_files import load_config
from pflsynth.config_sections import Encoding
from pflsynth.evaluation.comparison import Comparison

BAR = 0.05


def line_of(encoding: str, found: Comparison, reference: Comparison) -> dict[str, object]:
    """One line of the table: means by seed, and their differences to the reference's."""
    cost = found.entries_of("pflsynth")[0].cost
    megabytes = max(cost.megabytes.values()) if cost else None
    return {"encoding": encoding, "megabytes": megabytes, **changes(found, reference)}


def main() -> None:
    """Train what is missing, measure, print and write."""
    options = arguments(__doc__, "0,1,2").parse_args()
    workers = load_config(options.config, options.overrides).federation.workers
    found = trained(options, {name: (f'updates.encoding="{name}"',) for name in get_args(Encoding)}, workers)
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
