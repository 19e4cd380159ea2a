"""A QEMU process that we hold by its pidfd: no signal of ours can ever hit a stranger that got its pid."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from machine_operator.local.processes import ProcessRecord, record_of

__all__ = ["HeldProcess", "adopt", "spawn"]

_INHERITED = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH")


class HeldProcess:
    """A running process, ours or adopted."""

    def __init__(
        self, record: ProcessRecord, *, pidfd: int, child: subprocess.Popen[bytes] | None
    ) -> None:
        self.record = record
        self.ended = asyncio.Event()
        self._pidfd = pidfd
        self._child = child
        asyncio.get_running_loop().add_reader(pidfd, self._on_end)

    def _on_end(self) -> None:
        # A pidfd becomes readable when its process ends, whoever its parent is.
        self._close()
        if self._child is not None:
            self._child.wait()
        self.ended.set()

    def kill(self) -> None:
        """Cut its power (SIGKILL)."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def release(self) -> None:
        """Stop looking at it; it goes on."""
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = (
                0  # else Popen complains that we leave it behind, which we mean to
            )
        self._close()

    def _close(self) -> None:
        if self._pidfd >= 0:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1


def spawn(
    argv: Sequence[str],
    *,
    directory: Path,
    log: Path,
    lock: int,
    extra: Mapping[str, str] | None = None,
) -> HeldProcess:
    """Start a process in a session of its own which holds the lock `lock` as long as it lives.

    Args:
        argv: the command.
        directory: its working directory, and where its temporary files go.
        log: gets its standard output and error.
        lock: descriptor of a flocked file.
        extra: more environment.

    Raises:
        OSError: it could not be started.
    """
    # A short environment: QEMU outlives us, so it must not carry the marks of our own process
    # group.
    environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    environment |= {"TMPDIR": str(directory), **(extra or {})}
    with log.open("ab") as output:
        child = subprocess.Popen(
            argv,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(lock,),
            start_new_session=True,
        )
    # Until we wait for it, its pid cannot be reused: it may be a zombie already, but it is ours.
    pidfd = os.pidfd_open(child.pid)
    record = record_of(child.pid) or ProcessRecord(pid=child.pid, started=-1, boot="")
    return HeldProcess(record, pidfd=pidfd, child=child)


def adopt(record: ProcessRecord) -> HeldProcess | None:
    """Hold a process that an earlier run of ours started; None where it is gone."""
    try:
        pidfd = os.pidfd_open(record.pid)
    except ProcessLookupError:
        return None
    # Only now is the answer about the process that the descriptor names.
    if not record.alive():
        os.close(pidfd)
        return None
    return HeldProcess(record, pidfd=pidfd, child=None)
