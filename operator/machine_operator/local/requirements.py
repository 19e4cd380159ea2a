"""What the local cluster needs from the system, and the one command that installs what is missing."""

from __future__ import annotations

import shutil
from collections.abc import Callable

__all__ = ["MissingPackagesError", "check_requirements", "missing_packages"]

_GUEST_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "mkfs.erofs": "erofs-utils",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "dpkg-deb": "dpkg",
    "tar": "tar",
    "ssh": "openssh-client",
}
"""Program -> Debian package. Without QEMU (`--hollow`) none of them is needed."""


class MissingPackagesError(Exception):
    """Programs are missing; the message holds the command that installs them."""


def missing_packages(*, which: Callable[[str], str | None] = shutil.which) -> list[str]:
    """The Debian packages whose programs are not on PATH (nor in sbin, where some of them live)."""
    places = "/usr/sbin:/sbin:/usr/local/sbin"
    return sorted(
        {
            package
            for program, package in _GUEST_TOOLS.items()
            if which(program) is None and shutil.which(program, path=places) is None
        }
    )


def check_requirements(*, qemu: bool) -> None:
    """Check that what the cluster starts is installed.

    Raises:
        MissingPackagesError: something is missing.
    """
    missing = missing_packages() if qemu else []
    if missing:
        raise MissingPackagesError(
            f"programs from these packages are missing: {', '.join(missing)}. Install them with:\n"
            f"  sudo apt-get install --no-install-recommends {' '.join(missing)}"
        )
