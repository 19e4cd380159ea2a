"""The host's programs, with the packages that bring them, run with errors that say why.

`mke2fs` and `ldconfig` live in sbin, which is not on the PATH of an unprivileged user, so we look
there as well.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine_operator.local.guest.errors import GuestError, MissingTools

__all__ = ["require", "run"]

_PACKAGES: Mapping[str, str] = {
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "ldconfig": "libc-bin",
    "lz4": "lz4",
    "mke2fs": "e2fsprogs",
    "mkfs.erofs": "erofs-utils",
    "mmdebstrap": "mmdebstrap",
    "tar": "tar",
}
_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_LINES_OF_BLAME = 12


def require(*tools: str) -> None:
    """Check that every named program is installed.

    Raises:
        MissingTools: naming all that are missing, and the one command that installs them.
    """
    missing = sorted(tool for tool in tools if _find(tool) is None)
    if missing:
        packages = sorted({_PACKAGES[tool] for tool in missing})
        command = " ".join(["apt-get", "install", "-y", *packages])
        raise MissingTools(missing, command=command)


def run(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    stdin: bytes | None = None,
    env: Mapping[str, str] | None = None,
) -> bytes:
    """Run a program of the host to its end and return its standard output.

    Args:
        argv: the program (a bare name is looked up, sbin included) and its arguments.
        cwd: the working directory.
        stdin: what the program reads; nothing if absent.
        env: variables on top of our own environment.

    Raises:
        GuestError: if it cannot be started or ends with another code than 0; has its last words.
    """
    name, *arguments = (str(word) for word in argv)
    program = _find(name) or name
    environment = {**os.environ, "LC_ALL": "C.UTF-8", **(env or {})}
    try:
        done = subprocess.run(
            [program, *arguments],
            cwd=cwd,
            input=stdin if stdin is not None else b"",
            env=environment,
            capture_output=True,
            check=False,
        )
    except OSError as error:
        raise GuestError(f"{name} could not be started: {error.strerror}") from error
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        blame = "\n".join(words[-_LINES_OF_BLAME:]) or "it said nothing"
        raise GuestError(f"{name} ended with code {done.returncode}: {blame}")
    return done.stdout


def _find(tool: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_SBIN])
    return shutil.which(tool, path=path)
