"""LPIPS and FID, whose feature networks come from files that the user names; nothing is downloaded.

Without a file these metrics are not computed; random features never stand in for them.

* **LPIPS** (Zhang et al., CVPR 2018, arXiv:1801.03924), version 0.1 on AlexNet: torchvision's
  ``alexnet-owt-7be5be79.pth`` (ImageNet; terms of its source, https://pytorch.org/vision/stable/models.html), and the
  linear heads ``lpips/weights/v0.1/alex.pth`` of https://github.com/richzhang/PerceptualSimilarity (BSD-2-Clause).
* **FID** (Heusel et al., NeurIPS 2017, arXiv:1706.08500) with any feature extractor in one file. The one that numbers
  are usually given for is ``inception-2015-12-05.pt``, NVIDIA's TorchScript translation of TensorFlow's Inception-v3
  (https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt; it is published
  with code under the Nvidia Source Code License, for non-commercial use only). Read the terms before you use it.

MR slices are shown to these networks as grey images in three equal colours. The networks were trained on photographs:
the numbers compare methods on the same slices, and mean little by themselves.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import linalg
from torch import Tensor, nn

from pflsynth.errors import DataError, ModelError
from pflsynth.networks.weights import FeatureFile, check_file, load_frozen, read_state_dict

SliceDistances = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Distances (S,) of the slices of two volumes (S, H, W) in [-1, 1]."""

FeatureExtractor = Callable[[np.ndarray], np.ndarray]
"""Features (S, F), float64, of slices (S, H, W) in [-1, 1]."""

_BATCH = 16
_SMALLEST = 31  # pixels a side that AlexNet's two poolings need
_CHANNELS = (64, 192, 384, 256, 256)
_STAGE_ENDS = (2, 5, 8, 10, 12)  # layers of AlexNet up to each ReLU
_HEADS = {f"heads.{i}.weight": f"lin{i}.model.1.weight" for i in range(len(_CHANNELS))}


