"""Terminals in a guest, over a real OpenSSH server: nothing is lost, comes twice, or grows without bound."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from machine_operator.guest.errors import GuestError, GuestLost
from machine_operator.guest.terminal import (
    Attachment,
    GuestTerminals,
    Shell,
    TerminalUnavailable,
)
from tests.support.terminal_guest import PlainGuest, TerminalGuest, terminal_guest

PATIENCE = 15.0
KEEP = 256 * 1024
SHELL = Shell("term-1", program="/bin/sh", directory="/", detached=60)


@pytest.fixture
async def guest(tmp_path: Path) -> AsyncIterator[TerminalGuest]:
    async with terminal_guest(tmp_path) as guest:
        yield guest


def terminals(guest: TerminalGuest, plain: PlainGuest) -> GuestTerminals:
    return GuestTerminals(plain, root=guest.root)  # type: ignore[arg-type]


@asynccontextmanager
async def started(guest: TerminalGuest, shell: Shell = SHELL) -> AsyncIterator[GuestTerminals]:
    async with guest.connected() as plain:
        here = terminals(guest, plain)
        await here.start(shell)
        yield here


async def attached(here: GuestTerminals, *, offset: int | None = None) -> Attachment:
    attachment = await here.attach(SHELL.id, offset=offset)
    assert attachment is not None
    return attachment


async def until(attachment: Attachment, pattern: bytes) -> bytes:
    """What comes, up to a pattern."""
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while not re.search(pattern, seen):
            data = await attachment.read()
            assert data, f"it ended with {seen[-200:]!r}"
            seen += data
    return seen


async def says(attachment: Attachment, command: str) -> bytes:
    """What a command says; the shell's echo of it is quoted so that it does not match."""
    await attachment.write(f"{command}; echo 'do''ne'\n".encode())
    return await until(attachment, rb"done\r?\n")


async def rest(attachment: Attachment) -> bytes:
    seen = b""
    async with asyncio.timeout(PATIENCE):
        while data := await attachment.read():
            seen += data
    return seen


async def holds(condition: Any, what: str) -> None:
    deadline = asyncio.get_running_loop().time() + PATIENCE
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.02)


async def test_it_is_a_terminal_with_the_shell_that_was_asked_for(guest: TerminalGuest) -> None:
    shell = replace(
        SHELL,
        program="/bin/bash",
        directory="/tmp",
        columns=91,
        rows=31,
        env={"PLAIN": "1", "QUOTED": 'it\'s $HOME\n`x` "y" ✓', "IFS_X": ""},
    )
    async with started(guest, shell) as here:
        one = await attached(here)
        seen = await says(one, 'pwd; tty; stty size; echo "$TERM $SHELL $0 [$PLAIN] [$QUOTED]"')
        assert b"/tmp\r\n/dev/pts/" in seen
        assert b"\r\n31 91\r\n" in seen
        assert 'xterm-256color /bin/bash /bin/bash [1] [it\'s $HOME\r\n`x` "y" ✓]'.encode() in seen
        assert b"noise" not in seen[: seen.find(b"pwd")]
        assert b"SSH_C" not in await says(one, "env | grep ^SSH_")
        await one.close()
    assert not (guest.keeps(shell.id) / "profile").exists(), "it has secrets in it"


async def test_output_goes_on_where_it_was_left_whatever_happens_in_between(
    guest: TerminalGuest,
) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "stty -echo")
        await one.write(
            b"i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line-$i; done; echo fin\n"
        )
        seen = await until(one, rb"line-100\r\n")
        offset = one.offset
        guest.server.cut()  # the gateway dies, or its connection
        with pytest.raises(GuestError):  # noqa: PT012
            while True:
                seen += await one.read()
                offset = one.offset
    async with guest.connected() as plain:
        two = await attached(terminals(guest, plain), offset=offset)
        assert two.offset == offset
        seen += await until(two, rb"\nfin\r\n")
        numbers = re.findall(rb"line-(\d+)\r\n", seen)
        assert numbers == [b"%d" % number for number in range(1, 3001)]
        await two.close()


