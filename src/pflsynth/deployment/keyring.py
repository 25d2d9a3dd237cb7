"""The coordinator's folder of keys: made in one go, and renewed in parts.

::

    coordinator/  ca.crt  ca.key  server.pem  server.key  address.json  sites/<site>.pub
    kits/         <site>.kit

Only its owner may read it. A kit holds the only copy of its site's private key: the coordinator keeps the public one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pflsynth.config import FederationConfig
from pflsynth.config_files import toml_bytes
from pflsynth.deployment.certificates import (
    CertificateFacts,
    Credential,
    make_authority,
    make_server_certificate,
    read_certificate,
)
from pflsynth.deployment.kits import Kit, make_passphrase, seal
from pflsynth.deployment.site_keys import fingerprint, make_site_key
from pflsynth.errors import UsageError
from pflsynth.files import clean_leftovers, json_bytes, read_json, replaced_folder, write_atomic
from pflsynth.site_file import parse_address

_SITE_TOML = """\
# The file of site {site} in the federation "{federation}". Paths are relative to this file.
site = "{site}"
federation = "federation.toml"   # the agreement: what all sites have in common
data = "data"                    # folder of your images: change it to where they are
# layout = "bids"                # how the folder names its images; contrast_names = {{MPRAGE = "T1w"}}
prepared = "prepared"            # pflsynth prepare writes it
run = "run"                      # what training writes: private state and personalised model
coordinator = "{address}"
certificate = "ca.crt"           # proves that the coordinator is the right one
key = "site.key"                 # proves that you are {site}: keep it secret
# device = "cuda"
# threads = 8
"""


@dataclass(frozen=True)
class SealedKit:
    """A kit that was written, with its passphrase, which is kept nowhere, and the fingerprint of its key."""

    site: str
    path: Path
    passphrase: str
    fingerprint: str


@dataclass(frozen=True)
class Keyring:
    """The folder of :func:`make_keyring`."""

    folder: Path

    @property
    def coordinator(self) -> Path:
        """Folder of what the coordinator itself needs."""
        return self.folder / "coordinator"

    @property
    def authority_certificate(self) -> Path:
        """Certificate of the authority; every site has a copy."""
        return self.coordinator / "ca.crt"

    @property
    def authority_key(self) -> Path:
        """Key of the authority; needed only to sign a server certificate, so it may be kept elsewhere until then."""
        return self.coordinator / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The certificate that the proxy and the SuperLink show."""
        return self.coordinator / "server.pem"

    @property
    def server_key(self) -> Path:
        """Key of the server certificate."""
        return self.coordinator / "server.key"

    def public_key(self, site: str) -> Path:
        """Public key that a site is registered with."""
        return self.coordinator / "sites" / f"{site}.pub"

    def kit(self, site: str) -> Path:
        """Sealed kit of a site."""
        return self.folder / "kits" / f"{site}.kit"

    @property
    def sites(self) -> tuple[str, ...]:
        """Sites that have a key, sorted by name."""
        return tuple(sorted(path.stem for path in (self.coordinator / "sites").glob("*.pub")))

    def address(self) -> tuple[tuple[str, ...], int]:
        """Hosts of the coordinator, the one that sites are told first, and its port."""
        content = read_json(self.coordinator / "address.json", UsageError)
        try:
            return tuple(content["hosts"]), int(content["port"])
        except (KeyError, TypeError, ValueError):
            raise UsageError(f"{self.coordinator / 'address.json'}: is damaged; it needs hosts and a port") from None

    def facts(self) -> CertificateFacts:
        """What the server certificate says: its hosts and when it ends."""
        return read_certificate(self.server_certificate)


