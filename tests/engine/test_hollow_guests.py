"""Guests as processes: started, adopted, ended. QEMU is a small program here that speaks its protocol."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from machine_operator.local.hollow import guest as guest_module
from machine_operator.local.hollow.guest import Guest
from machine_operator.local.hollow.guests import Guests, GuestStartError, stop_guests
from machine_operator.local.hollow.process import adopt
from machine_operator.local.hollow.qemu import GuestPlan
from machine_operator.local.hollow.qmp import Qmp, QmpError
from machine_operator.local.hollow.rundir import DiskRecord, GuestRecord, Outcome, RunDirectory
from tests.support.virtual import eventually

QEMU = """
import json, os, select, signal, socket, sys

manner = sys.argv[sys.argv.index("-name") + 1]
if manner == "broken":
    print("qemu: the disk is locked", file=sys.stderr)
    sys.exit(1)
listener = socket.socket(socket.AF_UNIX)
listener.bind("qmp.sock")
listener.listen()
woken, wake = os.pipe()
os.set_blocking(wake, False)
signal.set_wakeup_fd(wake)
signal.signal(signal.SIGUSR1, lambda *_: None)
signal.signal(signal.SIGUSR2, lambda *_: None)
status, client, pending = "running", None, b""


def send(value):
    if client is not None:
        try:
            client.sendall(json.dumps(value).encode() + b"\\r\\n")
        except OSError:  # it has left, and we have not noticed yet: as in QEMU, that is no reason to end
            pass


def fill_up():
    global status
    status = "io-error"
    send({"event": "BLOCK_IO_ERROR", "data": {"device": "disk-home", "action": "stop"}})
    send({"event": "STOP"})


def power_off():
    global status
    status = "shutdown"
    send({"event": "SHUTDOWN", "data": {"guest": True, "reason": "guest-shutdown"}})


def answer(request):
    global status
    command, number = request["execute"], request.get("id")
    if command == "query-status":
        send({"return": {"status": status}, "id": number})
    elif command == "block_resize" and request["arguments"]["size"] < 0:
        send({"error": {"class": "GenericError", "desc": "too small"}, "id": number})
    else:
        send({"return": {}, "id": number})
    if command == "system_powerdown" and manner != "deaf":
        power_off()
    if command == "cont":
        status = "running"
    if command == "quit":
        os.unlink("qmp.sock")
        sys.exit(0)


while True:
    ready, _, _ = select.select([client or listener, woken], [], [])
    if woken in ready:
        number = os.read(woken, 1)[0]
        if number == signal.SIGUSR1:
            power_off()
        elif manner == "full":
            fill_up()
        else:
            send({"event": "RESET", "data": {}})
    elif client is None:
        client, _ = listener.accept()
        send({"QMP": {"version": {}, "capabilities": []}})
    else:
        data = client.recv(65536)
        if not data:
            client, pending = None, b""
            continue
        *lines, pending = (pending + data).split(b"\\n")
        for line in lines:
            answer(json.loads(line))
