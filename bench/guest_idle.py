"""What a terminal costs the gateway that nobody types into: memory for each of a thousand, all connected.

No guest of this computer could hold so many shells, so the machines are written by hand into a plane, and their address
is a real sshd of this computer in a mount namespace of its own: what terminals leave on disk goes away with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
import gateways
from clusters import BenchError, progress
from figures import Report, single
from plane import Plane, prepare
from rounds import Planes

from machine_operator.gateway.credentials import load_credentials
from machine_operator.kube.resources import MACHINES

__all__ = ["measure"]

_EACH_KB = 150.0
_MACHINES = 10
_OPENERS = 16
_LIMIT = 60.0
_SETTLE = 5.0
# The namespace hides the computer's own directories; they are gone with its last process.
_HIDE = "for at in /usr/local/lib /var/lib /root; do mount -t tmpfs none $at; done; exec {sshd}"


async def measure(report: Report, directory: Path, *, count: int) -> None:
    """Open the terminals one after the other, and look at the gateway's memory before and after."""
    if os.geteuid() != 0:
        raise BenchError("only root can give an sshd a mount namespace of its own")
    # A plane has event loops of its own.
    await asyncio.to_thread(_measure, report, directory, count=count)


def _measure(report: Report, directory: Path, *, count: int) -> None:
    planes = Planes(directory, *prepare(directory))
    port = _free_port()
    options = ("--guest-dialer=address", f"--guest-port={port}")
    with planes.new("idle") as plane:
        served = gateways.serve(plane, machines=_MACHINES, options=options)
        names = [f"m-bench-{number}" for number in range(_MACHINES)]
        with _sshd(plane, directory, names, port=port):
            asyncio.run(_furnish(served, names))
            asyncio.run(_open_all(report, served, count=count))


async def _furnish(served: gateways.Served, names: list[str]) -> None:
    async with gateways.administrator(served.plane) as client:
        for machine_id, vm in zip(served.ids, names, strict=True):
            status = gateways.status("running") | {
                "addresses": ["127.0.0.1"],
                "vm": {"name": vm, "uid": f"uid-{vm}", "instance_uid": f"boot-{vm}"},
            }
            await client.apply(
                MACHINES,
                machine_id,
                {"status": status},
                manager="bench",
                namespace=gateways.ORG,
                subresource="status",
            )


async def _open_all(report: Report, served: gateways.Served, *, count: int) -> None:
    sockets: list[aiohttp.ClientWebSocketResponse] = []
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=served.headers, connector=connector) as session:

        async def opened(number: int) -> None:
            machine = f"{served.url}/v1/machines/{served.ids[number % len(served.ids)]}"
            sockets.append(await _open(session, f"{machine}/terminals"))

        # One for each machine beforehand: what their connections cost is not the terminals'.
        for number in range(len(served.ids)):
            await opened(number)
        await asyncio.sleep(_SETTLE)
        before, first = served.process.resident_mib(), len(sockets)
        numbers = iter(range(count))

        async def opener() -> None:
            for number in numbers:
                await opened(number)

        progress(f"idle: opening {count} terminals")
        async with asyncio.TaskGroup() as group:
            for _ in range(_OPENERS):
                group.create_task(opener())
        await asyncio.sleep(_SETTLE)
        after = served.process.resident_mib()
        more = len(sockets) - first
        each = (after - before) * 1024 / more
        report.raw["idle"] = {"before": before, "after": after, "terminals": more}
        report.add(single(f"{more} idle terminals, memory for each", each, "KiB", limit=_EACH_KB))
        await asyncio.gather(*(socket.close() for socket in sockets))


async def _open(session: aiohttp.ClientSession, terminals: str) -> Any:
    body = {"width": 80, "height": 24, "shell": "/bin/sh"}
    async with session.post(terminals, json=body) as response:
        made = await response.json()
        if response.status != 200:
            raise BenchError(f"{terminals}: {response.status} {made}")
    one, deadline = f"{terminals}/{made['terminal_id']}", time.monotonic() + _LIMIT
    while made["status"] != "ready":
        if time.monotonic() > deadline:
            raise BenchError(f"{one} is not ready: {made}")
        await asyncio.sleep(0.1)
        async with session.get(one) as response:
            made = await response.json()
    socket = await session.ws_connect(made["stream_url"])
    async with asyncio.timeout(_LIMIT):
        await socket.receive()  # the prompt: the shell is there
    return socket


@contextmanager
def _sshd(plane: Plane, directory: Path, names: list[str], *, port: int) -> Iterator[None]:
    credentials = load_credentials(plane.paths.pki)
    etc = directory / "idle-sshd"
    etc.mkdir()
    key = asyncssh.generate_private_key("ssh-ed25519")
    key.write_private_key(str(etc / "host"))
    (etc / "host").chmod(0o600)
    certificate = credentials.host_authority.certify_host(
        key.export_public_key().decode().strip(), key_id="bench", principals=names
    )
    (etc / "host-cert.pub").write_text(certificate + "\n")
    (etc / "ca.pub").write_text(credentials.user_authority.public + "\n")
    (etc / "principals").write_text("".join(f"{name}\n" for name in names))
    config = (
        *(f"Port {port}", "ListenAddress 127.0.0.1", f"HostKey {etc}/host"),
        *(f"HostCertificate {etc}/host-cert.pub", f"TrustedUserCAKeys {etc}/ca.pub"),
        *(f"AuthorizedPrincipalsFile {etc}/principals", "PermitRootLogin prohibit-password"),
        *("StrictModes no", "UsePAM no", "MaxSessions 1000", "PrintMotd no", "LogLevel ERROR"),
        "Subsystem sftp internal-sftp",
    )
    (etc / "config").write_text("\n".join(config) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    hide = _HIDE.format(sshd=f"/usr/sbin/sshd -D -e -f {etc}/config")
    with (etc / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "unshare",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "sh",
                "-c",
                hide,
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        _await_port(port, process, etc / "log")
        yield
    finally:
        process.kill()  # and with it everything in its namespace
        process.wait()


def _await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _LIMIT
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"sshd does not listen: {log.read_text()[-500:]}")
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
