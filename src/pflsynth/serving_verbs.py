"""The verbs ``serve``, ``join`` and ``status``: a federation whose sites are on machines of their own."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pflsynth.errors import UsageError
from pflsynth.options import AsJson

if TYPE_CHECKING:
    from pflsynth.console import Terminal

SOON_DAYS = 30
"""A certificate that ends sooner is marked."""


def serve(
    federation: Annotated[Path, typer.Argument(metavar="FEDERATION", help="federation.toml")],
    run: Annotated[Path, typer.Option("--run", help="folder of the run; made, or gone on with")],
    keys: Annotated[Path, typer.Option("--keys", help="folder that pflsynth keys made")] = Path("keys"),
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="default: 0.0.0.0 and the port of the keys")
    ] = None,
    page: Annotated[
        int | None, typer.Option("--page", min=1, max=65535, help="show a live page at this port of loopback")
    ] = None,
    deadline: Annotated[float, typer.Option("--deadline", min=1, help="seconds that a site has for a round")] = 21600,
    gather: Annotated[
        float, typer.Option("--gather", min=0, help="seconds that first round and end wait for all sites")
    ] = 300,
    patience: Annotated[
        float | None, typer.Option("--patience", min=0, help="seconds to wait for a quorum; default: for ever")
    ] = None,
    retry: Annotated[
        float, typer.Option("--retry", min=0, help="seconds until a site that failed is asked again")
    ] = 60,
    wave: Annotated[int, typer.Option("--wave", min=1, help="most sites that are asked, and train, at one time")] = 32,
    as_json: AsJson = False,
) -> None:
    """Coordinate a federation: wait for its sites, train all rounds, give every site its model.

    Its keys are made by pflsynth keys.
    Whatever of its processes dies is started again. After any stop the same command goes on after the last whole round.

    \b
    Examples:
      pflsynth serve federation.toml --run runs/first --keys keys
      pflsynth serve federation.toml --run runs/first --keys keys --listen 127.0.0.1:9092 --page 8765
    """
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal
    from pflsynth.deployment.flower_programs import need_flower

    need_flower()
    from pflsynth.deployment.coordinator_host import CoordinatorHost
    from pflsynth.deployment.keyring import Keyring
    from pflsynth.deployment.page import live_page
    from pflsynth.deployment.settings import CoordinatorSettings
    from pflsynth.deployment.status_view import status_document

    if load_config(federation).own is not None:
        raise UsageError(f"{federation}: is a hospital's own file, which joins; the coordinator serves federation.toml")
    settings = CoordinatorSettings(
        federation.absolute(),
        run.absolute(),
        deadline_s=deadline,
        wave=wave,
        gather_s=gather,
        retry_s=retry,
        patience_s=patience,
    )
    terminal = Terminal(as_json)
    listen = listen or f"0.0.0.0:{Keyring(keys).address()[1]}"
    with _ended_by_signals(terminal.say, f"go on with: pflsynth serve {federation} --run {run} --keys {keys}"):
        host = CoordinatorHost(settings, keys, listen, terminal.say)
        with live_page(settings.run, page, terminal.say):
            status = host.serve()
    missing = ", ".join(status.waiting_for)
    terminal.say(f"finished: {run}" + (f", without {missing}" if missing else ""))
    terminal.document(status_document(settings.run))


def join(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="site.toml of the kit")],
    stay: Annotated[bool, typer.Option("--stay", help="remain connected when the site has its model")] = False,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="wait for a coordinator that is not there at the start")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Take part in a federation as one of its sites, until the site has its personalised model.

    First open the site's kit with pflsynth unseal, name its images in site.toml, and give pflsynth prepare.
    After any stop the same command goes on. Images and private parameters stay here.

    \b
    Examples:
      pflsynth join oslo/site.toml
      pflsynth join oslo/site.toml --stay
    """
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal
    from pflsynth.deployment.flower_programs import need_flower

    need_flower()
    from pflsynth.deployment.site_host import SiteHost, site_settings

    terminal = Terminal(as_json)
    settings, connection = site_settings(load_config(site))
    host = SiteHost(settings, connection, terminal.say)
    terminal.finding("ok", f"{site}: agreement {host.config.agreement_sha256()[:12]}, prepared data and run folder fit")
    with _ended_by_signals(terminal.say, f"go on with: pflsynth join {site}"):
        if stay or not host.finished:
            host.reach(wait)
            terminal.finding("ok", f"coordinator {connection.coordinator}: answers")
            host.join(stay)
    terminal.say(f"site {settings.site} has its personalised model: {settings.run}")
    terminal.document({"site": settings.site, "run": str(settings.run)})


def status(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="run folder of a coordinator")],
    as_json: AsJson = False,
) -> None:
    """Show what a coordinator is doing: round, sites, last update of each, what it waits for, the certificate's end.

    \b
    Example:
      pflsynth status runs/first
    """
    from pflsynth.console import Terminal
    from pflsynth.deployment.status_view import status_document

    document = status_document(folder)
    terminal = Terminal(as_json)
    _show_status(terminal, document)
    terminal.document(document)


def _show_status(terminal: Terminal, document: Mapping[str, Any]) -> None:
    """Print what :func:`~pflsynth.deployment.status_view.status_document` returned."""
    from rich.table import Table

    running = document["running"]
    doing = document["phase"] if running else f"{document['phase']}, and the coordinator is not running"
    terminal.say(f"round {document['round']} of {document['rounds']}: {doing} (at {document['time']})")
    if document["problem"]:
        terminal.finding("wrong", document["problem"])
    table = Table("site", "connected", "last seen", "last update", "now", "bytes out / in", title_justify="left")
    for site, told in document["sites"].items():
        update = f"round {told['updated_round']}, {told['updated']}" if told["updated"] else ""
        connected = "finished" if told["finished"] else "joined" if told["joined"] else _yes(told["connected"])
        table.add_row(site, connected, told["seen"] or "never", update, _now(told), _bytes(told))
    terminal.table(table)
    for told in document["sites"].values():
        if told["refused"]:
            terminal.finding("wrong", told["refused"])
    for name, why in document["strangers"].items():
        terminal.finding("suspicious", f"{name}: {why}")
    if document["waiting_for"]:
        terminal.say(f"waits for: {', '.join(document['waiting_for'])}")
    certificate = document["certificate"]
    if certificate is not None:
        soon = certificate["days_left"] < SOON_DAYS
        terminal.finding(
            "suspicious" if soon else "ok",
            f"certificate for {', '.join(certificate['hosts'])}: ends {certificate['ends'][:10]}, in "
            f"{certificate['days_left']} days" + ("; renew it with: pflsynth keys --renew-server" if soon else ""),
        )


def _now(told: Mapping[str, Any]) -> str:
    if told["asked"]:
        return f"asked to {told['asked']} {told['waiting_s']:.0f} s ago"
    return "refused" if told["refused"] else ""


def _yes(connected: bool) -> str:
    return "yes" if connected else "no"


def _bytes(told: Mapping[str, Any]) -> str:
    return f"{told['sent'] / 1e6:.1f} / {told['received'] / 1e6:.1f} MB"


@contextmanager
def _ended_by_signals(tell: Callable[[str], None], advice: str) -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, and say how to go on after either."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        tell(f"stopped; {advice}")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
