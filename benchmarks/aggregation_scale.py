"""What a thousand and ten thousand sites would cost one coordinator, without any network: docs/scale.md.

    python benchmarks/aggregation_scale.py

For each number of sites: the mean of so many small updates (``Aggregation``), flat and as a tree of sub-coordinators
whose sums are added, which must give the same bytes; memory over both; and writing ``status.json`` once. Then, once,
what an update of the paper's size costs, and what one site's part of the common initialisation does.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from pflsynth.config import FederationConfig
from pflsynth.deployment.status import StatusFile
from pflsynth.federation.aggregate import Aggregation, Update
from pflsynth.federation.coordinator import Tensors
from pflsynth.federation.methods import method_of

CHILDREN = 32
"""Sites of each sub-coordinator."""


def shared_of(width: int, mapper_layers: int) -> Tensors:
    """The shared parameters of pFLSynth for four sites."""
    content = {
        "name": "scale",
        "contrasts": ["T1w", "T2w"],
        "model": {"width": width, "mapper_layers": mapper_layers},
        "sites": {f"site-{number}": {"tasks": ["T1w->T2w"]} for number in range(4)},
    }
    config = FederationConfig.model_validate(content)
    return method_of(config).initial_shared(config, "site-0")


def updates(shared: Tensors, sites: Sequence[str]) -> Iterator[Update]:
    """An update of each site, made when it is asked for."""
    for site in sites:
        moved = 1e-3 * int(site) / 7
        yield Update(site, 1, {name: tensor + moved for name, tensor in shared.items()}, 1 + int(site) % 900)


def aggregated(shared: Tensors, sites: Sequence[str]) -> Aggregation:
    """The sums over some sites: what one coordinator has at the end of a round."""
    aggregation = Aggregation(shared, dict.fromkeys(sites, frozenset(shared)))
    for update in updates(shared, sites):
        aggregation.add(update)
    return aggregation


def tree(shared: Tensors, sites: Sequence[str]) -> Aggregation:
    """The same sums, of sub-coordinators with some sites each."""
    root = Aggregation(shared, {})
    for start in range(0, len(sites), CHILDREN):
        part = aggregated(shared, sites[start : start + CHILDREN])
        for name, tensor in part._sums.items():  # no engine of ours has a tree yet, so nothing public adds sums
            root._sums[name] += tensor
            root._counts[name] += part._counts[name]
    return root


def peak() -> float:
    """Highest memory of this process so far, in MB of 10**6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def status_seconds(folder: Path, sites: Sequence[str]) -> float:
    """Writing the status once; the coordinator does that a few times for each reply."""
    status = StatusFile(folder, sites, 1, len(sites))
    return min(seconds(status.write) for _ in range(5))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sites", type=int, nargs="*", default=[1000, 10_000])
    wanted = parser.parse_args()
    torch.set_num_threads(1)
    small = shared_of(8, 1)
    megabytes = sum(tensor.nbytes for tensor in small.values()) / 1e6
    print(f"updates of {megabytes:.2f} MB in {len(small)} tensors; memory at the start {peak():.0f} MB\n")
    print("| sites | flat, s | ms an update | tree, s | same bytes | peak, MB | status.json once, ms |")
    print(f"|{' --- |' * 7}")
    for count in wanted.sites:
        sites = [f"{number:05d}" for number in range(count)]
        start = time.perf_counter()
        flat = aggregated(small, sites).result()
        middle = time.perf_counter()
        parts = tree(small, sites).result()
        end = time.perf_counter()
        same = all(flat[name].numpy().tobytes() == parts[name].numpy().tobytes() for name in small)
        with tempfile.TemporaryDirectory() as folder:
            told = 1000 * status_seconds(Path(folder), sites)
        per = 1000 * (middle - start) / count
        print(
            f"| {count} | {middle - start:.1f} | {per:.1f} | {end - middle:.1f} | {same} | {peak():.0f} | {told:.0f} |"
        )
    full = shared_of(64, 6)
    aggregation = Aggregation(full, {"0": frozenset(full)})
    whole = next(updates(full, ["0"]))
    adding, building = seconds(lambda: aggregation.add(whole)), seconds(lambda: shared_of(64, 6))
    print(f"\npaper's size: {adding:.2f} s to add an update, {building:.2f} s to build a site's initial parameters")


if __name__ == "__main__":
    main()
