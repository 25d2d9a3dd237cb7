"""Which sites are there and agree: connected under a registered key, with this version and this agreement."""

from __future__ import annotations

import time
from collections.abc import Callable

from pflsynth.canonical import differences
from pflsynth.config import FederationConfig
from pflsynth.deployment.exchange import Exchange, Reply
from pflsynth.deployment.headers import Join, Joined, printable
from pflsynth.deployment.messages import Packet
from pflsynth.deployment.settings import CoordinatorSettings
from pflsynth.deployment.status import StatusFile
from pflsynth.errors import ModelError
from pflsynth.federation.aggregate import UpdateRefused

Tell = Callable[[str], None]

MOST_DIFFERENCES = 20
"""Keys of another agreement that are told."""


class Membership:
    """The sites that can be given something to do. A site that fails is asked again whether it agrees."""

    def __init__(
        self,
        exchange: Exchange,
        config: FederationConfig,
        quorum: int,
        settings: CoordinatorSettings,
        status: StatusFile,
        tell: Tell,
    ):
        """Begin with no site.

        Args:
            exchange: reaches the sites.
            config: the agreement.
            quorum: least number of sites of a round.
            settings: how long to wait for whom.
            status: told of every event.
            tell: told what people should hear of.
        """
        self._exchange, self._config, self._quorum = exchange, config, quorum
        self._settings, self._status, self._tell = settings, status, tell
        self._agreement = config.agreement_sha256()
        self._agreed: dict[str, int] = {}
        self._ask_after: dict[str, float] = {}
        self._gather_until = time.monotonic() + settings.gather_s

    def gather(self, have: frozenset[str]) -> dict[str, int]:
        """Wait until sites are a quorum; the first time, for all sites as long as the settings say.

        Args:
            have: sites whose update is in already; they count.

        Returns:
            Node of each site that is there and agrees.

        Raises:
            ModelError: if no quorum came within the patience of the settings.
        """
        started = time.monotonic()
        while True:
            nodes = self.agreeing()
            sites = have | nodes.keys()
            missing = sorted(set(self._status.now.sites) - sites)
            if not missing or (len(sites) >= self._quorum and time.monotonic() >= self._gather_until):
                self._gather_until = 0.0
                return nodes
            patience = self._settings.patience_s
            if patience is not None and time.monotonic() - started >= patience:
                raise ModelError(f"no quorum within {patience:g} seconds; not there: {', '.join(missing)}")
            self._status.write(phase="waiting", waiting_for=missing)
            time.sleep(self._settings.poll_s)

    def agreeing(self) -> dict[str, int]:
        """Nodes of the connected sites that run this version and have this agreement; new ones are asked."""
        nodes = self._exchange.connected()
        now = time.monotonic()
        new = {
            site: node
            for site, node in nodes.items()
            if self._agreed.get(site) != node and now >= self._ask_after.get(site, 0.0)
        }
        content = self._config.agreement()

        def request(site: str) -> Packet:
            return Packet(Join(agreement=self._agreement, site=site, content=content))

        for reply in self._exchange.ask(new, request, self._settings.answer_s):
            failure = reply.failure or self._disagreement(reply)
            if failure:
                self.failed(reply.site, failure)
                self._ask_after[reply.site] = time.monotonic() + self._settings.retry_s
            else:
                self._agreed[reply.site] = new[reply.site]
                self._status.site(reply.site, joined=True, refused=None)
                self._tell(f"site {reply.site}: joined")
        return {site: node for site, node in nodes.items() if self._agreed.get(site) == node}

    def _disagreement(self, reply: Reply) -> str:
        """What keeps a site that answered from joining; empty if nothing does."""
        assert reply.packet is not None
        header = reply.packet.header
        if not isinstance(header, Joined):
            return f'it answered "{header.kind}" when it was asked to join'
        if header.agreement == self._agreement:
            return ""
        told = [
            f"{printable(key, 60)} is {ours!r} here, {printable(repr(theirs), 60)} there"
            for key, ours, theirs in differences(self._config.agreement(), header.content or {})
        ]
        more = f"; and {len(told) - MOST_DIFFERENCES} more" if len(told) > MOST_DIFFERENCES else ""
        return f"it has another agreement: {'; '.join(told[:MOST_DIFFERENCES])}{more}"

    def failed(self, site: str, failure: Exception | str) -> str:
        """Note a failure; the site is asked whether it agrees before it is given anything else.

        Args:
            site: that failed.
            failure: why, without the site's name.

        Returns:
            A sentence that names the site.
        """
        sentence = str(failure) if isinstance(failure, UpdateRefused) else f"site {site}: {failure}"
        self._agreed.pop(site, None)
        self._status.site(site, joined=False, refused=sentence)
        self._tell(sentence)
        return sentence
