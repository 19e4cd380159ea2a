"""What is on disk about one running guest: DATA/run/UID/.

`guest.json` is written before QEMU is started (what it has: address, disks) and again with QEMU's
identity (pid, start time, boot id). `lock` is flocked, and QEMU inherits the descriptor: as long as
any QEMU of this directory lives, recorded or not, the lock is held, so there can never be a second
one. `outcome.json` says how the guest ended, written by whoever saw or did it.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from machine_operator.local.hollow.qemu import QMP_SOCKET
from machine_operator.local.processes import ProcessRecord

__all__ = ["DiskRecord", "GuestRecord", "Outcome", "RunDirectory", "run_directories"]


class Outcome(StrEnum):
    """How a guest ended."""

    SHUTDOWN = "shutdown"
    """The guest powered itself off, asked to or not."""
    NODE_STOPPED = "node stopped"
    """Its node was stopped under it."""
    KILLED = "killed"
    """Its power was cut by us."""
    PANICKED = "panicked"
    """Its kernel gave up, and we ended it before it could boot again."""
    CRASHED = "crashed"
    """QEMU ended without any of these."""


@dataclass(frozen=True, slots=True)
class DiskRecord:
    """A writable disk of a running guest: QMP's name for it, and its file."""

    drive: str
    path: Path


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """What has to be known to adopt a guest.

    Attributes:
        uid: the VMI's.
        namespace, name: the VMI's.
        address: the loopback address that it has.
        disks: its writable disks.
        console: its console log.
        process: QEMU, or None while it is being started.
    """

    uid: str
    namespace: str
    name: str
    address: str
    disks: tuple[DiskRecord, ...]
    console: Path
    process: ProcessRecord | None = None

    def running_as(self, process: ProcessRecord) -> GuestRecord:
        """The same with its process."""
        return replace(self, process=process)

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> GuestRecord:
        """From the file."""
        process = value.get("process")
        return cls(
            uid=value["uid"],
            namespace=value["namespace"],
            name=value["name"],
            address=value["address"],
            disks=tuple(DiskRecord(disk["drive"], Path(disk["path"])) for disk in value["disks"]),
            console=Path(value["console"]),
            process=ProcessRecord.from_json(process) if process else None,
        )


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """One guest's directory."""

    path: Path

    @property
    def uid(self) -> str:
        """The VMI's."""
        return self.path.name

    @property
    def qmp(self) -> Path:
        """QEMU's control socket."""
        return self.path / QMP_SOCKET

    @property
    def log(self) -> Path:
        """What QEMU itself complains about."""
        return self.path / "qemu.log"

    @property
    def seed(self) -> Path:
        """The NoCloud image."""
        return self.path / "seed.iso"

    def lock(self) -> int | None:
        """Take the lock and return its descriptor; None where a QEMU holds it."""
        descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def held(self) -> bool:
        """Whether a QEMU of this directory lives."""
        descriptor = self.lock()
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def record(self) -> GuestRecord | None:
        """What was written down; None where nothing (whole) was."""
        value = _read(self.path / "guest.json")
        return None if value is None else GuestRecord.from_json(value)

    def write_record(self, record: GuestRecord) -> None:
        """Write down a guest."""
        _write(self.path / "guest.json", record.to_json())

    def outcome(self) -> Outcome | None:
        """How the guest ended, where that is known."""
        value = _read(self.path / "outcome.json")
        return None if value is None else Outcome(value["outcome"])

    def write_outcome(self, outcome: Outcome) -> None:
        """Write down how the guest ended; the first word stands."""
        if self.path.is_dir() and self.outcome() is None:
            _write(self.path / "outcome.json", {"outcome": outcome})

    def remove(self) -> None:
        """The guest is over and everybody knows."""
        shutil.rmtree(self.path, ignore_errors=True)


def run_directories(data: Path) -> Iterator[RunDirectory]:
    """All guests' directories below a node's data directory."""
    root = data / "run"
    if root.is_dir():
        for path in sorted(root.iterdir()):
            if path.is_dir():
                yield RunDirectory(path)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return value if isinstance(value, dict) else None


def _write(path: Path, value: dict[str, Any]) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(json.dumps(value, default=str))
    draft.replace(path)
