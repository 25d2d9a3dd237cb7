"""A hospital of the federation: its data, its private state on its own disk, and its local training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from torch import nn

from pflsynth.config import FederationConfig
from pflsynth.data.slices import SliceStore
from pflsynth.devices import use_device
from pflsynth.errors import DataError
from pflsynth.federation.aggregate import Update, UpdateRefused
from pflsynth.federation.batch_norm import reestimate_batch_norm
from pflsynth.federation.batches import (
    Batch,
    Sample,
    batches,
    mixed_pass,
    prefetched,
    training_epoch,
    usable_slices,
)
from pflsynth.federation.checkpoint import Carried, Provenance, load_part, load_private, save_private
from pflsynth.federation.machine import check_machine, out_of_memory, set_up
from pflsynth.federation.method import Optimizers
from pflsynth.federation.methods import LocalRound, SiteNetworks, StepLosses, method_of, task_code
from pflsynth.federation.moving_average import MovingAverage
from pflsynth.federation.sharing import Partition, shared_tensors
from pflsynth.federation.step import learning_rate_factor, make_optimizers
from pflsynth.federation.update_encoding import encode
from pflsynth.seeding import derive_seed, numpy_generator

OnStep = Callable[[int, int], None]


class Site:
    """Trains rounds for a federation; nothing but :class:`Update` leaves it.

    Everything random is seeded from (config seed, site, round, purpose), and a round starts from the shared
    parameters it is given and the private state of ``base`` on disk, so a repeated round gives the same bytes.
    With a centralised method there is one "site", :data:`~pflsynth.federation.methods.CENTRAL`, with all sites' data.
    """

    def __init__(self, config: FederationConfig, name: str, stores: Mapping[str, SliceStore], folder: Path):
        """Describe the site; networks are built only while they are needed.

        Args:
            config: the agreement.
            name: the site's name in it, or ``CENTRAL``.
            stores: prepared slices by site: of this one, or of all for ``CENTRAL``.
            folder: where this site keeps its private state.

        Raises:
            UsageError: if there is no such method, or it cannot train these tasks.
            ModelError: if a file of weights that the method needs is missing or another.
                Or if the device cannot train as the configuration wants it.
            DataError: if the data is of another site, was prepared with other settings, or no training slice serves a
                task.
        """
        self._method = method_of(config)
        self._method.ready(config)
        for member, store in stores.items():
            if store.manifest.site != member:
                raise DataError(
                    f'{store.folder}: holds the data of site "{store.manifest.site}", not of "{member}"; '
                    "give each site its own folder"
                )
            store.check_settings(config)
        self.config, self.name, self.stores, self.folder = config, name, stores, folder
        pairs = [(member, task) for member in stores for task in config.sites[member].tasks]
        self.tasks = tuple(task for _, task in pairs)
        self._usable = usable_slices(stores, pairs, "train")
        for member in stores:
            if not any(usable.site == member for usable in self._usable):
                tasks = ", ".join(map(str, config.sites[member].tasks))
                raise DataError(f"site {member}: no training slices for {tasks}; prepare again")
        self._codes = torch.stack([task_code(config, *pair) for pair in pairs])
        self._reverse_codes = torch.stack([task_code(config, member, task.reversed) for member, task in pairs])
        self._device = use_device(config.device, config.threads)
        check_machine(config, self._device)

    @property
    def slices(self) -> int:
        """Number of training slices: the site's weight in the aggregate."""
        return len(self._usable)

    @property
    def steps_per_round(self) -> int:
        """Optimisation steps of a round."""
        return self.config.training.local_epochs * -(-self.slices // self.config.training.batch_size)

    def train_round(
        self,
        shared: Mapping[str, torch.Tensor],
        round_number: int,
        base: int,
        on_step: OnStep | None = None,
        previous: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
    ) -> Update:
        """Train the local epochs of one round and write the private state of this round.

        Args:
            shared: shared parameters after the round before.
            round_number: from 1.
            base: last round whose update of this site was accepted; 0 starts from the common initialisation.
            on_step: called with (steps done, steps of the round).
            previous: every site's last update, if the method passes them on.

        Returns:
            The update: encoded shared tensors, number of training slices, mean losses per task.

        Raises:
            ModelError: if the private state of ``base`` is missing or does not fit.
            PflsynthError: if a step does not fit into the memory of the GPU, with the batch that would.
            UpdateRefused: if training diverged: a NaN that stays private would spoil all later rounds of this site.
        """
        training = self.config.training
        torch.manual_seed(derive_seed(self.config.seed, self.name, round_number, "dropout"))
        networks, optimizers, partition, carried = self._load(shared, base)
        average = self._average(networks, partition, carried, round_number)
        set_up(networks.train(), self.config, self._device)
        factor = learning_rate_factor(round_number, self.config.rounds)
        for optimizer in optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate * factor
        local = LocalRound(
            self.config,
            self.tasks,
            self._codes.to(self._device),
            self._reverse_codes.to(self._device),
            partition,
            self._on_device(shared),
            {site: self._on_device(tensors) for site, tensors in (previous or {}).items()},
            round_number,
            self.steps_per_round,
        )
        losses: list[StepLosses] = []
        for index, batch in enumerate(self._training_batches(round_number)):
            losses.append(self._step(networks, optimizers, batch, local, index))
            if average is not None:
                average.count_step()
            if on_step is not None:
                on_step(len(losses), self.steps_per_round)
        self._check_finite(networks, round_number)
        trained = shared_tensors(networks, partition)
        sent, lacking = encode(self.config.updates.encoding, trained, shared, carried.residual)
        carried = Carried(lacking, average.tensors if average is not None else {})
        self._save(round_number, networks, partition, optimizers, carried)
        return Update(self.name, round_number, sent, self.slices, _mean_losses(losses))

    def personalised(
        self, shared: Mapping[str, torch.Tensor], base: int, member: str | None = None, *, reestimate: bool = True
    ) -> nn.Module:
        """The generator of a site: shared parameters with the private ones of round ``base``, in ``eval()`` mode.

        Args:
            shared: aggregated shared parameters.
            base: round of the private state.
            member: whose training slices batch-norm statistics are re-estimated on; default: all of them.
            reestimate: re-estimate batch-norm statistics on the training slices (always, but to measure without).
        """
        networks, _, partition, carried = self._load(shared, base)
        average = self._average(networks, partition, carried, base + 1)
        if average is not None:
            average.apply()
        if reestimate:
            codes = self._codes.to(self._device)
            own = [usable for usable in self._usable if member in (None, usable.site)]
            samples = mixed_pass(own, numpy_generator(self.config.seed, member or self.name, "batch norm"))
            inputs = ((batch.source, codes[batch.tasks]) for batch in self._batches(samples))
            reestimate_batch_norm(networks.generator, inputs)
        return networks.generator.eval()

    def adopt(self, generator: Mapping[str, torch.Tensor], round_number: int) -> None:
        """Write a private state that holds another generator's parameters, as if of ``round_number``; no moments."""
        networks, optimizers, partition, _ = self._load(self._method.initial_shared(self.config, self.name), 0)
        load_part(networks.generator, tuple(networks.generator.state_dict()), generator, f"generator for {self.name}")
        self._save(round_number, networks, partition, optimizers, Carried())

    def has_state(self, base: int) -> bool:
        """Whether a round can start from ``base``: its private state is on this disk, or it is 0."""
        return base == 0 or self._private_path(base).exists()

    def prune(self, keep: set[int], base: int) -> None:
        """Delete private states before ``base`` but those of the rounds in ``keep``."""
        for path in self.folder.glob("private-*.safetensors"):
            number = int(path.stem.removeprefix("private-"))
            if number < base and number not in keep:
                path.unlink()

    def _step(
        self, networks: SiteNetworks, optimizers: Optimizers, batch: Batch, local: LocalRound, index: int
    ) -> StepLosses:
        try:
            return self._method.step(networks, optimizers, batch, local, index)
        except torch.cuda.OutOfMemoryError:
            pass  # and out of here, so that what the step held is freed
        raise out_of_memory(
            self._device,
            len(batch.tasks),
            lambda: self._method.step(networks, optimizers, batch.first(), local, index),
        )

    def _training_batches(self, round_number: int) -> Iterator[Batch]:
        generator = numpy_generator(self.config.seed, self.name, round_number, "epoch")
        contrasts = self.config.contrasts if self._method.all_contrasts else ()
        for _ in range(self.config.training.local_epochs):
            yield from self._batches(training_epoch(self._usable, self.config.training, generator), contrasts)

    def _batches(self, samples: list[Sample], contrasts: Sequence[str] = ()) -> Iterator[Batch]:
        size = self.config.training.batch_size
        made = batches(self.stores, self.tasks, samples, size, contrasts)
        if self._device.type == "cuda":
            made = prefetched(made, Batch.pinned)
        for batch in made:
            yield batch.to(self._device)

    def _load(
        self, shared: Mapping[str, torch.Tensor], base: int
    ) -> tuple[SiteNetworks, dict[str, torch.optim.Adam], Partition, Carried]:
        """Networks, optimizers, what of them is shared, and what is carried, as a round from ``base`` begins with."""
        networks = self._method.networks(self.config, self.name)
        partition = self._method.sharing(self.config).partition(networks)
        load_part(networks, partition.shared, shared, f"shared parameters for site {self.name}")
        networks.to(self._device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizers = make_optimizers(networks, self.config.training)
        carried = Carried()
        if base > 0:
            carried = load_private(self._private_path(base), networks, partition, optimizers, self._provenance(base))
        return networks, optimizers, partition, carried

    def _average(
        self, networks: SiteNetworks, partition: Partition, carried: Carried, round_number: int
    ) -> MovingAverage | None:
        """The moving average as the round begins with it, if there is to be one."""
        decay = self.config.training.ema_decay
        if decay == 0:
            return None
        average = MovingAverage(networks, partition, decay, carried.average)
        average.begin_round((round_number - 1) * self.steps_per_round, self.steps_per_round)
        return average

    def _save(
        self,
        round_number: int,
        networks: SiteNetworks,
        partition: Partition,
        optimizers: Mapping[str, torch.optim.Adam],
        carried: Carried,
    ) -> None:
        path, provenance = self._private_path(round_number), self._provenance(round_number)
        save_private(path, networks, partition, optimizers, carried, provenance)

    def _on_device(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

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


def _mean_losses(losses: Sequence[StepLosses]) -> dict[str, float]:
    """Means over the samples of the round, per loss and task: ``l1/T1w->T2w`` and so on."""
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for step in losses:
        for name, means in step.means.items():
            for task, mean in means.items():
                key, samples = f"{name}/{task}", step.samples[task]
                sums[key] = sums.get(key, 0.0) + float(mean) * samples
                counts[key] = counts.get(key, 0) + samples
    return {key: sums[key] / counts[key] for key in sorted(sums)}