class Lpips(nn.Module):
    """Learned perceptual image patch similarity, version 0.1, on AlexNet (arXiv:1801.03924, Sec. 3).

    The features after each of AlexNet's five ReLUs are scaled to unit length over their channels; the squared
    differences of two images are weighted per channel by a linear head and averaged over the image; the five are added.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 64, 11, stride=4, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(64, 192, 5, padding=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            nn.Conv2d(192, 384, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(384, 256, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Conv2d(channels, 1, 1, bias=False) for channels in _CHANNELS)

    def forward(self, reference: Tensor, image: Tensor) -> Tensor:
        """Return the distances (B,), 0 for equal images.

        Args:
            reference: (B, 1, H, W) in [-1, 1]; H and W are at least 31.
            image: (B, 1, H, W) in [-1, 1].
        """
        stages = zip(self.heads, self._stages(reference), self._stages(image), strict=True)
        return torch.stack([head((one - other) ** 2).mean((1, 2, 3)) for head, one, other in stages]).sum(0)

    def _stages(self, images: Tensor) -> list[Tensor]:
        """Features after each ReLU, each of unit length over the channels; one channel becomes three colours."""
        shift = images.new_tensor((-0.030, -0.088, -0.188)).view(3, 1, 1)
        scale = images.new_tensor((0.458, 0.448, 0.450)).view(3, 1, 1)
        features, stages, start = (images - shift) / scale, [], 0
        for end in _STAGE_ENDS:
            features = self.features[start:end](features)
            stages.append(features / (features.norm(dim=1, keepdim=True) + 1e-10))
            start = end
        return stages


def open_lpips(
    file: FeatureFile, heads: FeatureFile | None = None, device: torch.device | str = "cpu"
) -> SliceDistances:
    """Open LPIPS from its weights.

    Args:
        file: AlexNet's features by torchvision's names (``features.0.weight``), and the linear heads by those of the
            lpips package (``lin0.model.1.weight``) unless ``heads`` has them.
        heads: the linear heads, as they are published: in a file of their own.
        device: where the network runs.

    Returns:
        A function of a reference and an image, both (S, H, W) in [-1, 1] (clipped), that gives the S distances as
        float64. It raises DataError for slices smaller than 31 × 31.

    Raises:
        ModelError: no such file, another SHA-256, or other weights.
    """
    weights = read_state_dict(file) | (read_state_dict(heads) if heads is not None else {})
    with torch.device("meta"):
        network = Lpips()
    load_frozen(network, weights, file.path, _HEADS)
    network.to(device)

    def distances(reference: np.ndarray, image: np.ndarray) -> np.ndarray:
        if min(reference.shape[1:]) < _SMALLEST:
            height, width = reference.shape[1:]
            raise DataError(
                f"LPIPS needs slices of at least {_SMALLEST} × {_SMALLEST}, but these are {height} × {width}"
            )
        pairs = zip(_batches(reference), _batches(image), strict=True)
        with torch.inference_mode():
            found = [network(*(_grey(part).to(device) for part in pair)) for pair in pairs]
        return torch.cat(found).cpu().numpy().astype(np.float64)

    return distances


def open_fid(file: FeatureFile, device: torch.device | str = "cpu") -> FeatureExtractor:
    """Open the feature extractor of FID.

    Args:
        file: a network that maps (B, 3, H, W) uint8 in 0..255 to features (B, F), and resizes by itself: TorchScript,
            such as ``inception-2015-12-05.pt`` (an argument ``return_features`` is set), or, with the name's end
            ``.pt2``, a program of ``torch.export`` with any batch size.
        device: where the network runs.

    Returns:
        A function of slices (S, H, W) in [-1, 1] (clipped, rounded to 8 bit) that gives their features (S, F). It
        raises ModelError if the network does not take such images, or gives no finite features of that shape.

    Raises:
        ModelError: no such file, another SHA-256, or no network.
    """
    network = _open_network(file, device)

    def extract(slices: np.ndarray) -> np.ndarray:
        return np.concatenate([_features(network, batch, file, device) for batch in _batches(slices)])

    return extract


class FrechetStatistics:
    """Mean and covariance of features, in float64, of images that come in batches."""

    def __init__(self) -> None:
        self.images = 0
        self.mean = np.zeros(0)
        self._scatter = np.zeros((0, 0))

    def add(self, features: np.ndarray) -> None:
        """Add a batch of features (N, F); how images are split into batches changes only the rounding.

        Raises:
            ModelError: another number of features than before.
        """
        if not len(features):
            return
        if not self.images:
            self.mean, self._scatter = np.zeros(features.shape[1]), np.zeros((features.shape[1],) * 2)
        if features.shape[1] != len(self.mean):
            raise ModelError(
                f"these images have {features.shape[1]} features, those before them {len(self.mean)}: "
                "take one extractor for all"
            )
        mean = features.mean(axis=0, dtype=np.float64)
        centred, shift, total = features - mean, mean - self.mean, self.images + len(features)
        self._scatter += centred.T @ centred + np.outer(shift, shift) * (self.images * len(features) / total)
        self.mean = self.mean + shift * (len(features) / total)
        self.images = total

    @property
    def covariance(self) -> np.ndarray:
        """Covariance (F, F) with n - 1.

        Raises:
            DataError: fewer than two images.
        """
        if self.images < 2:
            raise DataError(f"FID needs at least 2 images of each kind, but here are {self.images}")
        return self._scatter / (self.images - 1)


@dataclass(frozen=True)
class Fid:
    """A Fréchet inception distance, the smaller number of images, the number of features, and what to know of it."""

    value: float
    images: int
    features: int
    note: str | None


def fid(real: FrechetStatistics, synthetic: FrechetStatistics) -> Fid:
    """Fréchet inception distance between real and synthetic images; 0 for equal statistics, less is better.

    Raises:
        DataError: fewer than two images of a kind.
        ModelError: features of different extractors, or features that are not finite.
    """
    value = frechet_distance(real.mean, real.covariance, synthetic.mean, synthetic.covariance)
    images, features = min(real.images, synthetic.images), len(real.mean)
    note = None
    if images <= features:
        note = (
            f"{images} images for {features} features: the covariance is singular and the FID too large; "
            "compare it only with FIDs of as many images"
        )
    return Fid(value, images, features, note)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|² + tr(C1 + C2 - 2 (C1 C2)^½) (arXiv:1706.08500, Eq. 6).

    Args:
        mean1: (F,).
        cov1: (F, F), a covariance; it may be singular.
        mean2: (F,).
        cov2: (F, F).

    Raises:
        ModelError: different shapes, values that are not finite, or matrices that are no covariances.
    """
    if mean1.shape != mean2.shape or cov1.shape != cov2.shape:
        raise ModelError(
            f"the Fréchet distance needs features of one extractor, but there are {len(mean1)} and {len(mean2)}"
        )
    if not all(np.isfinite(values).all() for values in (mean1, cov1, mean2, cov2)):
        raise ModelError("the Fréchet distance needs finite features, but some are infinite or not a number")
    own, axes = linalg.eigh(cov1)
    root1 = (axes * np.sqrt(own.clip(0))) @ axes.T
    product = linalg.eigvalsh(root1 @ cov2 @ root1)  # the eigenvalues of C1 C2, much sooner than its root
    size = float(np.trace(cov1) + np.trace(cov2))
    # Covariances have no negative eigenvalues; rounding leaves far less than this.
    if own.min() < -1e-3 * abs(size) or product.min() < -1e-3 * size**2:
        raise ModelError("the Fréchet distance needs covariances, but the root of their product is not real")
    return max(0.0, float(np.sum((mean1 - mean2) ** 2)) + size - 2 * float(np.sqrt(product.clip(0)).sum()))


