"""LPIPS, FID and pGAN's perceptual loss, with weight files made here; without weights there are no numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torch.nn import functional as F

from pflsynth.errors import DataError, ModelError
from pflsynth.evaluation.perceptual import FrechetStatistics, fid, frechet_distance, open_fid, open_lpips
from pflsynth.networks.perceptual import open_vgg, perceptual_loss
from pflsynth.networks.weights import FeatureFile, read_state_dict

from ..feature_builders import ALEXNET, Means, feature_file, random_features, random_heads, scripted, slices

VGG = {0: (64, 3, 3), 2: (64, 64, 3), 5: (128, 64, 3), 7: (128, 128, 3)}


@pytest.fixture(scope="module")
def alexnet() -> dict[str, Tensor]:
    return random_features(ALEXNET, 1)


@pytest.fixture(scope="module")
def lpips_file(alexnet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    path = tmp_path_factory.mktemp("lpips") / "lpips.safetensors"
    safetensors.torch.save_file(alexnet | random_heads(2), path)
    return feature_file(path)


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> FeatureFile:
    path = tmp_path_factory.mktemp("vgg") / "vgg16.pth"
    unused = {"features.10.weight": torch.zeros(256, 128, 3, 3), "classifier.6.bias": torch.zeros(1000)}
    torch.save(random_features(VGG, 3) | unused, path)
    return feature_file(path)


# -------------------------------------------------------------------------------------------------------------- LPIPS


def lpips_by_the_formula(weights: dict[str, Tensor], reference: np.ndarray, image: np.ndarray) -> float:
    """LPIPS of one pair, step by step as the paper tells it, in float64."""
    outputs: list[list[Tensor]] = []
    for picture in (reference, image):
        colour = torch.tensor(picture, dtype=torch.float64).expand(3, -1, -1)
        shift, scale = (
            torch.tensor(own).double().view(3, 1, 1) for own in ([-0.030, -0.088, -0.188], [0.458, 0.448, 0.450])
        )
        hidden = ((colour - shift) / scale)[None]
        stages = []
        for layer, (_, _, kernel) in ALEXNET.items():
            if layer in (3, 6):
                hidden = F.max_pool2d(hidden, 3, 2)
            kernels, bias = weights[f"features.{layer}.weight"].double(), weights[f"features.{layer}.bias"].double()
            stride, padding = (4, 2) if layer == 0 else (1, kernel // 2)
            hidden = F.conv2d(hidden, kernels, bias, stride=stride, padding=padding).clamp_min(0)
            stages.append(hidden[0])
        outputs.append(stages)
    total = 0.0
    for i, (one, other) in enumerate(zip(*outputs, strict=True)):
        unit_one, unit_other = (stage / (stage.pow(2).sum(0).sqrt() + 1e-10) for stage in (one, other))
        head = weights[f"lin{i}.model.1.weight"].double().view(-1, 1, 1)
        total += float((head * (unit_one - unit_other) ** 2).sum(0).mean())
    return total


def test_lpips_is_the_papers_formula(lpips_file: FeatureFile) -> None:
    reference, image = slices(2, 48), slices(2, 48, seed=1)
    found = open_lpips(lpips_file)(reference, image)
    weights = read_state_dict(lpips_file)
    wanted = [lpips_by_the_formula(weights, *pair) for pair in zip(reference, image, strict=True)]
    assert found.dtype == np.float64
    assert found == pytest.approx(wanted, rel=1e-5)
    assert min(wanted) > 0.01


def test_lpips_of_equal_images_is_0_and_grows_with_the_error(lpips_file: FeatureFile) -> None:
    distances = open_lpips(lpips_file)
    reference = 0.8 * slices(18)  # more than a batch
    noise = np.random.default_rng(5).normal(0, 1, reference.shape).astype(np.float32)
    near, far = (distances(reference, reference + size * noise) for size in (0.02, 0.1))
    assert distances(reference, reference).tolist() == [0.0] * 18
    assert (near > 0).all()
    assert (far > near).all()
    assert distances(reference, reference + 0.1 * noise)[17:] == pytest.approx(
        distances(reference[17:], reference[17:] + 0.1 * noise[17:]), rel=1e-5
    )


def test_lpips_clips_its_images(lpips_file: FeatureFile) -> None:
    distances = open_lpips(lpips_file)
    reference, image = slices(1), 1.5 * slices(1, seed=1)
    assert distances(reference, image) == distances(reference, np.clip(image, -1, 1))


def test_the_heads_may_have_a_file_of_their_own(
    alexnet: dict[str, Tensor], lpips_file: FeatureFile, tmp_path: Path
) -> None:
    torch.save(alexnet | {"classifier.1.bias": torch.zeros(4096)}, tmp_path / "alexnet.pth")
    torch.save(random_heads(2), tmp_path / "alex.pth", _use_new_zipfile_serialization=False)  # as it is published
    separate = open_lpips(feature_file(tmp_path / "alexnet.pth"), feature_file(tmp_path / "alex.pth"))
    reference, image = slices(1), slices(1, seed=1)
    assert separate(reference, image) == open_lpips(lpips_file)(reference, image)


def test_lpips_without_its_heads_is_refused(alexnet: dict[str, Tensor], tmp_path: Path) -> None:
    safetensors.torch.save_file(alexnet, tmp_path / "alexnet.safetensors")
    with pytest.raises(ModelError, match=r"alexnet.safetensors: these are not the weights of Lpips: missing lin0"):
        open_lpips(feature_file(tmp_path / "alexnet.safetensors"))


def test_lpips_refuses_small_slices(lpips_file: FeatureFile) -> None:
    distances = open_lpips(lpips_file)
    assert distances(slices(1, 31), slices(1, 31, seed=1))[0] > 0
    with pytest.raises(DataError, match="at least 31 × 31, but these are 30 × 30"):
        distances(slices(1, 30), slices(1, 30))


def test_opening_draws_no_random_numbers(lpips_file: FeatureFile, vgg_file: FeatureFile) -> None:
    before = torch.get_rng_state()
    open_lpips(lpips_file)
    open_vgg(vgg_file)
    assert torch.equal(torch.get_rng_state(), before)


# -------------------------------------------------------------------------------------------------------------- files


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    for opener in (open_lpips, open_fid, open_vgg):
        with pytest.raises(ModelError, match=r"none.pth: there is no such file; pflsynth downloads no weights"):
            opener(FeatureFile(tmp_path / "none.pth", "0" * 64))


def test_another_sha256_is_refused_and_capitals_are_not(vgg_file: FeatureFile) -> None:
    for opener in (open_lpips, open_fid, open_vgg):
        with pytest.raises(ModelError, match=rf'its SHA-256 is {vgg_file.sha256}, but "{"0" * 64}" was given'):
            opener(FeatureFile(vgg_file.path, "0" * 64))
    open_vgg(FeatureFile(vgg_file.path, vgg_file.sha256.upper()))


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors", "weights.pt2"])
@pytest.mark.parametrize("content", [b"", b"not weights", b"PK\x03\x04 cut short", bytes(range(256))])
def test_a_file_of_another_kind_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    file = feature_file(tmp_path / name)
    openers = (open_fid,) if name.endswith(".pt2") else (open_lpips, open_vgg, open_fid)
    for opener in openers:
        with pytest.raises(ModelError, match=rf"{name}: cannot be read as"):
            opener(file)


def test_code_in_a_pickle_is_not_run(tmp_path: Path) -> None:
    class Dangerous:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (tmp_path / "run",)

    torch.save({"features.0.weight": Dangerous()}, tmp_path / "weights.pth")
    with pytest.raises(ModelError, match="cannot be read as weights"):
        open_vgg(feature_file(tmp_path / "weights.pth"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [[torch.zeros(2)], {"epoch": 3}, {"state_dict": {"features.0.bias": torch.zeros(64)}}]
)
def test_a_checkpoint_that_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "checkpoint.pth")
    with pytest.raises(ModelError, match="holds no state dict"):
        open_vgg(feature_file(tmp_path / "checkpoint.pth"))


def test_weights_of_another_network_are_refused(lpips_file: FeatureFile, vgg_file: FeatureFile) -> None:
    with pytest.raises(
        ModelError,
        match=r"VggFeatures: missing features.2.weight, .*; wrong shape features.0.weight \(64, 3, 11, 11\) instead of "
        r"\(64, 3, 3, 3\)",
    ):
        open_vgg(lpips_file)
    with pytest.raises(ModelError, match=r"Lpips: missing .* and more; wrong shape features.0.weight"):
        open_lpips(vgg_file)


# --------------------------------------------------------------------------------------------------- perceptual loss


def test_vgg_features_are_those_of_relu2_2(vgg_file: FeatureFile) -> None:
    weights = {name: tensor.double() for name, tensor in read_state_dict(vgg_file).items()}
    images = torch.from_numpy(slices(2, 18))[:, None]
    hidden = images.double().repeat(1, 3, 1, 1)
    for layer in VGG:
        hidden = F.max_pool2d(hidden, 2) if layer == 5 else hidden
        hidden = F.conv2d(
            hidden, weights[f"features.{layer}.weight"], weights[f"features.{layer}.bias"], padding=1
        ).relu()
    found = open_vgg(vgg_file)(images)
    assert found.shape == (2, 128, 9, 9)
    torch.testing.assert_close(found, hidden.float(), rtol=1e-4, atol=1e-5)


def test_the_perceptual_loss_is_l1_of_features_and_reaches_the_synthetic_image_alone(vgg_file: FeatureFile) -> None:
    features = open_vgg(vgg_file)
    fake = torch.from_numpy(slices(2, 16))[:, None].requires_grad_()
    target = torch.from_numpy(slices(2, 16, seed=1))[:, None].requires_grad_()
    loss = perceptual_loss(features, fake, target)
    assert loss.item() == pytest.approx((features(fake) - features(target)).abs().mean().item())
    loss.backward()
    assert fake.grad is not None
    assert float(fake.grad.abs().sum()) > 0
    assert target.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in features.parameters())
    assert not features.training
    assert perceptual_loss(features, target, target).item() == 0


def test_following_the_gradient_lowers_the_perceptual_loss(vgg_file: FeatureFile) -> None:
    features = open_vgg(vgg_file)
    fake = torch.from_numpy(slices(1, 16))[:, None].requires_grad_()
    target = torch.from_numpy(slices(1, 16, seed=1))[:, None]
    optimizer = torch.optim.Adam([fake], 0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = perceptual_loss(features, fake, target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


# ---------------------------------------------------------------------------------------------------------------- FID


class Optional(nn.Module):
    """As inception-2015-12-05.pt: features only if they are asked for."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        means = images.to(torch.float32).mean((2, 3))
        return means if return_features else torch.softmax(means, 1)


