"""The rounds of a federation across machines: the coordinator's half, over Flower's grid.

Everything that lasts is in the run folder of the :class:`~pflsynth.federation.coordinator.Coordinator`, so one that was
stopped at any moment goes on after its last whole round. Nothing that a site sends, or does not send, ends a training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar

from flwr.serverapp import Grid

from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.deployment.exchange import Exchange, Reply
from pflsynth.deployment.headers import Finish, Finished, MessageRefused, Scored, Trained, Validate
from pflsynth.deployment.membership import Membership, Tell
from pflsynth.deployment.memory import bounded_memory
from pflsynth.deployment.messages import SHARED, Layout, Packet, check_agreement, pack_assignment, read_update
from pflsynth.deployment.run_folder import open_or_create
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.status import StatusFile, moment
from pflsynth.errors import ModelError, PflsynthError, UsageError
from pflsynth.federation.aggregate import UpdateRefused
from pflsynth.federation.coordinator import Coordinator, Round, Tensors
from pflsynth.federation.methods import method_of
from pflsynth.runs import RunDirectory, RunState

Header = TypeVar("Header", Trained, Scored, Finished)

MEMORY = 2**30
"""Bytes that the rounds may take, beside what depends on the method's shared parameters."""

MEMORY_COPIES = 32
"""Copies of what a message holds that they may take besides: in messages, in the mean, in what is written."""


def open_run(settings: CoordinatorSettings) -> tuple[FederationConfig, RunDirectory]:
    """The agreement, and the coordinator's run of it, which is made if it is absent.

    Raises:
        UsageError: if the method pools data at one place, or the run folder is taken.
        ModelError: if the run is damaged or of another agreement.
    """
    config = load_config(settings.federation).federation
    method = method_of(config)
    if method.central:
        raise UsageError(
            f'{settings.federation}: method "{config.method}" pools the data of all sites at one place, so it cannot '
            "be trained across machines; choose another method"
        )
    trainers = method.trainers(config)
    return config, open_or_create(settings.run, config, prepared=None, manifests={}, trainers=trainers, sites=())


def run_server(grid: Grid, settings: CoordinatorSettings, tell: Tell = print) -> RunState:
    """Train all rounds that are not yet whole, then have every site that is there save its personalised model.

    Args:
        grid: Flower's.
        settings: agreement, run folder, and how long to wait for whom.
        tell: called with one line for every event that people should hear of.

    Returns:
        The finished run's state.

    Raises:
        UsageError: if the method pools data at one place, or the run folder is taken.
        ModelError: if the run is damaged or of another agreement, or no quorum came within the patience.
        OSError: if the disk is full; the run stays at its last whole round.
    """
    config, run = open_run(settings)
    trainers = method_of(config).trainers(config)
    with run.lock():
        coordinator = Coordinator(config, run)
        coordinator.resume()
        status = StatusFile(settings.run, trainers, config.rounds, coordinator.quorum)
        server = _Server(grid, config, coordinator, settings, status, tell)
        try:
            with bounded_memory(_memory(coordinator)):
                return server.run()
        except BaseException as failure:
            told = str(failure) or type(failure).__name__
            problem = told if isinstance(failure, Exception) else "the process that runs the rounds was told to stop"
            with suppress(OSError):  # a full disk is what may have stopped it
                status.write(phase="stopped", problem=problem, lasting=isinstance(failure, PflsynthError))
            raise


