"""The verbs ``keys`` and ``unseal``: what a coordinator and its sites need before they can speak to each other."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pflsynth.errors import UsageError
from pflsynth.options import AsJson

if TYPE_CHECKING:
    from pflsynth.deployment.keyring import SealedKit

PASSPHRASE_VARIABLE = "PFLSYNTH_KIT_PASSPHRASE"
"""Environment variable that ``unseal`` takes the passphrase from, in place of asking for it."""


def keys(
    federation: Annotated[Path, typer.Argument(metavar="FEDERATION", help="federation.toml")],
    out: Annotated[Path, typer.Option("--out", help="folder of the keys")] = Path("keys"),
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="name or IP address of the coordinator; sites are told the first"),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="port of the coordinator")] = 9092,
    days: Annotated[int, typer.Option("--days", min=1, help="days that the server certificate is valid")] = 365,
    sites: Annotated[
        list[str] | None, typer.Option("--site", metavar="NAME", help="make a key for this site alone")
    ] = None,
    renew: Annotated[bool, typer.Option("--renew-server", help="make a new server certificate alone")] = False,
    force: Annotated[bool, typer.Option("--force", help="replace keys that exist")] = False,
    as_json: AsJson = False,
) -> None:
    """Make the keys of a federation: an authority, the coordinator's certificate, and a sealed kit for every hospital.

    Each kit has a passphrase of its own, which is printed once and kept nowhere.

    \b
    Examples:
      pflsynth keys federation.toml --host coordinator.example.org
      pflsynth keys federation.toml --site oslo --force
      pflsynth keys federation.toml --renew-server
    """
    from pflsynth.config_files import load_config
    from pflsynth.console import Terminal

    _need_cryptography()
    from pflsynth.deployment.keyring import Keyring, add_sites, make_keyring, renew_server

    loaded = load_config(federation)
    if loaded.own is not None:
        raise UsageError(
            f"{federation}: is a hospital's own file; keys are made by the coordinator, for federation.toml"
        )
    if sites and renew:
        raise UsageError("--site makes a site's key and --renew-server a certificate; give one of them")
    if sites and hosts:
        raise UsageError("--site takes the address that the other kits have; change it with --renew-server --host")
    terminal, ring = Terminal(as_json), Keyring(out)
    made: list[SealedKit] = []
    if renew:
        renew_server(loaded.federation, ring, hosts or (), days)
    elif sites:
        made = add_sites(loaded.federation, ring, sites, force=force)
    else:
        made = make_keyring(loaded.federation, out, hosts or (), port, days, force=force)
    facts = ring.facts()
    terminal.say(f"server certificate for {', '.join(facts.hosts)}: valid until {facts.ends:%Y-%m-%d}")
    for kit in made:
        terminal.say(f"{kit.site}: {kit.path}\n  passphrase   {kit.passphrase}\n  fingerprint  {kit.fingerprint}")
    if made:
        terminal.say("send kit and passphrase by two different ways; the passphrases are not shown again")
    terminal.document(
        {"hosts": facts.hosts, "valid_until": facts.ends.isoformat(), "kits": [asdict(kit) for kit in made]}
    )


def unseal(
    kit: Annotated[Path, typer.Argument(metavar="KIT", help="the hospital's .kit file")],
    to: Annotated[Path, typer.Option("--to", help="folder to write; no file in it is replaced")],
    as_json: AsJson = False,
) -> None:
    """Open a hospital's sealed kit; asks for its passphrase, or takes it from PFLSYNTH_KIT_PASSPHRASE.

    \b
    Example:
      pflsynth unseal oslo.kit --to oslo
    """
    from pflsynth.console import Terminal

    _need_cryptography()
    from pflsynth.deployment.kits import KIT_FILES, open_kit, unpack

    opened = open_kit(kit, _passphrase(kit))
    unpack(opened, to)
    terminal = Terminal(as_json)
    terminal.say(f"{to}: kit of site {opened.site}; now name the folder of your images in {to / 'site.toml'}, then:")
    terminal.say(f"  pflsynth check {to / 'site.toml'}\n  pflsynth prepare {to / 'site.toml'}")
    terminal.document({"site": opened.site, "files": [str(to / name) for name in KIT_FILES]})


def _passphrase(kit: Path) -> str:
    given = os.environ.get(PASSPHRASE_VARIABLE)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError(f"{kit}: nobody is there to ask for the passphrase; set {PASSPHRASE_VARIABLE}")
    answer: str = typer.prompt(f"passphrase of {kit.name}", hide_input=True, err=True)
    return answer


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UsageError('keys and kits need the package cryptography: pip install "pflsynth[flower]"') from None