class Maps(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.to(torch.float32)


class Broken(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return torch.log(images.to(torch.float32).mean((2, 3)) - 1000)


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(7, 2)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layer(images.flatten(1))
        return out


def quarters(images: np.ndarray) -> np.ndarray:
    half = images.shape[1] // 2
    grey = np.rint((np.clip(images, -1, 1) + 1) * 127.5) / 255
    parts = [grey[:, y : y + half, x : x + half].mean((1, 2)) for y in (0, half) for x in (0, half)]
    return np.stack([*parts, np.mean(parts, axis=0)], 1)


def test_features_of_a_torchscript_file(tmp_path: Path) -> None:
    images = 1.2 * slices(19, 16)
    found = open_fid(scripted(Means(), tmp_path / "means.pt"))(images)
    assert found.dtype == np.float64
    assert found == pytest.approx(quarters(images), abs=1e-6)


def test_features_of_an_exported_program(tmp_path: Path) -> None:
    example = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    program = torch.export.export(Means(), (example,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    torch.export.save(program, tmp_path / "means.pt2")
    images = slices(19, 16)
    found = open_fid(feature_file(tmp_path / "means.pt2"))(images)
    assert found == pytest.approx(quarters(images), abs=1e-6)


def test_the_extractor_is_asked_for_features(tmp_path: Path) -> None:
    images = slices(2, 16)
    found = open_fid(scripted(Optional(), tmp_path / "inception.pt"))(images)
    grey = np.rint((images + 1) * 127.5).mean((1, 2))
    assert found == pytest.approx(np.stack([grey] * 3, 1), rel=1e-5)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (Maps(), r"gives \(3, 3, 16, 16\) for 3 images, but \(3, features\) is wanted"),
        (Broken(), "gives features that are infinite or not a number"),
        (Whole(), r"is no feature extractor for uint8 images \(3, 3, 16, 16\): .*"),
    ],
)
def test_a_network_that_is_no_extractor_is_refused(network: nn.Module, message: str, tmp_path: Path) -> None:
    extract = open_fid(scripted(network, tmp_path / "network.pt"))
    with pytest.raises(ModelError, match=f"network.pt: {message}"):
        extract(slices(3, 16))


def test_a_state_dict_is_no_extractor_and_a_torchscript_file_no_state_dict(
    vgg_file: FeatureFile, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match="cannot be read as a feature extractor"):
        open_fid(vgg_file)
    with pytest.raises(ModelError, match="cannot be read as weights"):
        open_vgg(scripted(Means(), tmp_path / "means.pt"))


def test_the_distance_of_two_numbers_spread_normally() -> None:
    """In one dimension (m1 - m2)² + (s1 - s2)²: means 1 and 4, deviations 2 and 6."""
    found = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([4.0]), np.array([[36.0]]))
    assert found == pytest.approx(9 + 16)


@pytest.mark.parametrize("seed", range(3))
def test_the_distance_of_commuting_covariances(seed: int) -> None:
    """With common axes |m1 - m2|² + Σ (s1 - s2)² over the axes."""
    random = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(random.normal(size=(6, 6)))
    s1, s2 = random.uniform(0.5, 3, 6), random.uniform(0.5, 3, 6)
    mean1, mean2 = random.normal(size=(2, 6))
    cov1, cov2 = ((axes * s**2) @ axes.T for s in (s1, s2))
    wanted = ((mean1 - mean2) ** 2).sum() + ((s1 - s2) ** 2).sum()
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(wanted, rel=1e-9)


def test_the_distance_of_any_covariances_is_symmetric_and_that_of_the_symmetric_root() -> None:
    random = np.random.default_rng(0)
    cov1, cov2 = (random.normal(size=(9, 5)) for _ in range(2))
    cov1, cov2 = cov1.T @ cov1, cov2.T @ cov2
    mean1, mean2 = random.normal(size=(2, 5))
    root = sqrtm(cov1)
    wanted = ((mean1 - mean2) ** 2).sum() + np.trace(cov1 + cov2 - 2 * sqrtm(root @ cov2 @ root))
    assert not np.allclose(cov1 @ cov2, cov2 @ cov1)
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(mean2, cov2, mean1, cov1) == pytest.approx(wanted, rel=1e-9)


def test_singular_covariances_have_a_distance() -> None:
    """diag(4, 0) and diag(0, 9) commute; so do a matrix and 0."""
    zero, first, second = np.zeros((2, 2)), np.diag([4.0, 0.0]), np.diag([0.0, 9.0])
    mean = np.zeros(2)
    assert frechet_distance(mean, first, mean, second) == pytest.approx(4 + 9)
    assert frechet_distance(mean, first, mean, zero) == pytest.approx(4)
    assert frechet_distance(mean, zero, mean, zero) == 0
    thin = np.random.default_rng(0).normal(size=(5, 40))
    cov = thin.T @ thin  # rank 5 of 40
    assert frechet_distance(np.zeros(40), cov, np.zeros(40), cov) == pytest.approx(0, abs=1e-5 * np.trace(cov))
    assert frechet_distance(np.zeros(40), cov, np.zeros(40), 4 * cov) == pytest.approx(np.trace(cov), rel=1e-5)


def test_what_are_no_gaussians_is_refused() -> None:
    mean, cov = np.zeros(2), np.eye(2)
    with pytest.raises(ModelError, match="features of one extractor, but there are 2 and 3"):
        frechet_distance(mean, cov, np.zeros(3), np.eye(3))
    for wrong in (math.nan, math.inf):
        with pytest.raises(ModelError, match="infinite or not a number"):
            frechet_distance(np.array([0.0, wrong]), cov, mean, cov)
        with pytest.raises(ModelError, match="infinite or not a number"):
            frechet_distance(mean, cov, mean, np.diag([1.0, wrong]))
    with pytest.raises(ModelError, match="root of their product is not real"):
        frechet_distance(mean, np.diag([1.0, -1.0]), mean, cov)


def test_statistics_of_batches_are_those_of_all_images() -> None:
    features = np.random.default_rng(0).normal(1000, 0.1, (50, 4))  # far from 0: sums of squares would lose digits
    gathered = FrechetStatistics()
    for batch in (features[:1], features[1:20], features[20:20], features[20:]):
        gathered.add(batch.astype(np.float64))
    assert gathered.images == 50
    assert gathered.mean == pytest.approx(features.mean(0), rel=1e-12)
    assert gathered.covariance == pytest.approx(np.cov(features, rowvar=False), rel=1e-9, abs=1e-12)


def test_fid_of_a_shift_and_of_equal_images(tmp_path: Path) -> None:
    """The extractor's five features all rise by 32 / 255, and nothing else changes."""
    extract = open_fid(scripted(Means(), tmp_path / "means.pt"))
    images = (np.rint(slices(40, 16) * 50) + 0.5) / 127.5  # whole grey levels, so that none is rounded
    real, same, brighter = FrechetStatistics(), FrechetStatistics(), FrechetStatistics()
    real.add(extract(images))
    same.add(extract(images))
    brighter.add(extract(images + np.float32(32 / 127.5)))
    shifted = fid(real, brighter)
    assert shifted.value == pytest.approx(5 * (32 / 255) ** 2, rel=1e-4)
    assert (shifted.images, shifted.features, shifted.note) == (40, 5, None)
    assert fid(real, same).value == pytest.approx(0, abs=1e-8)


def test_fewer_images_than_features_are_told() -> None:
    random = np.random.default_rng(0)
    many, few = FrechetStatistics(), FrechetStatistics()
    many.add(random.normal(size=(30, 8)))
    few.add(random.normal(size=(8, 8)))
    found = fid(many, few)
    assert found.value > 0
    assert found.images == 8
    assert found.note is not None
    assert found.note.startswith("8 images for 8 features: the covariance is singular")


def test_statistics_need_two_images_and_one_extractor() -> None:
    one = FrechetStatistics()
    with pytest.raises(DataError, match="at least 2 images of each kind, but here are 0"):
        fid(one, one)
    one.add(np.zeros((1, 3)))
    with pytest.raises(DataError, match="but here are 1"):
        fid(one, one)
    with pytest.raises(ModelError, match="have 4 features, those before them 3"):
        one.add(np.zeros((1, 4)))
