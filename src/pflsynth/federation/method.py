"""What a method is: the networks of a site, what of them is shared, how a step trains them, what the server does.

Every method trains through the same :class:`~pflsynth.federation.site.Site`, with the same data, order and budget. All
generators have one interface, ``generator(image (B, 1, H, W), code (B, K + 2C)) -> (B, 1, H, W)`` in [-1, 1]: those
that know neither site nor task leave the code unread.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from pflsynth.config import FederationConfig, Task
from pflsynth.federation.batches import Batch
from pflsynth.federation.server import MEAN, ServerRule
from pflsynth.federation.sharing import Partition, Sharing, shared_tensors
from pflsynth.federation.update_encoding import sent_form
from pflsynth.networks.discriminator import PatchDiscriminator
from pflsynth.networks.personalization import make_code
from pflsynth.seeding import derive_seed

CENTRAL = "_central"
"""Name of the one trainer of a centralised method; no site can have it."""

Module = TypeVar("Module", bound=nn.Module)


class SiteNetworks(nn.Module):
    """The networks of one site.

    Args:
        generator: what the site synthesises with.
        discriminators: one for each of its tasks, by the task's text.
        helpers: what else the method trains, such as the backward generator of a cycle.
    """

    def __init__(
        self,
        generator: nn.Module,
        discriminators: Mapping[str, nn.Module],
        helpers: Mapping[str, nn.Module] | None = None,
    ):
        super().__init__()
        self.generator = generator
        self.discriminators = nn.ModuleDict(discriminators)
        self.helpers = nn.ModuleDict(helpers or {})


@dataclass(frozen=True)
class StepLosses:
    """Losses of one step, detached: for each task in the batch its samples, and means over them by the loss's name."""

    samples: dict[str, int]
    means: dict[str, dict[str, torch.Tensor]] = field(default_factory=dict)

    def add(self, name: str, task: str, value: torch.Tensor) -> None:
        """Note one loss of one task."""
        self.means.setdefault(name, {})[task] = value.detach()


