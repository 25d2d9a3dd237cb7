"""A hospital of the federation: its data, its private state on its own disk, and its local training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from pflsynth.config import FederationConfig
from pflsynth.data.slices import SliceStore
from pflsynth.devices import use_device
from pflsynth.errors import DataError
from pflsynth.federation.aggregate import Update, UpdateRefused
from pflsynth.federation.batch_norm import reestimate_batch_norm
from pflsynth.federation.batches import Batch, Sample, batches, mixed_pass, training_epoch, usable_slices
from pflsynth.federation.checkpoint import Provenance, load_part, load_private, save_private
from pflsynth.federation.methods import METHODS, SiteNetworks, task_code
from pflsynth.federation.sharing import shared_tensors
from pflsynth.federation.step import StepLosses, learning_rate_factor, make_optimizers, training_step
from pflsynth.networks.generators import PersonalizedGenerator
from pflsynth.seeding import derive_seed, numpy_generator

OnStep = Callable[[int, int], None]


class Site:
    """Trains rounds for a federation; nothing but :class:`Update` leaves it.

    Everything random is seeded from (config seed, site, round, purpose), and a round starts from the shared
    parameters it is given and the private state of ``base`` on disk, so a repeated round gives the same bytes.
    """

    def __init__(self, config: FederationConfig, name: str, store: SliceStore, folder: Path):
        """Describe the site; networks are built only while they are needed.

        Args:
            config: the agreement.
            name: the site's name in it.
            store: prepared slices.
            folder: where this site keeps its private state.

        Raises:
            DataError: if the data is of another site, was prepared with other settings, or no training slice serves a
                task.
        """
        if store.manifest.site != name:
            raise DataError(
                f'{store.folder}: holds the data of site "{store.manifest.site}", not of "{name}"; '
                "give each site its own folder"
            )
        store.check_settings(config)
        self.config, self.name, self.store, self.folder = config, name, store, folder
        self.tasks = config.sites[name].tasks
        self._usable = usable_slices(store, self.tasks, "train")
        if not self._usable:
            raise DataError(f"site {name}: no training slices for {', '.join(map(str, self.tasks))}; prepare again")
        self._codes = torch.stack([task_code(config, name, task) for task in self.tasks])
        self._device = use_device(config.device, config.threads)

    @property
    def slices(self) -> int:
        """Number of training slices: the site's weight in the aggregate."""
        return len(self._usable)

    @property
    def steps_per_round(self) -> int:
        """Optimisation steps of a round."""
        return self.config.training.local_epochs * -(-self.slices // self.config.training.batch_size)

    def train_round(
        self, shared: Mapping[str, torch.Tensor], round_number: int, base: int, on_step: OnStep | None = None
    ) -> Update:
        """Train the local epochs of one round and write the private state of this round.

        Args:
            shared: shared parameters after the round before.
            round_number: from 1.
            base: last round whose update of this site was accepted; 0 starts from the common initialisation.
            on_step: called with (steps done, steps of the round).

        Returns:
            The update: shared tensors, number of training slices, mean losses per task.

        Raises:
            ModelError: if the private state of ``base`` is missing or does not fit.
            UpdateRefused: if training diverged: a NaN that stays private would spoil all later rounds of this site.
        """
        training = self.config.training
        torch.manual_seed(derive_seed(self.config.seed, self.name, round_number, "dropout"))
        networks, optimizers = self._load(shared, base)
        networks.train()
        factor = learning_rate_factor(round_number, self.config.rounds)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * factor
        losses: list[StepLosses] = []
        codes = self._codes.to(self._device)
        for batch in self._training_batches(round_number):
            losses.append(training_step(networks, optimizers, batch, codes, training))
            if on_step is not None:
                on_step(len(losses), self.steps_per_round)
        self._check_finite(networks, round_number)
        partition = METHODS[self.config.method].sharing(self.config).partition(networks)
        save_private(self._private_path(round_number), networks, partition, optimizers, self._provenance(round_number))
        return Update(
            self.name, round_number, shared_tensors(networks, partition), self.slices, self._mean_losses(losses)
        )

    def personalised(
        self, shared: Mapping[str, torch.Tensor], base: int, *, reestimate: bool = True
    ) -> PersonalizedGenerator:
        """The site's generator: shared parameters with its private ones of round ``base``, in ``eval()`` mode.

        Args:
            shared: aggregated shared parameters.
            base: round of the private state.
            reestimate: re-estimate batch-norm statistics on the training slices (always, but to measure without).
        """
        networks, _ = self._load(shared, base)
        if reestimate:
            codes = self._codes.to(self._device)
            samples = mixed_pass(self._usable, numpy_generator(self.config.seed, self.name, "batch norm"))
            inputs = ((batch.source, codes[batch.tasks]) for batch in self._batches(samples))
            reestimate_batch_norm(networks.generator, inputs)
        return networks.generator.eval()

    def prune(self, keep: set[int], base: int) -> None:
        """Delete private states before ``base`` but those of the rounds in ``keep``."""
        for path in self.folder.glob("private-*.safetensors"):
            number = int(path.stem.removeprefix("private-"))
            if number < base and number not in keep:
                path.unlink()

    def _training_batches(self, round_number: int) -> Iterator[Batch]:
        generator = numpy_generator(self.config.seed, self.name, round_number, "epoch")
        for _ in range(self.config.training.local_epochs):
            yield from self._batches(training_epoch(self._usable, self.config.training, generator))

    def _batches(self, samples: list[Sample]) -> Iterator[Batch]:
        for batch in batches(self.store, self.tasks, samples, self.config.training.batch_size):
            yield Batch(*(tensor.to(self._device) for tensor in (batch.source, batch.target, batch.tasks)))

    def _load(self, shared: Mapping[str, torch.Tensor], base: int) -> tuple[SiteNetworks, dict[str, torch.optim.Adam]]:
        method = METHODS[self.config.method]
        networks = method.networks(self.config, self.name)
        partition = method.sharing(self.config).partition(networks)
        load_part(networks, partition.shared, shared, f"shared parameters for site {self.name}")
        networks.to(self._device)
        optimizers = make_optimizers(networks, self.config.training)
        if base > 0:
            load_private(self._private_path(base), networks, partition, optimizers, self._provenance(base))
        return networks, optimizers

    def _private_path(self, round_number: int) -> Path:
        return self.folder / f"private-{round_number:04d}.safetensors"

    def _provenance(self, round_number: int) -> Provenance:
        return Provenance(self.config.agreement_sha256(), round_number, self.name)

    def _check_finite(self, networks: SiteNetworks, round_number: int) -> None:
        for name, tensor in networks.state_dict().items():
            if not bool(torch.isfinite(tensor).all()):
                raise UpdateRefused(
                    f"update of site {self.name}, round {round_number}, tensor {name}: holds NaN or Inf after training"
                )

    def _mean_losses(self, losses: list[StepLosses]) -> dict[str, float]:
        """Means over the samples of the round, per task: ``l1/T1w->T2w`` and so on."""
        means = {}
        for index, task in enumerate(self.tasks):
            steps = [step for step in losses if index in step.samples]
            total = sum(step.samples[index] for step in steps)
            for name in ("l1", "adversarial", "discriminator"):
                if total:
                    weighted = sum(float(getattr(step, name)[index]) * step.samples[index] for step in steps)
                    means[f"{name}/{task}"] = weighted / total
        return means


def initial_shared(config: FederationConfig, site: str) -> dict[str, torch.Tensor]:
    """The shared tensors of ``site`` as the seed makes them, before the first round."""
    method = METHODS[config.method]
    networks = method.networks(config, site)
    return shared_tensors(networks, method.sharing(config).partition(networks))
