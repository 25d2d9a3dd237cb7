"""The agreement and its hash, ``site.toml``, ``extends``, ``--set``, and one sentence for everything that is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from pflsynth.canonical import sha256_of_json
from pflsynth.config import LOCAL_KEYS, SITE_LOCAL_KEYS, FederationConfig, Task
from pflsynth.config_files import load_config
from pflsynth.errors import UsageError
from pflsynth.site_file import parse_address

BASE: dict[str, Any] = {
    "name": "base",
    "contrasts": ["T1w", "T2w", "FLAIR"],
    "sites": {"a": {"tasks": ["T1w->T2w"]}, "b": {"tasks": ["T1w->T2w", "T1w->FLAIR"]}},
}
TEXT = """
name = "base"
contrasts = ["T1w", "T2w", "FLAIR"]
[sites.a]
tasks = ["T1w->T2w"]
[sites.b]
tasks = ["T1w->T2w", "T1w->FLAIR"]
"""


def config(**changes: Any) -> FederationConfig:
    return FederationConfig.model_validate({**BASE, **changes})


def write(path: Path, text: str = TEXT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(path: Path, *overrides: str) -> FederationConfig:
    return load_config(path, overrides).federation


# ------------------------------------------------------------------------------------------------- agreement's hash


def test_the_hash_is_sha256_of_canonical_json() -> None:
    # printf '{"a":[1,2.5],"b":"é"}' | sha256sum
    wanted = "2071e5952e3110d79f01f374bf90abe7fc01cf116fd0a40af0ab60d3f9a99f8d"
    assert sha256_of_json({"b": "é", "a": [1, 2.5]}) == wanted


def test_the_hash_ignores_local_keys() -> None:
    local = {
        "data_root": "/elsewhere",
        "device": "cuda",
        "workers": 7,
        "threads": 9,
        "compile": True,
        "checkpoint_activations": True,
        "perceptual_weights": "vgg16.pth",
        "phantom": 5,
    }
    assert set(local) == set(LOCAL_KEYS)
    own = {"data": "/mnt/a", "layout": "ixi", "contrast_names": {"MPRAGE": "T1w"}}
    assert set(own) == set(SITE_LOCAL_KEYS)
    sites = {"a": {"tasks": ["T1w->T2w"], **own}, "b": BASE["sites"]["b"]}
    assert config(**local, sites=sites).agreement_sha256() == config().agreement_sha256()


def test_the_hash_of_an_agreement_stays_from_version_to_version() -> None:
    """Under another hash no run made before can be opened: then CHANGELOG must say so, and this number changes."""
    assert config().agreement_sha256() == "e7dbacb21f048c4caab19d976034b2eef2e39e0ed43a53ed17fa027f331c7a88"


def test_the_default_encoding_is_no_part_of_the_hash_and_others_are() -> None:
    """It came after runs that are to be opened still."""
    assert config(updates={"encoding": "float32"}).agreement_sha256() == config().agreement_sha256()
    assert "updates" not in config().agreement()
    hashes = {config(updates={"encoding": name}).agreement_sha256() for name in ("float32", "bfloat16", "int8")}
    assert len(hashes) == 3
    assert config(updates={"encoding": "int8"}).agreement()["updates"] == {"encoding": "int8"}


@pytest.mark.parametrize(("key", "default", "other"), [("precision", "float32", "bfloat16"), ("ema_decay", 0.0, 0.999)])
def test_defaults_of_later_keys_are_no_part_of_the_hash_and_other_values_are(key, default, other) -> None:
    """They came after runs that are to be opened still."""
    assert config(training={key: default}).agreement_sha256() == config().agreement_sha256()
    assert key not in config().agreement()["training"]
    assert config(training={key: other}).agreement()["training"][key] == other


def test_the_hash_ignores_the_order_of_keys_and_spelled_out_defaults() -> None:
    turned = {key: BASE[key] for key in reversed(BASE)} | {"sites": dict(reversed(BASE["sites"].items()))}
    spelled = {**turned, "rounds": 150, "training": {"l1_weight": 100}, "image": {"spacing_mm": "", "size": 256}}
    assert FederationConfig.model_validate(turned).agreement_sha256() == config().agreement_sha256()
    assert FederationConfig.model_validate(spelled).agreement_sha256() == config().agreement_sha256()


OTHER_VALUES: dict[str, Any] = {
    "name": "other",
    "seed": 1,
    "rounds": 149,
    "method": "fedgan",
    "held_out": ["a"],
    "quorum": 1,
    "contrasts": ["T1w", "FLAIR", "T2w"],
    "image.spacing_mm": 1.0,
    "image.size": 128,
    "slices.min_area": 0.4,
    "slices.maximum": 10,
    "split.validation": 0.2,
    "split.test": 0.1,
    "split.seed": 1,
    "registration.transform": "affine",
    "registration.reference": "T2w",
    "registration.voxel_mm": [1.0, 1.0, 3.0],
    "intensity.normalizer": "nyul",
    "intensity.bias_correction": True,
    "model.width": 32,
    "model.residual_layers": 8,
    "model.split_stage": 8,
    "model.dropout": 0.1,
    "model.code": ["task"],
    "model.blocks": ["adain"],
    "model.mapper_layers": 2,
    "model.conditioning": "dead",
    "model.private_blocks": False,
    "model.private_discriminators": False,
    "training.batch_size": 2,
    "training.local_epochs": 2,
    "training.learning_rate": 1e-3,
    "training.betas": [0.9, 0.999],
    "training.l1_weight": 10.0,
    "training.adversarial_weight": 0.0,
    "training.precision": "bfloat16",
    "training.ema_decay": 0.999,
    "training.perceptual_sha256": "0" * 64,
    "training.flip": 0.0,
    "training.shift": 0,
    "training.validate_every": 1,
    "training.select": "validation",
    "training.keep_every": 5,
    "updates.encoding": "int8",
    "model.family": "lite",
    "sites.a.tasks": ["T2w->T1w"],
    "sites.a.brain_mask": True,
}


@pytest.mark.parametrize("key", OTHER_VALUES)
def test_the_hash_changes_with_every_agreed_key(key: str) -> None:
    content: dict[str, Any] = config().model_dump(mode="json", exclude_none=True)
    if key == "training.select":  # needs validations, which are a key of their own
        content["training"]["validate_every"] = 1
    before = FederationConfig.model_validate(content).agreement_sha256()
    *parents, last = key.split(".")
    table = content
    for parent in parents:
        table = table[parent]
    table[last] = OTHER_VALUES[key]
    assert FederationConfig.model_validate(content).agreement_sha256() != before


def test_every_agreed_key_is_tried_above() -> None:
    training = {"precision": "bfloat16", "ema_decay": 0.999}
    later = config(updates={"encoding": "int8"}, training=training, model={"family": "lite"})
    keys = set(_leaves(later.agreement()))
    assert keys - set(OTHER_VALUES) == {"sites.b.tasks", "sites.b.brain_mask"}  # those of site a are tried


def test_the_hash_changes_with_a_site() -> None:
    assert config(sites={"a": BASE["sites"]["a"]}).agreement_sha256() != config().agreement_sha256()


def test_preparation_depends_on_what_slices_depend_on() -> None:
    trained_otherwise = config(seed=5, rounds=2, method="fedgan", held_out=["b"], model={"blocks": ["adain"]})
    assert trained_otherwise.preparation("a") == config().preparation("a")
    for key, value in (
        ("image", {"size": 64}),
        ("slices", {"maximum": 2}),
        ("split", {"seed": 1}),
        ("intensity", {"normalizer": "mean"}),
    ):
        assert config(**{key: value}).preparation("a") != config().preparation("a")


def _leaves(content: dict[str, Any], prefix: str = "") -> list[str]:
    nested = ((key, value) for key, value in content.items())
    return [
        leaf
        for key, value in nested
        for leaf in (_leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key])
    ]


# ------------------------------------------------------------------------------------------------------ tasks, names


@pytest.mark.parametrize("text", ["T1w->T2w", "T1w:T2w", " T1w -> T2w ", "T1w→T2w", "T1w : T2w"])
def test_a_task_can_be_written_in_these_ways(text: str) -> None:
    assert Task.parse(text) == Task(source="T1w", target="T2w")
    assert str(Task.parse(text)) == "T1w->T2w"


@pytest.mark.parametrize("text", ["", "T1w", "T1w>T2w", "T1w->T2w->PDw", "->T2w", "T1w-T2w"])
def test_what_is_no_task_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f'"{text}" is not a task; write it as "T1w->T2w"')):
        Task.parse(text)


def test_sites_are_sorted_and_tasks_named_once() -> None:
    several = config(sites={"z": {"tasks": ["T2w->T1w"]}, "B": BASE["sites"]["b"], "a": BASE["sites"]["a"]})
    assert several.site_names == ("B", "a", "z")
    assert [str(task) for task in several.tasks] == ["T1w->FLAIR", "T1w->T2w", "T2w->T1w"]


@pytest.mark.parametrize(
    ("sites", "quorum", "wanted"), [(1, None, 1), (2, None, 2), (3, None, 2), (4, None, 3), (4, 1, 1)]
)
def test_quorum_is_more_than_half_by_default(sites: int, quorum: int | None, wanted: int) -> None:
    many = {f"s{number}": BASE["sites"]["a"] for number in range(sites)}
    assert config(sites=many, quorum=quorum).required_updates == wanted


def test_held_out_sites_do_not_train_but_keep_their_place_in_the_code() -> None:
    many = {f"s{number}": BASE["sites"]["a"] for number in range(5)}
    some = config(sites=many, held_out=["s3", "s1"])
    assert some.participants == ("s0", "s2", "s4")
    assert some.site_names == ("s0", "s1", "s2", "s3", "s4")
    assert some.required_updates == 2


@pytest.mark.parametrize(("layers", "first"), [(9, 9), (1, 5), (2, 5), (4, 6)])
def test_the_default_split_point_is_in_proportion(layers: int, first: int) -> None:
    assert config(model={"residual_layers": layers}).model.first_shared_stage == first


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"split": {"validation": 0.5, "test": 0.5}}, "validation + test must be below 1"),
        ({"model": {"split_stage": 17}}, "split_stage 17 is beyond stage 15, the last one with 9 residual layers"),
        ({"model": {"width": 12}}, "multiple of 8"),
        ({"model": {"residual_layers": 0}}, "greater than or equal to 1"),
        ({"model": {"code": ["scanner"]}}, "'site' or 'task'"),
        ({"training": {"select": "validation"}}, 'select = "validation" needs validate_every to be 1 or more'),
        ({"training": {"betas": [0.5]}}, "betas.1"),
        ({"training": {"learning_rate": float("nan")}}, "finite"),
        ({"training": {"shift": 32}, "image": {"size": 32}}, "training.shift 32 is not below image.size 32"),
        ({"training": {"flip": True}}, "training.flip = True"),
        ({"rounds": "10"}, "rounds = '10'"),
        ({"image": {"size": 20}}, "greater than or equal to 24"),
        ({"image": {"size": 30}}, "multiple of 4"),
        ({"image": {"spacing_mm": 0}}, "greater than 0"),
        ({"contrasts": ["T1w", "T2"]}, 'contrast "T2" is unknown; known are T1w, T1ce, T2w, PDw, FLAIR'),
        ({"contrasts": ["T1w", "T1w"]}, "contrasts names one twice: T1w, T1w"),
        ({"contrasts": ["T1w"]}, "at least 2"),
        ({"sites": {}}, "at least 1"),
        ({"sites": {"a": {"tasks": []}}}, "at least 1"),
        ({"sites": {"a": {"tasks": ["T1w->T2w", "T1w:T2w"]}}}, "site a names a task twice: T1w->T2w, T1w->T2w"),
        (
            {"sites": {"a": {"tasks": ["T1w->PDw"]}}},
            'site a, task T1w->PDw: contrast "PDw" is not among contrasts (T1w,',
        ),
        ({"sites": {"a": {"tasks": ["T1w->T1w"]}}}, 'task "T1w->T1w" has the same source and target'),
        ({"sites": {"a": {"tasks": ["T1w"]}}}, '"T1w" is not a task'),
        ({"sites": {"a/b": {"tasks": ["T1w->T2w"]}}}, "sites.a/b"),
        ({"name": "../up"}, "name = '../up'"),
        ({"quorum": 3}, "quorum 3 is more than the 2 sites that train"),
        ({"quorum": 2, "held_out": ["b"]}, "quorum 2 is more than the 1 sites that train"),
        ({"held_out": ["c"]}, 'held_out names "c", which is none of a, b'),
        ({"held_out": ["b", "a"]}, "held_out names every site; leave some to train"),
        ({"method": 3}, "method = 3"),
        ({"model": {"blocks": []}}, "model.blocks = []: Tuple should have at least 1 item"),
        ({"model": {"blocks": ["adain", "gates"]}}, "'adain' or 'adacw'"),
        ({"model": {"mapper_layers": 0}}, "model.mapper_layers = 0: Input should be greater than or equal to 1"),
        ({"model": {"mapper_layers": 17}}, "less than or equal to 16"),
        ({"model": {"conditioning": "off"}}, "'live' or 'dead'"),
        ({"model": {"private_blocks": 0}}, "model.private_blocks = 0"),
        ({"updates": {"encoding": "int4"}}, "updates.encoding = 'int4': Input should be"),
        ({"training": {"perceptual_sha256": "ab"}}, "training.perceptual_sha256 = 'ab': String should match"),
        ({"phantom": 3}, "phantom = 3: Input should be greater than or equal to 4"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_every_wrong_value_has_its_sentence(changes: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    import tomli_w

    path = write(tmp_path / "federation.toml", tomli_w.dumps({**BASE, **changes}))
    with pytest.raises(UsageError) as refusal:
        load(path)
    message = str(refusal.value)
    assert sentence in message
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("round = 3", 'unknown key "round"; did you mean "rounds"?'),
        ("[training]\nlerning_rate = 1e-3", 'unknown key "training.lerning_rate"; did you mean "learning_rate"?'),
        ("[sites.c]\ntask = ['T1w->T2w']", 'unknown key "sites.c.task"; did you mean "tasks"?'),
        ("[image]\nxyz = 1", 'unknown key "image.xyz"; allowed here: spacing_mm, size'),
        ("rounds = 'many'", "rounds = 'many': Input should be a valid integer"),
        ("threads = 0", "threads = 0: Input should be greater than or equal to 1"),
        ("device = 'gpu'", "device = 'gpu': "),
        ("sites = 3", "sites = 3: "),
        ("training = 'fast'", "training = 'fast': "),
    ],
)
def test_file_key_and_value_are_named(line: str, sentence: str, tmp_path: Path) -> None:
    text = TEXT.replace("[sites.a]", f"{line}\n[sites.a]")
    if line.startswith("sites"):
        text = 'name = "base"\ncontrasts = ["T1w", "T2w"]\n' + line
    path = write(tmp_path / "federation.toml", text)
    with pytest.raises(UsageError) as refusal:
        load(path)
    assert str(refusal.value).startswith(f"{path}: ")
    assert sentence in str(refusal.value)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "federation.toml", 'name = "x"\nround = 3\nseed = "a"\n')
    with pytest.raises(UsageError) as refusal:
        load(path)
    for part in ('key "contrasts" is missing', 'key "sites" is missing', 'unknown key "round"', "seed = 'a'"):
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"name = ", "is not TOML"), (b"\xff\xfe", "is not TOML"), (None, "there is no such file")],
)
def test_files_that_cannot_be_read(content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "federation.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"{re.escape(str(path))}: {sentence}"):
        load(path)


def test_a_folder_is_no_configuration(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is a folder"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------- extends, --set


def test_extends_lays_a_file_over_another(tmp_path: Path) -> None:
    write(tmp_path / "recipes" / "base.toml", TEXT + "[training]\nbatch_size = 4\nflip = 0.25\n")
    top = 'extends = "recipes/base.toml"\nrounds = 7\n[training]\nbatch_size = 2\n[sites.a]\ntasks = ["T2w->T1w"]\n'
    loaded = load(write(tmp_path / "top.toml", top))
    assert (loaded.rounds, loaded.training.batch_size, loaded.training.flip) == (7, 2, 0.25)
    assert loaded.site_names == ("a", "b")
    assert [str(task) for task in loaded.sites["a"].tasks] == ["T2w->T1w"]  # lists are replaced, tables merge


def test_extends_goes_through_several_files(tmp_path: Path) -> None:
    write(tmp_path / "one.toml", TEXT + "[image]\nsize = 64\n")
    write(tmp_path / "two.toml", 'extends = "one.toml"\nrounds = 3\nseed = 3\n')
    loaded = load(write(tmp_path / "three.toml", 'extends = "two.toml"\nseed = 4\n'))
    assert (loaded.image.size, loaded.rounds, loaded.seed) == (64, 3, 4)


def test_extending_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "one.toml", 'extends = "two.toml"\n')
    write(tmp_path / "two.toml", 'extends = "one.toml"\n')
    with pytest.raises(UsageError, match=r"one\.toml: extends itself, by way of .*one\.toml -> .*two\.toml"):
        load(tmp_path / "one.toml")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [("extends = 3", "extends = 3: the path"), ('extends = "no.toml"', "no.toml: there is no such")],
)
def test_wrong_extends(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        load(write(tmp_path / "top.toml", text))


def test_set_overrides_keys(tmp_path: Path) -> None:
    path = write(tmp_path / "federation.toml")
    loaded = load(
        path, "training.batch_size=8", "name=other", 'sites.a.tasks=["T2w:T1w"]', "image.spacing_mm = 1.5", "rounds=2"
    )
    assert (loaded.training.batch_size, loaded.name, loaded.image.spacing_mm, loaded.rounds) == (8, "other", 1.5, 2)
    assert str(loaded.sites["a"].tasks[0]) == "T2w->T1w"
    assert load(path, "seed=1", "seed=2").seed == 2


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("rounds", '--set "rounds": write it as key.sub=value'),
        ("=3", '--set "=3": write it as key.sub=value'),
        ("name.first=3", '--set "name.first=3": name is a value, not a section'),
        ("training.batchsize=2", 'unknown key "training.batchsize"; did you mean "batch_size"?'),
        ("rounds=few", "rounds = 'few'"),
        ("data_root=3", "data_root = 3: a path is wanted"),
        ("perceptual_weights=3", "perceptual_weights = 3: a path is wanted"),
    ],
)
def test_wrong_overrides(override: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        load(write(tmp_path / "federation.toml"), override)


# ------------------------------------------------------------------------------------------- folders, and site.toml


def test_data_folders_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "configs" / "federation.toml", 'data_root = "../data"\n' + TEXT + 'data = "b-images"\n')
    monkeypatch.chdir(path.parent)
    loaded = load(Path("federation.toml"))
    monkeypatch.chdir(tmp_path)
    assert loaded.data_folder("a").resolve() == tmp_path / "data" / "a"
    assert loaded.data_folder("b").resolve() == tmp_path / "data" / "b-images"
    other = load_config(path, data_root=tmp_path / "elsewhere").federation
    assert other.data_folder("a") == tmp_path / "elsewhere" / "a"
    assert other.agreement_sha256() == loaded.agreement_sha256()
    weights = load_config(path, ['perceptual_weights="vgg.pth"']).federation
    assert weights.perceptual_weights == tmp_path / "configs" / "vgg.pth"
    assert weights.agreement_sha256() == loaded.agreement_sha256()


def test_a_site_file_tells_of_one_hospital(tmp_path: Path) -> None:
    write(tmp_path / "shared" / "federation.toml")
    text = 'site = "b"\nfederation = "../shared/federation.toml"\ndata = "images"\nthreads = 5\nworkers = 3\n'
    text += 'layout = "ixi"\ncontrast_names = {MPRAGE = "T1w"}\n'
    loaded = load_config(write(tmp_path / "here" / "site.toml", text), ("rounds=4",))
    assert loaded.sites == ("b",)
    assert loaded.federation.site_names == ("a", "b")
    assert loaded.federation.data_folder("b") == tmp_path / "here" / "images"
    assert (loaded.federation.threads, loaded.federation.workers, loaded.federation.device) == (5, 3, "cpu")
    assert loaded.federation.rounds == 4
    assert loaded.federation.sites["b"].layout == "ixi"
    assert loaded.federation.sites["b"].contrast_names == {"MPRAGE": "T1w"}
    alone = load(tmp_path / "shared" / "federation.toml", "rounds=4")
    assert loaded.federation.agreement_sha256() == alone.agreement_sha256()


def test_a_site_file_tells_how_to_take_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "federation.toml")
    text = 'site = "b"\nfederation = "federation.toml"\ndata = "/data"\ncoordinator = "c.example.org:9092"\n'
    text += 'certificate = "keys/ca.crt"\nkey = "/keys/site.key"\nrun = "run"\nprepared = "../prepared"\n'
    write(tmp_path / "site.toml", text)
    monkeypatch.chdir(tmp_path)
    loaded = load_config(Path("site.toml"))
    assert loaded.own is not None
    assert loaded.own.coordinator == "c.example.org:9092"
    paths = (loaded.own.certificate, loaded.own.key, loaded.own.run, loaded.own.prepared, loaded.own.data)
    wanted = (
        *(tmp_path / "keys" / "ca.crt", Path("/keys/site.key"), tmp_path / "run"),
        *(tmp_path / ".." / "prepared", Path("/data")),
    )
    assert paths == wanted, "relative to the file, and absolute"
    assert loaded.federation.agreement_sha256() == load(tmp_path / "federation.toml").agreement_sha256()
    assert load_config(tmp_path / "federation.toml").own is None


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("c.example.org:9092", ("c.example.org", 9092)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[fd00::7]:65535", ("fd00::7", 65535)),
        *(
            (text, None)
            for text in ("c.example.org", "c:0", "c:65536", "c:x", ":9092", "fd00::7:1", "a b:1", "https://c:1")
        ),
    ],
)
def test_addresses(text: str, wanted: tuple[str, int] | None) -> None:
    if wanted is None:
        with pytest.raises(ValueError, match='is no address; write it as "host:port"'):
            parse_address(text)
    else:
        assert parse_address(text) == wanted


def test_a_federation_file_tells_of_all(tmp_path: Path) -> None:
    path = write(tmp_path / "federation.toml")
    assert load_config(path).sites == ("a", "b")
    assert load_config(path).path == path


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('site = "c"\nfederation = "f.toml"\ndata = "x"', 'site.toml: site "c" is not in .*f.toml, which has a, b'),
        ('site = "a"\nfederation = "f.toml"', 'site.toml: key "data" is missing'),
        ('site = "a"\nfederation = "f.toml"\ndata = "x"\nthread = 2', 'unknown key "thread"; did you mean "threads"'),
        ('site = "a"\nfederation = "g.toml"\ndata = "x"', "g.toml: there is no such file"),
        ('site = "a"\nfederation = "f.toml"\ndata = "x"\nthreads = 0', "threads = 0"),
        ('site = "a"\nfederation = "f.toml"\ndata = "x"\ndevice = "abacus"', "device = 'abacus'"),
        ('site = "a"\nfederation = "f.toml"\ndata = "x"\ncoordinator = "c"', "coordinator = 'c': \"c\" is no address"),
        ('site = "a"\nfederation = "f.toml"\ndata = "x"\nkeys = "k"', 'unknown key "keys"; did you mean "key"'),
    ],
)
def test_wrong_site_files(text: str, sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "f.toml")
    with pytest.raises(UsageError, match=sentence):
        load_config(write(tmp_path / "site.toml", text))
