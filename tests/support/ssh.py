"""The SSH gateway with a real sshd as its guest, and the stock OpenSSH programs as its clients.

    async with ssh_world(tmp_path) as world:
        client = await world.client()
        ended = await client.ssh("uname -n")

The machine is an object on a fake API server, which says that it runs; `world.access` plays the way to it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncssh
from fastapi import FastAPI

from machine_operator.gateway.access import NotUsable, Readiness, UseKind
from machine_operator.gateway.dcs.ssh import ssh_routes
from machine_operator.gateway.ssh.certificates import SessionCertificates
from machine_operator.gateway.ssh.client import SshServices
from machine_operator.gateway.ssh.endpoint import listen_address, ssh_endpoint
from machine_operator.gateway.ssh.server import SshGateway
from machine_operator.gateway.ssh.sessions import SshSessions
from machine_operator.gateway.views import MachineView
from machine_operator.guest.dialer import AddressDialer
from machine_operator.guest.guest import Guest
from machine_operator.guest.guests import Guests
from machine_operator.kubevirt.authority import Authority
from machine_operator.store.moments import utc_now
from machine_operator.store.ssh_sessions import SshSessionRecords
from tests.support.gateway import Cluster, Replica, until
from tests.support.sshd import SshServer, ssh_server

__all__ = [
    "Client",
    "Ended",
    "FakeAccess",
    "SshWorld",
    "free_port",
    "inside",
    "log_in",
    "own_key",
    "ssh_world",
]


class FakeAccess:
    """The way to machines, which all are one sshd. They wake when the test reports so."""

    RETRY_MS = 1000

    def __init__(self, replica: Replica, server: SshServer) -> None:
        self.knocks: list[str] = []
        self.uses: list[UseKind] = []
        self.ended_uses = 0
        self.refuse: Exception | None = None
        self._machines = replica.machines
        self._server = server
        self._guests = Guests(
            AddressDialer(port=server.port),
            user_authority=server.user_authority,
            host_authority=server.host_authority,
            user=server.user,
            most=10,
            places=server.places,
        )

    def readiness(self, view: MachineView) -> Readiness:
        view = self._machines.latest(view)
        if view.desired_state == "destroyed":
            return Readiness.GONE
        if view.phase == "failed":
            return Readiness.FAILED
        awake = view.phase == "running" and view.desired_state == "running"
        return Readiness.READY if awake else Readiness.WAKING

    def knock(self, view: MachineView, *, by: str) -> Readiness:
        readiness = self.readiness(view)
        if readiness is Readiness.WAKING:
            self.knocks.append(by)
        return readiness

    async def guest(self, view: MachineView, *, by: str, timeout: float) -> Guest:
        self.knock(view, by=by)
        if self.refuse is not None:
            raise self.refuse
        await until(lambda: self.readiness(view) is not Readiness.WAKING, within=timeout)
        if self.readiness(view) is not Readiness.READY:
            raise NotUsable(self.readiness(view), "machine_not_routable", "no")
        return await self._guests.connect(self._server.target())

    @contextmanager
    def use(self, view: MachineView, kind: UseKind) -> Iterator[None]:
        self.uses.append(kind)
        try:
            yield
        finally:
            self.ended_uses += 1

    async def close(self) -> None:
        """End all connections."""
        await self._guests.close()


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    status: int | None
    out: bytes
    err: str


@dataclass
class Client:
    """Somebody with a session: a directory with what the published clients write into it.

    Attributes:
        session: as the API answered.
    """

    directory: Path
    session: dict[str, Any]
    user: str
    running: list[Process] = field(default_factory=list)

    @property
    def options(self) -> list[str]:
        """Of ssh, scp and sftp, as dcs.md has them."""
        return [
            *("-F", "none", "-i", str(self.directory / "key")),
            *("-o", f"CertificateFile={self.directory / 'key-cert.pub'}"),
            *("-o", f"UserKnownHostsFile={self.directory / 'known_hosts'}"),
            *("-o", "GlobalKnownHostsFile=/dev/null"),
            *("-o", "StrictHostKeyChecking=yes"),
            *("-o", "IdentitiesOnly=yes"),
            *("-o", "BatchMode=yes"),
        ]

    @property
    def address(self) -> str:
        """USER@HOST."""
        return f"{self.user}@{self.session['connection']['endpoint']}"

    @property
    def port(self) -> int:
        """Of the SSH gateway."""
        port: int = self.session["connection"]["port"]
        return port

    async def start(self, *arguments: str, more: tuple[str, ...] = ()) -> Process:
        """Run `ssh` with pipes."""
        command = ["ssh", *self.options, "-p", str(self.port), *more, self.address, *arguments]
        process = await asyncio.create_subprocess_exec(
            *command, stdin=PIPE, stdout=PIPE, stderr=PIPE, env=environment(), limit=2**26
        )
        self.running.append(process)
        return process

    async def ssh(
        self, *arguments: str, more: tuple[str, ...] = (), stdin: bytes = b"", within: float = 60.0
    ) -> Ended:
        """Run `ssh` to its end."""
        return await self._ended(await self.start(*arguments, more=more), stdin, within)

    async def program(
        self, name: str, *arguments: str, stdin: bytes = b"", within: float = 60.0
    ) -> Ended:
        """Run `scp` or `sftp` to its end; HOST in an argument stands for where to go."""
        filled = [argument.replace("HOST", self.address) for argument in arguments]
        process = await asyncio.create_subprocess_exec(
            *(name, *self.options, "-P", str(self.port), *filled),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            env=environment(),
        )
        self.running.append(process)
        return await self._ended(process, stdin, within)

    async def _ended(self, process: Process, stdin: bytes, within: float) -> Ended:
        async with asyncio.timeout(within):
            out, err = await process.communicate(stdin)
        return Ended(process.returncode, out, err.decode(errors="replace"))

    async def end(self) -> None:
        """End what still runs."""
        for process in self.running:
            if process.returncode is None:
                process.kill()
                await process.communicate()


def environment() -> dict[str, str]:
    """Of the client programs: no agent."""
    return {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8", "TERM": "vt220"}


@dataclass
class SshWorld:
    """One gateway."""

    cluster: Cluster
    replica: Replica
    server: SshServer
    access: FakeAccess
    sessions: SshSessions
    gateway: SshGateway
    session_authority: Authority
    host_authority: Authority
    directory: Path
    machine_id: str
    _later: list[timedelta]
    clients: list[Client] = field(default_factory=list)

    @property
    def path(self) -> str:
        """Of the machine's sessions."""
        return f"/v1/machines/{self.machine_id}/ssh"

    async def phase(self, phase: str) -> None:
        """Let the machine be in a phase."""
        self.cluster.report(self.machine_id, phase)
        await self.replica.caught_up()

    async def post(self, public_key: str, **more: Any) -> Any:
        """Make a session; the answer's body."""
        answer = await self.replica.call("POST", self.path, json={"public_key": public_key}, **more)
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def key(self, *kind: str) -> Path:
        """A new key pair, made by ssh-keygen."""
        path = self.directory / f"client-{len(self.clients)}"
        path.mkdir()
        await run(
            "ssh-keygen", "-q", "-N", "", *(kind or ("-t", "ed25519")), "-f", str(path / "key")
        )
        return path

    async def client(self, *kind: str, user: str | None = None) -> Client:
        """Somebody with a ready session."""
        directory = await self.key(*kind)
        session = await self.post((directory / "key.pub").read_text())
        return self.client_of(directory, session, user=user)

    def client_of(self, directory: Path, session: Any, *, user: str | None = None) -> Client:
        """Somebody with that session, whose files are written."""
        connection = session["connection"]
        trust = connection["host_trust"]
        (directory / "key-cert.pub").write_text(connection["user_certificate"] + "\n")
        (directory / "known_hosts").write_text(
            f"@cert-authority {trust['host_pattern']} {trust['public_key']}\n"
        )
        client = Client(directory, session, user or connection["ssh_username"])
        self.clients.append(client)
        return client

    @property
    def later(self) -> timedelta:
        """How far the clock of sessions is ahead."""
        return self._later[0]

    @later.setter
    def later(self, value: timedelta) -> None:
        self._later[0] = value

    def now(self) -> datetime:
        """The clock of sessions."""
        return utc_now() + self.later


