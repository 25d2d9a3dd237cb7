"""Keys of sites, held to what ssh-keygen and Flower make of them."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from pflsynth.deployment.site_keys import fingerprint, make_site_key
from pflsynth.errors import UsageError

# ssh-keygen -t ecdsa -b 384, and what ssh-keygen -l says of it
PUBLIC = (
    b"ecdsa-sha2-nistp384 AAAAE2VjZHNhLXNoYTItbmlzdHAzODQAAAAIbmlzdHAzODQAAABhBJx3GwlmCM0Ry3RYNc3anCF0lcdtCTy7eUG0ttI35"
    b"KP04u/dVGLAHcqH3Yd9vJMcPAEicpjsxpivWFivVxGUaz2dqADpAj1gXqeDb+SA5fJ52NpKYsxK4BQ+AePRYVuzzg== brats\n"
)
FINGERPRINT = "SHA256:c85S7tEQW5HPnKnnvUA2t5jEApb7hnBRXwOcbfhWGhU"


def test_a_fingerprint_is_that_of_ssh_keygen() -> None:
    assert fingerprint(PUBLIC) == FINGERPRINT


def test_a_fingerprint_is_the_same_in_the_form_that_flower_keeps() -> None:
    key = serialization.load_ssh_public_key(PUBLIC)
    pem = key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    assert fingerprint(pem) == FINGERPRINT


def test_a_key_is_what_flower_wants() -> None:
    from flwr.supercore.primitives.asymmetric import uses_nist_ec_curve

    made = make_site_key("oslo")
    assert made.private.startswith(b"-----BEGIN OPENSSH PRIVATE KEY-----")
    private = serialization.load_ssh_private_key(made.private, None)
    public = serialization.load_ssh_public_key(made.public)
    assert private.public_key() == public
    assert uses_nist_ec_curve(public)
    assert public.curve.name == "secp384r1"
    assert made.public.endswith(b" oslo\n")
    assert make_site_key("oslo").private != made.private


def test_what_is_no_key() -> None:
    other = ed25519.Ed25519PrivateKey.generate().public_key()
    line = other.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    for text in (b"", b"ssh-rsa AAAA oslo", b"-----BEGIN PUBLIC KEY-----\n", PUBLIC[:60]):
        with pytest.raises(UsageError, match="this is no public key of a site"):
            fingerprint(text)
    with pytest.raises(UsageError, match="not of an elliptic curve"):
        fingerprint(line)
