"""The files behind local volumes: one directory per volume, with a sparse `disk.img` in it."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from machine_operator.local.hollow.mounts import DISK_IMAGE

__all__ = ["VolumeError", "VolumeFiles"]

_RESERVE = 256 * 2**20
"""Bytes that have to be free before another volume is made: guests that meet a full disk stop."""


class VolumeError(Exception):
    """A volume cannot be made or grown; the message says why."""


class VolumeFiles:
    """Volumes below one directory."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def directory(self, volume: str) -> Path:
        """Where the volume lives."""
        return self._root / volume

    def image(self, volume: str) -> Path:
        """The volume's disk image."""
        return self.directory(volume) / DISK_IMAGE

    def create(self, volume: str, size: int) -> Path:
        """Make the volume, sparse; an existing one keeps its content and is never shortened.

        Raises:
            VolumeError: it does not fit.
        """
        self._check_space(size)
        directory = self.directory(volume)
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._set_size(self.image(volume), size)
        return directory

    def grow(self, volume: str, size: int) -> None:
        """Make the volume at least `size` bytes long.

        Raises:
            VolumeError: it does not fit, or is not there.
        """
        if not self.image(volume).exists():
            raise VolumeError(f"the disk image of volume {volume} is not there any more")
        self._check_space(size)
        self._set_size(self.image(volume), size)

    def delete(self, volume: str) -> None:
        """Remove the volume with all of its data."""
        directory = self.directory(volume)
        if directory.exists():
            shutil.rmtree(directory)

    def _check_space(self, size: int) -> None:
        self._root.mkdir(parents=True, exist_ok=True, mode=0o700)
        usage = shutil.disk_usage(self._root)
        if size > usage.total:
            raise VolumeError(
                f"{_gib(size)} were asked for, but the whole file system of {self._root} has "
                f"{_gib(usage.total)}: ask for less"
            )
        if usage.free < _RESERVE:
            raise VolumeError(
                f"only {_gib(usage.free)} are free below {self._root}: free some space, or remove "
                "machines that are not needed"
            )

    def _set_size(self, image: Path, size: int) -> None:
        descriptor = os.open(image, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
        except OSError as error:
            if error.errno not in (errno.EFBIG, errno.ENOSPC, errno.EINVAL):
                raise
            raise VolumeError(
                f"{image} cannot have {_gib(size)} on this file system: {error.strerror}"
            ) from error
        finally:
            os.close(descriptor)


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
