"""Errors that users can act on, each with the exit code of the command line.

Every message is one clear sentence or two: what is wrong, where (file, site, subject, contrast), the values
found, and what to do about it.
"""

from __future__ import annotations


class PflsynthError(Exception):
    """Base of all errors that pflsynth raises on purpose; the command line prints it without a traceback."""

    exit_code = 1


class UsageError(PflsynthError):
    """A wrong command, option or configuration file (exit code 2)."""

    exit_code = 2


class DataError(PflsynthError):
    """Images, folders, manifests or prepared data that cannot be used (exit code 3)."""

    exit_code = 3


class ModelError(PflsynthError):
    """Checkpoints, updates or training states that cannot be used (exit code 4)."""

    exit_code = 4


class NetworkError(PflsynthError):
    """Another machine of a federation that cannot be reached, or that refuses (exit code 5).

    ``passing`` tells whether it may be over after a while without anyone doing anything here.
    """

    exit_code = 5

    def __init__(self, text: str, passing: bool = False):
        super().__init__(text)
        self.passing = passing
