"""The key pair of a site: ECDSA on the curve P-384, in OpenSSH's format, which is what Flower's SuperNode wants.

The private key stays at the hospital and signs each of its requests; the coordinator registers the public key under the
site's name, and that name is the only identity that it believes.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pflsynth.errors import UsageError


@dataclass(frozen=True)
class SiteKey:
    """A key pair: ``private`` in OpenSSH's PEM without a passphrase, ``public`` as the one line of a ``.pub`` file."""

    private: bytes
    public: bytes


def make_site_key(site: str) -> SiteKey:
    """A new key pair; the site's name is the comment of its public line."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return SiteKey(private, _line(key.public_key()) + f" {site}\n".encode())


def fingerprint(public: bytes) -> str:
    """Fingerprint of a public key as ``ssh-keygen -l`` writes it: ``SHA256:`` and unpadded base64.

    Args:
        public: a line of a ``.pub`` file, or PEM as Flower's ``NodeInfo.public_key`` holds it.

    Raises:
        UsageError: if it is no public key of an elliptic curve.
    """
    try:
        pem = public.lstrip().startswith(b"-----BEGIN")
        key = serialization.load_pem_public_key(public) if pem else serialization.load_ssh_public_key(public)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError(f"this is no public key of a site ({error}); make it anew with: pflsynth keys") from None
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise UsageError("this public key is not of an elliptic curve; make it anew with: pflsynth keys")
    blob = base64.b64decode(_line(key).split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def _line(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
