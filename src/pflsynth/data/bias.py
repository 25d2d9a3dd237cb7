"""Correction of the slow change of brightness across an image that receive coils cause (bias field), with N4.

N4: Tustison et al., IEEE TMI 2010, doi:10.1109/TMI.2010.2046908, as in SimpleITK, in one thread: the same input gives
the same bits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from pflsynth.data.itk import from_itk, one_thread, simpleitk, to_itk
from pflsynth.data.volumes import BoolArray, Volume
from pflsynth.errors import DataError

_FITTED_MM = 5.0
_FEWEST_VOXELS = 2
_ITERATIONS = (50, 50, 50)


def correct_bias(volume: Volume, mask: BoolArray) -> Volume:
    """Divide the head by its bias field, which is fitted at 5 mm and applied at full resolution.

    Args:
        volume: scanner units.
        mask: the head or the brain, the shape of ``volume.data``; what is outside stays as it is.

    Returns:
        The corrected volume; the mean of the logarithm of the head's values stays as it was.

    Raises:
        DataError: SimpleITK is not installed, the mask holds no positive values, or an axis has one voxel.
    """
    if min(volume.data.shape) < _FEWEST_VOXELS:
        raise DataError(
            f"{volume.path}: has {' x '.join(map(str, volume.data.shape))} voxels, and bias correction needs "
            f"{_FEWEST_VOXELS} along each axis; switch intensity.bias_correction off"
        )
    with one_thread():
        sitk = simpleitk()
        shrink = [max(1, round(_FITTED_MM / size)) for size in volume.spacing_mm]
        image = to_itk(volume.data, volume.affine)
        usable = to_itk((mask & (volume.data > 0)).astype(np.float32), volume.affine)
        coarse, coarse_mask = sitk.BinShrink(image, shrink), sitk.BinShrink(usable, shrink) > 0.5
        if not sitk.GetArrayViewFromImage(coarse_mask).any():
            raise DataError(
                f"{volume.path}: its mask holds almost no positive values, so no bias field can be fitted; look at "
                "the image and the mask"
            )
        n4 = sitk.N4BiasFieldCorrectionImageFilter()
        n4.SetMaximumNumberOfIterations(_ITERATIONS)
        n4.Execute(coarse, coarse_mask)
        enlarge = sitk.ResampleImageFilter()
        enlarge.SetReferenceImage(image)
        enlarge.SetInterpolator(sitk.sitkLinear)
        enlarge.UseNearestNeighborExtrapolatorOn()
        field = from_itk(enlarge.Execute(n4.GetLogBiasFieldAsImage(coarse)))
    field -= field[mask].mean(dtype=np.float64).astype(np.float32)
    return replace(volume, data=np.where(mask, volume.data / np.exp(field), volume.data))
