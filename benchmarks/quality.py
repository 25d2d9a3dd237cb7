"""What options cost or bring in quality: the same federation trained with each of them and several seeds.

    python benchmarks/quality.py --config recipes/phantom-variable.toml --prepared PREPARED --out work/quality
    python benchmarks/quality.py --config recipes/realdata.toml --prepared PREPARED --out work/quality-real

Every variant is trained into ``--out`` as ``pflsynth compare`` does (stopped? give the command again), ``workers`` of
them side by side; ``--only A,B`` takes a part. Differences are to the default of the same seed: mean over the people
of the test split, then over seeds. The bar of lossy updates is 0.05 dB lost with three seeds.
"""

from __future__ import annotations

import json
from statistics import fmean

from ablations import arguments, changes, trained

from pflsynth.config_files import load_config

DEFAULT = "default"
VARIANTS: dict[str, tuple[str, ...]] = {
    DEFAULT: (),
    "updates-bfloat16": ('updates.encoding="bfloat16"',),
    "updates-int8": ('updates.encoding="int8"',),
    "training-bfloat16": ('training.precision="bfloat16"',),
    "ema-0.99": ("training.ema_decay=0.99",),
}
BAR = 0.05


def main() -> None:
    """Train what is missing, measure, print and write."""
    parser = arguments(__doc__, "0,1,2")
    parser.add_argument("--only", default="")
    options = parser.parse_args()
    workers = load_config(options.config, options.overrides).federation.workers
    names = dict.fromkeys((DEFAULT, *options.only.split(","))) if options.only else VARIANTS
    found = trained(options, {name: VARIANTS[name] for name in names}, workers)
    lines = [{"variant": name, **changes(own, found[DEFAULT])} for name, own in found.items()]
    (options.out / "quality.json").write_text(json.dumps(lines, indent=2) + "\n")
    print("| variant | PSNR dB | change, by seed | mean change | SSIM | change |")
    print("| --- | --- | --- | --- | --- | --- |")
    for line in lines:
        by_seed = ", ".join(f"{change:+.3f}" for change in line["psnr_changes"])
        means = f"{fmean(line['psnr']):.2f} | {by_seed} | {line['psnr_change']:+.3f}"
        ssim = f"{fmean(line['ssim']):.4f} | {line['ssim_change']:+.4f}"
        print(f"| {line['variant']} | {means} | {ssim} |")
    for line in lines:
        if line["variant"].startswith("updates-"):
            verdict = "met" if line["psnr_change"] >= -BAR else "missed"
            print(f"{line['variant']}: at most {BAR} dB lost: {verdict}")


if __name__ == "__main__":
    main()
