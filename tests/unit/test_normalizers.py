"""Every way to normalise, by hand, and that each can be inverted where it says so."""

from __future__ import annotations

import numpy as np
import pytest

from pflsynth.data.manifest import ContrastIntensity, SiteIntensity
from pflsynth.data.normalizers import NORMALIZERS, measure_volume
from pflsynth.data.scaling import Head, Scale
from pflsynth.errors import DataError
from tests.data_builders import head

FOUR = np.array([0, 10, 20, 30], np.float32).reshape(2, 2, 1)
INSIDE = Head(FOUR > 0, low=0.0, high=30.0)


def test_percentile_by_hand() -> None:
    normalizer = NORMALIZERS["percentile"]
    assert normalizer.fit is None
    assert normalizer.measure(FOUR, INSIDE) == (0, 30)
    assert normalizer.scale((0, 30), ()).apply([0, 15, 30, 60]).tolist() == [-1, 0, 1, 1]


def test_mean_by_hand() -> None:
    # Means within the head: 20 and 100; maxima over means: 1.5 and 4. The site's maximum is 4.
    normalizer = NORMALIZERS["mean"]
    assert normalizer.fit is not None
    assert normalizer.measure(FOUR, INSIDE) == (20, 30)
    reference = normalizer.fit([(20, 30), (100, 400)])
    assert reference == (4,)
    assert normalizer.scale((20, 30), reference).apply([0, 20, 40, 80, 90]).tolist() == [-1, -0.5, 0, 1, 1]


def test_zscore_by_hand() -> None:
    normalizer = NORMALIZERS["zscore"]
    mean, deviation = normalizer.measure(FOUR, INSIDE)
    assert (mean, deviation) == (20, pytest.approx(np.sqrt(200 / 3)))
    assert normalizer.masked
    assert normalizer.scale((20, 5), ()).apply([0, 15, 20, 25, 40, 50]).tolist() == [-1, -0.25, 0, 0.25, 1, 1]


def test_nyul_moves_the_deciles_of_every_volume_to_the_mean_of_the_training_volumes() -> None:
    normalizer = NORMALIZERS["nyul"]
    assert normalizer.fit is not None
    data = np.arange(1, 1002, dtype=np.float32).reshape(-1, 1, 1)
    statistics = normalizer.measure(data, Head(data > 0, low=0.0, high=996.0))
    assert statistics == (0, *range(101, 902, 100), pytest.approx(996))
    one, other = (0.0, *np.linspace(10, 90, 9), 100.0), (0.0, *np.linspace(10, 90, 9) / 2, 100.0)
    reference = normalizer.fit([one, other])
    assert reference == pytest.approx((-1, *(2 * 0.75 * np.linspace(10, 90, 9) / 100 - 1), 1))
    for own in (one, other):
        scale = normalizer.scale(own, reference)
        assert scale.apply(own) == pytest.approx(reference, abs=1e-6)


def test_landmarks_that_fall_together_keep_the_map_rising() -> None:
    normalizer = NORMALIZERS["nyul"]
    reference = tuple(np.linspace(-1, 1, 11))
    scale = normalizer.scale((0, 0, 0, 5, 5, 6, 7, 8, 9, 10, 20), reference)
    assert scale.values == (0, 5, 6, 7, 8, 9, 10, 20)
    assert np.all(np.diff(scale.levels) > 0)


@pytest.mark.parametrize("name", NORMALIZERS)
def test_each_is_inverted_where_it_did_not_clip(name: str) -> None:
    data = head(seed=4, noise=5.0).astype(np.float32)
    statistics, mask = measure_volume(data, name, "x")
    fit = NORMALIZERS[name].fit
    scale = NORMALIZERS[name].scale(statistics, () if fit is None else fit([statistics]))
    scaled = scale.apply(data)
    within = mask & (scaled > -1) & (scaled < 1)
    assert within.sum() > 0.95 * mask.sum()
    assert np.allclose(scale.invert(scaled)[within], data[within], rtol=1e-4, atol=1e-2)
    assert scaled.min() >= -1
    assert scaled.max() <= 1


@pytest.mark.parametrize("name", NORMALIZERS)
def test_a_gain_of_the_scanner_does_not_matter(name: str) -> None:
    data = head(seed=4, noise=5.0).astype(np.float32)
    scaled = []
    for image in (data, 8 * data):
        statistics, _ = measure_volume(image, name, "x")
        fit = NORMALIZERS[name].fit
        scaled.append(NORMALIZERS[name].scale(statistics, () if fit is None else fit([statistics])).apply(image))
    assert np.allclose(*scaled, atol=1e-5)


def test_the_sites_scale_is_of_its_reference_and_its_typical_statistics() -> None:
    intensity = SiteIntensity(
        normalizer="mean", contrasts={"T2w": ContrastIntensity(reference=(4.0,), typical=(25.0, 90.0))}
    )
    assert intensity.scale("T2w", (10.0, 30.0)) == Scale.linear(0, 40)
    assert intensity.typical_scale("T2w") == Scale.linear(0, 100)


def test_a_mean_that_cannot_be_used_is_an_error_with_the_place() -> None:
    data = head().astype(np.float32) - 1000
    with pytest.raises(DataError, match=r"site a: intensity.normalizer = 'mean' cannot be used: the mean .* is -8"):
        measure_volume(data, "mean", "site a")
