"""What a site does with a message of the coordinator: check it, train, score or finish, and answer.

Every message is answered in a process of its own, so everything that lasts is in the site's run folder: its agreement,
its private states and, at the end, its personalised model. What goes wrong is logged here in full; the coordinator is
told one word of :data:`~pflsynth.deployment.headers.REASONS`.
"""

from __future__ import annotations

import faulthandler
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime

from flwr.app import Message

from pflsynth.canonical import differences
from pflsynth.config import FederationConfig
from pflsynth.config_files import load_config
from pflsynth.data.slices import SliceStore
from pflsynth.deployment.flower import from_message, to_records
from pflsynth.deployment.headers import (
    Declined,
    Finish,
    Finished,
    Join,
    Joined,
    MessageRefused,
    Reason,
    Scored,
    Train,
    Validate,
    printable,
)
from pflsynth.deployment.messages import (
    SHARED,
    Packet,
    check_agreement,
    check_version,
    layout_of,
    pack_update,
    read_assignment,
)
from pflsynth.deployment.run_folder import open_or_create
from pflsynth.deployment.settings import SiteSettings, log_of
from pflsynth.errors import DataError, ModelError, PflsynthError, UsageError
from pflsynth.federation.aggregate import UpdateRefused
from pflsynth.federation.checkpoint import Provenance, save_shared
from pflsynth.federation.personalised import save_personalised
from pflsynth.federation.site import Site
from pflsynth.runs import RunDirectory, RunState
from pflsynth.training import validation_score

_logger = logging.getLogger(__name__)


def answer_here(message: Message) -> Message:
    """Answer with the settings that the environment names: what the ClientApp does.

    When nobody waits for the answer any more, a process that hangs ends itself, so that the site can be asked again.
    """
    try:
        settings = SiteSettings.from_environment()
    except PflsynthError:
        _logger.exception("this site does not know its own settings")
        return Message(to_records(Packet(Declined(agreement="", reason="settings"))), reply_to=message)
    faulthandler.dump_traceback_later(max(message.metadata.ttl, 1.0), exit=True)
    try:
        return answer(message, settings)
    finally:
        faulthandler.cancel_dump_traceback_later()


def check_site(settings: SiteSettings) -> FederationConfig:
    """Refuse what would keep a site from its first round, before it connects.

    Returns:
        The agreement.

    Raises:
        UsageError: if the configuration cannot be used, the site does not train, or the run folder holds other things.
        DataError: if the prepared data is missing, damaged, or not what the run began with.
        ModelError: if the run is damaged or of another agreement.
    """
    config = load_config(settings.federation).federation
    _Desk(config, settings)
    return config


def answer(message: Message, settings: SiteSettings) -> Message:
    """Answer a message of the coordinator, always: an error becomes a refusal.

    Args:
        message: with a packet of :mod:`pflsynth.deployment.messages`.
        settings: where this site's things are.
    """
    kind, agreement = "message", ""
    try:
        config = load_config(settings.federation).federation
        agreement = config.agreement_sha256()
        packet = from_message(message)
        kind = (
            f"{packet.header.kind} of round {packet.header.round}"
            if isinstance(packet.header, Train | Validate | Finish)
            else packet.header.kind
        )
        reply = _respond(packet, config, settings)
        _log(settings, kind, f"answered: {reply.header.kind}, {reply.size / 1e6:.1f} MB")
    except Exception as failure:
        _logger.exception("site %s could not do what it was asked (%s)", settings.site, kind)
        reason = _reason(failure)
        _log(settings, kind, f"declined ({reason}): {failure}")
        reply = Packet(Declined(agreement=agreement, reason=reason))
    return Message(to_records(reply), reply_to=message)


def _respond(packet: Packet, config: FederationConfig, settings: SiteSettings) -> Packet:
    header = packet.header
    check_version(header)
    if isinstance(header, Join):
        return _join(header, config, settings)
    check_agreement(header, config)
    desk = _Desk(config, settings)
    with desk.alone():
        if isinstance(header, Train):
            return desk.train(header, packet)
        if isinstance(header, Validate):
            return desk.validate(header, packet)
        if isinstance(header, Finish):
            return desk.finish(header, packet)
    raise MessageRefused(f'a "{header.kind}" is nothing that a coordinator sends')


def _join(header: Join, config: FederationConfig, settings: SiteSettings) -> Packet:
    own = config.agreement_sha256()
    if header.site != settings.site:
        raise MessageRefused(
            f"the coordinator has this machine's key as that of site {printable(header.site)}, and the settings here "
            f"are those of site {settings.site}; use the key and the settings of one kit",
            "name",
        )
    if header.agreement != own:
        told = [
            f"{key} is {printable(repr(theirs))} at the coordinator, {mine!r} here"
            for key, theirs, mine in differences(header.content, config.agreement())
        ]
        _log(settings, "join", f"the coordinator has another agreement: {'; '.join(told)}")
        return Packet(Joined(agreement=own, content=config.agreement()))
    _Desk(config, settings)  # so that data that cannot be used is told of before the first round
    return Packet(Joined(agreement=own))


