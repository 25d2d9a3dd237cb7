"""Signal equations against numbers worked out by hand; noise and bias against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pflsynth.data.protocols import (
    PHANTOM_SITES,
    TISSUES,
    InversionRecovery,
    SpinEcho,
    SpoiledGradientEcho,
    vary_timing,
)
from pflsynth.data.signal import bias_field, inversion_recovery, rician_noise, spin_echo, spoiled_gradient_echo


def test_spoiled_gradient_echo_by_hand():
    # tr = t1 ln 2 gives E1 = 1/2; at 60 degrees: sin 60 * (1/2) / (1 - 1/4) = sqrt(3)/2 * 2/3 = 1/sqrt(3)
    tr = 1000 * math.log(2)
    assert spoiled_gradient_echo(1, 1000, 50, tr=tr, te=0, flip=60) == pytest.approx(1 / math.sqrt(3))
    assert spoiled_gradient_echo(0.8, 1000, 50, tr=tr, te=50 * math.log(2), flip=60) == pytest.approx(
        0.4 / math.sqrt(3)
    )


def test_spoiled_gradient_echo_is_largest_at_the_ernst_angle():
    tr = 1000 * math.log(2)  # Ernst angle arccos(1/2) = 60 degrees
    best, below, above = (spoiled_gradient_echo(1, 1000, 50, tr=tr, te=0, flip=flip) for flip in (60, 59, 61))
    assert best > below
    assert best > above


def test_spin_echo_by_hand_and_in_its_limits():
    assert spin_echo(1, 1000, 100, tr=1000 * math.log(2), te=100 * math.log(2)) == pytest.approx(0.25)
    assert spin_echo(0.7, 1000, 100, tr=1e9, te=0) == pytest.approx(0.7)  # proton density alone
    assert spin_echo(1, 1000, 100, tr=0, te=0) == 0
    assert spin_echo(1, 1000, 100, tr=1e9, te=1e9) == 0


def test_inversion_recovery_null_sign_and_limits():
    assert inversion_recovery(1, 1000, 100, tr=1e9, te=0, ti=1000 * math.log(2)) == pytest.approx(0, abs=1e-12)
    assert inversion_recovery(1, 1000, 100, tr=1e9, te=0, ti=0) == pytest.approx(-1)
    assert inversion_recovery(1, 1000, 100, tr=1e9, te=0, ti=1000 * math.log(4)) == pytest.approx(0.5)
    assert inversion_recovery(0.8, 1000, 100, tr=1e9, te=100 * math.log(2), ti=1e6) == pytest.approx(0.4)


@pytest.mark.parametrize("site", list(PHANTOM_SITES))
def test_tissues_are_ordered_as_in_the_contrast(site: str):
    protocol = PHANTOM_SITES[site]
    for contrast, sequence in protocol.sequences.items():
        signal = {name: sequence.signal(tissue) for name, tissue in protocol.tissues.items()}
        if contrast == "T1w":
            assert signal["wm"] > signal["gm"] > signal["core"] > signal["necrosis"] > signal["csf"]
        elif contrast == "T2w":
            assert signal["csf"] > signal["necrosis"] > signal["oedema"] > signal["gm"] > signal["wm"]
        elif contrast == "PDw":
            assert signal["gm"] > signal["wm"] > 0.5 * signal["csf"]
        else:
            assert signal["oedema"] > signal["gm"] > signal["wm"]
            assert signal["gm"] > signal["necrosis"]
            assert abs(signal["csf"]) < 0.05 * signal["gm"]


@pytest.mark.parametrize("site", list(PHANTOM_SITES))
def test_tasks_use_the_contrasts_of_their_site(site: str):
    protocol = PHANTOM_SITES[site]
    assert protocol.tasks
    for task in protocol.tasks:
        source, target = task.split("->")
        assert source != target
        assert {source, target} <= set(protocol.contrasts)


def test_the_protocols_are_frozen():
    with pytest.raises(TypeError):
        PHANTOM_SITES["ixi"].sequences["T1w"] = SpinEcho(tr=1, te=1)  # type: ignore[index]
    with pytest.raises(TypeError):
        TISSUES[1.5]["wm"] = TISSUES[3.0]["wm"]  # type: ignore[index]


def test_vary_timing_scales_times_and_leaves_the_flip_angle():
    assert vary_timing(SpoiledGradientEcho(tr=10, te=4, flip=20), 1.5) == SpoiledGradientEcho(tr=15, te=6, flip=20)
    assert vary_timing(InversionRecovery(tr=8, te=2, ti=4), 0.5) == InversionRecovery(tr=4, te=1, ti=2)


def test_bias_field_is_smooth_positive_and_as_strong_as_asked():
    field = bias_field((20, 24, 12), 0.2, np.random.default_rng(0))
    assert field.shape == (20, 24, 12)
    assert field.dtype == np.float32
    assert np.abs(np.log(field)).max() == pytest.approx(0.2, rel=1e-5)
    assert max(np.abs(np.diff(field, axis=axis)).max() for axis in range(3)) < 0.1
    np.testing.assert_array_equal(bias_field((4, 4, 4), 0.0, np.random.default_rng(0)), 1)


def test_rician_noise_in_air_and_in_strong_signal():
    air = rician_noise(np.zeros((60, 60, 60), np.float32), 3.0, np.random.default_rng(0))
    assert air.dtype == np.float32
    assert air.min() >= 0
    assert air.mean() == pytest.approx(3.0 * math.sqrt(math.pi / 2), rel=0.01)
    tissue = rician_noise(np.full((60, 60, 60), -100, np.float32), 3.0, np.random.default_rng(0))
    assert tissue.mean() == pytest.approx(100 + 3.0**2 / 200, rel=0.001)  # the magnitude of a negative signal
    assert tissue.std() == pytest.approx(3.0, rel=0.01)
