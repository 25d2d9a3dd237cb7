"""Train a federation in one process: what ``pflsynth train`` does."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import nn

from pflsynth.canonical import differences
from pflsynth.config import FederationConfig
from pflsynth.data.slices import SliceStore
from pflsynth.errors import ModelError, UsageError
from pflsynth.evaluation.evaluate import validation_psnr
from pflsynth.federation.methods import CENTRAL, method_of
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.federation.rounds import Federation, RoundObserver
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory, RunState


def train(
    config: FederationConfig, prepared: Path, run_folder: Path, observer: RoundObserver, *, force: bool = False
) -> RunState:
    """Train a new federation from the common initialisation.

    Args:
        config: the agreement.
        prepared: folder with the prepared data of every site.
        run_folder: made anew.
        observer: hears of the progress.
        force: delete an existing run folder first.

    Raises:
        UsageError: if the run folder exists (without ``force``), is no run, or is being trained in.
        DataError: if prepared data is missing, damaged, or was prepared with other settings.
        ModelError: if too few sites sent a usable update.
    """
    stores = _stores(config, prepared)
    sites = sites_of(config, stores, run_folder)  # refuses what cannot be trained, before anything is deleted
    if force and run_folder.exists():
        if not (run_folder / "state.json").is_file():
            raise UsageError(f"{run_folder}: is not a run folder, so --force does not delete it; choose another --run")
        with RunDirectory(run_folder).lock():
            shutil.rmtree(run_folder)
    run = RunDirectory.create(run_folder, config, prepared, _manifests(stores), [site.name for site in sites])
    return _train(config, sites, run, observer)


def resume(run_folder: Path, observer: RoundObserver, prepared: Path | None = None) -> RunState:
    """Go on with a run after its last whole round; the result is the same, byte for byte, as without the stop.

    Args:
        run_folder: made by :func:`train`.
        observer: hears of the progress.
        prepared: where the prepared data is now; default: where it was.

    Raises:
        DataError: if the prepared data is not the same any more.
        ModelError: if the folder is no run, its states are damaged, or too few sites sent a usable update.
    """
    run, config = RunDirectory.open(run_folder)
    folder = prepared or Path(run.local()["prepared"])
    stores = _stores(config, folder)
    run.check_prepared(folder, _manifests(stores))
    return _train(config, sites_of(config, stores, run_folder), run, observer)


def _train(config: FederationConfig, sites: Sequence[Site], run: RunDirectory, observer: RoundObserver) -> RunState:
    def validate(site: str, store: SliceStore, generator: nn.Module) -> float | None:
        return validation_score(config, site, store, generator)

    return Federation(config, sites, run).train(observer, validate)


def validation_score(config: FederationConfig, site: str, store: SliceStore, generator: nn.Module) -> float | None:
    """Score of a site's personalised generator on its validation subjects: see ``validation_psnr``."""
    return validation_psnr(PersonalisedModel(config, site, 0, generator, store.manifest.intensity, ""), store)


def _stores(config: FederationConfig, prepared: Path) -> dict[str, SliceStore]:
    return {site: SliceStore(prepared / site) for site in config.participants}


def sites_of(config: FederationConfig, stores: Mapping[str, SliceStore], run_folder: Path) -> list[Site]:
    """Those that train a federation: its participating sites, or the one place of a centralised method.

    Args:
        config: the agreement.
        stores: prepared slices of every participating site.
        run_folder: of the run, where they keep their private states.

    Raises:
        UsageError: if there is no such method, or it cannot train these tasks.
        DataError: if prepared data does not fit.
    """
    run = RunDirectory(run_folder)
    return [
        Site(config, name, stores if name == CENTRAL else {name: stores[name]}, run.site_folder(name))
        for name in method_of(config).trainers(config)
    ]


def _manifests(stores: Mapping[str, SliceStore]) -> dict[str, str]:
    return {site: store.manifest_sha256() for site, store in stores.items()}


def check_same_agreement(run_folder: Path, recorded: FederationConfig, wanted: FederationConfig) -> None:
    """Raise ModelError, key by key, if a run was trained under another agreement than ``wanted``."""
    differing = [
        f"{key} is {before!r} in the run, {now!r} now"
        for key, before, now in differences(recorded.agreement(), wanted.agreement())
    ]
    if differing:
        raise ModelError(
            f"{run_folder}: was trained under another agreement ({'; '.join(differing)}); resume without a config, or "
            "start a new run"
        )
