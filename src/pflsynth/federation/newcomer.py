"""How a finished federation serves a site that did not take part in it: as it is, and after a short local fit.

The site is named in the agreement (``held_out``), so its place in the code is there, but nobody trained it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from pflsynth.config import FederationConfig
from pflsynth.config_sections import UpdatesConfig
from pflsynth.data.slices import SliceStore
from pflsynth.federation.checkpoint import Provenance, load_shared
from pflsynth.federation.methods import method_of
from pflsynth.federation.personalised import PersonalisedModel, open_personalised
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory


def serve_newcomer(
    run: RunDirectory, config: FederationConfig, site: str, store: SliceStore, rounds: int
) -> dict[int, PersonalisedModel]:
    """Models of a held-out site: with the federation's shared parameters, and after some rounds of its own training.

    What the method keeps private starts as the seed makes it: the site never had any. A centralised method gives its
    whole generator. The fit has the full learning rate, and nothing of it is sent, so nothing is rounded. Batch-norm
    statistics are re-estimated on the site's training slices in both models. Nothing of the run is changed.

    Args:
        run: finished.
        config: its agreement, with the site among ``held_out``.
        site: the one that was held out.
        store: its prepared slices.
        rounds: of local training, at least 1.

    Returns:
        Models by the rounds of local fit: 0 and ``rounds``.

    Raises:
        ModelError: if the run is unfinished or damaged.
        DataError: if the site's data does not fit.
    """
    number, _ = run.result(config)
    method = method_of(config)
    shared: Mapping[str, torch.Tensor] = _shared(run, config, number, site)

    def model(generator: nn.Module) -> PersonalisedModel:
        return PersonalisedModel(config, site, number, generator, store.manifest.intensity, "")

    start = 1 if method.central else 0
    at_full_rate = config.model_copy(update={"rounds": 2 * (start + rounds), "updates": UpdatesConfig()})
    with TemporaryDirectory(prefix="pflsynth-") as folder:
        newcomer = Site(at_full_rate, site, {site: store}, Path(folder))
        if method.central:
            newcomer.adopt(open_personalised(run.folder, config.participants[0]).generator.state_dict(), start)
        models = {0: model(newcomer.personalised(shared, start))}
        for fit in range(start + 1, start + rounds + 1):
            shared = newcomer.train_round(shared, fit, fit - 1).tensors
        models[rounds] = model(newcomer.personalised(shared, start + rounds))
    return models


def _shared(run: RunDirectory, config: FederationConfig, number: int, site: str) -> Mapping[str, torch.Tensor]:
    """The federation's shared tensors that the site holds; what no participant holds is as the seed makes it."""
    initial = method_of(config).initial_shared(config, site)
    found = load_shared(run.shared_path(number), Provenance(config.agreement_sha256(), number))
    return initial | {name: tensor for name, tensor in found.items() if name in initial}
