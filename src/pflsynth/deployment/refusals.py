"""Why a site and its coordinator do not come together, said in one sentence.

A SuperNode does not say why it cannot connect, and goes on trying for ever: :func:`knock` first tries the same road
(address, TLS, proxy, SuperLink, clock) and names what is wrong; :func:`why_refused` reads what a SuperNode left behind.
"""

from __future__ import annotations

import datetime
import email.utils
import http.client
import re
import ssl
from pathlib import Path
from typing import NamedTuple

from pflsynth.deployment.certificates import CertificateFacts, certificate_facts
from pflsynth.deployment.proxy import PLAIN_TEXT, REFUSAL_TEXT
from pflsynth.errors import NetworkError, UsageError
from pflsynth.site_file import parse_address

AHEAD_SECONDS, BEHIND_SECONDS = 5, 305
"""Flower refuses requests that are signed with a time further from the coordinator's clock."""

_CLOCKS = f"{AHEAD_SECONDS} seconds ahead or {BEHIND_SECONDS // 60} minutes behind"

_RENEW = "the coordinator renews it with: pflsynth keys FEDERATION --renew-server"


class _Cause(NamedTuple):
    """What an error says, as a pattern; what it means; whether it may pass without anyone doing anything here."""

    pattern: str
    sentence: str
    passing: bool = False


_CAUSES = (
    # What OpenSSL, the resolver, nginx and Flower 1.41 say, and what it means; the first that is found counts.
    _Cause(r"certificate has expired", f"its certificate has expired; {_RENEW}"),
    _Cause(r"certificate is not yet valid", "its certificate is not yet valid; set the clock of this machine"),
    _Cause(
        r"(hostname|ip address) mismatch|not valid for",
        "its certificate is for other hosts; set coordinator in site.toml to one of them, or let the coordinator add "
        "this one: pflsynth keys FEDERATION --renew-server --host NAME",
    ),
    _Cause(
        r"self[- ]signed certificate|unable to get (local )?issuer|certificate verify failed|signature failure",
        "its certificate is not by the federation's authority: the ca.crt here is of other keys, or something between "
        "answers in the coordinator's place; ask the coordinator for a new kit",
    ),
    _Cause(
        r"wrong[_ ]version[_ ]number|record layer failure|unknown protocol|http request",
        "what answers there does not speak TLS; check the port, it must be that of pflsynth's proxy",
    ),
    _Cause(
        rf"for url 'http://|{re.escape(PLAIN_TEXT.lower())}",
        "it was asked in plain HTTP, but it speaks TLS alone; use https",
    ),
    _Cause(
        r"time-?out|timed out",
        "it does not answer; a firewall may drop what is sent, or host and port are wrong",
        passing=True,
    ),
    _Cause(
        r"eof occurred|unexpected_eof",
        "it broke the TLS handshake off; what forwards to it may not reach it, or a firewall is between",
        passing=True,
    ),
    _Cause(r"handshake|\balert\b", "the TLS handshake was broken off, perhaps by a firewall between"),
    _Cause(
        r"name or service not known|name resolution|nodename nor servname|no address associated|getaddrinfo",
        "its host name is unknown; check coordinator in site.toml",
        passing=True,
    ),
    _Cause(
        r"connection ?refused",
        "nothing listens there; check host and port, and that the coordinator is running",
        passing=True,
    ),
    _Cause(
        r"\[code: 2004\]|failed to activate",
        "it has no site with this key, or still counts the site as connected, which ends about a minute after a stop; "
        "try again in a minute, and if that does not help ask for a new kit",
    ),
    _Cause(
        r"(http |error ')401|invalid supernode authentication|terminated gracefully",
        "it does not accept this site's key any more: the key was replaced or taken out, or the clock of this machine "
        f"is more than {_CLOCKS}",
    ),
    _Cause(r"exit code: 302", "the site's private key cannot be read; open the kit again"),
    _Cause(r"exit code: 606", "it has another version of Flower; install the same pflsynth on both"),
    _Cause(
        rf"register-node|{re.escape(REFUSAL_TEXT.lower())}",
        "it serves a site's requests alone, signed with its key; this was another one",
    ),
    _Cause(r"(http |error ')413", "the request was larger than it takes"),
    _Cause(
        r"(http |error ')50[234]",
        "its proxy answers, but the SuperLink behind it does not; it is starting, or has stopped",
        passing=True,
    ),
    _Cause(
        r"unreachable|no route to host",
        "there is no network path to it; check the network of this machine",
        passing=True,
    ),
    _Cause(
        r"connection reset|connection aborted|broken pipe|closed connection",
        "it broke the connection off",
        passing=True,
    ),
)


