"""A sealed kit: all that one hospital needs to take part, in one file that only its passphrase opens.

Format 1, in this order::

    b"pflsynth-kit-1\\n"  15 bytes
    salt                 16 bytes
    nonce                12 bytes
    sealed               JSON {"site": name, "files": {file name: text}} under ChaCha20-Poly1305 (RFC 8439), whose key
                         is scrypt (RFC 7914) of the passphrase and the salt with N = 2^15, r = 8, p = 1; what stands
                         before it is authenticated with it
    checksum             32 bytes, SHA-256 of all before: it tells a damaged file from a wrong passphrase
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from pflsynth.errors import UsageError
from pflsynth.files import write_atomic

FORMAT_VERSION = 1
"""Version of the kits that :func:`seal` makes."""

KIT_FILES = ("ca.crt", "federation.toml", "site.key", "site.toml")
"""What a kit holds: the authority's certificate, the agreement, the site's private key, and its ``site.toml``."""

MAXIMUM_BYTES = 4 * 1024 * 1024
"""A larger file is no kit, and is not read."""

_MAGIC = re.compile(rb"pflsynth-kit-([0-9]+)\n")
_SALT, _NONCE, _CHECKSUM = 16, 12, 32
_LETTERS = "abcdefghijkmnpqrstuvwxyz23456789"  # 32 that are not mistaken for one another, so 5 bits each


@dataclass(frozen=True)
class Kit:
    """An opened kit: the site, and the content of each of :data:`KIT_FILES`."""

    site: str
    files: Mapping[str, str]


def make_passphrase() -> str:
    """A random passphrase of 100 bits: five groups of four letters and digits."""
    return "-".join("".join(secrets.choice(_LETTERS) for _ in range(4)) for _ in range(5))


def seal(kit: Kit, passphrase: str) -> bytes:
    """The bytes of a sealed kit; of equal kits they differ, as salt and nonce are random."""
    head = f"pflsynth-kit-{FORMAT_VERSION}\n".encode() + secrets.token_bytes(_SALT)
    nonce = secrets.token_bytes(_NONCE)
    content = json.dumps({"site": kit.site, "files": dict(kit.files)}).encode()
    sealed = ChaCha20Poly1305(_key(passphrase, head[-_SALT:])).encrypt(nonce, content, head)
    whole = head + nonce + sealed
    return whole + hashlib.sha256(whole).digest()


def open_kit(path: Path, passphrase: str) -> Kit:
    """Open a sealed kit.

    Args:
        path: the file.
        passphrase: as it was printed; capitals, spaces and hyphens do not matter.

    Raises:
        UsageError: no such file; no kit; damaged; of a newer format; another passphrase.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file; give the path of a .kit file") from None
    except IsADirectoryError:
        raise UsageError(f"{path}: is a folder; give the path of a .kit file") from None
    magic = _MAGIC.match(data)
    if magic is None or len(data) > MAXIMUM_BYTES:
        raise UsageError(f"{path}: is not a kit of pflsynth; the coordinator makes one with: pflsynth keys")
    if int(magic[1]) != FORMAT_VERSION:
        raise UsageError(f"{path}: is a kit of format {int(magic[1])}, this pflsynth reads {FORMAT_VERSION}; update it")
    start, whole = magic.end(), data[:-_CHECKSUM]
    if len(whole) < start + _SALT + _NONCE or hashlib.sha256(whole).digest() != data[-_CHECKSUM:]:
        raise UsageError(f"{path}: is damaged or was cut short; copy it again from the coordinator")
    head, nonce = whole[: start + _SALT], whole[start + _SALT : start + _SALT + _NONCE]
    try:
        content = ChaCha20Poly1305(_key(passphrase, head[start:])).decrypt(nonce, whole[len(head) + _NONCE :], head)
    except InvalidTag:
        raise UsageError(
            f"{path}: this is not its passphrase; each kit has its own, which pflsynth keys printed"
        ) from None
    return _checked(path, content)


def unpack(kit: Kit, folder: Path) -> None:
    """Write the files of an opened kit; only their owner may read them.

    Args:
        kit: from :func:`open_kit`.
        folder: made if it is absent; no file in it is replaced.

    Raises:
        UsageError: one of the files is there already; then none is written.
    """
    taken = [name for name in KIT_FILES if (folder / name).exists()]
    if taken:
        raise UsageError(f"{folder / taken[0]}: exists already, and a kit never replaces files; choose another --to")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name in KIT_FILES:
        write_atomic(folder / name, kit.files[name].encode(), mode=0o600)


def _checked(path: Path, content: bytes) -> Kit:
    """Whoever knows the passphrase can seal anything: only these files, and only text, are ever written."""
    try:
        table = json.loads(content)
        kit = Kit(table["site"], table["files"])
        well = set(kit.files) == set(KIT_FILES) and all(
            isinstance(text, str) for text in (kit.site, *kit.files.values())
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        well = False
    if not well:
        raise UsageError(f"{path}: does not hold what a kit holds ({', '.join(KIT_FILES)}); ask for another one")
    return kit


def _key(passphrase: str, salt: bytes) -> bytes:
    letters = re.sub(r"[\s-]", "", passphrase).lower()
    return Scrypt(salt=salt, length=32, n=2**15, r=8, p=1).derive(letters.encode())
