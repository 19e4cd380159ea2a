"""The stock OpenSSH programs through the SSH gateway to a real sshd."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import termios
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.gateway import until
from tests.support.ssh import SshWorld, environment, free_port, ssh_world

PTY = ("-tt",)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[SshWorld]:
    async with ssh_world(tmp_path, settings=("AcceptEnv LC_* SECRET",)) as made:
        yield made


async def test_command(world: SshWorld) -> None:
    client = await world.client()
    ended = await client.ssh("echo out; echo err >&2; exit 7")
    assert (ended.status, ended.out, ended.err) == (7, b"out\n", "err\n")
    await until(lambda: world.access.ended_uses == len(world.access.uses) == 1)


@pytest.mark.parametrize(
    "kind", [("-t", "rsa", "-b", "2048"), ("-t", "ecdsa", "-b", "384")], ids=["rsa", "ecdsa"]
)
async def test_other_kinds_of_keys(world: SshWorld, kind: tuple[str, ...]) -> None:
    client = await world.client(*kind)
    assert (await client.ssh("echo in")).out == b"in\n"


async def test_exit_signal_is_told(world: SshWorld) -> None:
    client = await world.client()
    ended = await client.ssh("kill -KILL $$", more=("-v",))
    assert ended.status == 255
    assert "rtype exit-signal" in ended.err


async def test_binary_both_ways(world: SshWorld) -> None:
    client = await world.client()
    blob = os.urandom(32 * 2**20)
    ended = await client.ssh("cat", stdin=blob, within=150)
    assert (ended.status, ended.out == blob, ended.err) == (0, True, "")


async def test_input_ends_before_output(world: SshWorld) -> None:
    client = await world.client()
    ended = await client.ssh("wc -c; sleep 0.1; echo after", stdin=b"x" * 100_000)
    assert ended.out.split() == [b"100000", b"after"]


async def test_output_may_end_before_input(world: SshWorld) -> None:
    client = await world.client()
    process = await client.start("exec >&- 2>&-; cat > $HOME/got; exit 3")
    assert process.stdin is not None
    for _ in range(50):
        process.stdin.write(b"y" * 1000)
    process.stdin.close()
    assert await process.wait() == 3
    assert (world.server.home / "got").stat().st_size == 50_000


async def test_shell_with_a_terminal(world: SshWorld) -> None:
    client = await world.client()
    ended = await client.ssh(more=PTY, stdin=b"stty size; echo $TERM; tty; exit 5\n")
    assert ended.status == 5
    assert re.search(rb"/dev/pts/\d+", ended.out)
    assert b"\nvt220\r" in ended.out


async def test_environment_and_terminal_modes(world: SshWorld) -> None:
    client = await world.client()
    script = 'echo "$LC_ALL/$SECRET/$OTHER"; stty -a'
    more = (*PTY, "-o", "SetEnv=LC_ALL=C.UTF-8 SECRET=a=b OTHER=no")
    ended = await client.ssh(script, more=more)
    assert ended.out.startswith(b"C.UTF-8/a=b/\r\n")
    assert b"intr = ^C" in ended.out


async def test_window_changes_and_interrupts(world: SshWorld) -> None:
    """As from a real terminal."""
    client = await world.client()
    ssh = ["ssh", *client.options, "-p", str(client.port), "-t", client.address]
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 90, 0, 0))
    remote = "trap 'stty size' WINCH; stty size; while :; do sleep 0.05; done"
    process = await asyncio.create_subprocess_exec(
        *ssh,
        remote,
        stdin=slave,
        stdout=slave,
        stderr=PIPE,
        env=environment(),
        start_new_session=True,
    )
    client.running.append(process)
    os.close(slave)
    os.set_blocking(master, False)
    seen = bytearray()

    def read(expected: bytes) -> bool:
        with contextlib.suppress(OSError):
            seen.extend(os.read(master, 4096))
        return expected in seen

    try:
        await until(lambda: read(b"30 90"), within=20, state=lambda: bytes(seen))
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 133, 0, 0))
        os.kill(process.pid, signal.SIGWINCH)
        await until(lambda: read(b"50 133"), within=20, state=lambda: bytes(seen))
        os.write(master, b"\x03")
        async with asyncio.timeout(20):
            status = await process.wait()
        assert status in (130, 255)
    finally:
        os.close(master)


async def test_scp_by_both_protocols(world: SshWorld, tmp_path: Path) -> None:
    client = await world.client()
    sent, blob = tmp_path / "sent", os.urandom(3 * 2**20)
    sent.write_bytes(blob)
    for flag in ("-s", "-O"):
        there, back = world.server.home / f"there{flag}", tmp_path / f"back{flag}"
        up = await client.program("scp", flag, "-p", str(sent), f"HOST:{there}")
        down = await client.program("scp", flag, f"HOST:{there}", str(back))
        assert (up.status, down.status, back.read_bytes() == blob) == (0, 0, True), (up, down)


async def test_sftp(world: SshWorld, tmp_path: Path) -> None:
    client = await world.client()
    (tmp_path / "sent").write_bytes(b"content")
    batch = f"mkdir {tmp_path}/d\nput {tmp_path}/sent {tmp_path}/d/got\nls {tmp_path}/d\n"
    ended = await client.program("sftp", "-b", "-", "HOST", stdin=batch.encode())
    assert (ended.status, (tmp_path / "d/got").read_bytes()) == (0, b"content"), ended


async def test_names_that_are_no_utf8(world: SshWorld) -> None:
    client = await world.client()
    command = [b"ssh", *map(os.fsencode, client.options), b"-p", str(client.port).encode()]
    process = await asyncio.create_subprocess_exec(
        *command, client.address, b"echo \xff\xfe", stdout=PIPE, stderr=PIPE, env=environment()
    )
    out, _ = await process.communicate()
    assert out == b"\xff\xfe\n"


async def test_a_subsystem_that_the_guest_has_not(world: SshWorld) -> None:
    client = await world.client()
    ended = await client.ssh("nothing", more=("-s",))
    assert ended.status == 255
    assert "the machine refuses this" in ended.err


async def test_local_forwarding(world: SshWorld) -> None:
    """The guest is who connects; each side can end its half."""

    async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        text = await reader.read()
        writer.write(text.upper())
        writer.close()
        await writer.wait_closed()

    client, local = await world.client(), free_port()
    server = await asyncio.start_server(shout, "127.0.0.1", 0)
    async with server:
        remote = server.sockets[0].getsockname()[1]
        await client.start(more=("-N", "-L", f"127.0.0.1:{local}:127.0.0.1:{remote}"))
        for size in (3, 300_000):
            reader, writer = await connected(local)
            writer.write(b"a" * size)
            writer.write_eof()
            assert await reader.read() == b"A" * size
            writer.close()
            await writer.wait_closed()


async def test_forwarding_to_a_socket_of_the_guest(world: SshWorld, tmp_path: Path) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"hello")
        writer.close()
        await writer.wait_closed()

    client, local, there = await world.client(), free_port(), str(tmp_path / "socket")
    async with await asyncio.start_unix_server(greet, there):
        await client.start(more=("-N", "-L", f"127.0.0.1:{local}:{there}"))
        reader, writer = await connected(local)
        assert await reader.read() == b"hello"
        writer.close()
        await writer.wait_closed()


async def test_forwarding_to_a_dead_port(world: SshWorld) -> None:
    client, dead = await world.client(), free_port()
    ended = await client.ssh(more=("-W", f"127.0.0.1:{dead}"))
    assert ended.status == 255
    assert "Connection refused" in ended.err
    assert (await client.ssh("echo still")).out == b"still\n"


async def test_remote_forwarding(world: SshWorld) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"from home: " + await reader.readline())
        writer.close()
        await writer.wait_closed()

    client, there = await world.client(), free_port()
    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        home = server.sockets[0].getsockname()[1]
        more = ("-N", "-o", "ExitOnForwardFailure=yes", "-R", f"127.0.0.1:{there}:127.0.0.1:{home}")
        process = await client.start(more=more)
        # asyncssh does not know its listener yet when somebody connects at once.
        answer = b""
        while not answer:
            reader, writer = await connected(there)
            with contextlib.suppress(ConnectionResetError):
                writer.write(b"hello\n")
                answer = await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionResetError):
                await writer.wait_closed()
        assert answer == b"from home: hello\n"
        # Its port is taken, by the other client.
        taken = await client.ssh("true", more=more[1:])
        assert "remote port forwarding failed" in taken.err
        process.kill()
        await process.communicate()
    await until(lambda: not listening(there), within=10)


async def test_agent_and_x11_are_refused(world: SshWorld, tmp_path: Path) -> None:
    client = await world.client()
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", str(tmp_path / "agent"), stdout=PIPE, stderr=PIPE
    )
    try:
        await until((tmp_path / "agent").exists)
        more = ("-A", "-o", f"IdentityAgent={tmp_path / 'agent'}")
        ended = await client.ssh('echo "[$SSH_AUTH_SOCK][$DISPLAY]"', more=(*more, "-X"))
        assert ended.out == b"[][]\n"
    finally:
        agent.kill()
        await agent.communicate()


async def test_many_at_once_over_one_connection(world: SshWorld, tmp_path: Path) -> None:
    client, control = await world.client(), str(tmp_path / "c")
    await client.start(more=("-N", "-M", "-S", control))
    await until(lambda: os.path.exists(control), within=20)
    ended = await asyncio.gather(
        *(client.ssh(f"echo {number}", more=("-S", control)) for number in range(20))
    )
    assert [int(each.out) for each in ended] == list(range(20))
    assert len(world.access.uses) == 1


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = asyncio.get_running_loop().time() + 20
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)


def listening(port: int) -> bool:
    return f":{port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()
