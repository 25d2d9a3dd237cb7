"""Sealed kits: opened by their passphrase alone, and a sentence for whatever is wrong with one."""

from __future__ import annotations

import hashlib
import json
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from hypothesis import given, settings
from hypothesis import strategies as st

from pflsynth.deployment import kits
from pflsynth.deployment.kits import KIT_FILES, Kit, make_passphrase, open_kit, seal, unpack
from pflsynth.errors import UsageError

KIT = Kit("oslo", {name: f"text of {name}, æøå\n" for name in KIT_FILES})
PASSPHRASE = "abcd-efgh-ijkm-npqr-2345"


@pytest.fixture(scope="module")
def sealed() -> bytes:
    return seal(KIT, PASSPHRASE)


def opened(data: bytes, tmp_path: Path, passphrase: str = PASSPHRASE) -> Kit:
    path = tmp_path / "oslo.kit"
    path.write_bytes(data)
    return open_kit(path, passphrase)


@pytest.mark.parametrize("passphrase", [PASSPHRASE, "ABCDEFGHIJKMNPQR2345", " abcd efgh ijkm npqr 2345\n"])
def test_a_kit_is_opened_however_its_passphrase_is_typed(sealed: bytes, passphrase: str, tmp_path: Path) -> None:
    assert opened(sealed, tmp_path, passphrase) == KIT


def test_another_passphrase(sealed: bytes, tmp_path: Path) -> None:
    for passphrase in ("", "abcd-efgh-ijkm-npqr-2346", make_passphrase()):
        with pytest.raises(UsageError, match=r"oslo.kit: this is not its passphrase"):
            opened(sealed, tmp_path, passphrase)


def test_format_1_is_as_it_is_written_down(sealed: bytes) -> None:
    """Taken apart by the words of the documentation alone."""
    magic, salt, nonce, content, checksum = sealed[:15], sealed[15:31], sealed[31:43], sealed[43:-32], sealed[-32:]
    assert magic == b"pflsynth-kit-1\n"
    assert hashlib.sha256(sealed[:-32]).digest() == checksum
    key = Scrypt(salt=salt, length=32, n=32768, r=8, p=1).derive(b"abcdefghijkmnpqr2345")
    table = json.loads(ChaCha20Poly1305(key).decrypt(nonce, content, magic + salt))
    assert table == {"site": "oslo", "files": dict(KIT.files)}


def test_equal_kits_are_sealed_differently_and_hold_no_plain_text(sealed: bytes) -> None:
    assert seal(KIT, PASSPHRASE)[15:43] != sealed[15:43]
    assert b"text of" not in sealed
    assert b"oslo" not in sealed


@given(data=st.data())
@settings(max_examples=40)
def test_any_changed_byte_is_found(
    data: st.DataObject, sealed: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = data.draw(st.integers(15, len(sealed) - 1))
    change = data.draw(st.integers(1, 255))
    damaged = sealed[:place] + bytes([sealed[place] ^ change]) + sealed[place + 1 :]
    with pytest.raises(UsageError, match="damaged or was cut short"):
        opened(damaged, tmp_path_factory.getbasetemp())


def test_a_change_with_a_new_checksum_does_not_open(sealed: bytes, tmp_path: Path) -> None:
    for place in (20, 35, 60, len(sealed) - 40):
        whole = bytearray(sealed[:-32])
        whole[place] ^= 1
        with pytest.raises(UsageError, match="not its passphrase"):
            opened(bytes(whole) + hashlib.sha256(whole).digest(), tmp_path)


@pytest.mark.parametrize("length", [15, 16, 50, 80, 200])
def test_a_kit_cut_short(sealed: bytes, length: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="damaged or was cut short; copy it again"):
        opened(sealed[:length], tmp_path)


def test_what_is_no_kit(sealed: bytes, tmp_path: Path) -> None:
    for data in (b"", b"PK\x03\x04", b"pflsynth-kit\n", sealed + b"\0" * kits.MAXIMUM_BYTES):
        with pytest.raises(UsageError, match="is not a kit of pflsynth"):
            opened(data, tmp_path)
    with pytest.raises(UsageError, match="is a kit of format 2, this pflsynth reads 1"):
        opened(sealed.replace(b"kit-1", b"kit-2"), tmp_path)
    with pytest.raises(UsageError, match="there is no such file"):
        open_kit(tmp_path / "absent.kit", PASSPHRASE)
    with pytest.raises(UsageError, match="is a folder"):
        open_kit(tmp_path, PASSPHRASE)


@pytest.mark.parametrize(
    "content",
    [
        {"site": "oslo", "files": {**KIT.files, "../../.profile": "x"}},
        {"site": "oslo", "files": {"ca.crt": ""}},
        {"site": "oslo", "files": dict.fromkeys(KIT_FILES, 3)},
        {"site": "oslo"},
        ["oslo"],
    ],
)
def test_other_content_is_never_written(content: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kits.json, "dumps", lambda _, dumps=json.dumps: dumps(content))
    data = seal(KIT, PASSPHRASE)
    with pytest.raises(UsageError, match="does not hold what a kit holds"):
        opened(data, tmp_path)


def test_passphrases_have_a_hundred_bits() -> None:
    made = {make_passphrase() for _ in range(200)}
    assert len(made) == 200
    assert len(set(kits._LETTERS)) == 32
    assert {letter for text in made for letter in text} == {*kits._LETTERS, "-"}
    assert all([len(group) for group in text.split("-")] == [4] * 5 for text in made)


def test_files_are_written_for_their_owner_alone(tmp_path: Path) -> None:
    unpack(KIT, tmp_path / "a" / "oslo")
    folder = tmp_path / "a" / "oslo"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: path.read_text() for path in folder.iterdir()} == KIT.files
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize("name", KIT_FILES)
def test_no_file_is_replaced(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name}: exists already, and a kit never replaces files"):
        unpack(KIT, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