def _open_network(file: FeatureFile, device: torch.device | str) -> Callable[[Tensor], object]:
    check_file(file)
    try:
        if file.path.suffix == ".pt2":
            exported: nn.Module = torch.export.load(file.path).module()
            return exported.to(device)
        with warnings.catch_warnings():  # TorchScript is deprecated, but it is how the usual extractor is published
            warnings.filterwarnings("ignore", ".*torch.jit.load.*", DeprecationWarning)
            network = torch.jit.load(file.path, map_location="cpu")
    except Exception as failure:  # damaged bytes end in errors of any class
        first_line = str(failure).partition("\n")[0]
        raise ModelError(
            f"{file.path}: cannot be read as a feature extractor ({type(failure).__name__}: {first_line}); "
            "a TorchScript file, or one of torch.export whose name ends in .pt2, is wanted"
        ) from None
    network = network.to(device).eval()
    if any(argument.name == "return_features" for argument in network.forward.schema.arguments):
        return lambda images: network(images, return_features=True)
    return lambda images: network(images)


def _features(
    network: Callable[[Tensor], object], slices: np.ndarray, file: FeatureFile, device: torch.device | str
) -> np.ndarray:
    """Features (B, F) of one batch of slices (B, H, W), checked."""
    images = torch.round((_grey(slices) + 1) * 127.5).to(device, torch.uint8).repeat(1, 3, 1, 1)
    try:
        with torch.inference_mode():
            found = network(images)
    except Exception as failure:  # whatever the network of the file raises
        last_line = str(failure).strip().rpartition("\n")[2]
        raise ModelError(
            f"{file.path}: is no feature extractor for uint8 images {tuple(images.shape)}: {last_line}"
        ) from None
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(slices):
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ModelError(
            f"{file.path}: gives {shape} for {len(slices)} images, but ({len(slices)}, features) is wanted"
        )
    if not bool(found.isfinite().all()):
        raise ModelError(f"{file.path}: gives features that are infinite or not a number")
    return found.cpu().numpy().astype(np.float64)


def _batches(slices: np.ndarray) -> list[np.ndarray]:
    return [slices[start : start + _BATCH] for start in range(0, len(slices), _BATCH)]


def _grey(slices: np.ndarray) -> Tensor:
    """Slices (B, H, W), clipped to [-1, 1], as float32 images (B, 1, H, W)."""
    return torch.from_numpy(np.clip(slices, -1, 1).astype(np.float32))[:, None]
