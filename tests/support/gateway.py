"""Gateways in memory: each is a process of its own with everything but a server, all of them on one fake API server.

A request is a call of the ASGI application. No controller runs: a test plays it with `Cluster.report`. With a real
loop the gateways share a SQLite file; in virtual time there is no store (it has threads), so there requests come
without an Idempotency-Key.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message
from typing_extensions import override

from machine_operator.gateway.app import build_app
from machine_operator.gateway.changes import Changes
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.idempotency import Idempotency
from machine_operator.gateway.identity import KeyOrgs, KeyScopes
from machine_operator.gateway.keys import KEYS_NAMESPACE, KeyRing, new_key
from machine_operator.gateway.limits import Rate, RateLimiter
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.marks import Freshness
from machine_operator.gateway.orgs import Orgs
from machine_operator.gateway.problems import Scope
from machine_operator.gateway.settings import GatewaySettings, load_settings
from machine_operator.gateway.upkeep import Upkeep
from machine_operator.store.database import Database, StoreUnavailable
from machine_operator.store.idempotency import IdempotencyRecords
from machine_operator.store.ledger import UsageLedger
from machine_operator.store.marks import WriteMarks
from tests.support.apiserver import FakeApi, Object
from tests.support.asgi import Answer
from tests.support.client import FakeClient
from tests.support.clock import stamp, wall_clock
from tests.support.gateway_stream import Stream

__all__ = ["ORG", "Cluster", "Replica", "TearableDatabase", "until"]

ORG = "ns"
"""The organisation of requests that name no other; the namespace where FakeApi's short ways lead."""

_RATES = {scope: Rate(100_000.0, 100_000) for scope in Scope}


async def until(
    holds: Callable[[], Any], *, within: float = 5.0, state: Callable[[], Any] = lambda: ""
) -> None:
    """Return once `holds()`; fail with the state after `within` seconds of the loop's clock."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + within
    while not holds():
        assert loop.time() < deadline, f"not so after {within:g} s; the state: {state()}"
        await asyncio.sleep(0.002)


class TearableDatabase(Database):
    """A database that can be made unreachable."""

    down = False
    fail_at: int | None = None
    """How many transactions still work."""

    @override
    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        if self.fail_at is not None:
            self.down = self.down or self.fail_at <= 0
            self.fail_at -= 1
        self._must_be_up()
        async with super().transaction() as connection:
            yield connection

    @override
    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        self._must_be_up()
        async with super().reading() as connection:
            yield connection

    def _must_be_up(self) -> None:
        if self.down:
            raise StoreUnavailable("the test has pulled the plug")


@dataclass
class Replica:
    """One gateway process."""

    cluster: Cluster
    gateway: Gateway
    client: FakeClient
    records: IdempotencyRecords
    upkeep: Upkeep
    database: TearableDatabase | None
    app: ASGIApp = field(init=False)

    def __post_init__(self) -> None:
        self.app = build_app(self.gateway)

    @property
    def machines(self) -> Machines:
        """Its cache."""
        return self.gateway.machines

    async def call(
        self,
        method: str,
        target: str,
        *,
        json: Any = None,
        key: str | None = None,
        if_match: str | None = None,
        org: str | None = ORG,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One request with the API key of `org` (None: with none) and its whole answer."""
        body = b"" if json is None else orjson.dumps(json)
        sent = {"content-length": str(len(body)), "content-type": "application/json"}
        if key is not None:
            sent["idempotency-key"] = key
        if if_match is not None:
            sent["if-match"] = if_match
        scope = self._scope(method, target, org=org, headers=sent | dict(headers or {}))
        inbox: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
        outbox: list[Message] = []

        async def receive() -> Message:
            return inbox.pop(0) if inbox else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            outbox.append(message)

        await self.app(scope, receive, send)
        start, *rest = outbox
        content = b"".join(message.get("body", b"") for message in rest)
        return Answer(start["status"], Headers(raw=list(start["headers"])), content)

    def stream(self, target: str, *, last_event_id: str | None = None) -> Stream:
        """A request whose answer is read as it comes; to be entered."""
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        return Stream(self.app, self._scope("GET", target, org=ORG, headers=headers))

    async def create(self, key: str | None = None, **body: Any) -> Any:
        """Make a machine; what was answered."""
        answer = await self.call("POST", "/v1/machines", json=body, key=key)
        assert answer.status == 202, (answer.status, answer.body)
        return answer.json()

    async def get(self, machine_id: str) -> Any:
        """A machine that has to be there."""
        answer = await self.call("GET", f"/v1/machines/{machine_id}")
        assert answer.status == 200, (answer.status, answer.body)
        return answer.json()

    async def caught_up(self) -> None:
        """Return once the cache has all that happened to machines until now."""
        version = max((c[0] for c in self.cluster.api.history if c[2] == "machines"), default=0)
        informer = self.machines.informer
        await until(
            lambda: informer.position >= version, state=lambda: (informer.position, version)
        )

    def kill(self) -> None:
        """The process dies here: nothing that it has under way goes on, nor cleans up."""
        self.client.dead.set()
        if self.database is not None:
            self.database.down = True

    def _scope(
        self, method: str, target: str, *, org: str | None, headers: Mapping[str, str]
    ) -> dict[str, Any]:
        path, _, query = target.partition("?")
        sent = dict(headers)
        if org is not None:
            sent.setdefault("authorization", f"Bearer {self.cluster.tokens[org]}")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(k.lower().encode(), v.encode("latin-1")) for k, v in sent.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }


