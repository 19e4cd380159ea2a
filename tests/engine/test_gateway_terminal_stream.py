"""The WebSocket of a terminal, over a real server and a real sshd: every byte once, whatever breaks."""

from __future__ import annotations

import asyncio
import base64
import os
import re
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from machine_operator.gateway.terminals import stream as terminal_stream
from machine_operator.gateway.terminals import terminals
from machine_operator.guest.errors import GuestUnreachable
from tests.support.gateway import Cluster, until
from tests.support.served import resident
from tests.support.terminal_guest import terminal_guest
from tests.support.terminals import Gateway, World, gateway

PATIENCE = 15.0
KEEP = 256 * 1024


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with terminal_guest(tmp_path) as guest:
        yield World(Cluster(tmp_path), guest)


@pytest.fixture
async def gate(world: World) -> AsyncIterator[Gateway]:
    async with gateway(world) as made:
        yield made


class Screen:
    """A client of the usual kind: what it was sent, taken apart."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.shown = b""
        self.errors: list[Any] = []
        self.closed = False

    async def type(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        encoded = base64.b64encode(data).decode()
        await self.socket.send(orjson.dumps({"type": "input", "data": encoded}).decode())

    async def say(self, **message: Any) -> None:
        await self.socket.send(orjson.dumps(message).decode())

    async def next(self) -> None:
        message = orjson.loads(await self.socket.recv())
        match message["type"]:
            case "output":
                self.shown += base64.b64decode(message["data"], validate=True)
            case "error":
                self.errors.append(message)
            case "closed":
                self.closed = True
            case other:
                raise AssertionError(other)

    async def until(self, pattern: bytes) -> bytes:
        """Read on until the pattern; what came before and with it."""
        async with asyncio.timeout(PATIENCE):
            while (found := re.search(pattern, self.shown)) is None:
                await self.next()
        seen, self.shown = self.shown[: found.end()], self.shown[found.end() :]
        return seen

    async def run(self, command: str) -> bytes:
        """What a command says, and the shell's echo of it."""
        await self.type(f"{command}; echo 'do''ne'\n")
        return await self.until(rb"done\r?\n")

    async def error(self) -> tuple[str, str]:
        async with asyncio.timeout(PATIENCE):
            while not self.errors:
                await self.next()
        error = self.errors.pop(0)
        return error["error_code"], error["error_message"]

    async def end(self) -> int:
        """Read to the end; its code."""
        with pytest.raises(ConnectionClosed) as ended:  # noqa: PT012
            async with asyncio.timeout(PATIENCE):
                while True:
                    await self.next()
        return ended.value.rcvd.code if ended.value.rcvd is not None else 1006


async def test_a_session(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine(), width=100, height=40, env={"GREETING": "hi ✓"})
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        seen = await screen.run('echo "[$GREETING]"; stty size; pwd')
        assert "[hi ✓]\r\n40 100\r\n".encode() in seen
        await screen.say(type="resize", width=120, height=50)
        await screen.run(":")
        for _ in range(100):
            if b"\n50 120\r" in await screen.run("stty size"):
                break
        else:
            raise AssertionError("the size has not arrived")
        await screen.type("exit\n")
        assert await screen.end() == 1000
        assert screen.closed
    closed = await gate.get(terminal)
    assert (closed["status"], closed["width"], closed["height"]) == ("closed", 120, 50)


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "invalid_message"),
        ("[]", "invalid_message"),
        ("null", "invalid_message"),
        ('{"type":"shout"}', "invalid_message"),
        ('{"type":"input"}', "invalid_message"),
        ('{"type":"input","data":"§"}', "invalid_message"),
        ('{"type":"input","data":"abc"}', "invalid_message"),
        ('{"type":"resize","width":0,"height":10}', "invalid_size"),
        ('{"type":"resize","width":10,"height":1000000}', "invalid_size"),
        ('{"type":"resize","width":true,"height":10}', "invalid_size"),
        ('{"type":"resize","width":"80","height":10}', "invalid_size"),
        ('{"type":"resize"}', "invalid_size"),
    ],
)
async def test_what_is_no_message_is_told_and_nothing_else(
    gate: Gateway, message: str, code: str
) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await socket.send(message)
        assert (await screen.error())[0] == code
        assert b"\n24 80\r" in await screen.run("stty size")


