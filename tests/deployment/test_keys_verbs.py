"""``pflsynth keys`` and ``unseal``: from a federation.toml to a hospital's folder, renewal, and what is refused."""

from __future__ import annotations

import io
import json
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from pflsynth.config import LOCAL_KEYS
from pflsynth.config_files import load_config
from pflsynth.deployment.keyring import Keyring
from pflsynth.deployment.site_keys import fingerprint

from ..data_builders import tree, write_site
from ..tiny import TINY, Ended, pflsynth

HOSTS = ("--host", "coordinator.example.org", "--host", "10.0.0.7")


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(TINY)
    path = tmp_path / "federation.toml"
    path.write_text('extends = "base.toml"\nrounds = 7\ndevice = "cpu"\nquorum = 2\n')
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "own" / "keys"


def made(federation: Path, folder: Path, *words: object) -> Ended:
    end = pflsynth("keys", federation, "--out", folder, *words, "--json")
    assert end.code == 0, end
    return end


def opened(end: Ended, site: str, to: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a site, unsealed with the passphrase that was printed."""
    (kit,) = [own for own in end.document["kits"] if own["site"] == site]
    monkeypatch.setenv("PFLSYNTH_KIT_PASSPHRASE", kit["passphrase"])
    assert pflsynth("unseal", kit["path"], "--to", to).code == 0
    return to


# ------------------------------------------------------------------------------------------------------------ the road


def test_keys_makes_all_that_coordinator_and_sites_need(federation: Path, folder: Path) -> None:
    end = made(federation, folder, *HOSTS, "--port", 9443, "--days", 30)
    assert sorted(tree(folder)) == [
        "coordinator/address.json",
        "coordinator/ca.crt",
        "coordinator/ca.key",
        "coordinator/server.key",
        "coordinator/server.pem",
        "coordinator/sites/north.pub",
        "coordinator/sites/south.pub",
        "kits/north.kit",
        "kits/south.kit",
    ]
    modes = {stat.S_IMODE(path.stat().st_mode) for path in [folder, *folder.rglob("*")] if path.is_dir()}
    assert modes == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}
    ring = Keyring(folder)
    assert ring.sites == ("north", "south")
    assert ring.address() == (("coordinator.example.org", "10.0.0.7"), 9443)
    assert ring.facts().hosts == ("coordinator.example.org", "10.0.0.7", "localhost", "127.0.0.1")
    assert ring.facts().days_left() == 29
    for kit in end.document["kits"]:
        assert kit["fingerprint"] == fingerprint(ring.public_key(kit["site"]).read_bytes())


def test_passphrases_are_printed_and_kept_nowhere(federation: Path, folder: Path) -> None:
    end = pflsynth("keys", federation, "--out", folder, *HOSTS)
    shown = re.findall(r"passphrase {3}(\S+)", end.out)
    assert len(set(shown)) == 2
    assert "the passphrases are not shown again" in end.out
    for data in tree(folder).values():
        assert not any(text.encode() in data for text in shown)


def test_a_kit_becomes_a_hospitals_folder(
    federation: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = opened(made(federation, folder, *HOSTS), "north", tmp_path / "north", monkeypatch)
    loaded = load_config(own / "site.toml")
    wanted = load_config(federation).federation
    assert loaded.federation.agreement_sha256() == wanted.agreement_sha256()
    assert loaded.sites == ("north",)
    assert loaded.own is not None
    assert loaded.own.coordinator == "coordinator.example.org:9092"
    assert loaded.own.certificate == own / "ca.crt"
    assert (own / "ca.crt").read_bytes() == Keyring(folder).authority_certificate.read_bytes()
    assert (loaded.own.data, loaded.own.prepared, loaded.own.run) == (own / "data", own / "prepared", own / "run")
    private = serialization.load_ssh_private_key((own / "site.key").read_bytes(), None)
    public = serialization.load_ssh_public_key(Keyring(folder).public_key("north").read_bytes())
    assert private.public_key() == public
    agreement = tomllib.loads((own / "federation.toml").read_text())
    assert not set(agreement) & {*LOCAL_KEYS, "extends"}


def test_an_ipv6_address(federation: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = opened(made(federation, folder, "--host", "fd00::7"), "south", tmp_path / "south", monkeypatch)
    loaded = load_config(own / "site.toml").own
    assert loaded is not None
    assert loaded.coordinator == "[fd00::7]:9092"


def test_prepare_writes_where_the_site_file_says(
    federation: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = opened(made(federation, folder, *HOSTS), "south", tmp_path / "south", monkeypatch)
    write_site(own / "data", 4, ("T1w", "T2w"))
    assert pflsynth("prepare", own / "site.toml").code == 0
    assert (own / "prepared" / "south" / "manifest.json").is_file()


# ------------------------------------------------------------------------------------------------------------- renewal


def test_a_second_run_replaces_nothing(federation: Path, folder: Path) -> None:
    made(federation, folder, *HOSTS)
    before = tree(folder)
    for words in (HOSTS, ("--site", "north")):
        end = pflsynth("keys", federation, "--out", folder, *words)
        assert end.code == 2
        assert "exists already" in end.err
    assert tree(folder) == before


def test_force_replaces_all(federation: Path, folder: Path) -> None:
    made(federation, folder, *HOSTS)
    before = tree(folder)
    made(federation, folder, *HOSTS, "--force")
    after = tree(folder)
    same = {name for name in after if after[name] == before[name]}
    assert same == {"coordinator/address.json"}


def test_force_replaces_no_folder_of_something_else(federation: Path, tmp_path: Path) -> None:
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    end = pflsynth("keys", federation, "--out", other, *HOSTS, "--force")
    assert end.code == 2
    assert "holds something else than keys" in end.err
    assert (other / "chapter.txt").read_text() == "years of work"


def test_a_new_key_for_one_site(
    federation: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(federation, folder, *HOSTS, "--port", 9443)
    before = tree(folder)
    end = made(federation, folder, "--site", "north", "--force")
    after = tree(folder)
    assert {name for name in after if after[name] != before[name]} == {"coordinator/sites/north.pub", "kits/north.kit"}
    own = opened(end, "north", tmp_path / "north", monkeypatch)
    loaded = load_config(own / "site.toml").own
    assert loaded is not None
    assert loaded.coordinator == "coordinator.example.org:9443", "as the other kits"


def test_a_site_that_came_later(federation: Path, folder: Path) -> None:
    made(federation, folder, *HOSTS)
    federation.write_text(federation.read_text() + '[sites.west]\ntasks = ["T1w->T2w"]\n')
    made(federation, folder, "--site", "west")
    assert Keyring(folder).sites == ("north", "south", "west")


def test_held_out_sites_get_a_kit_only_by_name(federation: Path, folder: Path) -> None:
    federation.write_text(federation.read_text().replace("quorum = 2", 'held_out = ["south"]'))
    made(federation, folder, *HOSTS)
    assert Keyring(folder).sites == ("north",)
    made(federation, folder, "--site", "south")
    assert Keyring(folder).sites == ("north", "south")


def test_the_server_certificate_is_renewed_under_the_same_authority(federation: Path, folder: Path) -> None:
    made(federation, folder, *HOSTS, "--port", 9443, "--days", 10)
    before = tree(folder)
    end = made(federation, folder, "--renew-server", "--days", 90)
    after = tree(folder)
    assert {name for name in after if after[name] != before[name]} == {
        "coordinator/server.key",
        "coordinator/server.pem",
    }
    assert end.document["kits"] == []
    ring = Keyring(folder)
    assert ring.facts().days_left() == 89
    assert ring.facts().hosts[:2] == ("coordinator.example.org", "10.0.0.7")
    made(federation, folder, "--renew-server", "--host", "new.example.org")
    assert ring.facts().hosts == ("new.example.org", "localhost", "127.0.0.1")
    assert ring.address() == (("new.example.org",), 9443)


def test_renewal_without_the_authoritys_key(federation: Path, folder: Path) -> None:
    made(federation, folder, *HOSTS)
    Keyring(folder).authority_key.unlink()
    end = pflsynth("keys", federation, "--out", folder, "--renew-server")
    assert end.code == 2
    assert "ca.key: is missing; put it back for the renewal" in end.err


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "name the coordinator's host, by which sites reach it, with --host"),
        (("--host", "a b"), '"a b:9092" is no address'),
        (
            ("--host", "a.example", "--host", "https://b"),
            '--host "https://b": is neither a host name nor an IP address',
        ),
        (
            ("--host", "a.example", "--days", "4000"),
            "--days 4000: it must be 1 to 3649, the days that the certificate authority is valid for",
        ),
        (("--site", "north"), "holds no keys yet"),
        (("--renew-server",), "holds no keys yet"),
        (("--renew-server", "--site", "north"), "give one of them"),
        (("--site", "north", "--host", "a.example"), "--site takes the address that the other kits have"),
    ],
)
def test_wrong_words(words: tuple[str, ...], sentence: str, federation: Path, folder: Path) -> None:
    end = pflsynth("keys", federation, "--out", folder, *words)
    assert end.code == 2
    assert sentence in end.err
    assert not folder.exists(), "and nothing is left behind"


def test_other_sites_and_files(federation: Path, folder: Path, tmp_path: Path) -> None:
    made(federation, folder, *HOSTS)
    end = pflsynth("keys", federation, "--out", folder, "--site", "east")
    assert "--site east: the sites of the federation are north, south" in end.err
    site = tmp_path / "site.toml"
    site.write_text('site = "north"\nfederation = "federation.toml"\ndata = "data"\n')
    assert "is a hospital's own file" in pflsynth("keys", site, "--out", tmp_path / "new", *HOSTS).err
    (folder / "coordinator" / "address.json").write_text(json.dumps({"hosts": ["a"]}))
    assert "address.json: is damaged" in pflsynth("keys", federation, "--out", folder, "--renew-server").err


def test_without_cryptography(federation: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    for words in (("keys", federation, "--out", folder, *HOSTS), ("unseal", "x.kit", "--to", folder)):
        end = pflsynth(*words)
        assert end.code == 2
        assert 'need the package cryptography: pip install "pflsynth[flower]"' in end.err


def test_the_command_line_loads_neither_flower_nor_cryptography() -> None:
    told = "import sys, pflsynth.cli, pflsynth.training; print({'flwr', 'cryptography'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, check=True)
    assert ended.stdout == "set()\n"


def test_unseal_asks_nobody_where_nobody_is(
    federation: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(federation, folder, *HOSTS)
    monkeypatch.delenv("PFLSYNTH_KIT_PASSPHRASE", raising=False)
    monkeypatch.setattr("sys.stdin", io.StringIO("typed\n"))
    end = pflsynth("unseal", folder / "kits" / "north.kit", "--to", tmp_path / "north")
    assert end.code == 2
    assert "set PFLSYNTH_KIT_PASSPHRASE" in end.err
    monkeypatch.setenv("PFLSYNTH_KIT_PASSPHRASE", "wrong")
    end = pflsynth("unseal", folder / "kits" / "north.kit", "--to", tmp_path / "north")
    assert end.code == 2
    assert "this is not its passphrase" in end.err
    assert not (tmp_path / "north").exists()