class _Server:
    """One start of a coordinator."""

    def __init__(
        self,
        grid: Grid,
        config: FederationConfig,
        coordinator: Coordinator,
        settings: CoordinatorSettings,
        status: StatusFile,
        tell: Tell,
    ):
        self._config, self._coordinator, self._settings, self._tell = config, coordinator, settings, tell
        self._status = status
        self._exchange = Exchange(grid, coordinator.trainers, settings, status)
        self._agreement = config.agreement_sha256()
        self._members = Membership(self._exchange, config, coordinator.quorum, settings, status, tell)

    def run(self) -> RunState:
        """All rounds, then the end."""
        coordinator = self._coordinator
        if coordinator.state.round:
            self._tell(f"goes on after round {coordinator.state.round} of {self._config.rounds}")
        while coordinator.state.round < self._config.rounds:
            self._round(coordinator.begin())
        self._finish()
        return coordinator.state

    # ------------------------------------------------------------------------------------------------------- a round

    def _round(self, current: Round) -> None:
        self._status.write(phase="waiting", round=current.number, accepted=[])
        before = self._traffic()
        lacking_since: float | None = None
        while True:
            nodes = self._members.gather(current.accepted)
            self._status.write(phase="training", problem=None)
            self._train(current, {site: node for site, node in nodes.items() if site not in current.accepted})
            if len(current.accepted) >= self._coordinator.quorum:
                break
            problem = (
                f"round {current.number}: has {len(current.accepted)} of the {self._coordinator.quorum} updates "
                f"that it needs; asks again in {self._settings.retry_s:g} seconds"
            )
            self._status.write(phase="waiting", problem=problem)
            self._tell(problem)
            lacking_since = lacking_since or time.monotonic()
            patience = self._settings.patience_s
            if patience is not None and time.monotonic() - lacking_since >= patience:
                raise ModelError(f"round {current.number}: no quorum: {'; '.join(current.refused.values())}")
            time.sleep(self._settings.retry_s)
        for site in set(self._coordinator.trainers) - current.accepted - current.refused.keys():
            current.refuse(site, f"site {site}: was not there")
        shared = current.aggregate()
        every = self._config.training.validate_every
        scores = self._validate(current, shared) if every and current.number % every == 0 else None
        costs = self._costs(before)
        record = current.close(scores, costs)
        self._status.write(problem=None)
        self._tell(
            f"round {current.number:>4}/{self._config.rounds}: {len(current.accepted)} of "
            f"{len(self._coordinator.trainers)} sites, {_told(record, costs)}"
        )

    def _train(self, current: Round, nodes: dict[str, int]) -> None:
        def request(site: str) -> Packet:
            return pack_assignment(current.assignment(site), self._kept(site), self._agreement)

        for reply in self._exchange.ask(nodes, request, self._settings.deadline_s):
            site = reply.site
            try:
                header, arrays = self._answered(reply, Trained)
                given = current.assignment(site)
                update = read_update(header, arrays, given, site, self._config)
                current.accept(update)
            except (UpdateRefused, MessageRefused) as failure:
                current.refuse(site, self._members.failed(site, failure))
                continue
            if header.base != given.base:
                self._status.site(site, lost_state=current.number)
                self._tell(f"site {site}: had lost its private state, and started from the shared parameters")
            self._status.site(site, updated=moment(), updated_round=current.number, refused=None)
            self._status.write(accepted=sorted(current.accepted))

    def _validate(self, current: Round, shared: Tensors) -> dict[str, float | None]:
        """Scores of the personalised models of the sites that are there."""
        self._status.write(phase="validating")
        scores: dict[str, float | None] = {}

        def request(site: str) -> Packet:
            held = self._coordinator.held_by(site, shared)
            layout = Layout.of(held)
            header = Validate(
                agreement=self._agreement, round=current.number, base=current.bases[site], layout=layout.sha256
            )
            return Packet(header, {SHARED: layout.pack(held)})

        for reply in self._exchange.ask(self._members.agreeing(), request, self._settings.deadline_s):
            try:
                header, _ = self._answered(reply, Scored)
                if header.round != current.number:
                    raise MessageRefused(f"it scored round {header.round}, not {current.number}")
                scores[reply.site] = header.score
            except MessageRefused as failure:
                current.refuse(reply.site, self._members.failed(reply.site, failure))
        return scores

    def _kept(self, site: str) -> tuple[int, ...]:
        """Rounds whose private states a site keeps."""
        rounds = self._coordinator.rounds_kept() | {self._coordinator.state.selected_bases.get(site, 0)}
        return tuple(sorted(number for number in rounds if number > 0))

    def _answered(self, reply: Reply, kind: type[Header]) -> tuple[Header, Mapping[str, bytes]]:
        """The header and arrays of a reply of this kind and agreement; raises MessageRefused."""
        if reply.packet is None:
            raise MessageRefused(reply.failure)
        header = reply.packet.header
        if not isinstance(header, kind):
            raise MessageRefused(f'its reply is "{header.kind}", which was not asked for')
        check_agreement(header, self._config)
        return header, reply.packet.arrays

    # ------------------------------------------------------------------------------------------------------- the end

    def _finish(self) -> None:
        """Give the result to every site that is there, and to those that come while we wait."""
        state = self._coordinator.state
        number, _, shared = self._coordinator.result()
        self._status.write(phase="finishing", round=state.round, accepted=[])
        until = time.monotonic() + self._settings.gather_s
        finished: set[str] = set()

        def request(site: str) -> Packet:
            held = self._coordinator.held_by(site, shared)
            layout = Layout.of(held)
            header = Finish(
                agreement=self._agreement,
                round=state.round,
                base=state.bases[site],
                selected=state.selected,
                selected_score=state.selected_score,
                selected_base=state.selected_bases.get(site, 0),
                keep=self._kept(site),
                layout=layout.sha256,
            )
            return Packet(header, {SHARED: layout.pack(held)})

        while True:
            nodes = {site: node for site, node in self._members.agreeing().items() if site not in finished}
            for reply in self._exchange.ask(nodes, request, self._settings.deadline_s):
                try:
                    header, _ = self._answered(reply, Finished)
                    if header.round != number:
                        raise MessageRefused(f"it finished round {header.round}, not {number}")
                except MessageRefused as failure:
                    self._members.failed(reply.site, failure)
                else:
                    finished.add(reply.site)
                    self._status.site(reply.site, finished=True, refused=None)
                    self._tell(f"site {reply.site}: has its personalised model of round {number}")
            missing = sorted(set(self._coordinator.trainers) - finished)
            if not missing or time.monotonic() >= until:
                break
            self._status.write(waiting_for=missing)
            time.sleep(self._settings.poll_s)
        if missing:
            self._tell(
                f"without their personalised model: {', '.join(missing)}; they get it when the coordinator is "
                "started again while they are there"
            )
        self._status.write(phase="finished", waiting_for=missing)

    # ----------------------------------------------------------------------------------------------------- the costs

    def _traffic(self) -> dict[str, tuple[int, int]]:
        return {site: (told.sent, told.received) for site, told in self._status.now.sites.items()}

    def _costs(self, before: Mapping[str, tuple[int, int]]) -> dict[str, dict[str, int]]:
        """Bytes on the wire of this round, by site."""
        after = self._traffic()
        return {
            "sent_bytes": {site: after[site][0] - before[site][0] for site in sorted(after)},
            "received_bytes": {site: after[site][1] - before[site][1] for site in sorted(after)},
        }


def _memory(coordinator: Coordinator) -> int:
    """Bytes that the rounds may take: far more than they do, and no more than that."""
    size = sum(tensor.numel() * tensor.element_size() for tensor in coordinator.shared.values())
    held = 1 + (len(coordinator.trainers) if coordinator.method.passes_on else 0)
    return MEMORY + MEMORY_COPIES * size * held


def _told(record: Mapping[str, Any], costs: Mapping[str, Mapping[str, int]]) -> str:
    sent, received = (sum(costs[name].values()) / 1e6 for name in ("sent_bytes", "received_bytes"))
    known = [score for score in record.get("validation_psnr", {}).values() if score is not None]
    validated = f", validation PSNR {sum(known) / len(known):.2f} dB" if known else ""
    return f"{sent:.1f} MB sent, {received:.1f} MB received{validated}"