async def test_a_shell_starts_once_however_many_gateways_want_it(guest: TerminalGuest) -> None:
    async with guest.connected() as plain, guest.connected() as other:
        shells = [terminals(guest, plain), terminals(guest, other)]
        await asyncio.gather(*(here.start(SHELL) for here in shells * 3))
        one, two = [await attached(here) for here in shells]
        await one.write(b"echo pid-$$-\n")
        seen = [await until(end, rb"pid-\d+-\r\n") for end in (one, two)]
        shells_seen = [re.search(rb"pid-(\d+)-\r\n", text) for text in seen]
        assert len({found and found[1] for found in shells_seen}) == 1
        assert [path.name for path in Path(guest.root).iterdir()] == [SHELL.id]  # noqa: ASYNC240
        await asyncio.gather(one.close(), two.close())


async def test_the_end_of_the_shell_is_told_after_its_last_byte(guest: TerminalGuest) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await one.write(b"seq 1 20000; exit 3\n")
        seen = await rest(one)
        assert re.findall(rb"\n(\d+)\r", seen)[-1] == b"20000"
        await one.close()
        again = await attached(here)
        assert await rest(again) == seen[-KEEP:]
        await again.close()
        await here.start(SHELL)  # it is not started a second time
        assert (guest.keeps(SHELL.id) / "ended").read_text() == "3\n"


async def test_a_resize_reaches_the_program_in_the_terminal(guest: TerminalGuest) -> None:
    async with started(guest) as here:
        await here.resize(SHELL.id, columns=132, rows=50)  # perhaps before the shell has a pty
        one = await attached(here)
        assert b"\r\n50 132\r\n" in await says(one, "stty size")
        await says(one, "trap 'stty size; echo res''ized' WINCH")
        await here.resize(SHELL.id, columns=1000, rows=1)
        await one.write(b"\n")
        assert b"1 1000\r\n" in await until(one, rb"resized")
        await one.close()


@pytest.mark.parametrize("stubborn", [False, True])
async def test_kill_ends_the_session_and_nothing_starts_again(
    guest: TerminalGuest, stubborn: bool
) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "trap '' HUP TERM" if stubborn else ":")
        seen = await says(one, "sleep 1000 & echo job-$!-")
        found = re.search(rb"job-(\d+)-\r", seen)
        assert found is not None
        await here.kill(SHELL.id)
        await rest(one)
        await one.close()
        await holds(lambda: not Path(f"/proc/{int(found[1])}").exists(), "its job ends")
        await here.start(SHELL)
        again = await attached(here)
        await rest(again)
        await again.close()


async def test_what_was_killed_before_it_began_does_not_begin(guest: TerminalGuest) -> None:
    async with guest.connected() as plain:
        here = terminals(guest, plain)
        assert await here.attach(SHELL.id) is None
        await here.kill(SHELL.id)
        await here.start(SHELL)
        one = await attached(here)
        assert await rest(one) == b""
        await one.close()


async def test_who_is_away_for_too_long_loses_the_shell(guest: TerminalGuest) -> None:
    async with started(guest, replace(SHELL, detached=2)) as here:
        one = await attached(here)
        await says(one, "sleep 3")  # being there counts, not doing something
        await one.close()
        await holds((guest.keeps(SHELL.id) / "ended").exists, "it ends by itself")


async def test_a_shell_has_a_longest_life(guest: TerminalGuest) -> None:
    async with started(guest, replace(SHELL, detached=2, lifetime=2)) as here:
        one = await attached(here)
        await rest(one)
        await one.close()


async def test_output_that_nobody_sees_takes_no_room_and_its_end_is_kept(
    guest: TerminalGuest,
) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "stty -echo")
        await one.write(b"seq 1000000 1999999; echo fin; sleep 1000\n")
        await one.close()
        log = guest.keeps(SHELL.id) / "log"
        await holds(lambda: log.stat().st_size > 9_000_000, "it goes on")
        await holds(lambda: log.read_bytes().endswith(b"fin\r\n"), "it comes to its end")
        assert log.stat().st_blocks * 512 < 2 * 2**20
        two = await attached(here)
        assert two.offset >= log.stat().st_size - KEEP - 4096
        numbers = re.findall(rb"\n(\d+)\r", await until(two, rb"fin\r\n"))
        assert len(numbers) > 29_000
        assert numbers == [b"%d" % n for n in range(int(numbers[0]), 2_000_000)]
        await two.close()


async def test_who_reads_nothing_stops_the_shell_and_gets_it_all_later(
    guest: TerminalGuest,
) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "stty -echo")
        await one.write(b"seq 1000000 1999999; echo fin\n")
        log = guest.keeps(SHELL.id) / "log"
        await holds(lambda: log.stat().st_size > 1_500_000, "there is much of it")
        before = -1
        while before != log.stat().st_size:
            before = log.stat().st_size
            await asyncio.sleep(0.5)
        assert before < 3 * 2**20, "the shell has to wait"
        numbers = re.findall(rb"\n(\d+)\r", await until(one, rb"fin\r\n"))
        assert len(numbers) == 999_999
        assert log.stat().st_blocks * 512 < 3 * 2**20
        await one.close()


