"""What the conformance tests work with: gateways of their own beside the cluster's, API keys, and bare requests."""

from __future__ import annotations

import asyncio
import io
import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from machine_operator.local.logfiles import tail
from tests.cluster.support import Cluster, Object, fetch, run, until

__all__ = [
    "SMALL",
    "Answer",
    "GatewayProcess",
    "Rest",
    "free_port",
    "make_key",
    "one",
    "revoke_key",
    "steps",
    "tell_story",
]

SMALL: Object = {"vcpu": 0.25, "memory_mib": 128, "storage_gib": 1, "autosleep": "never"}
"""The least that a machine can be."""

_OPERATOR = (sys.executable, "-m", "machine_operator.cli.main")
_PATIENCE = 30.0


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def make_key(cluster: Cluster, org: str, *scopes: str) -> str:
    """The token of a new API key, made as an administrator makes it."""
    options = [part for scope in scopes for part in ("--scope", scope)]
    access = ["--kubeconfig", str(cluster.paths.kubeconfig)]
    done = run([*_OPERATOR, "keys", "create", *access, "--org", org, *options])
    return done.stdout.strip()


def revoke_key(cluster: Cluster, token: str) -> None:
    """Revoke a key by the command line."""
    found = re.match(r"dsk-([a-z0-9]+)-", token)
    assert found, "that is no token"
    access = ["--kubeconfig", str(cluster.paths.kubeconfig)]
    run([*_OPERATOR, "keys", "revoke", *access, found[1]])


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        """The JSON in it."""
        return json.loads(self.raw)

    @property
    def identity(self) -> tuple[int, bytes, str | None]:
        """What a replay has to repeat."""
        return self.status, self.raw, self.headers.get("ETag")


class Rest:
    """Requests without any client's manners: nothing is retried, nothing is raised for a status."""

    def __init__(self, session: aiohttp.ClientSession, base: str, key: str) -> None:
        self._session = session
        self._base = base
        self._headers = {"Authorization": f"Bearer {key}"}

    @classmethod
    @asynccontextmanager
    async def open(cls, base: str, key: str) -> AsyncIterator[Rest]:
        """A connection pool of its own, as long as the block runs."""
        timeout = aiohttp.ClientTimeout(total=_PATIENCE)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield cls(session, base, key)

    async def call(
        self, method: str, path: str, body: Object | None = None, **headers: str
    ) -> Answer:
        """One request; a header's name is written with underscores.

        Raises:
            aiohttp.ClientError: there was no answer.
        """
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = self._headers | named
        data = None
        if body is not None:
            # As a stream: the client warns of large bodies.
            data = io.BytesIO(json.dumps(body).encode())
            sent["Content-Type"] = "application/json"
        async with self._session.request(
            method, self._base + path, data=data, headers=sent
        ) as response:
            return Answer(response.status, response.headers, await response.read())

    async def create(self, key: str, **sizes: Any) -> Answer:
        """POST /v1/machines with an Idempotency-Key."""
        return await self.call("POST", "/v1/machines", SMALL | sizes, Idempotency_Key=key)

    async def ids(self) -> list[str]:
        """All machines of the organisation, page by page."""
        found: list[str] = []
        path = "/v1/machines?limit=200"
        while True:
            answer = await self.call("GET", path)
            assert answer.status == 200, answer
            found += [item["machine_id"] for item in answer.body["items"]]
            cursor = answer.body.get("next_cursor")
            if not cursor:
                return found
            path = f"/v1/machines?limit=200&cursor={cursor}"

    async def eventually(self, machine_id: str, phase: str) -> Object:
        """The machine, once it is in a phase."""
        deadline = time.monotonic() + _PATIENCE
        while True:
            answer = await self.call("GET", f"/v1/machines/{machine_id}")
            if answer.status == 200 and answer.body["phase"] == phase:
                body: Object = answer.body
                return body
            assert time.monotonic() < deadline, f"{machine_id} is not {phase}: {answer.raw!r}"
            await asyncio.sleep(0.1)


@dataclass
class GatewayProcess:
    """A gateway beside the cluster's own, with the same rights; it can be killed and started again at its port."""

    cluster: Cluster
    log: Path
    database: str
    options: tuple[str, ...] = ()
    port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)
    _process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """Its base URL."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it, and return at once."""
        argv = [
            *(*_OPERATOR, "gateway"),
            f"--kubeconfig={self.cluster.paths.kubeconfigs}/gateway.yaml",
            f"--address=127.0.0.1:{self.port}",
            f"--gateway-metrics-address=127.0.0.1:{self.metrics_port}",
            f"--database={self.database}",
            *self.options,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)

    def up(self) -> GatewayProcess:
        """Start it, and wait until it is ready."""
        self.start()
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until it serves."""
        until(self.ready, f"the gateway at port {self.port} to be ready", timeout=_PATIENCE)

    def ready(self) -> bool:
        """Whether it says so; an AssertionError says why not."""
        assert self._process is not None
        assert self._process.poll() is None, f"the gateway ended:\n{tail(self.log, lines=30)}"
        status, text = fetch(f"http://127.0.0.1:{self.metrics_port}/readyz")
        assert status == 200, f"{text}\n{tail(self.log, lines=10)}"
        return True

    def kill(self) -> None:
        """kill -9."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it in good order."""
        self._end(signal.SIGTERM)

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_PATIENCE)
            finally:
                self._process.kill()
                self._process.wait(_PATIENCE)
            self._process = None

    def complaints(self) -> list[str]:
        """The lines of its log that nobody wants to see."""
        lines = self.log.read_text(errors="replace").splitlines()
        return [line for line in lines if " ERROR " in line or " CRITICAL " in line]


def tell_story(
    python: Path, program: Path, story: str, mode: str, *, env: Mapping[str, str], **arguments: Any
) -> list[Object]:
    """Run a scenario program in a client's environment; the lines that it printed."""
    done = run(
        [str(python), "-s", "-B", str(program), story, mode, json.dumps(arguments)],
        env=env,
        timeout=120.0,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def steps(lines: list[Object], name: str) -> list[Object]:
    """What a program told of one step, in order."""
    return [line for line in lines if line["step"] == name]


def one(lines: list[Object], name: str) -> Object:
    """The only time that a step came."""
    [line] = steps(lines, name)
    return line
