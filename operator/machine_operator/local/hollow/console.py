"""Console logs: what a guest prints on its serial port, kept over its boots.

One directory per VM name, since each boot of a persistent machine is a new VMI: the last boots stay
as `.1` and `.2`. QEMU appends, so a log that grew too large is copied aside and cut while it is
written.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import time
from pathlib import Path

from machine_operator.local.guest.image import CONSOLE_MARKER

__all__ = ["PANIC", "ConsoleWatch", "bound", "log_path", "prune", "rotate"]

_KEPT = 2
_LIMIT = 4 * 2**20
_MAX_AGE = 7 * 86400.0

# Our guest's word that sshd listens, and a login prompt, which in common images comes when sshd is
# started.
_MARKER = re.compile(re.escape(CONSOLE_MARKER.encode()) + rb"((?: \d+)+(?= after))?|\blogin: ")

PANIC = re.compile(rb"Kernel panic - not syncing")
"""What Linux prints last, however quiet it was told to be."""

_OVERLAP = 64


def log_path(logs: Path, *, namespace: str, name: str) -> Path:
    """Where the console of the VM `name` is kept."""
    return logs / namespace / name / "console.log"


def rotate(path: Path) -> None:
    """Make room for a new boot: console.log becomes .1, .1 becomes .2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(_KEPT, 0, -1):
        newer = path if number == 1 else path.with_name(f"{path.name}.{number - 1}")
        if newer.exists():
            newer.replace(path.with_name(f"{path.name}.{number}"))
    path.touch(mode=0o600)


def bound(logs: Path, *, limit: int = _LIMIT) -> None:
    """Cut each console log that is larger than `limit` bytes; its old text goes to `.1`."""
    for path in logs.glob("*/*/console.log"):
        if path.stat().st_size > limit:
            shutil.copyfile(path, path.with_name(f"{path.name}.1"))
            os.truncate(path, 0)


def prune(logs: Path, *, max_age: float = _MAX_AGE) -> None:
    """Remove the logs of VMs that printed nothing for `max_age` seconds."""
    for path in logs.glob("*/*"):
        newest = max((file.stat().st_mtime for file in path.iterdir()), default=0.0)
        if time.time() - newest > max_age:
            shutil.rmtree(path)


class ConsoleWatch:
    """Looks for the guest's word that it can be logged into, or for another `pattern`.

    Attributes:
        ports: on which its sshd listens, if it said so.
    """

    def __init__(
        self, path: Path, *, offset: int = 0, pattern: re.Pattern[bytes] = _MARKER
    ) -> None:
        self._path = path
        self._offset = offset
        self._pattern = pattern
        self._rest = b""
        self.ports: frozenset[int] = frozenset()

    async def marker(self, *, interval: float = 0.02) -> None:
        """Return once the marker was printed; wait for ever where it never is."""
        while True:
            if self.look():
                return
            await asyncio.sleep(interval)

    def forget(self) -> None:
        """The guest was reset: only a marker that comes from now on counts."""
        self._offset = self._size()
        self._rest = b""
        self.ports = frozenset()

    def look(self) -> bool:
        """Whether the pattern is in what was printed since the last look."""
        if self._size() < self._offset:  # cut meanwhile
            self._offset = 0
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except FileNotFoundError:
            return False
        self._offset += len(new)
        text = self._rest + new
        self._rest = text[-_OVERLAP:]
        found = self._pattern.search(text)
        if found is not None and self._pattern is _MARKER:
            self.ports = frozenset(int(port) for port in (found[1] or b"").split())
        return found is not None

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0
