"""The private certificate authority (CA) of a federation, and the certificate that the coordinator shows to its sites.

All keys are ECDSA on the curve P-384. Certificates are X.509 v3 as RFC 5280 profiles it: the authority's may sign other
certificates, the server's is for TLS servers alone and names its hosts as subject alternative names.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from pflsynth.errors import UsageError

AUTHORITY_DAYS = 3650
"""Validity of an authority's certificate; the certificates that it signs end with it at the latest."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1")
"""What every server certificate names too: behind the proxy the SuperLink listens there."""

_BACKDATED = datetime.timedelta(hours=1)  # sites whose clocks are behind can use a new certificate at once
_DNS_NAME = re.compile(r"^(?!.*\.\.)[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$")


@dataclass(frozen=True)
class Credential:
    """A certificate and its private key, both PEM; the key is PKCS #8 without a passphrase."""

    certificate: bytes
    key: bytes


@dataclass(frozen=True)
class CertificateFacts:
    """What a certificate says.

    Attributes:
        hosts: DNS names and IP addresses that it is for, in its order; empty for an authority's.
        starts, ends: when it is valid, in UTC.
    """

    hosts: tuple[str, ...]
    starts: datetime.datetime
    ends: datetime.datetime

    def days_left(self, now: datetime.datetime | None = None) -> int:
        """Whole days until it ends; negative when it has ended."""
        return (self.ends - (now or _now())).days


def make_authority(name: str, start: datetime.datetime | None = None) -> Credential:
    """A new certificate authority, valid for :data:`AUTHORITY_DAYS` days.

    Args:
        name: the federation's; its first 40 characters are shown in the certificate.
        start: beginning of validity (UTC); default: now.
    """
    start = start or _now()
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"pflsynth CA of {name[:40]}")
    builder = _begun(subject, subject, key.public_key(), start, start + datetime.timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
    return _signed(builder, key, key)


def make_server_certificate(
    authority: Credential, name: str, hosts: Sequence[str], days: int, start: datetime.datetime | None = None
) -> Credential:
    """A new key and certificate of the coordinator.

    Args:
        authority: who signs it.
        name: the federation's.
        hosts: DNS names and IP addresses by which sites reach the coordinator; :data:`LOOPBACK_HOSTS` are added.
        days: validity, 1 or more; never beyond the authority's own end.
        start: beginning of validity (UTC); default: now.

    Raises:
        UsageError: no host; a host that is neither name nor address; no whole day; an authority that ends before.
    """
    if not hosts:
        raise UsageError("a server certificate needs a host; name the coordinator's with --host")
    start = start or _now()
    end = start + datetime.timedelta(days=days)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    if days < 1 or end > issuer.not_valid_after_utc:
        left = (issuer.not_valid_after_utc - start).days
        raise UsageError(f"--days {days}: it must be 1 to {left}, the days that the certificate authority is valid for")
    signer = serialization.load_pem_private_key(authority.key, None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    subject = _subject(f"pflsynth coordinator of {name[:40]}")
    builder = _begun(subject, issuer.subject, key.public_key(), start, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    named = [_general_name(host) for host in dict.fromkeys([*hosts, *LOOPBACK_HOSTS])]
    builder = builder.add_extension(x509.SubjectAlternativeName(named), critical=False)
    return _signed(builder, key, signer)


def read_certificate(path: Path) -> CertificateFacts:
    """Read a certificate back.

    Raises:
        UsageError: no such file, or no certificate in it.
    """
    try:
        return certificate_facts(path.read_bytes())
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; make keys with: pflsynth keys") from None
    except ValueError:
        raise UsageError(f"{path}: holds no certificate (PEM); restore it, or make keys with: pflsynth keys") from None


def certificate_facts(pem: bytes) -> CertificateFacts:
    """What a PEM certificate says; raises ValueError if it is none."""
    certificate = x509.load_pem_x509_certificate(pem)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts = tuple(str(name.value) for name in names)
    return CertificateFacts(hosts, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _subject(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        if not _DNS_NAME.match(host):
            raise UsageError(
                f'--host "{host}": is neither a host name nor an IP address; write it without port and without https://'
            ) from None
        return x509.DNSName(host)


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _begun(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    start: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=start - _BACKDATED,
        not_valid_after=end,
    )
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _signed(
    builder: x509.CertificateBuilder, key: ec.EllipticCurvePrivateKey, signer: ec.EllipticCurvePrivateKey
) -> Credential:
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    certificate = builder.add_extension(identifier, critical=False).sign(signer, hashes.SHA384())
    return Credential(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