class Cluster:
    """A fake API server with the API keys of some organisations, and gateways on it.

    Args:
        directory: where the gateways' database is; None for none.
        orgs: who has an API key.

    Attributes:
        later: by how much the gateways' clocks (of the store) are ahead.
    """

    def __init__(
        self, directory: Path | None = None, *, orgs: tuple[str, ...] = (ORG, "other")
    ) -> None:
        self.api = FakeApi()
        self.tokens: dict[str, str] = {}
        self.later = timedelta()
        self._url = None if directory is None else f"sqlite:///{directory / 'gateway.db'}"
        for org in orgs:
            key = new_key(org, now=wall_clock())
            self.tokens[org] = key.token
            secret = {
                **key.secret,
                "metadata": {**key.secret["metadata"], "namespace": KEYS_NAMESPACE},
            }
            self.api.put("secrets", secret)

    @asynccontextmanager
    async def gateway(
        self, *, several: bool = False, redis: str | None = None, **changed: Any
    ) -> AsyncIterator[Replica]:
        """A gateway process, for a while.

        Args:
            several: whether it takes care of other replicas (which for SQLite is not its default).
            redis: where rates are counted.
            changed: settings.
        """
        settings = replace(load_settings(flags={}, environ={})[0], **changed)
        async with AsyncExitStack() as stack:
            database: Any = None
            if self._url is not None:
                database = await TearableDatabase.open(self._url)
                stack.push_async_callback(database.close)
            limiter = RateLimiter.open(redis, rates=_RATES)
            stack.push_async_callback(limiter.close)
            client = await stack.enter_async_context(FakeClient(self.api, latency=0.0))
            assert isinstance(client, FakeClient)
            replica, tasks = self._assembled(settings, client, database, limiter, several=several)
            for work in tasks:
                stack.push_async_callback(_end, asyncio.ensure_future(work))
            await until(replica.machines.informer.synced.is_set)
            await until(replica.gateway.authenticator.synced.is_set)  # type: ignore[attr-defined]
            yield replica

    def _assembled(
        self,
        settings: GatewaySettings,
        client: FakeClient,
        database: Any,
        limiter: RateLimiter,
        *,
        several: bool,
    ) -> tuple[Replica, list[Coroutine[Any, Any, None]]]:
        keys, machines = KeyRing(client), Machines(client)
        records = IdempotencyRecords(database, clock=lambda: datetime.now(UTC) + self.later)
        gateway = Gateway(
            settings=settings,
            authenticator=keys,
            resolver=KeyOrgs(),
            authorizer=KeyScopes(),
            limiter=limiter,
            machines=machines,
            freshness=Freshness(machines, WriteMarks(database) if several else None),
            changes=Changes(client, machines),
            idempotency=Idempotency(records),
            orgs=Orgs(client, create=settings.create_orgs, template=settings.org_template),
            ledger=UsageLedger(database),
        )
        upkeep = Upkeep(client, machines, records, settings)
        tasks = [keys.run(), machines.informer.run(), _drain(gateway)]
        return Replica(self, gateway, client, records, upkeep, database), tasks

    def later_by(self, seconds: float) -> None:
        """Let the clocks by which records are kept go ahead."""
        self.later += timedelta(seconds=seconds)

    # ---- what the controller and people with kubectl do

    def report(self, machine_id: str, phase: str, *, reason: str = "Word", **status: Any) -> None:
        """A status as the controller writes it: it has seen everything that was asked for until now."""

        def change(machine: Object) -> None:
            before = machine.get("status") or {}
            moved = before.get("phase") != phase
            machine["status"] = before | {
                "phase": phase,
                "reason": "DesiredStateReached" if phase in _SETTLED else reason,
                "retryable": False,
                "transitions": before.get("transitions", 0) + moved,
                "last_transition_at": stamp() if moved else before.get("last_transition_at"),
                "observedGeneration": machine["metadata"]["generation"],
                **status,
            }

        self.api.edit("machines", machine_id, change)

    def machine(self, name: str) -> Object:
        """A Machine as it is stored."""
        return self.api.find("machines", name)

    @property
    def names(self) -> list[str]:
        """Of all Machines."""
        return [item["metadata"]["name"] for item in self.api.all("machines")]

    def patched(self, since: int = 0) -> list[str]:
        """What gateways wrote to Machines, in words."""
        return [
            word
            for word in self.api.writes(since)
            if " machines/" in word or word.endswith(" machines")
        ]


_SETTLED = ("running", "sleeping", "destroyed")


async def _drain(gateway: Gateway) -> None:
    await gateway.draining.wait()
    gateway.machines.wake_followers()
    await asyncio.Future()


async def _end(task: asyncio.Task[None]) -> None:
    failed = task.exception() if task.done() and not task.cancelled() else None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    if failed is not None:
        raise failed