def why_refused(problem: BaseException | str, coordinator: str) -> str:
    """The cause in one sentence: that of :func:`refusal`."""
    return str(refusal(problem, coordinator))


def refusal(problem: BaseException | str, coordinator: str) -> NetworkError:
    """The cause, to be raised or shown; it knows whether it may pass by itself.

    Args:
        problem: an error of a connection, or the log of a SuperNode that ended by itself. (One that was told to end
            leaves the same log as one whose key is not accepted any more.)
        coordinator: its address, for the sentence.
    """
    said = problem if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
    for cause in _CAUSES:
        if re.search(cause.pattern, said.lower()):
            return NetworkError(f"coordinator {coordinator}: {cause.sentence}", cause.passing)
    last = next((line.strip() for line in reversed(said.splitlines()) if line.strip()), "nothing was said")
    return NetworkError(f"coordinator {coordinator}: cannot be reached ({last})")


def knock(coordinator: str, certificate: Path, timeout: float = 10.0) -> None:
    """Try the road to the coordinator, as a SuperNode would take it, but without a key.

    Args:
        coordinator: ``host:port``.
        certificate: the authority's, ``ca.crt``.
        timeout: seconds for each step.

    Raises:
        UsageError: the certificate's file cannot be used.
        NetworkError: with the sentence of :func:`why_refused`, or that the clocks differ too much.
    """
    host, port = parse_address(coordinator)
    context = _context(certificate)
    connection = http.client.HTTPSConnection(host, port, timeout=timeout, context=context)
    asked = datetime.datetime.now(datetime.UTC)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        said = answer.read(1000).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        refused = refusal(error, coordinator)
        if isinstance(error, ssl.SSLCertVerificationError):
            refused = NetworkError(f"{refused}{_shown(host, port, timeout)}")
        raise refused from None
    finally:
        connection.close()
    if answer.status != 200:
        raise refusal(f"HTTP {answer.status} {said}", coordinator)
    _check_clock(asked, answer.getheader("Date"), coordinator)


def _context(certificate: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(certificate))
    except FileNotFoundError:
        raise UsageError(f"{certificate}: there is no such file; it is the ca.crt of the site's kit") from None
    except ssl.SSLError:
        raise UsageError(f"{certificate}: holds no certificate; take the ca.crt of the site's kit again") from None


def _check_clock(asked: datetime.datetime, date: str | None, coordinator: str) -> None:
    """Compare the clocks; the coordinator's is told to the second below, and somewhat later than the question."""
    if date is None:
        return
    ahead = (asked - email.utils.parsedate_to_datetime(date)).total_seconds()
    if -BEHIND_SECONDS <= ahead <= AHEAD_SECONDS + 1:
        return
    much = f"{abs(ahead) / 60:.0f} minutes" if abs(ahead) >= 90 else f"{abs(ahead):.0f} seconds"
    raise NetworkError(
        f"coordinator {coordinator}: the clock of this machine is {much} {'ahead of' if ahead > 0 else 'behind'} the "
        f"coordinator's, and may be {_CLOCKS}; set the clocks of both by NTP"
    )


def _shown(host: str, port: int, timeout: float) -> str:
    """What the certificate that was refused says, for the person who mends it; nothing in it is believed."""
    try:
        facts: CertificateFacts = certificate_facts(ssl.get_server_certificate((host, port), timeout=timeout).encode())
    except (OSError, ValueError):
        return ""
    hosts = ", ".join(facts.hosts) or "no host"
    return f" (it shows one for {hosts}, valid {facts.starts:%Y-%m-%d} to {facts.ends:%Y-%m-%d})"
