"""The authority and the server's certificate, as OpenSSL (through the module ssl) and cryptography see them."""

from __future__ import annotations

import datetime
import re
import ssl
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pflsynth.deployment.certificates import (
    AUTHORITY_DAYS,
    certificate_facts,
    make_authority,
    make_server_certificate,
    read_certificate,
)
from pflsynth.errors import UsageError

START = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC)


def test_a_certificate_is_read_back() -> None:
    hosts = ("coordinator.example.org", "10.0.0.7", "fd00::7", "localhost")
    made = make_server_certificate(make_authority("f", START), "f", hosts, 30, START)
    facts = certificate_facts(made.certificate)
    assert facts.hosts == (*hosts, "127.0.0.1"), "in the order given, and loopback once"
    assert facts.starts == START - datetime.timedelta(hours=1)
    assert facts.ends == START + datetime.timedelta(days=30)
    assert facts.days_left(START) == 30
    assert facts.days_left(START + datetime.timedelta(days=29, seconds=1)) == 0
    assert facts.days_left(START + datetime.timedelta(days=31)) == -1


def test_keys_are_on_p_384_and_fit_their_certificates() -> None:
    authority = make_authority("f")
    for made in (authority, make_server_certificate(authority, "f", ["a.example"], 1)):
        key = serialization.load_pem_private_key(made.key, None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        assert key.curve.name == "secp384r1"
        assert x509.load_pem_x509_certificate(made.certificate).public_key() == key.public_key()


def test_the_authority_signed_it_and_may_sign_no_further_authority() -> None:
    authority = make_authority("f" * 100)
    issuer = x509.load_pem_x509_certificate(authority.certificate)
    server = x509.load_pem_x509_certificate(make_server_certificate(authority, "f", ["a.example"], 1).certificate)
    server.verify_directly_issued_by(issuer)
    limits = issuer.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (limits.critical, limits.value.ca, limits.value.path_length) == (True, True, 0)
    assert not server.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert issuer.not_valid_after_utc - issuer.not_valid_before_utc == datetime.timedelta(AUTHORITY_DAYS, hours=1)


def test_openssl_takes_it_under_its_strict_rules(tmp_path: Path) -> None:
    """The rules that Python 3.13 turns on by itself: key identifiers, key usage, critical constraints."""
    authority = make_authority("f")
    made = make_server_certificate(authority, "f", ["a.example"], 1)
    (tmp_path / "server.pem").write_bytes(made.certificate)
    (tmp_path / "server.key").write_bytes(made.key)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    asking = ssl.create_default_context(cadata=authority.certificate.decode())
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    for host in ("a.example", "localhost", "127.0.0.1"):
        handshake(serving, asking, host)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(serving, asking, "b.example")


def handshake(serving: ssl.SSLContext, asking: ssl.SSLContext, host: str) -> None:
    """A TLS handshake in memory."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(to_client, to_server, server_hostname=host)
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    open_sides = [client, server]
    for _ in range(10):
        for side in list(open_sides):
            try:
                side.do_handshake()
                open_sides.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not open_sides


@pytest.mark.parametrize(
    ("hosts", "days", "sentence"),
    [
        ((), 30, "needs a host; name the coordinator's with --host"),
        (("https://a.example",), 30, '--host "https://a.example": is neither a host name nor an IP address'),
        (("a.example:9092",), 30, "write it without port"),
        (("a..example",), 30, "neither"),
        (("a b",), 30, "neither"),
        (("",), 30, "neither"),
        (("a.example",), 0, "--days 0: it must be 1 to 3650"),
        (("a.example",), 3651, "--days 3651: it must be 1 to 3650"),
    ],
)
def test_what_cannot_be_certified(hosts: tuple[str, ...], days: int, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        make_server_certificate(make_authority("f", START), "f", hosts, days, START)


def test_files_without_a_certificate(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"server\.pem: there is no such file"):
        read_certificate(tmp_path / "server.pem")
    (tmp_path / "server.pem").write_text("nothing")
    with pytest.raises(UsageError, match=r"server\.pem: holds no certificate"):
        read_certificate(tmp_path / "server.pem")
