"""MR signal of a tissue, receive bias and Rician noise: pure NumPy functions with no state.

Times are milliseconds, angles degrees, proton density is relative to water (1.0). The signal equations are the
steady-state solutions of the Bloch equations found in any textbook of MRI (for example Haacke et al., *Magnetic
Resonance Imaging: Physical Principles and Sequence Design*).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]


def spoiled_gradient_echo(pd: float, t1: float, t2: float, *, tr: float, te: float, flip: float) -> float:
    """Return the steady-state signal of a spoiled gradient echo (T1-weighted).

    ``pd · sin α · (1 − E1) / (1 − E1 · cos α) · exp(−te / t2)`` with ``E1 = exp(−tr / t1)``; largest at the Ernst
    angle ``α = arccos(E1)``. The caller passes T2* as ``t2`` where it is known.
    """
    e1, alpha = np.exp(-tr / t1), np.deg2rad(flip)
    return float(pd * np.sin(alpha) * (1 - e1) / (1 - e1 * np.cos(alpha)) * np.exp(-te / t2))


def spin_echo(pd: float, t1: float, t2: float, *, tr: float, te: float) -> float:
    """Return the signal of a 90°–180° spin echo with TE much shorter than TR (T2- or PD-weighted).

    ``pd · (1 − exp(−tr / t1)) · exp(−te / t2)``.
    """
    return float(pd * (1 - np.exp(-tr / t1)) * np.exp(-te / t2))


def inversion_recovery(pd: float, t1: float, t2: float, *, tr: float, te: float, ti: float) -> float:
    """Return the *signed* signal of an inversion-recovery spin echo (FLAIR when ``ti`` nulls CSF).

    ``pd · (1 − 2 exp(−ti / t1) + exp(−tr / t1)) · exp(−te / t2)``. It is negative before the null, which lies at
    ``ti = t1 · ln 2`` for a very long ``tr``. Tissues that share a voxel add up with their signs; the magnitude is
    taken afterwards (by :func:`rician_noise`).
    """
    return float(pd * (1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2))


def bias_field(shape: tuple[int, int, int], strength: float, rng: np.random.Generator) -> FloatArray:
    """Return a smooth, positive receive sensitivity of ``shape``: a random polynomial of degree two, exponentiated.

    Args:
        shape: voxels (X, Y, Z), each at least 2.
        strength: largest absolute logarithm over the field of view; 0.2 gives values in [0.82, 1.22]. 0 gives ones.
        rng: source of the nine polynomial coefficients.
    """
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    terms = (x, y, z, x * y, x * z, y * z, x * x - 0.5, y * y - 0.5, z * z - 0.5)
    polynomial = np.zeros(shape, np.float32)
    for coefficient, term in zip(rng.normal(size=len(terms)), terms, strict=True):
        polynomial += np.float32(coefficient) * term
    sensitivity: FloatArray = np.exp(polynomial * np.float32(strength / np.abs(polynomial).max()))
    return sensitivity


def rician_noise(signal: FloatArray, sigma: float, rng: np.random.Generator) -> FloatArray:
    """Return the magnitude of ``signal`` plus complex Gaussian noise of standard deviation ``sigma`` per channel.

    Where the signal is zero the result is Rayleigh distributed with mean ``sigma · sqrt(π / 2)``. The result has
    the shape of ``signal`` and is never negative.
    """
    real = signal + np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    imaginary = np.float32(sigma) * rng.standard_normal(signal.shape, dtype=np.float32)
    magnitude: FloatArray = np.hypot(real, imaginary)
    return magnitude