class _Desk:
    """A site with its data and its run folder, opened for one message."""

    def __init__(self, config: FederationConfig, settings: SiteSettings):
        site = settings.site
        if site not in config.participants:
            raise UsageError(
                f'{settings.federation}: site "{site}" does not train; {", ".join(config.participants)} do'
            )
        self._store = SliceStore(settings.prepared / site)
        manifests = {site: self._store.manifest_sha256()}
        folder = RunDirectory(settings.run).site_folder(site)
        self._site = Site(config, site, {site: self._store}, folder)
        self._run = open_or_create(
            settings.run, config, prepared=settings.prepared, manifests=manifests, trainers=[site], sites=[site]
        )
        self._config, self._settings = config, settings
        self._agreement = config.agreement_sha256()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the run for one message; what a kill left half-written is removed."""
        with ExitStack() as stack:
            try:
                stack.enter_context(self._run.lock())
            except UsageError as failure:
                raise MessageRefused(str(failure), "busy") from None
            self._run.remove_half_written()
            yield

    def train(self, header: Train, packet: Packet) -> Packet:
        """Train a round; a site without the private state of its base starts from the shared parameters."""
        given = read_assignment(header, packet.arrays, self._config, self._site.name)
        base = given.base
        if self._site.has_state(base):
            self._site.prune(set(header.keep), base)
        else:
            _log(
                self._settings,
                "train",
                f"the private state of round {base} is gone: started from the shared parameters",
            )
            base = 0
        self._run.save_state(RunState(round=given.round - 1, bases={self._site.name: base}))
        update = self._site.train_round(given.shared, given.round, base, None, given.previous)
        return pack_update(update, base, self._agreement)

    def validate(self, header: Validate, packet: Packet) -> Packet:
        """Score the personalised model on the validation subjects."""
        self._check_state(header.base)
        shared = layout_of(self._config, self._site.name).unpack(header.layout, packet.arrays.get(SHARED))
        generator = self._site.personalised(shared, header.base)
        score = validation_score(self._config, self._site.name, self._store, generator)
        return Packet(Scored(agreement=self._agreement, round=header.round, score=score))

    def finish(self, header: Finish, packet: Packet) -> Packet:
        """Save the personalised model: from now on the run folder is a finished run of this one site."""
        name, run = self._site.name, self._run
        if header.round != self._config.rounds:
            raise MessageRefused(
                f"it ends a training of {header.round} rounds; the agreement has {self._config.rounds}"
            )
        shared = layout_of(self._config, name).unpack(header.layout, packet.arrays.get(SHARED))
        state = RunState(
            header.round, {name: header.base}, header.selected, header.selected_score, {name: header.selected_base}
        )
        number, bases = state.result(self._config)
        self._check_state(bases[name])
        if not run.personalised_path(name, number).exists():
            generator = self._site.personalised(shared, bases[name])
            save_shared(run.shared_path(number), shared, Provenance(self._agreement, number))
            provenance = Provenance(self._agreement, number, name)
            save_personalised(
                run.personalised_path(name, number), generator, provenance, self._store.manifest.intensity
            )
        run.save_state(state)
        self._site.prune({*header.keep, bases[name]}, header.base)
        return Packet(Finished(agreement=self._agreement, round=number))

    def _check_state(self, base: int) -> None:
        if not self._site.has_state(base):
            raise MessageRefused(f"the private state of round {base} is not on this disk any more", "lost")


def _reason(failure: Exception) -> Reason:
    """The one word of an error that leaves the site."""
    if isinstance(failure, MessageRefused):
        return failure.reason
    kinds: tuple[tuple[type[Exception], Reason], ...] = (
        (UpdateRefused, "diverged"),
        (DataError, "data"),
        (ModelError, "state"),
        (UsageError, "settings"),
        (OSError, "disk"),
    )
    return next((reason for kind, reason in kinds if isinstance(failure, kind)), "unexpected")


def _log(settings: SiteSettings, kind: str, outcome: str) -> None:
    """Tell this site's people what happened, in the log beside its run; a full disk must not stop the answer."""
    line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "message": kind, "outcome": outcome}
    try:
        path = log_of(settings.run)
        path.parent.mkdir(parents=True, exist_ok=True)
        RunDirectory(path.parent).append(path.name, line)
    except OSError as failure:
        _logger.warning("%s", failure)
