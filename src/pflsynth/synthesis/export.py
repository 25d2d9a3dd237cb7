"""A site's model for one task as an ONNX file, and such a file in place of the model."""

from __future__ import annotations

import importlib
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pflsynth import __version__
from pflsynth.config import Task
from pflsynth.errors import ModelError, UsageError
from pflsynth.federation.personalised import PersonalisedModel
from pflsynth.files import write_atomic
from pflsynth.networks.inference import lay_out
from pflsynth.synthesis.synthesize import NOTICE

INPUT, OUTPUT = "source", "target"
"""Names of the file's tensors: slices (N, 1, size, size) float32 in [-1, 1], any N."""


def export_onnx(model: PersonalisedModel, task: Task, out: Path, *, force: bool = False) -> dict[str, str]:
    """Write the inference form of a site's model for one task, atomically; the same model gives the same bytes.

    Args:
        model: on the CPU.
        task: one of the site's tasks.
        out: file to write.
        force: overwrite.

    Returns:
        The metadata that the file holds.

    Raises:
        UsageError: if ``out`` exists (without ``force``), or a package is missing.
    """
    if out.exists() and not force:
        raise UsageError(f"{out}: exists already; choose another --out or overwrite with --force")
    _needed("onnxscript")
    form = model.inference_form(task)
    lay_out(form, torch.contiguous_format)
    size = model.config.image.size
    with _silent_exporter():
        program = torch.onnx.export(
            form,
            (torch.zeros(2, 1, size, size),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("slices")},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model
    metadata = model_metadata(model, task)
    graph.metadata_props.clear()
    graph.metadata_props.update(metadata)
    for node in graph.graph.all_nodes():  # they tell of the machine's files
        node.metadata_props.clear()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, program.model_proto.SerializeToString(deterministic=True))
    return metadata


def model_metadata(model: PersonalisedModel, task: Task) -> dict[str, str]:
    """What an exported file says of itself: whose it is, and what one needs to feed it."""
    config = model.config
    return {
        "notice": NOTICE,
        "site": model.site,
        "task": str(task),
        "method": config.method,
        "round": str(model.round),
        "model_sha256": model.sha256,
        "agreement_sha256": config.agreement_sha256(),
        "normalizer": config.intensity.normalizer,
        "intensity": json.dumps(model.intensity.model_dump(mode="json"), sort_keys=True),
        "image": json.dumps(config.image.model_dump(mode="json"), sort_keys=True),
        "pflsynth": __version__,
    }


class OnnxNetwork:
    """An exported model that onnxruntime runs, in place of a task's inference form.

    Args:
        session: of onnxruntime.
    """

    def __init__(self, session: Any) -> None:
        self._session = session

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Translate images (B, 1, H, W)."""
        (translated,) = self._session.run([OUTPUT], {INPUT: np.ascontiguousarray(images.cpu().numpy())})
        return torch.from_numpy(translated)


def open_onnx(path: Path, model: PersonalisedModel, task: Task) -> OnnxNetwork:
    """Open an exported file for onnxruntime, with the run's threads; on a CPU.

    Args:
        path: written by :func:`export_onnx`.
        model: that it must be an export of.
        task: that it must be for.

    Raises:
        UsageError: if onnxruntime is missing.
        ModelError: if it is no such file, or of another site, task or model.
    """
    runtime = _needed("onnxruntime")
    if not path.is_file():
        raise ModelError(f"{path}: there is no such file; write it with pflsynth export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = model.config.threads
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as failure:  # onnxruntime has a class of its own for every kind
        first_line = str(failure).partition("\n")[0]
        raise ModelError(f"{path}: cannot be read as ONNX ({first_line}); export it again") from None
    found = session.get_modelmeta().custom_metadata_map
    wanted = model_metadata(model, task)
    for key in ("site", "task", "agreement_sha256", "model_sha256"):
        if found.get(key) != wanted[key]:
            has = f'its {key} is "{found[key]}"' if key in found else f"it tells no {key}"
            raise ModelError(
                f'{path}: is not the export of this model: {has}, "{wanted[key]}" is wanted; '
                "give the right file, or write it with pflsynth export"
            )
    return OnnxNetwork(session)


@contextmanager
def _silent_exporter() -> Iterator[None]:
    """Keep to itself what the exporter says of torch's own code, and of packages that are not needed here."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _needed(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError:
        raise UsageError(f'{package} is not installed; install it with: pip install "pflsynth[export]"') from None
