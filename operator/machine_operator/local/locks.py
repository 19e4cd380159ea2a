"""A lock between processes: `flock` on a file which tells who holds it.

The kernel drops the lock when its holder ends, however it ends, so a stale lock
cannot exist; the pid in the file is only for people. The file is never removed:
whoever removes it while another process waits on the old inode gives the lock to two.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["LockTimeoutError", "exclusive"]

_POLL_SECONDS = 0.1
_REMIND_SECONDS = 5.0


class LockTimeoutError(TimeoutError):
    """Another process kept the lock for longer than the caller wanted to wait."""


@contextmanager
def exclusive(path: Path, *, on_wait: Callable[[str], None], timeout: float) -> Iterator[None]:
    """Hold the lock file `path` for the length of the block.

    While another holder has it, `on_wait` gets a sentence with the holder's pid, at
    once and then every 5 seconds. After `timeout` seconds LockTimeoutError is raised.
    Two threads of one process exclude each other too. The directory is made if missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _acquire(descriptor, path, on_wait=on_wait, timeout=timeout)
        _write_holder(descriptor, f"{os.getpid()}\n")
        try:
            yield
        finally:
            _write_holder(descriptor, "")
    finally:
        os.close(descriptor)  # also drops the lock


def _acquire(
    descriptor: int, path: Path, *, on_wait: Callable[[str], None], timeout: float
) -> None:
    started = time.monotonic()
    remind_at = 0.0
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            waited = time.monotonic() - started
        holder = _holder(descriptor)
        if waited >= timeout:
            raise LockTimeoutError(
                f"The lock {path} is still held by {holder} after {waited:.0f} s. "
                "Wait until that process is done, or end it, and try again."
            )
        if waited >= remind_at:
            on_wait(f"waiting for {holder}, which holds {path} ({waited:.0f} s so far)")
            remind_at = waited + _REMIND_SECONDS
        time.sleep(min(_POLL_SECONDS, timeout - waited))


def _holder(descriptor: int) -> str:
    # Empty for an instant after the lock was taken and before the pid was written.
    pid = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
    return f"process {pid}" if pid else "another process"


def _write_holder(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)
