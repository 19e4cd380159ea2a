"""A gateway with previews on its real server, a guest behind a real sshd, and services in that guest.

The guest is this computer: what listens on loopback here is what previews reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fastapi import FastAPI
from starlette.types import ASGIApp

from machine_operator.gateway import answers
from machine_operator.gateway.access import Access
from machine_operator.gateway.dcs import openapi
from machine_operator.gateway.dcs.machines import machine_routes
from machine_operator.gateway.dcs.ports import port_routes
from machine_operator.gateway.dcs.previews import preview_routes
from machine_operator.gateway.idempotency import Idempotency
from machine_operator.gateway.keys import KEYS_NAMESPACE, new_key
from machine_operator.gateway.previews.access import PreviewAccess
from machine_operator.gateway.previews.limits import PreviewLimits
from machine_operator.gateway.previews.previews import Previews
from machine_operator.gateway.previews.proxy import PreviewHost
from machine_operator.gateway.serving.server import serve
from machine_operator.gateway.tokens import Tokens
from machine_operator.gateway.views import MachineView
from machine_operator.guest.dialer import AddressDialer
from machine_operator.guest.guests import Guests
from machine_operator.store.database import Database
from machine_operator.store.idempotency import IdempotencyRecords
from tests.support.clock import stamp, wall_clock
from tests.support.gateway import ORG, Cluster, Replica
from tests.support.sshd import SshServer, ssh_server

__all__ = [
    "DOMAIN",
    "Site",
    "body_of",
    "host",
    "open_database",
    "prefix",
    "preview_site",
    "raw_service",
    "self_signed",
    "service",
]

DOMAIN = "previews.test"

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@asynccontextmanager
async def open_database(directory: Path) -> AsyncIterator[Database]:
    """A store with all tables."""
    database = await Database.open(f"sqlite:///{directory / 'previews.db'}")
    try:
        yield database
    finally:
        await database.close()


@dataclass
class Site:
    """A gateway and one machine.

    Attributes:
        replica: the gateway, without its server.
        sshd: the guest's.
        port: where the gateway serves.
        machine: the id of the machine.
        previews, access: the services.
        keys: API keys of ORG, two of them; the first made the machine.
    """

    replica: Replica
    sshd: SshServer
    previews: Previews
    access: Access
    guests: Guests
    app: ASGIApp
    keys: tuple[str, str]
    machine: str = ""
    port: int = 0
    client: aiohttp.ClientSession = field(init=False)

    @property
    def view(self) -> MachineView:
        """The machine as the gateway knows it."""
        return self.replica.machines.find(ORG, self.machine)

    async def is_in(self, phase: str, **status: Any) -> None:
        """The controller says that the machine is in a phase."""
        if phase == "running":
            status.setdefault("vm", {"name": self.sshd.vm, "instance_uid": "boot-1"})
            status.setdefault("addresses", ["127.0.0.1"])
        self.replica.cluster.report(self.machine, phase, **status)
        await self.replica.caught_up()

    async def sleeps(self) -> None:
        """The machine was put to sleep, and does."""
        answer = await self.replica.call("POST", f"/v1/machines/{self.machine}/sleep")
        assert answer.status in (200, 202)
        await self.is_in("sleeping", vm=None, addresses=None)
        self.guests.drop(self.view.machine.metadata.uid)

    async def runs(self, *, since: str | None = None) -> None:
        """The machine runs, by default since just now."""
        await self.is_in("running", last_transition_at=since or stamp())

    async def api(
        self, method: str, path: str, *, key: str | None = None, **sent: Any
    ) -> tuple[int, Any]:
        """A request to the API about the machine: status and body."""
        headers = {"Authorization": f"Bearer {key or self.keys[0]}", **sent.pop("headers", {})}
        url = f"http://127.0.0.1:{self.port}/v1/machines/{self.machine}{path}"
        async with self.client.request(method, url, headers=headers, **sent) as answer:
            return answer.status, await answer.json(content_type=None)

    async def preview(
        self, port: int, *, visibility: str = "public", key: str | None = None, **body: Any
    ) -> Any:
        """A new one; what the API answers."""
        wanted = {"port": port, "visibility": visibility, **body}
        status, made = await self.api("POST", "/previews", json=wanted, key=key)
        assert status == 200, made
        return made

    def get(
        self, preview: Any, path: str = "/", *, method: str = "GET", by: str = "host", **sent: Any
    ) -> Any:
        """A request to a preview, by host name or by path; to be entered."""
        id = preview["preview_id"]
        headers = dict(sent.pop("headers", {}))
        base = f"http://127.0.0.1:{self.port}"
        if by == "host":
            headers["Host"] = f"{id}.{DOMAIN}"
        else:
            path = f"/previews/{id}{path}"
        sent.setdefault("allow_redirects", False)
        return self.client.request(method, base + path, headers=headers, **sent)


@asynccontextmanager
async def preview_site(
    directory: Path,
    *,
    domain: str | None = DOMAIN,
    limits: PreviewLimits | None = None,
    **changed: Any,
) -> AsyncIterator[Site]:
    """One, for as long as the block runs; the machine runs, for an hour already."""
    async with AsyncExitStack() as stack:
        enter = stack.enter_async_context
        sshd = await enter(ssh_server(directory))
        cluster = Cluster()
        second = new_key(ORG, now=wall_clock())
        metadata_of = {**second.secret["metadata"], "namespace": KEYS_NAMESPACE}
        cluster.api.put("secrets", {**second.secret, "metadata": metadata_of})
        replica = await enter(cluster.gateway(preview_domain=domain, **changed))
        database = await enter(open_database(directory))
        gateway = replica.gateway
        gateway.idempotency = Idempotency(IdempotencyRecords(database))
        guests = Guests(
            AddressDialer(port=sshd.port),
            user_authority=sshd.user_authority,
            host_authority=sshd.host_authority,
            user=sshd.user,
            most=8,
            places=sshd.places,
        )
        stack.push_async_callback(guests.close)
        access = Access(
            replica.client,
            replica.machines,
            gateway.changes,
            guests,
            gateway.settings,
            replica="r1",
        )
        await _beside(stack, access.run())
        gate = PreviewAccess(Tokens(b"k" * 32), gateway.authenticator, gateway.authorizer)
        previews = Previews(
            database,
            access,
            gateway.settings,
            machines=replica.machines,
            gate=gate,
            limits=limits,
        )
        await _beside(stack, previews.run())
        app = PreviewHost(_app(replica, previews), previews)
        site = Site(
            replica, sshd, previews, access, guests, app, (cluster.tokens[ORG], second.token)
        )
        site.port = await _serve(stack, site)
        site.client = await enter(
            aiohttp.ClientSession(auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar())
        )
        site.machine = (await replica.create())["machine_id"]
        await site.is_in("running", last_transition_at="2026-01-01T00:00:00Z")
        yield site


def _app(replica: Replica, previews: Previews) -> FastAPI:
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for router in (
        machine_routes(replica.gateway),
        preview_routes(replica.gateway, previews),
        port_routes(replica.gateway, previews),
    ):
        app.router.routes.extend(router.routes)
    openapi.install(app)
    answers.install(app)
    return app


async def _beside(stack: AsyncExitStack, work: Any) -> None:
    task = asyncio.ensure_future(work)

    async def end() -> None:
        failed = task.exception() if task.done() and not task.cancelled() else None
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        if failed is not None:
            raise failed

    stack.push_async_callback(end)


async def _serve(stack: AsyncExitStack, site: Site) -> int:
    draining = asyncio.Event()
    address: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(
        serve(
            site.app,
            host="127.0.0.1",
            port=0,
            draining=draining,
            on_listening=address.set_result,
            drain_seconds=1.0,
        )
    )

    async def end() -> None:
        draining.set()
        await asyncio.wait_for(task, 20)

    stack.push_async_callback(end)
    return int((await asyncio.wait_for(address, 10)).rpartition(":")[2])


@asynccontextmanager
async def service(
    handler: Handler, *, host: str = "127.0.0.1", **options: Any
) -> AsyncIterator[int]:
    """A web server in the guest; its port. Every path and method is `handler`'s."""
    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", handler)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0, **options)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def raw_service(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    *,
    port: int = 0,
) -> AsyncIterator[int]:
    """Something in the guest that talks by hand; its port."""
    tasks: set[asyncio.Task[None]] = set()

    async def met(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            # A cancelled one would be told to the loop as a failure.
            with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await talk(reader, writer)
        finally:
            tasks.discard(task)
            writer.close()

    server = await asyncio.start_server(met, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def host(preview: Any, by: str = "host") -> str:
    """The Host of a request to a preview, by host name or by path."""
    return f"{preview['preview_id']}.{DOMAIN}" if by == "host" else "127.0.0.1"


def prefix(preview: Any, by: str) -> str:
    """How the path of such a request begins."""
    return "" if by == "host" else f"/previews/{preview['preview_id']}"


def body_of(said: bytes) -> bytes:
    """The body of an answer, which is not chunked."""
    return said.partition(b"\r\n\r\n")[2]


def self_signed(directory: Path) -> ssl.SSLContext:
    """TLS for a server, with a certificate that nobody trusts."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "guest")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=2))
        .not_valid_after(now - timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    file = directory / "tls.pem"
    file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context
