"""Readiness probes against listeners that behave as QEMU's forwarding and a guest behind it do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from machine_operator.local.guest.image import CONSOLE_MARKER
from machine_operator.local.hollow.console import ConsoleWatch
from machine_operator.local.hollow.probes import Probe, Prober
from tests.support.virtual import eventually

ADDRESS = "127.77.200.1"

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Guest:
    """A port behind QEMU's forwarding: it accepts at once; what follows depends on the guest."""

    def __init__(self) -> None:
        self.port = 0
        self.says: bytes | None = None
        self.refuses = False
        self.connections = 0
        self._held: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._serve, ADDRESS, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()
            for writer in self._held:
                writer.close()
            await asyncio.gather(*(w.wait_closed() for w in self._held), return_exceptions=True)

    async def _serve(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._held.add(writer)
        if self.refuses:
            writer.close()
        elif self.says is not None:
            writer.write(self.says)


def probe(guest: Guest, kind: str = "speaks", **changes: float) -> Probe:
    values = {"initial_delay": 0.0, "period": 0.05, "timeout": 0.1} | changes
    return Probe(kind=kind, port=guest.port, failures=2, **values)  # type: ignore[arg-type]


class Probing:
    """A prober, and after how many connections its guest became ready or unready."""

    def __init__(
        self, guest: Guest, wanted: Probe, console: Path, *, already: bool = False
    ) -> None:
        self.restarted = asyncio.Event()
        self.changes: list[tuple[int, bool]] = []
        self.prober = Prober(
            wanted,
            address=ADDRESS,
            console=ConsoleWatch(console),
            restarted=self.restarted,
            on_change=lambda: self.changes.append((guest.connections, self.prober.ready)),
            already=already,
        )

    @property
    def ready(self) -> bool:
        return self.prober.ready

    async def __aenter__(self) -> Probing:
        self._task = asyncio.create_task(self.prober.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_booting_guest_is_left_alone_until_its_marker(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    async with guest.listening(), Probing(guest, probe(guest), console) as probing:
        await asyncio.sleep(0.3)  # the time in which it must do nothing
        assert guest.connections == 0
        guest.says = b"SSH-2.0-OpenSSH_9.2\r\n"
        console.write_text(CONSOLE_MARKER)
        await eventually(lambda: probing.ready, within=20, state=lambda: guest.connections)
        assert probing.changes == [(1, True)]


async def test_a_guest_that_says_where_its_sshd_listens_is_not_asked(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    async with guest.listening(), Probing(guest, probe(guest), console) as probing:
        console.write_text(f"{CONSOLE_MARKER} 2200 {guest.port} after 3.1 s\n")
        await eventually(lambda: probing.ready, within=20, state=lambda: guest.connections)
        assert probing.changes == [(0, True)]


async def test_it_is_asked_where_it_listens_elsewhere(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    console.write_text(f"{CONSOLE_MARKER} 2200 after 3.1 s\n")
    guest.refuses = True
    async with guest.listening(), Probing(guest, probe(guest), console) as probing:
        await eventually(lambda: guest.connections >= 3, within=20)
        assert probing.changes == []


async def test_accepting_is_not_being_ready(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    console.write_text(CONSOLE_MARKER)
    guest.says = b"HTTP/1.1 400\r\n"
    async with guest.listening(), Probing(guest, probe(guest), console) as probing:
        await eventually(lambda: guest.connections >= 3, within=20)
        assert probing.changes == []


async def test_a_silent_server_counts_once_the_guest_is_known_to_be_up(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    console.write_text(CONSOLE_MARKER)
    async with guest.listening(), Probing(guest, probe(guest, "answers"), console) as probing:
        await eventually(lambda: probing.ready, within=30)


async def test_a_ready_guest_is_forgiven_one_failure(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    guest.refuses = True
    async with guest.listening():
        async with Probing(guest, probe(guest), console, already=True) as probing:
            await eventually(lambda: not probing.ready, within=20)
        assert probing.changes == [(2, False)]


async def test_a_reboot_makes_it_unready_until_the_next_marker(tmp_path: Path) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    guest.says = b"SSH-2.0-OpenSSH_9.2\r\n"
    console.write_text(CONSOLE_MARKER)
    async with guest.listening(), Probing(guest, probe(guest), console) as probing:
        await eventually(lambda: probing.ready, within=20)
        probing.restarted.set()
        await eventually(lambda: not probing.ready, within=20)
        probing.restarted.set()  # QEMU tells of one reboot more than once
        with console.open("a") as file:
            file.write("\n" + CONSOLE_MARKER)
        await eventually(lambda: probing.ready, within=20)
        assert [ready for _, ready in probing.changes] == [True, False, True]


@pytest.mark.parametrize(("status", "ready"), [(b"200 OK", True), (b"503 Busy", False)])
async def test_http(tmp_path: Path, status: bytes, ready: bool) -> None:
    guest, console = Guest(), tmp_path / "console.log"
    console.write_text(CONSOLE_MARKER)
    guest.says = b"HTTP/1.0 " + status + b"\r\n\r\n"
    async with guest.listening(), Probing(guest, probe(guest, "http"), console) as probing:
        await eventually(lambda: probing.ready or guest.connections >= 3, within=20)
        assert probing.ready is ready
