"""An exported model gives what the model gives, says whose it is, and is refused in place of another."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pflsynth.config import Task
from pflsynth.errors import ModelError, UsageError
from pflsynth.federation.methods import METHODS
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.networks.inference_layers import InstanceAffine
from pflsynth.synthesis.export import export_onnx, open_onnx

from .test_inference import TASKS, TOLERANCE, config_of, images, settled
from .test_synthesize import INTENSITY

ONE, OTHER = (Task.parse(text) for text in TASKS["here"])
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of the exporter


def model_of(folder: Path, name: str = "pflsynth", site: str = "here", **model: object) -> PersonalisedModel:
    config = config_of(name, folder, **model)
    generator = settled(METHODS[name].generator(config, site))
    return PersonalisedModel(config, site, 3, generator, INTENSITY, "e" * 64)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of ``model_of(...)`` for ONE."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported")
    export_onnx(model_of(folder), ONE, folder / "model.onnx")
    return folder / "model.onnx"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pflsynth", "fedgan", "fedmed-rerun", "fedmm", "fedcycle"])
def test_every_kind_of_generator_gives_the_same_in_onnxruntime(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    model = model_of(tmp_path, name)
    export_onnx(model, ONE, tmp_path / "model.onnx")
    network = open_onnx(tmp_path / "model.onnx", model, ONE)
    for number in (1, 2, 5):
        slices = images(number, seed=number)[:, 0].numpy()
        made = model.with_network(ONE, network).synthesize(slices, ONE)
        assert made.shape == slices.shape
        assert np.abs(made - model.synthesize(slices, ONE)).max() < TOLERANCE


@pytest.mark.slow
def test_the_norm_of_a_large_slice_is_exact(tmp_path: Path) -> None:
    """Seen before rows were summed by themselves: 4.5e-5, which a generator of full size amplifies to 1e-3."""
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    features = torch.relu(torch.randn(1, 4, 256, 256) + 1)
    norm = InstanceAffine(torch.rand(4), torch.rand(4)).eval()
    program = torch.onnx.export(norm, (features,), dynamo=True, verbose=False)
    program.save(tmp_path / "norm.onnx")
    session = runtime.InferenceSession(tmp_path / "norm.onnx", providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {session.get_inputs()[0].name: features.numpy()})
    wanted = norm.double()(features.double()).numpy()
    assert np.abs(made - wanted).max() < 5e-6


def test_the_file_gives_the_same_and_tells_whose_it_is(exported: Path, tmp_path: Path) -> None:
    import onnxruntime

    model = model_of(exported.parent)
    slices = images(3)[:, 0].numpy()
    made = model.with_network(ONE, open_onnx(exported, model, ONE)).synthesize(slices, ONE)
    assert np.abs(made - model.synthesize(slices, ONE)).max() < TOLERANCE
    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    assert [(own.name, own.shape[1:]) for own in session.get_inputs()] == [("source", [1, 32, 32])]
    assert isinstance(session.get_inputs()[0].shape[0], str)  # any number of slices
    told = session.get_modelmeta().custom_metadata_map
    assert (told["site"], told["task"], told["round"]) == ("here", "T1w->T2w", "3")
    assert told["agreement_sha256"] == model.config.agreement_sha256()
    assert told["model_sha256"] == "e" * 64
    assert told["notice"] == "synthetic, not for diagnosis"
    assert json.loads(told["image"])["size"] == 32
    assert json.loads(told["intensity"])["contrasts"]["T2w"]["typical"] == [10.0, 410.0]
    content = exported.read_bytes()
    assert b".py" not in content  # where the program lies is nobody's business
    assert str(Path.home()).encode() not in content
    export_onnx(model, ONE, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == content


def test_another_site_task_or_model_is_refused(exported: Path) -> None:
    model = model_of(exported.parent)
    for wanted, task, message in (
        (model, OTHER, 'its task is "T1w->T2w", "T2w->FLAIR" is wanted'),
        (model_of(exported.parent, site="there"), ONE, 'its site is "here", "there" is wanted'),
        (replace(model, sha256="a" * 64), ONE, f'its model_sha256 is "{"e" * 64}", "{"a" * 64}" is wanted'),
        (model_of(exported.parent, residual_layers=3), ONE, "its agreement_sha256 is"),
    ):
        with pytest.raises(ModelError, match="is not the export of this model") as refusal:
            open_onnx(exported, wanted, task)
        assert message in str(refusal.value)
        assert str(exported) in str(refusal.value)


def test_files_that_are_no_export(exported: Path, tmp_path: Path) -> None:
    model = model_of(tmp_path)
    cut = tmp_path / "cut.onnx"
    cut.write_bytes(exported.read_bytes()[:500])
    for path, message in ((cut, "cannot be read as ONNX"), (tmp_path / "no.onnx", "there is no such file")):
        with pytest.raises(ModelError, match=message) as refusal:
            open_onnx(path, model, ONE)
        assert str(path) in str(refusal.value)


def test_what_exists_is_not_overwritten(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("precious")
    with pytest.raises(UsageError, match="exists already"):
        export_onnx(model_of(tmp_path), ONE, path)
    assert path.read_text() == "precious"
    export_onnx(model_of(tmp_path), ONE, path, force=True)
    assert path.read_bytes() == exported.read_bytes()


def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(tmp_path)
    for package in ("onnxscript", "onnxruntime"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UsageError, match=r'onnxscript is not installed; .*pip install "pflsynth\[export\]"'):
        export_onnx(model, ONE, tmp_path / "model.onnx")
    with pytest.raises(UsageError, match=r'onnxruntime is not installed; .*pip install "pflsynth\[export\]"'):
        open_onnx(tmp_path / "model.onnx", model, ONE)
    assert not (tmp_path / "model.onnx").exists()