async def test_the_older_way_of_speaking(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        await socket.send(b"stty raw -echo; printf 'read\\171\\n'\n")
        seen = b""
        while b"ready\n" not in seen:
            message = await socket.recv()
            if isinstance(message, bytes):  # what came before the first word is in JSON
                seen += message
        await socket.send('{"cols":90,"rows":33}')
        await socket.send('{"cols":0,"rows":33}')  # has no answer that would not be shown
        seen = b""
        while b"33 90" not in seen:
            await socket.send(b"stty size\n")
            message = await socket.recv()
            assert isinstance(message, bytes)
            seen += message
        await socket.send(b"printf '\\377\\000\\200'; exit\n")
        with pytest.raises(ConnectionClosed) as ended:  # noqa: PT012
            while True:
                message = await socket.recv()
                assert isinstance(message, bytes)
                seen += message
        assert ended.value.rcvd is not None
        assert ended.value.rcvd.code == 1000
        assert b"\xff\x00\x80" in seen


async def test_binary_messages_among_the_others(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run(":")
        await socket.send(b"echo bi''nary\n")
        await screen.until(rb"\nbinary\r\n")


async def test_a_new_connection_gets_the_tail_and_goes_on(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run("stty -echo; cd /; VALUE=kept")
        await screen.run("seq 1000000 1099999")
        await screen.type("sleep 0.3; seq 1 1000; echo 'fi''n'\n")
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        seen = await screen.until(rb"fin\r\n")
        assert KEEP - 8192 <= len(seen) <= KEEP + 16384
        whole = seen.partition(b"\n")[2]  # the first line may have lost its beginning
        numbers = [int(number) for number in re.findall(rb"(\d+)\r\n", whole)]
        late = [number for number in numbers if number < 1_000_000]
        early = [number for number in numbers if number >= 1_000_000]
        assert late == list(range(1, 1001))
        assert early == list(range(early[0], 1_100_000))
        assert b"kept" in await screen.run("echo $VALUE")


async def test_the_gateway_dies_and_the_next_one_goes_on(world: World) -> None:
    async with gateway(world) as first, gateway(world) as second:
        machine = await first.machine()
        await second.replica.caught_up()
        made = [await first.make(machine) for _ in range(5)]
        seen: list[bytes] = []
        for terminal in made:
            async with first.connect(terminal) as socket:
                screen = Screen(socket)
                await screen.run("stty -echo")
                await screen.type(
                    "i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo line-$i; sleep 0.005; done; echo fin\n"
                )
                seen.append(await screen.until(rb"line-20\r\n"))
        first.replica.kill()
        world.guest.server.cut()
        for terminal in made:
            async with second.connect(terminal) as socket:
                screen = Screen(socket)
                lines = re.findall(rb"line-(\d+)\r\n", await screen.until(rb"\nfin\r\n"))
                assert lines == [b"%d" % number for number in range(1, 201)]


async def test_a_broken_way_to_the_guest_is_made_again(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run("stty -echo")
        await screen.type(
            "i=0; while [ $i -lt 600 ]; do i=$((i+1)); echo line-$i; sleep 0.005; done; echo fin\n"
        )
        seen = b""
        for mark in (rb"line-50\r\n", rb"line-200\r\n", rb"line-350\r\n"):
            seen += await screen.until(mark)
            gate.world.guest.server.cut()
        seen += await screen.until(rb"\nfin\r\n")
        lines = re.findall(rb"line-(\d+)\r\n", seen)
        assert lines == [b"%d" % number for number in range(1, 601)]
        assert screen.errors == []
        assert b"after" in await screen.run("echo af''ter")


async def test_a_guest_that_stays_away(gate: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal_stream, "_PAUSE", 0.01)
    monkeypatch.setattr(terminals, "_CONNECT", 0.1)
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run(":")
        gate.guests.trouble = GuestUnreachable("nobody answers")
        gate.world.guest.server.cut()
        assert (await screen.error())[0] == "machine_not_routable"
        assert await screen.end() == 1011
    assert (await gate.get(terminal))["status"] == "ready"
    gate.guests.trouble = None
    async with gate.connect(terminal) as socket:
        await Screen(socket).run(":")


async def test_the_machine_goes_to_sleep(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run(":")
        await gate.phase(machine, "sleeping")
        gate.world.guest.server.cut()
        assert await screen.end() == 1000
        assert screen.closed
    assert (await gate.get(terminal))["status"] == "closed"
    patched = [word for word in gate.world.cluster.patched() if "/status" in word]
    assert not any("wake" in word for word in patched)


async def test_a_second_client_takes_the_terminal(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as one, gate.connect(terminal) as two:
        first, second = Screen(one), Screen(two)
        assert (await first.error())[0] == "terminal_taken_over"
        assert await first.end() == 1000
        assert not first.closed
        assert b"still" in await second.run("echo st''ill")
    assert (await gate.get(terminal))["status"] == "ready"


async def test_a_second_client_at_another_replica(world: World) -> None:
    async with gateway(world) as here, gateway(world) as there:
        machine = await here.machine()
        terminal = await here.make(machine)
        await there.replica.caught_up()
        async with here.connect(terminal) as one:
            first = Screen(one)
            await first.run(":")
            async with there.connect(terminal) as two:
                assert (await first.error())[0] == "terminal_taken_over"
                assert await first.end() == 1000
                await Screen(two).run(":")


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_delete_ends_the_connection_and_the_shell(world: World, elsewhere: bool) -> None:
    async with gateway(world) as here, gateway(world) as there:
        machine = await here.machine()
        terminal = await here.make(machine)
        await there.replica.caught_up()
        async with here.connect(terminal) as socket:
            screen = Screen(socket)
            found = re.search(rb"pid-(\d+)-\r", await screen.run("echo pid-$$-"))
            assert found is not None
            await (there if elsewhere else here).delete(terminal)
            assert await screen.end() == 1000
            assert screen.closed
        process = Path(f"/proc/{int(found[1])}")
        await until(lambda: not process.exists(), within=PATIENCE)


async def test_nobody_there_for_too_long(world: World) -> None:
    async with gateway(world) as gate:
        terminal = await gate.make(await gate.machine())
        async with gate.connect(terminal) as socket:
            await Screen(socket).run(":")
            world.later += timedelta(seconds=30)
            await gate.terminals._sweep()
            assert (await gate.get(terminal))["status"] == "ready"
        await until(lambda: len(gate.terminals.live) == 0)
        world.later += timedelta(seconds=590)
        await gate.terminals._sweep()
        assert (await gate.get(terminal))["status"] == "ready"
        world.later += timedelta(seconds=20)
        await gate.terminals._sweep()
        assert (await gate.get(terminal))["status"] == "closed"


async def test_expiry_ends_the_connection(world: World) -> None:
    async with gateway(world, terminal_lifetime=3600.0) as gate:
        terminal = await gate.make(await gate.machine())
        async with gate.connect(terminal) as socket:
            screen = Screen(socket)
            await screen.run(":")
            world.later += timedelta(hours=2)
            await gate.terminals._sweep()
            assert await screen.end() == 1000
            assert screen.closed


async def test_who_reads_nothing_makes_the_shell_wait(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal, max_queue=1) as socket:
        screen = Screen(socket)
        await screen.run("stty -echo")
        before = resident(os.getpid())
        await screen.type("seq 1000000 1999999; echo fin\n")
        log = gate.world.guest.keeps(terminal["terminal_id"]) / "log"
        size = -1
        while size != log.stat().st_size:
            size = log.stat().st_size
            await asyncio.sleep(0.5)
        assert size < 7_000_000
        assert resident(os.getpid()) - before < 24 * 2**20
        seen = await screen.until(rb"fin\r\n")
        assert len(re.findall(rb"\n\d+\r", seen)) == 999_999


async def test_who_types_without_end_waits_for_the_shell(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run("stty raw -echo")
        await screen.type("cat >/dev/null\n")
        before = resident(os.getpid())
        for _ in range(64):
            await screen.type(bytes(256 * 1024))
        assert resident(os.getpid()) - before < 24 * 2**20


async def test_use_holds_the_machine_only_while_somebody_is_there(gate: Gateway) -> None:
    machine = await gate.machine()
    terminal = await gate.make(machine)

    def holds() -> list[str]:
        status = gate.world.cluster.machine(gate.name(machine)).get("status", {})
        return [hold["kind"] for hold in (status.get("activity") or {}).get("holds", [])]

    async with gate.connect(terminal) as socket:
        await Screen(socket).run(":")
        await until(lambda: holds() == ["terminal"], state=holds)
    assert len(gate.terminals.live) <= 1
    await until(lambda: len(gate.terminals.live) == 0)


async def test_the_end_of_the_gateway_is_told(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run(":")
        stopping = asyncio.create_task(gate.stop())
        assert await screen.end() == 1012
        await stopping
    assert (await gate.get(terminal))["status"] == "ready"


async def test_the_store_may_be_away_for_a_while(gate: Gateway) -> None:
    terminal = await gate.make(await gate.machine())
    async with gate.connect(terminal) as socket:
        screen = Screen(socket)
        await screen.run(":")
        assert gate.replica.database is not None
        gate.replica.database.down = True
        await asyncio.sleep(1.2)  # it has looked
        assert b"there" in await screen.run("echo th''ere")
        gate.replica.database.down = False


async def test_many_at_once_leave_nothing_behind(gate: Gateway) -> None:
    machine = await gate.machine()

    async def use() -> None:
        terminal = await gate.make(machine)
        async with gate.connect(terminal) as socket:
            screen = Screen(socket)
            await screen.run(":")
            await screen.type("exit\n")
            assert await screen.end() == 1000

    await asyncio.gather(*(use() for _ in range(10)))
    await until(lambda: len(gate.terminals.live) == 0)
    plain = next(iter(gate.guests.connected.values()))
    await until(lambda: not plain.connection._channels, within=PATIENCE)
