"""N4 bias field correction."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from pflsynth.data.bias import correct_bias
from pflsynth.data.itk import one_thread, simpleitk
from pflsynth.data.volumes import Volume
from pflsynth.errors import DataError

pytest.importorskip("SimpleITK")

SHAPE, SPACING = (30, 36, 8), (5.0, 5.0, 12.0)


def shaded(strength: float = 0.4) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Two tissues of 60 and 100 under a smooth field, on a noisy background; the mask, and the bright tissue."""
    random = np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, size) for size in SHAPE), indexing="ij")
    mask = x**2 + y**2 + 0.6 * z**2 < 0.8
    bright = mask & (np.sin(9 * x) * np.cos(7 * y) + 0.3 * np.sin(5 * z) > 0)
    clean = np.where(bright, 100, np.where(mask, 60, 3)) + random.normal(0, 1, SHAPE)
    field = np.exp(strength * (x + 0.5 * y**2 - 0.5 * x * z))
    volume = Volume((clean * field).astype(np.float32), np.diag([*SPACING, 1.0]), SPACING, Path("a.nii"))
    return volume, mask, bright


def variation(values: np.ndarray) -> float:
    """Coefficient of variation."""
    return float(values.std() / values.mean())


@pytest.fixture(scope="module")
def corrected() -> Volume:
    volume, mask, _ = shaded()
    return correct_bias(volume, mask)


def test_a_smooth_field_is_removed_and_the_rest_kept(corrected: Volume) -> None:
    volume, mask, bright = shaded()
    for tissue in (bright, mask & ~bright):
        assert variation(corrected.data[tissue]) < 0.35 * variation(volume.data[tissue])
    np.testing.assert_array_equal(corrected.data[~mask], volume.data[~mask])
    assert np.log(corrected.data[mask]).mean() == pytest.approx(np.log(volume.data[mask]).mean(), abs=1e-4)
    assert corrected.data.dtype == np.float32
    assert (corrected.path, corrected.spacing_mm) == (volume.path, volume.spacing_mm)


def test_an_even_image_stays_even() -> None:
    volume, mask, bright = shaded(strength=0.0)
    corrected = correct_bias(volume, mask)
    assert variation(corrected.data[bright]) < variation(volume.data[bright]) + 0.02


def test_twice_gives_the_same_bits(corrected: Volume) -> None:
    volume, mask, _ = shaded()
    before = volume.data.copy()
    np.testing.assert_array_equal(correct_bias(volume, mask).data, corrected.data)
    np.testing.assert_array_equal(volume.data, before)


def test_what_cannot_be_corrected_is_refused() -> None:
    volume, mask, _ = shaded()
    with pytest.raises(DataError, match=r"a\.nii: its mask holds almost no positive values"):
        correct_bias(volume, np.zeros_like(mask))
    one = Volume(volume.data[:, :, 4:5], volume.affine, volume.spacing_mm, volume.path)
    with pytest.raises(DataError, match=r"a\.nii: has 30 x 36 x 1 voxels"):
        correct_bias(one, mask[:, :, 4:5])


def test_without_simpleitk_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    volume, mask, _ = shaded()
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(DataError, match=r'pip install "pflsynth\[imaging\]"'):
        correct_bias(volume, mask)


def test_threads_take_turns_with_simpleitk() -> None:
    """Its number of threads is the process's: two volumes corrected side by side must not undo each other's setting."""
    process = simpleitk().ProcessObject
    before = process.GetGlobalDefaultNumberOfThreads()
    began, entered = threading.Event(), threading.Event()

    def other() -> None:
        began.set()
        with one_thread():
            entered.set()

    thread = threading.Thread(target=other)
    with one_thread():
        thread.start()
        assert began.wait(60)
        assert not entered.wait(0.2)
        assert process.GetGlobalDefaultNumberOfThreads() == 1
    assert entered.wait(60)
    thread.join()
    assert process.GetGlobalDefaultNumberOfThreads() == before
