"""What the host shows of local clusters: the QEMU processes of machines, and listening sockets."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from machine_operator.local.settings import ClusterSettings

__all__ = ["guests_by_machine", "listeners", "one_guest_each"]


def guests_by_machine() -> dict[str, list[int]]:
    """The QEMU processes of all machines on this host: Machine UID -> pids."""
    found: dict[str, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            argv = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue  # it ended meanwhile
        if b"qemu-system" in argv[0] and b"-uuid" in argv:
            uid = argv[argv.index(b"-uuid") + 1].decode()
            found.setdefault(uid, []).append(int(entry.name))
    return found


class _OneGuestEach:
    """Looks all the time whether any machine has two guests."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="one guest each", daemon=True)
        self._worst: dict[str, list[int]] = {}
        self._looks = 0

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and fail where two guests of one machine were seen.

        Raises:
            AssertionError: with the machine's UID and the pids.
        """
        self._over.set()
        self._thread.join()
        assert self._looks > 0, "nobody looked"
        assert not self._worst, f"machines with more than one QEMU at a time: {self._worst}"

    def _look(self) -> None:
        while not self._over.wait(0.03):
            self._looks += 1
            for uid, pids in guests_by_machine().items():
                if len(pids) > 1:
                    self._worst[uid] = pids


@contextmanager
def one_guest_each() -> Iterator[None]:
    """Fails where a machine had two guests at any time in the block."""
    watch = _OneGuestEach()
    watch.start()
    try:
        yield
    finally:
        watch.stop()


def listeners(settings: ClusterSettings) -> list[str]:
    """The listening sockets that belong to a cluster: its ports, and its machines' addresses."""
    network, ports = IPv4Network(settings.network), set(settings.ports.values())
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        if state != "0A":
            continue
        address = IPv4Address(bytes.fromhex(local[:8])[::-1])
        port = int(local[9:], 16)
        if address in network or (str(address) == "127.0.0.1" and port in ports):
            found.append(f"{address}:{port}")
    return found