"""


@pytest.fixture
def qemu(tmp_path: Path) -> str:
    program = tmp_path / "qemu"
    program.write_text(f"#!{sys.executable} -IS\n{QEMU}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


@pytest.fixture
async def guests(tmp_path: Path) -> AsyncIterator[Guests]:
    found = Guests(tmp_path)
    yield found
    await found.let_go()
    for directory in found.leftovers():
        end(RunDirectory(tmp_path / "run" / directory))


def end(directory: RunDirectory) -> None:
    """No test leaves a process behind."""
    record = directory.record()
    if record is not None and record.process is not None:
        record.process.signal(signal.SIGKILL)


def plan(tmp_path: Path, manner: str = "obedient") -> GuestPlan:
    return GuestPlan(
        name=manner,
        uuid="u",
        memory_mib=64,
        cpus=1,
        disks=(),
        kernel=None,
        initrd=None,
        append=None,
        firmware=None,
        address="127.77.0.1",
        ports=(22,),
        mac=None,
        console=tmp_path / "console.log",
    )


def record(tmp_path: Path, uid: str = "u1") -> GuestRecord:
    disks = (DiskRecord("disk-home", tmp_path / "disk.img"),)
    return GuestRecord(uid, "acme", "m-1", "127.77.0.1", disks, tmp_path / "console.log")


async def ended(guest: Guest | None) -> Outcome | None:
    assert guest is not None
    async with asyncio.timeout(10):
        await guest.ended.wait()
    return guest.outcome


def pid(guest: Guest) -> int:
    assert guest.record.process is not None
    return guest.record.process.pid


async def test_a_guest_that_powers_off_has_succeeded(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    told: list[str] = []
    guests.on_change = told.append
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    os.kill(pid(guest), signal.SIGUSR1)
    assert await ended(guest) is Outcome.SHUTDOWN
    assert told == ["u1"]
    guests.forget("u1")
    assert guests.leftovers() == []


async def test_a_killed_qemu_is_a_crash(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    os.kill(pid(guest), signal.SIGKILL)
    assert await ended(guest) is Outcome.CRASHED


async def test_the_power_button(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    guest.shut_down(lambda: 30.0)
    assert await ended(guest) is Outcome.SHUTDOWN


async def test_the_power_is_cut_after_the_grace(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path, "deaf"), record(tmp_path), binary=qemu)
    guest.shut_down(lambda: 0.2)
    assert await ended(guest) is Outcome.KILLED


async def test_there_is_never_a_second_qemu(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    with pytest.raises(GuestStartError, match="runs already"):
        await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    # Not even for a node that knows nothing of the first one.
    stranger = Guests(tmp_path)
    with pytest.raises(GuestStartError, match="runs already"):
        await stranger.start(plan(tmp_path), record(tmp_path), binary=qemu)
    assert guest.directory.held()


async def test_a_start_that_fails_says_what_qemu_said(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    with pytest.raises(GuestStartError, match="the disk is locked"):
        await guests.start(plan(tmp_path, "broken"), record(tmp_path), binary=qemu)
    assert guests.get("u1") is None
    assert guests.leftovers() == []
    with pytest.raises(GuestStartError, match="Install QEMU"):
        await guests.start(plan(tmp_path), record(tmp_path), binary=str(tmp_path / "absent"))


async def test_a_new_node_adopts(guests: Guests, tmp_path: Path, qemu: str) -> None:
    first = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    await guests.let_go()
    second = Guests(tmp_path)
    await second.adopt()
    guest = second.get("u1")
    assert guest is not None
    assert pid(guest) == pid(first)
    os.kill(pid(guest), signal.SIGUSR1)
    assert await ended(guest) is Outcome.SHUTDOWN


async def test_a_qemu_whose_pid_was_never_written_down_is_found(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    first = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    await guests.let_go()
    first.directory.write_record(record(tmp_path))
    second = Guests(tmp_path)
    await second.adopt()
    guest = second.get("u1")
    assert guest is not None
    assert pid(guest) == pid(first)
    guest.cut_power()
    assert await ended(guest) is Outcome.KILLED


async def test_a_power_off_that_nobody_saw_is_none_the_less_one(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    first = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    await guests.let_go()
    os.kill(pid(first), signal.SIGUSR1)
    second = Guests(tmp_path)
    await second.adopt()
    assert await ended(second.get("u1")) is Outcome.SHUTDOWN


async def test_what_has_ended_is_not_adopted(guests: Guests, tmp_path: Path, qemu: str) -> None:
    first = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    os.kill(pid(first), signal.SIGKILL)
    await ended(first)
    assert first.record.process is not None
    assert adopt(first.record.process) is None
    second = Guests(tmp_path)
    await second.adopt()
    assert second.get("u1") is None
    assert second.leftovers() == ["u1"]


async def test_a_reboot_from_inside_is_told(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    os.kill(pid(guest), signal.SIGUSR2)
    async with asyncio.timeout(10):
        await guest.restarted.wait()
    assert not guest.ended.is_set()


async def test_a_panic_is_an_end_and_not_a_reboot(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    console = tmp_path / "console.log"
    console.write_text("Kernel panic - not syncing: of an earlier boot\n")
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    os.kill(pid(guest), signal.SIGUSR2)
    async with asyncio.timeout(10):
        await guest.restarted.wait()
    assert not guest.ended.is_set()
    with console.open("a") as file:
        file.write("[   12.3] Kernel panic - not syncing: sysrq triggered crash\n")
    os.kill(pid(guest), signal.SIGUSR2)
    assert await ended(guest) is Outcome.PANICKED


async def test_a_guest_that_stalls_on_a_full_disk_goes_on_when_there_is_room(
    guests: Guests, tmp_path: Path, qemu: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest_module, "_GO_ON", 0.3)
    monkeypatch.setattr(guest_module, "_GOES_ON", 0.05)
    seen: list[bool] = []
    guest = await guests.start(plan(tmp_path, "full"), record(tmp_path), binary=qemu)
    guests.on_change = lambda uid: seen.append(guest.stalled)
    os.kill(pid(guest), signal.SIGUSR2)
    await eventually(lambda: len(seen) == 2, within=10, state=lambda: seen)
    assert seen == [True, False]
    assert not guest.ended.is_set()


async def test_a_new_node_sees_that_a_guest_has_stalled(
    guests: Guests, tmp_path: Path, qemu: str
) -> None:
    first = await guests.start(plan(tmp_path, "full"), record(tmp_path), binary=qemu)
    await guests.let_go()
    os.kill(pid(first), signal.SIGUSR2)
    second = Guests(tmp_path)
    await second.adopt()
    guest = second.get("u1")
    assert guest is not None
    await eventually(lambda: guest.stalled, within=10, state=lambda: guest.record)
    await second.let_go()


async def test_a_disk_grows(guests: Guests, tmp_path: Path, qemu: str) -> None:
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    assert await guest.resize(tmp_path / "disk.img", 2**30)
    assert not await guest.resize(tmp_path / "other.img", 2**30)
    with pytest.raises(QmpError, match="too small"):
        await guest.resize(tmp_path / "disk.img", -1)


async def test_the_end_of_the_cluster(guests: Guests, tmp_path: Path, qemu: str) -> None:
    first = await guests.start(plan(tmp_path), record(tmp_path, "u1"), binary=qemu)
    second = await guests.start(plan(tmp_path, "deaf"), record(tmp_path, "u2"), binary=qemu)
    await guests.let_go()
    await stop_guests(tmp_path, grace=0.5)
    for guest in (first, second):
        assert guest.directory.outcome() is Outcome.NODE_STOPPED
    for guest in (first, second):
        assert guest.record.process is not None
        assert not guest.record.process.alive()


async def test_a_long_path_is_no_obstacle(tmp_path: Path, qemu: str) -> None:
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    guests = Guests(deep)
    guest = await guests.start(plan(tmp_path), record(tmp_path), binary=qemu)
    guest.shut_down(lambda: 30.0)
    assert await ended(guest) is Outcome.SHUTDOWN


async def test_nobody_answers(tmp_path: Path) -> None:
    with pytest.raises(QmpError, match="no QMP connection"):
        await Qmp.connect(tmp_path / "qmp.sock", timeout=0.2)