def make_keyring(
    config: FederationConfig, folder: Path, hosts: Sequence[str], port: int, days: int, *, force: bool = False
) -> list[SealedKit]:
    """Make a certificate authority, the server's certificate, and a key and kit for every site that trains.

    Args:
        config: the agreement.
        folder: appears whole or not at all.
        hosts: names and addresses of the coordinator; sites are told the first.
        port: where the coordinator's proxy listens.
        days: validity of the server certificate.
        force: replace all keys of the folder; every kit that was given out is then useless.

    Raises:
        UsageError: the folder is there already, or what :func:`make_server_certificate` refuses.
    """
    clean_leftovers(folder)
    if folder.exists() and not force:
        raise UsageError(
            f"{folder}: exists already; add a site's key with --site, renew the certificate with --renew-server, "
            "choose another --out, or replace all keys with --force"
        )
    if folder.exists() and any(folder.iterdir()) and not Keyring(folder).coordinator.is_dir():
        raise UsageError(f"{folder}: holds something else than keys of pflsynth, so --force does not replace it")
    _address(hosts, port)
    authority = make_authority(config.name)
    server = make_server_certificate(authority, config.name, hosts, days)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replaced_folder(folder) as new:
        ring = Keyring(new)
        new.chmod(0o700)
        for part in (ring.coordinator, ring.coordinator / "sites", new / "kits"):
            part.mkdir(mode=0o700)
        write_atomic(ring.authority_certificate, authority.certificate, mode=0o600)
        write_atomic(ring.authority_key, authority.key, mode=0o600)
        _write_server(ring, server, hosts, port)
        made = [_make_site(config, ring, site) for site in config.participants]
    return [SealedKit(kit.site, Keyring(folder).kit(kit.site), kit.passphrase, kit.fingerprint) for kit in made]


def add_sites(config: FederationConfig, ring: Keyring, sites: Sequence[str], *, force: bool = False) -> list[SealedKit]:
    """Make a key and kit for some sites, whose kits hold the agreement as it is now.

    Args:
        config: the agreement.
        ring: made before.
        sites: of the agreement.
        force: replace the keys of sites that have one; their old keys are then refused.

    Raises:
        UsageError: a site that the agreement does not have, or that has a key; then none is made.
    """
    _check_made(ring)
    for site in sites:
        if site not in config.sites:
            raise UsageError(f"--site {site}: the sites of the federation are {', '.join(config.site_names)}")
        if ring.public_key(site).exists() and not force:
            raise UsageError(f"{ring.public_key(site)}: exists already; replace the key of {site} with --force")
    return [_make_site(config, ring, site) for site in sites]


def renew_server(config: FederationConfig, ring: Keyring, hosts: Sequence[str], days: int) -> CertificateFacts:
    """Replace key and certificate of the server under the same authority: kits and keys of sites stay as they are.

    Args:
        config: the agreement.
        ring: made before, with the authority's key in its place.
        hosts: names and addresses of the coordinator; empty for those of before.
        days: validity.

    Raises:
        UsageError: the authority's key is not there, or what :func:`make_server_certificate` refuses.
    """
    _check_made(ring)
    if not ring.authority_key.is_file():
        raise UsageError(
            f"{ring.authority_key}: is missing; put it back for the renewal, or replace all keys (--force)"
        )
    before, port = ring.address()
    authority = Credential(ring.authority_certificate.read_bytes(), ring.authority_key.read_bytes())
    server = make_server_certificate(authority, config.name, hosts or before, days)
    _write_server(ring, server, hosts or before, port)
    return ring.facts()


def _check_made(ring: Keyring) -> None:
    if not ring.server_certificate.is_file():
        raise UsageError(f"{ring.folder}: holds no keys yet; make them first, without --site and --renew-server")


def _write_server(ring: Keyring, server: Credential, hosts: Sequence[str], port: int) -> None:
    write_atomic(ring.coordinator / "address.json", json_bytes({"hosts": list(hosts), "port": port}), mode=0o600)
    write_atomic(ring.server_key, server.key, mode=0o600)
    write_atomic(ring.server_certificate, server.certificate, mode=0o600)


def _make_site(config: FederationConfig, ring: Keyring, site: str) -> SealedKit:
    key, passphrase = make_site_key(site), make_passphrase()
    hosts, port = ring.address()
    own = _SITE_TOML.format(site=site, federation=config.name, address=_address(hosts, port))
    files = {
        "ca.crt": ring.authority_certificate.read_text(encoding="utf-8"),
        "federation.toml": toml_bytes(config.agreement()).decode(),
        "site.key": key.private.decode(),
        "site.toml": own,
    }
    write_atomic(ring.kit(site), seal(Kit(site, files), passphrase), mode=0o600)
    write_atomic(ring.public_key(site), key.public, mode=0o600)
    return SealedKit(site, ring.kit(site), passphrase, fingerprint(key.public))


def _address(hosts: Sequence[str], port: int) -> str:
    if not hosts:
        raise UsageError("name the coordinator's host, by which sites reach it, with --host")
    address = f"[{hosts[0]}]:{port}" if ":" in hosts[0] else f"{hosts[0]}:{port}"
    try:
        parse_address(address)
    except ValueError as error:
        raise UsageError(f"--host and --port: {error}") from None
    return address
