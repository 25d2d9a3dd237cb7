"""Tissue values and acquisition protocols of the four phantom sites. Sources and tables: ``docs/phantom.md``.

The sites are *like* the data sets whose names they carry in field strength, contrasts and tasks; they hold no data
of those sets. Everything here is frozen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pflsynth.data.signal import inversion_recovery, spin_echo, spoiled_gradient_echo


@dataclass(frozen=True)
class Tissue:
    """Proton density (fraction of water) and relaxation times (ms) of one tissue at one field strength."""

    pd: float
    t1: float
    t2: float


@dataclass(frozen=True)
class SpoiledGradientEcho:
    """T1-weighted gradient echo: repetition time and echo time in ms, flip angle in degrees."""

    tr: float
    te: float
    flip: float

    def signal(self, tissue: Tissue) -> float:
        """Return the signal of ``tissue`` (T2 stands in for T2*)."""
        return spoiled_gradient_echo(tissue.pd, tissue.t1, tissue.t2, tr=self.tr, te=self.te, flip=self.flip)


@dataclass(frozen=True)
class SpinEcho:
    """T2- or PD-weighted spin echo: repetition time and (effective) echo time in ms."""

    tr: float
    te: float

    def signal(self, tissue: Tissue) -> float:
        """Return the signal of ``tissue``."""
        return spin_echo(tissue.pd, tissue.t1, tissue.t2, tr=self.tr, te=self.te)


@dataclass(frozen=True)
class InversionRecovery:
    """FLAIR: repetition, (effective) echo and inversion time in ms."""

    tr: float
    te: float
    ti: float

    def signal(self, tissue: Tissue) -> float:
        """Return the signed signal of ``tissue``: negative when it has not yet passed its null."""
        return inversion_recovery(tissue.pd, tissue.t1, tissue.t2, tr=self.tr, te=self.te, ti=self.ti)


PulseSequence = SpoiledGradientEcho | SpinEcho | InversionRecovery


@dataclass(frozen=True)
class SiteProtocol:
    """How one phantom site scans and what it wants synthesised.

    Attributes:
        sequences: contrast (BIDS suffix) to pulse sequence, in the order in which contrasts are written.
        tasks: what the site trains, ``"source->target"`` each.
        field_strength: tesla, 1.5 or 3.0; selects the tissue values.
        voxel_size: millimetres along (x, y, z); z is the slice thickness of the axial slices.
        orientation: axis codes of the stored array, for example ``"RAS"`` or ``"LPS"``.
        noise: standard deviation of the noise per channel as a fraction of the largest noise-free value of a scan.
        bias: largest absolute logarithm of the receive sensitivity.
        scale: stored value of the largest noise-free value of a scan, before the jitter from scan to scan.
        timing_jitter: relative standard deviation of TR, TE and TI from scan to scan (0: one fixed protocol).
        lesions: whether every subject has one glioma-like lesion.
    """

    sequences: Mapping[str, PulseSequence]
    tasks: tuple[str, ...]
    field_strength: float
    voxel_size: tuple[float, float, float]
    orientation: str
    noise: float
    bias: float
    scale: float
    timing_jitter: float = 0.0
    lesions: bool = False

    @property
    def contrasts(self) -> tuple[str, ...]:
        """The contrasts that every subject of the site has, in the order of ``sequences``."""
        return tuple(self.sequences)

    @property
    def tissues(self) -> Mapping[str, Tissue]:
        """Tissue values at the field strength of the site."""
        return TISSUES[self.field_strength]


def _with_lesions(**healthy: Tissue) -> Mapping[str, Tissue]:
    """Add the lesion tissues, whose published values scatter more than they differ between 1.5 T and 3 T."""
    lesion = {
        "core": Tissue(pd=0.86, t1=1800.0, t2=150.0),
        "necrosis": Tissue(pd=0.95, t1=2800.0, t2=400.0),
        "oedema": Tissue(pd=0.86, t1=1500.0, t2=180.0),
    }
    return MappingProxyType(healthy | lesion)


#: Field strength in tesla → tissue name → values.
TISSUES: Mapping[float, Mapping[str, Tissue]] = MappingProxyType(
    {
        1.5: _with_lesions(
            wm=Tissue(pd=0.70, t1=656.0, t2=72.0),
            gm=Tissue(pd=0.82, t1=1188.0, t2=95.0),
            csf=Tissue(pd=1.00, t1=4300.0, t2=2000.0),
        ),
        3.0: _with_lesions(
            wm=Tissue(pd=0.70, t1=832.0, t2=80.0),
            gm=Tissue(pd=0.82, t1=1331.0, t2=110.0),
            csf=Tissue(pd=1.00, t1=4300.0, t2=2000.0),
        ),
    }
)

#: Site name → protocol. A phantom: no data of the data sets with these names are contained or imitated voxel by voxel.
PHANTOM_SITES: Mapping[str, SiteProtocol] = MappingProxyType(
    {
        "ixi": SiteProtocol(
            sequences=MappingProxyType(
                {
                    "T1w": SpoiledGradientEcho(tr=9.8, te=4.6, flip=20.0),
                    "T2w": SpinEcho(tr=8178.0, te=100.0),
                    "PDw": SpinEcho(tr=8178.0, te=8.0),
                }
            ),
            tasks=("T1w->T2w", "T1w->PDw", "T2w->PDw"),
            field_strength=1.5,
            voxel_size=(1.8, 1.8, 5.0),
            orientation="RAS",
            noise=0.020,
            bias=0.10,
            scale=1000.0,
        ),
        "brats": SiteProtocol(
            sequences=MappingProxyType(
                {
                    "T1w": SpoiledGradientEcho(tr=20.0, te=4.0, flip=18.0),
                    "T2w": SpinEcho(tr=4000.0, te=90.0),
                    "FLAIR": InversionRecovery(tr=8000.0, te=120.0, ti=2370.0),
                }
            ),
            tasks=("T1w->T2w", "FLAIR->T2w"),
            field_strength=3.0,
            voxel_size=(2.0, 2.0, 5.5),
            orientation="LPS",
            noise=0.030,
            bias=0.20,
            scale=600.0,
            timing_jitter=0.03,
            lesions=True,
        ),
        "midas": SiteProtocol(
            sequences=MappingProxyType(
                {
                    "T1w": SpoiledGradientEcho(tr=14.0, te=7.7, flip=25.0),
                    "T2w": SpinEcho(tr=7730.0, te=80.0),
                }
            ),
            tasks=("T1w->T2w", "T2w->T1w"),
            field_strength=3.0,
            voxel_size=(1.6, 1.6, 5.0),
            orientation="RAS",
            noise=0.015,
            bias=0.15,
            scale=300.0,
        ),
        "oasis": SiteProtocol(
            sequences=MappingProxyType(
                {
                    "T1w": SpoiledGradientEcho(tr=12.0, te=3.2, flip=28.0),
                    "T2w": SpinEcho(tr=3200.0, te=120.0),
                    "FLAIR": InversionRecovery(tr=9000.0, te=90.0, ti=2500.0),
                }
            ),
            tasks=("T1w->T2w", "T2w->FLAIR"),
            field_strength=3.0,
            voxel_size=(2.2, 2.2, 6.0),
            orientation="LAS",
            noise=0.025,
            bias=0.25,
            scale=2400.0,
        ),
    }
)


def vary_tissue(tissue: Tissue, pd: float, t1: float, t2: float) -> Tissue:
    """Return ``tissue`` with proton density, T1 and T2 multiplied by these factors."""
    return Tissue(tissue.pd * pd, tissue.t1 * t1, tissue.t2 * t2)


def vary_timing(sequence: PulseSequence, factor: float) -> PulseSequence:
    """Return ``sequence`` with TR, TE and, where there is one, TI multiplied by ``factor``."""
    times = {name: factor * getattr(sequence, name) for name in ("tr", "te", "ti") if hasattr(sequence, name)}
    return dataclasses.replace(sequence, **times)