@dataclass(frozen=True)
class LocalRound:
    """What a step may know of the round it is part of.

    Attributes:
        config: the agreement.
        tasks: what a batch's task indices mean.
        codes: (tasks, K + 2C), the code of each.
        reverse_codes: the codes of the reversed tasks, target to source.
        partition: shared and private state-dict keys of the site's networks.
        received: the shared parameters that the round began with, on the device.
        previous: what every site sent after the round before, if the method has the server pass that on.
        number: of the round, from 1.
        steps: of the round.
    """

    config: FederationConfig
    tasks: tuple[Task, ...]
    codes: torch.Tensor
    reverse_codes: torch.Tensor
    partition: Partition
    received: Mapping[str, torch.Tensor]
    previous: Mapping[str, Mapping[str, torch.Tensor]]
    number: int
    steps: int

    def rows(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The rows of the batch that belong to each task, by the task's text, in the order of the tasks."""
        texts = [str(self.tasks[int(index)]) for index in batch.tasks]
        wanted = dict.fromkeys(str(self.tasks[int(index)]) for index in batch.tasks.unique())
        return {
            text: torch.tensor([row for row, own in enumerate(texts) if own == text], device=batch.tasks.device)
            for text in wanted
        }

    def progress(self, index: int) -> float:
        """How much of the whole training is done before step ``index`` of this round, in [0, 1)."""
        return (self.number - 1 + index / self.steps) / self.config.rounds


Optimizers = Mapping[str, torch.optim.Adam]
Step = Callable[[SiteNetworks, Optimizers, Batch, LocalRound, int], StepLosses]
Able = Callable[[FederationConfig], str | None]


def able_to_all(config: FederationConfig) -> str | None:
    """For methods that can do every set of tasks."""
    return None


def needs_no_file(config: FederationConfig) -> None:
    """For methods that train without weights from elsewhere."""


@dataclass(frozen=True)
class Method:
    """A way to train a federation; an entry of :data:`pflsynth.federation.methods.METHODS`.

    Attributes:
        title: its name as papers write it.
        citation: authors, title and where it is found.
        shared: what sites send, in words.
        private: what stays at a site, in words.
        loss: what is minimised, in words.
        generator: builds a site's generator as it first is, from the seed alone.
        networks: builds all networks of a site (or of :data:`CENTRAL`).
        sharing: what of them is shared.
        step: one optimisation step.
        server: what the server does with the mean of the updates.
        passes_on: whether the server passes every site's last update on to all sites.
        central: whether the data of all sites is trained on at one place.
        all_contrasts: whether batches carry all contrasts of a slice, not only source and target.
        unable: why it cannot train these tasks, if so.
        ready: raises ModelError if a file that training needs is missing or another.
    """

    title: str
    citation: str
    shared: str
    private: str
    loss: str
    generator: Callable[[FederationConfig, str], nn.Module]
    networks: Callable[[FederationConfig, str], SiteNetworks]
    sharing: Callable[[FederationConfig], Sharing]
    step: Step
    server: ServerRule = MEAN
    passes_on: bool = False
    central: bool = False
    all_contrasts: bool = False
    unable: Able = able_to_all
    ready: Callable[[FederationConfig], None] = needs_no_file

    def trainers(self, config: FederationConfig) -> tuple[str, ...]:
        """Who trains: the participating sites, or the one place that has all their data."""
        return (CENTRAL,) if self.central else config.participants

    def initial_shared(self, config: FederationConfig, trainer: str) -> dict[str, torch.Tensor]:
        """The shared tensors of a trainer as the seed makes them, before the first round."""
        networks = self.networks(config, trainer)
        return shared_tensors(networks, self.sharing(config).partition(networks))

    def sent_megabytes(self, config: FederationConfig, trainer: str) -> float:
        """What a trainer sends after every round, as the agreement has it encoded, in MB (10**6 bytes)."""
        return _megabytes(sent_form(config.updates.encoding, self._shared_form(config, trainer)))

    def shared_megabytes(self, config: FederationConfig, trainer: str) -> float:
        """The shared parameters that a trainer holds, float32, in MB (10**6 bytes)."""
        return _megabytes(self._shared_form(config, trainer))

    def received_megabytes(self, config: FederationConfig, trainer: str) -> float:
        """What a trainer receives before a round, from the second on, in MB (10**6 bytes): float32 always."""
        own = self.shared_megabytes(config, trainer)
        if not self.passes_on:
            return own
        return own + sum(self.shared_megabytes(config, other) for other in self.trainers(config))

    def _shared_form(self, config: FederationConfig, trainer: str) -> dict[str, torch.Tensor]:
        """Names, shapes and types of :meth:`initial_shared`, without numbers: nothing is drawn or allocated."""
        with torch.device("meta"):
            networks = self.networks(config, trainer)
        state = networks.state_dict()
        return {key: state[key] for key in self.sharing(config).partition(networks).shared}


def _megabytes(tensors: Mapping[str, torch.Tensor]) -> float:
    return sum(tensor.nbytes for tensor in tensors.values()) / 1e6


def seeded(config: FederationConfig, *purpose: str, build: Callable[[], Module]) -> Module:
    """Build a network from the seed and its purpose alone, so that it starts equal at every site."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "initial", *purpose))
        return build()


def tasks_of(config: FederationConfig, trainer: str) -> tuple[Task, ...]:
    """The tasks of a site, or of all participating sites together (each once) for :data:`CENTRAL`."""
    if trainer != CENTRAL:
        return config.sites[trainer].tasks
    return tuple(dict.fromkeys(task for site in config.participants for task in config.sites[site].tasks))


def conditional_discriminator(width: int) -> PatchDiscriminator:
    """The discriminator of pFLSynth: it judges an image together with its source."""
    return PatchDiscriminator(width=width)


def domain_discriminator(width: int) -> PatchDiscriminator:
    """The discriminator of CycleGAN: it judges an image alone, with instance norm."""
    return PatchDiscriminator(width=width, conditional=False, instance_norm=True)


def task_discriminators(
    config: FederationConfig, trainer: str, build: Callable[[int], nn.Module] = conditional_discriminator
) -> dict[str, nn.Module]:
    """One discriminator for each task of a trainer, built of a width (arXiv:2207.06509, Sec. III)."""
    width = config.model.width
    return {
        str(task): seeded(config, "discriminator", str(task), build=lambda: build(width))
        for task in tasks_of(config, trainer)
    }


def task_code(config: FederationConfig, site: str, task: Task) -> torch.Tensor:
    """The code of a task at a site: (K + 2C,) float32, one-hot site ++ source ++ target."""
    return make_code(
        config.site_names.index(site),
        config.contrasts.index(task.source),
        config.contrasts.index(task.target),
        sites=len(config.sites),
        contrasts=len(config.contrasts),
        live=config.model.code,
    )
