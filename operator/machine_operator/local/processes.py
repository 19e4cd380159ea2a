"""Processes that we started, and only those.

A pid alone may belong to somebody else after a while. With the boot id and the start time (in clock ticks since
boot, field 22 of /proc/PID/stat) it names one process for ever, so that a record on disk can be acted on safely by
whoever comes after a crash.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = [
    "ProcessRecord",
    "end_processes",
    "instance_mark",
    "marked_processes",
    "record_of",
    "resident_mib",
]

_MARK = "MACHINE_OPERATOR_CLUSTER_DATA"


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """One process, identified beyond the reuse of its pid."""

    pid: int
    started: int
    boot: str

    def alive(self) -> bool:
        """Whether exactly this process runs (a zombie does not)."""
        return self.boot == _boot_id() and _stat(self.pid) == self.started

    def signal(self, number: int) -> bool:
        """Send a signal if it is still that process; tells whether it was sent."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        """For a record on disk."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ProcessRecord:
        """From a record on disk."""
        return cls(pid=int(value["pid"]), started=int(value["started"]), boot=str(value["boot"]))


def record_of(pid: int) -> ProcessRecord | None:
    """The record of a running process, or None where there is none."""
    started = _stat(pid)
    return None if started is None else ProcessRecord(pid=pid, started=started, boot=_boot_id())


def end_processes(
    records: list[ProcessRecord],
    *,
    grace: float,
    clock: Callable[[], float] = time.monotonic,
    pause: Callable[[float], None] = time.sleep,
) -> list[ProcessRecord]:
    """SIGTERM to all, SIGKILL to what is left after `grace` seconds; returns what survived even that."""
    for record in records:
        record.signal(signal.SIGTERM if grace > 0 else signal.SIGKILL)
    left = _wait_until_gone(records, limit=grace, clock=clock, pause=pause)
    for record in left:
        record.signal(signal.SIGKILL)
    return _wait_until_gone(left, limit=5.0, clock=clock, pause=pause)


def _wait_until_gone(
    records: list[ProcessRecord],
    *,
    limit: float,
    clock: Callable[[], float],
    pause: Callable[[float], None],
) -> list[ProcessRecord]:
    deadline = clock() + limit
    while True:
        records = [record for record in records if record.alive()]
        if not records or clock() >= deadline:
            return records
        pause(0.02)


def instance_mark(data: Path) -> dict[str, str]:
    """The environment variable by which the processes of the cluster in `data` know each other.

    Every process of a cluster inherits it, and nobody else has it: so a process whose record was not yet written
    when its supervisor was killed is found as well.
    """
    return {_MARK: str(data)}


def marked_processes(data: Path) -> list[ProcessRecord]:
    """All processes that carry the mark of the cluster in `data`, but for the caller itself."""
    wanted = f"{_MARK}={data}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's, or gone meanwhile
            continue
        if wanted in environment.split(b"\0"):
            record = record_of(int(entry.name))
            if record is not None:
                found.append(record)
    return found


def resident_mib(pid: int) -> float | None:
    """Resident memory of a process in MiB, or None where it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _stat(pid: int) -> int | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The command name stands in parentheses and may hold anything, so count from the last one.
    fields = text.rpartition(")")[2].split()
    # A dying process is a zombie already while its other threads still hold its sockets and files.
    gone = fields[0] in ("Z", "X") and int(fields[17]) <= 1
    return None if gone else int(fields[19])


def _boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