async def run(*command: str) -> None:
    """Run a program that must not fail."""
    process = await asyncio.create_subprocess_exec(*command, stdin=DEVNULL, env=environment())
    assert await process.wait() == 0, command


@asynccontextmanager
async def ssh_world(
    directory: Path, *, settings: tuple[str, ...] = (), **changed: Any
) -> AsyncIterator[SshWorld]:
    """An SSH gateway with one machine, which runs.

    Args:
        directory: of the test.
        settings: lines of the guest's sshd_config.
        changed: settings of the gateway.
    """
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(ssh_server(directory, settings=settings))
        cluster = Cluster(directory)
        changed = {"ssh_address": f"127.0.0.1:{free_port()}", "guest_user": server.user, **changed}
        replica = await stack.enter_async_context(cluster.gateway(**changed))
        access = FakeAccess(replica, server)
        stack.push_async_callback(access.close)
        machine_id = (await replica.create())["machine_id"]
        world = _assembled(cluster, replica, server, access, directory, machine_id)
        await world.phase("running")
        task = asyncio.create_task(world.gateway.run())
        stack.push_async_callback(_end, task)
        await until(lambda: world.gateway.port or task.done())
        yield world
        for client in world.clients:
            await client.end()


def _assembled(  # noqa: PLR0917
    cluster: Cluster,
    replica: Replica,
    server: SshServer,
    access: FakeAccess,
    directory: Path,
    machine_id: str,
) -> SshWorld:
    settings = replica.gateway.settings
    session_authority, host_authority = Authority.generate(), Authority.generate()
    endpoint, address = ssh_endpoint(settings), listen_address(settings)
    assert endpoint is not None
    assert address is not None
    later = [timedelta()]
    way: Any = access
    sessions = SshSessions(
        SshSessionRecords(replica.records._database),
        way,
        certificates=SessionCertificates(session_authority),
        endpoint=endpoint,
        host_authority=host_authority.public,
        settings=settings,
        clock=lambda: utc_now() + later[0],
    )
    gateway = SshGateway(
        SshServices(sessions, way, replica.machines),
        endpoint=endpoint,
        address=address,
        host_authority=host_authority,
        draining=replica.gateway.draining,
        drain_seconds=settings.drain,
    )
    assert isinstance(replica.app, FastAPI)
    replica.app.router.routes[:0] = ssh_routes(replica.gateway, sessions).routes
    return SshWorld(
        cluster,
        replica,
        server,
        access,
        sessions,
        gateway,
        session_authority,
        host_authority,
        directory,
        machine_id,
        later,
    )


async def _end(task: asyncio.Task[None]) -> None:
    failed = task.exception() if task.done() and not task.cancelled() else None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if failed is not None:
        raise failed


def free_port() -> int:
    """Of 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def inside(client: Client) -> Process:
    """A command of that client that runs until its input ends."""
    process = await client.start("echo in; cat")
    assert process.stdout is not None
    assert await process.stdout.readline() == b"in\n"
    return process


def own_key(client: Client) -> Any:
    """For asyncssh: their key, with its certificate."""
    certificate = asyncssh.read_certificate(str(client.directory / "key-cert.pub"))
    return asyncssh.read_private_key(str(client.directory / "key")), certificate


async def log_in(world: SshWorld, keys: list[Any]) -> asyncssh.SSHClientConnection:
    """Log in with asyncssh as the client, for what OpenSSH's would not do."""
    return await asyncssh.connect(
        "127.0.0.1",
        world.gateway.port,
        username=world.sessions.username,
        client_keys=keys,
        known_hosts=None,
        config=None,
        agent_path=None,
    )
