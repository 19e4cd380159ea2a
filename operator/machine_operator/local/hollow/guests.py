"""All guests of a node: started, adopted after a restart, ended.

start    record written, lock taken, QEMU started with the lock's descriptor, record completed
adopt    lock held -> a QEMU lives: found by its record, or by the credentials of its control socket
stop     everybody's power button, a short grace, then the power is cut; used when the cluster goes down
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from machine_operator.local.hollow.guest import Guest
from machine_operator.local.hollow.process import HeldProcess, adopt, spawn
from machine_operator.local.hollow.qemu import GuestPlan, command_line
from machine_operator.local.hollow.qmp import Qmp, QmpError
from machine_operator.local.hollow.rundir import (
    GuestRecord,
    Outcome,
    RunDirectory,
    run_directories,
)
from machine_operator.local.hollow.waiting import first_of
from machine_operator.local.processes import record_of

__all__ = ["GuestStartError", "Guests", "stop_guests"]

log = logging.getLogger(__name__)

_CONNECT = 15.0
_SEARCH = 5.0


class GuestStartError(Exception):
    """QEMU did not start; the message carries what it said."""


class Guests:
    """The guests in one data directory. Only one may exist per directory: the node holds a lock.

    Args:
        data: the node's directory.

    Attributes:
        on_change: called with the uid of each guest that stalled, goes on or has ended.
    """

    def __init__(self, data: Path) -> None:
        self._root = data / "run"
        self._data = data
        self.on_change: Callable[[str], None] = lambda uid: None
        self._guests: dict[str, Guest] = {}

    def __iter__(self) -> Iterator[Guest]:
        return iter(list(self._guests.values()))

    def get(self, uid: str) -> Guest | None:
        """The guest of a VMI, where one was started or adopted."""
        return self._guests.get(uid)

    def directory(self, uid: str) -> RunDirectory:
        """The run directory of a VMI, whether it is there or not."""
        return RunDirectory(self._root / uid)

    async def adopt(self) -> None:
        """Take over the QEMUs that an earlier run of this node left running."""
        for directory in run_directories(self._data):
            record = directory.record()
            try:
                process = await _living(directory, record)
            except GuestStartError as error:
                # The lock keeps a second QEMU from starting there; the others must not wait for it.
                log.error("%s", error)
                continue
            if process is None or record is None:
                continue
            record = record.running_as(process.record)
            directory.write_record(record)
            log.info("adopted %s/%s (pid %d)", record.namespace, record.name, process.record.pid)
            self._guests[directory.uid] = Guest(directory, record, process, on_change=self._changed)

    async def start(
        self, plan: GuestPlan, record: GuestRecord, *, binary: str = "qemu-system-x86_64"
    ) -> Guest:
        """Start a guest and wait until QEMU answers.

        Raises:
            GuestStartError: QEMU refused the plan, or a QEMU of this uid runs already.
        """
        directory = self.directory(record.uid)
        directory.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = directory.lock()
        if lock is None:
            raise GuestStartError(f"a QEMU for {plan.name} runs already: {directory.path}")
        try:
            process = _spawn(directory, record, command_line(plan, binary=binary), lock=lock)
        finally:
            # QEMU has its own copy of the descriptor, and with it the lock.
            os.close(lock)
        record = record.running_as(process.record)
        directory.write_record(record)
        guest = Guest(directory, record, process, on_change=self._changed)
        self._guests[record.uid] = guest
        await self._until_connected(guest, plan)
        log.info("started %s (pid %d, %s)", plan.name, process.record.pid, record.address)
        return guest

    def forget(self, uid: str) -> None:
        """The VMI is gone and its guest has ended: remove what is left of it."""
        self._guests.pop(uid, None)
        self.directory(uid).remove()

    def leftovers(self) -> list[str]:
        """The uids of all run directories."""
        return [directory.uid for directory in run_directories(self._data)]

    def _changed(self, uid: str) -> None:
        self.on_change(uid)

    async def let_go(self) -> None:
        """Leave all guests running."""
        for guest in self:
            await guest.let_go()

    async def _until_connected(self, guest: Guest, plan: GuestPlan) -> None:
        await first_of(guest.connected, guest.ended, seconds=_CONNECT)
        if guest.connected.is_set():
            return
        if not guest.ended.is_set():
            guest.cut_power()
            await guest.ended.wait()
        del self._guests[guest.uid]
        said = _tail(guest.directory.log)
        guest.directory.remove()
        raise GuestStartError(f"QEMU did not start {plan.name}: {said or 'it said nothing'}")


def _spawn(
    directory: RunDirectory, record: GuestRecord, argv: Sequence[str], *, lock: int
) -> HeldProcess:
    (directory.path / "outcome.json").unlink(missing_ok=True)
    directory.qmp.unlink(missing_ok=True)
    # First what it has, then the process: were we killed between the two, its control socket leads
    # to it.
    directory.write_record(record)
    try:
        return spawn(argv, directory=directory.path, log=directory.log, lock=lock)
    except OSError as error:
        directory.remove()
        raise GuestStartError(
            f"cannot run {argv[0]}: {error.strerror}. Install QEMU (Debian: qemu-system-x86)"
        ) from error


async def _living(directory: RunDirectory, record: GuestRecord | None) -> HeldProcess | None:
    """The QEMU of a run directory, by its record or, where that was never written, by its socket."""
    if record is not None and record.process is not None:
        process = adopt(record.process)
        if process is not None:
            return process
    deadline = asyncio.get_running_loop().time() + _SEARCH
    while directory.held():
        try:
            qmp = await Qmp.connect(directory.qmp, timeout=1.0)
        except QmpError as error:
            if asyncio.get_running_loop().time() > deadline:
                raise GuestStartError(
                    f"a process holds {directory.path}/lock, but no QEMU answers there: {error}. "
                    "Find it with: fuser -v " + str(directory.path / "lock")
                ) from error
            await asyncio.sleep(0.1)
            continue
        found = record_of(qmp.peer)
        await qmp.close()
        return adopt(found) if found else None
    return None


async def stop_guests(data: Path, *, grace: float) -> None:
    """End every guest in a node's data directory; its hollow node must not be running any more.

    Guests get the power button and `grace` seconds; then their power is cut. That it was the node's doing is
    written down, so that the next start of the node does not report it as the guest's own: they shall run again.
    """
    guests = Guests(data)
    await guests.adopt()
    for guest in guests:
        guest.directory.write_outcome(Outcome.NODE_STOPPED)
        guest.shut_down(lambda: grace)
    for guest in guests:
        await guest.ended.wait()
        log.info("%s/%s: %s", guest.record.namespace, guest.record.name, guest.outcome)
    await guests.let_go()


def _tail(path: Path, *, size: int = 2000) -> str:
    try:
        return path.read_bytes()[-size:].decode(errors="replace").strip()
    except FileNotFoundError:
        return ""
