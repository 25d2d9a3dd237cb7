"""Prepared slices for training and evaluation, read from memory-mapped files."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pflsynth.canonical import differences
from pflsynth.config import FederationConfig, SplitName
from pflsynth.data.manifest import MANIFEST_NAME, Manifest, PreparedSubject, load_manifest
from pflsynth.data.volumes import BoolArray, FloatArray
from pflsynth.errors import DataError
from pflsynth.files import open_tensors, sha256_of_file

OPEN_SUBJECTS = 32
"""Most subjects of a site that stay mapped."""

_AGAIN = "prepare the site again"


class SliceStore:
    """The prepared data of a site.

    Only the manifest is read at the start. A subject's file is mapped when it is first asked for; at most 32
    subjects stay mapped, however many there are, and their pages belong to the system's cache.
    """

    def __init__(self, folder: Path) -> None:
        """Open a folder that ``prepare`` wrote.

        Raises:
            DataError: no manifest, or one that cannot be used.
        """
        self.folder = folder
        self.manifest: Manifest = load_manifest(folder)
        self._subjects = {subject.name: subject for subject in self.manifest.subjects}
        self._open: OrderedDict[str, dict[str, npt.NDArray[np.generic]]] = OrderedDict()

    def subjects(self, split: SplitName) -> tuple[PreparedSubject, ...]:
        """The subjects of a split, sorted by name."""
        return self.manifest.of_split(split)

    def has(self, subject: str, contrast: str) -> bool:
        """Whether a subject has slices of a contrast."""
        return contrast in self._subjects[subject].contrasts

    def slices(self, subject: str, contrast: str) -> FloatArray:
        """A subject's slices of one contrast.

        Returns:
            Memory-mapped and read-only float32 (S, size, size) in [-1, 1].

        Raises:
            DataError: the subject or contrast is not in the store, or its file is missing, cut short or changed.
        """
        arrays = self._arrays(subject)
        if contrast not in self._subjects[subject].contrasts:
            have = ", ".join(self._subjects[subject].contrasts)
            raise DataError(f"{self.folder}: subject {subject} has no {contrast}, only {have}")
        return arrays[contrast].view(np.float32)

    def mask(self, subject: str) -> BoolArray:
        """A subject's head in its slices: memory-mapped and read-only bool (S, size, size)."""
        return self._arrays(subject)["mask"].view(np.bool_)

    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest, and so of everything that it tells the hashes of."""
        return sha256_of_file(self.folder / MANIFEST_NAME)

    def check_settings(self, config: FederationConfig) -> None:
        """Refuse data that was prepared with other settings, or for other tasks, than ``config`` has.

        Raises:
            DataError: naming each key that differs, with both values.
        """
        site = self.manifest.site
        if site not in config.sites:
            raise DataError(f'{self.folder}: holds site "{site}", which the federation does not have')
        differing = [
            f"{key} is {found!r} there and {wanted!r} in the configuration"
            for key, found, wanted in differences(self.manifest.settings, config.preparation(site))
        ]
        new = [str(task) for task in config.sites[site].tasks if task not in self.manifest.tasks]
        if new:
            differing.append(f"it was not prepared for task {' and '.join(new)}")
        if differing:
            raise DataError(
                f"{self.folder}: was prepared with other settings: {'; '.join(differing)}; "
                "run pflsynth prepare --force, or use the settings that it was prepared with"
            )

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            DataError: naming all files that are missing or changed.
        """
        wrong = []
        for subject in self.manifest.subjects:
            path = self.folder / subject.file
            if not path.is_file():
                wrong.append(f"{subject.file} is missing")
            elif sha256_of_file(path) != subject.sha256:
                wrong.append(f"{subject.file} has changed")
        if wrong:
            raise DataError(f"{self.folder}: {', '.join(wrong)}; {_AGAIN}")

    def _arrays(self, name: str) -> dict[str, npt.NDArray[np.generic]]:
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        if name not in self._subjects:
            raise DataError(f"{self.folder}: has no subject {name}")
        arrays = self._mapped(self._subjects[name])
        self._open[name] = arrays
        if len(self._open) > OPEN_SUBJECTS:
            self._open.popitem(last=False)
        return arrays

    def _mapped(self, subject: PreparedSubject) -> dict[str, npt.NDArray[np.generic]]:
        path = self.folder / subject.file
        if path.is_file() and path.stat().st_size != subject.bytes:
            raise DataError(
                f"{path}: has {path.stat().st_size} bytes instead of {subject.bytes}, so it was cut short or changed; "
                f"{_AGAIN}"
            )
        size = int(self.manifest.settings["image"]["size"])
        shape = (len(subject.slices), size, size)
        arrays: dict[str, npt.NDArray[np.generic]] = {}
        with open_tensors(path, "subject", DataError) as (file, _):
            present = set(file.keys())
            for name, dtype in (*((contrast, np.float32) for contrast in subject.contrasts), ("mask", np.uint8)):
                array = file.get_tensor(name).numpy() if name in present else None
                if array is None or array.shape != shape or array.dtype != dtype:
                    raise DataError(f"{path}: {name} is not what the manifest tells; {_AGAIN}")
                array.flags.writeable = False
                arrays[name] = array
        return arrays