async def test_input_that_nobody_reads_is_bounded(guest: TerminalGuest) -> None:
    """Old versions of `script` wait until the shell reads, new ones end when they have queued too much."""
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "stty raw -echo")
        await one.write(b"sleep 1000\n")
        script = int((guest.keeps(SHELL.id) / "script").read_text())
        sent = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                while not (guest.keeps(SHELL.id) / "ended").exists():
                    await one.write(bytes(32 * 1024))
                    sent += 32 * 1024
                    assert memory(script) < 100 * 2**20
        assert sent < 200 * 2**20
        await here.kill(SHELL.id)
        one.abort()


def memory(pid: int) -> int:
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


async def test_a_megabyte_goes_through_and_comes_back(guest: TerminalGuest) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, "stty raw -echo; echo ready")
        data = os.urandom(1024) * 1024
        await one.write(b"head -c 1048576 | od -An -v -tx1 | md5sum; echo di''gest\n")
        await asyncio.sleep(0.5)
        writing = asyncio.create_task(one.write(data))
        seen = await until(one, rb"digest\n")
        await writing
        listing = "".join(
            "".join(f" {byte:02x}" for byte in data[place : place + 16]) + "\n"
            for place in range(0, len(data), 16)
        )
        assert hashlib.md5(listing.encode()).hexdigest().encode() in seen  # noqa: S324
        await one.close()


async def test_a_guest_without_script_says_so(guest: TerminalGuest, tmp_path: Path) -> None:
    async with guest.connected() as plain:
        text = Path(await plain.script("terminal")).read_text()  # noqa: ASYNC240
        Path(await plain.script("terminal")).write_text(text.replace("in script ", "in scriptx "))  # noqa: ASYNC240
        with pytest.raises(TerminalUnavailable, match=r"the guest has no scriptx, .* install it"):
            await terminals(guest, plain).start(SHELL)
    assert not list(Path(guest.root).iterdir())  # noqa: ASYNC240


async def test_a_shell_or_directory_that_there_is_not_is_told_in_the_terminal(
    guest: TerminalGuest,
) -> None:
    shell = replace(SHELL, program="/bin/no shell", directory="/no/where")
    async with started(guest, shell) as here:
        one = await attached(here)
        seen = await rest(one)
        assert b"there is no directory /no/where" in seen
        assert b"there is no shell /bin/no shell" in seen
        await one.close()


async def test_many_at_once(guest: TerminalGuest) -> None:
    async with guest.connected() as plain:
        here = terminals(guest, plain)

        async def use(number: int) -> bytes:
            shell = replace(SHELL, id=f"term-{number}")
            await here.start(shell)
            attachment = await here.attach(shell.id)
            assert attachment is not None
            seen = await says(attachment, f"echo $(({number} * 7))")
            await attachment.close()
            return seen

        results = await asyncio.gather(*(use(number) for number in range(12)))
        for number, seen in enumerate(results):
            # A line that is typed before the shell has begun is shown before its prompt.
            assert re.search(rb"\n(?:. )?%d\r" % (number * 7), seen), seen


async def test_after_the_end_nothing_of_ours_runs(guest: TerminalGuest) -> None:
    async with started(guest, replace(SHELL, detached=1)) as here:
        one = await attached(here)
        await one.write(b"exit\n")
        await rest(one)
        await one.close()

    def left() -> list[str]:
        ours = []
        for pid in guest.server.jobs():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if not any(b"sshd" in word for word in words):
                    ours.append(shlex.join(word.decode() for word in words))
        return ours

    await holds(lambda: not left(), "all of it ends")
    assert not (guest.keeps(SHELL.id) / "log").exists()


async def test_a_broken_connection_is_told(guest: TerminalGuest) -> None:
    async with started(guest) as here:
        one = await attached(here)
        await says(one, ":")
        guest.server.cut()
        with pytest.raises(GuestLost):  # noqa: PT012
            while True:
                await one.read()
        with pytest.raises(GuestLost):
            await one.write(b"x")
        with pytest.raises(GuestError):
            await here.attach(SHELL.id)
