"""Machines for the benchmarks of the way into them: over REST, and straight to the guest's sshd.

The straight way uses what the gateway uses, certificate and all, but no gateway, no API server and no virt-api.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import asyncssh
from clusters import BenchError, Cluster, progress

from machine_operator.gateway.credentials import Credentials, load_credentials

__all__ = ["SPEC", "Inside", "Machine", "inside"]

# Half a processor's share: the node of two has room for twenty of them.
SPEC: dict[str, Any] = {"vcpu": 0.5, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}

_ENDED = ("succeeded", "failed", "cancelled", "expired")
_LIMIT = 120.0
_LOOK = 0.002
"""Seconds between two looks at an execution."""


@dataclass(frozen=True, slots=True)
class Machine:
    """One that runs.

    Attributes:
        id: over REST.
        vm: name of its VM.
        address: of its guest.
    """

    id: str
    vm: str
    address: str

    @property
    def path(self) -> str:
        """Over REST."""
        return f"/v1/machines/{self.id}"


@dataclass(frozen=True, slots=True)
class Inside:
    """A cluster, and both ways into its machines.

    Attributes:
        directory: for files.
        base: URL of the gateway.
        session: with the API key.
    """

    cluster: Cluster
    directory: Path
    base: str
    session: aiohttp.ClientSession
    credentials: Credentials

    # ---- over REST

    async def call(self, method: str, path: str, body: Any = None) -> dict[str, Any]:
        """One request, which has to succeed."""
        async with self.session.request(method, self.base + path, json=body) as response:
            text = await response.text()
            if response.status >= 300:
                raise BenchError(f"{method} {path}: {response.status} {text[:500]}")
            found: dict[str, Any] = json.loads(text)
        return found

    async def create(self) -> str:
        """A new machine."""
        made = await self.call("POST", "/v1/machines", SPEC)
        machine_id: str = made["machine_id"]
        return machine_id

    async def running(self, machine_id: str) -> Machine:
        """A machine, once it runs."""
        deadline = time.monotonic() + _LIMIT
        while (seen := await self.call("GET", f"/v1/machines/{machine_id}"))["phase"] != "running":
            if time.monotonic() > deadline:
                raise BenchError(f"{machine_id} does not run: {seen}")
            await asyncio.sleep(0.1)
        text = await asyncio.to_thread(
            self.cluster.kubectl, "get", "machine", machine_id, "-o", "json"
        )
        status = json.loads(text)["status"]
        return Machine(machine_id, status["vm"]["name"], status["addresses"][0])

    async def destroy(self, ids: Sequence[str]) -> None:
        """Away with them."""
        paths = [f"/v1/machines/{one}" for one in ids]
        for path in paths:
            await self.call("DELETE", path)
        deadline = time.monotonic() + _LIMIT
        for path in paths:
            while (seen := await self.call("GET", path))["phase"] != "destroyed":
                if time.monotonic() > deadline:
                    raise BenchError(f"{path} is not gone: {seen}")
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def machines(self, count: int = 1) -> AsyncIterator[list[Machine]]:
        """New machines, for as long as the block runs."""
        begun: list[str] = []
        made: list[Machine] = []
        try:
            while len(made) < count:
                some = min(4, count - len(made))
                begun += await asyncio.gather(*(self.create() for _ in range(some)))
                made += await asyncio.gather(*(self.running(one) for one in begun[-some:]))
            yield made
        finally:
            await self.destroy(begun)

    async def begin(self, machine_id: str, *command: str, timeout_ms: int = 0) -> str:
        """A new execution; its path."""
        path = f"/v1/machines/{machine_id}/executions"
        body = {"command": list(command), "timeout_ms": timeout_ms}
        made = await self.call("POST", path, body)
        return f"{path}/{made['execution_id']}"

    async def ended(self, execution: str, *, look: float = _LOOK) -> dict[str, Any]:
        """An execution, once it has ended well."""
        deadline = time.monotonic() + _LIMIT
        while (seen := await self.call("GET", execution))["status"] not in _ENDED:
            if time.monotonic() > deadline:
                raise BenchError(f"{execution} does not end: {seen}")
            await asyncio.sleep(look)
        if seen["status"] != "succeeded":
            raise BenchError(f"{execution}: {seen}")
        return seen

    # ---- straight

    @property
    def port(self) -> int:
        """Of the guests' sshd."""
        return self.cluster.settings.ssh_port

    @asynccontextmanager
    async def straight(self, machine: Machine) -> AsyncIterator[asyncssh.SSHClientConnection]:
        """A connection to the guest's sshd."""
        key = asyncssh.generate_private_key("ssh-ed25519")
        line = key.export_public_key().decode()
        certificate = asyncssh.import_certificate(self._certificate(line, machine))
        authority = asyncssh.import_public_key(self.credentials.host_authority.public)
        async with asyncssh.connect(
            machine.address,
            self.port,
            username="root",
            client_keys=[(key, certificate)],
            known_hosts=([], [authority], []),
            host_key_alias=machine.vm,
            agent_path=None,
            config=None,
        ) as connection:
            yield connection

    def ssh(self, machine: Machine, *options: str) -> list[str]:
        """The argv of the system's ssh to the guest, without a command."""
        key = self.directory / f"{machine.vm}.key"
        if not key.exists():
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True
            )
            public = key.with_suffix(".key.pub").read_text()
            key.with_suffix(".cert").write_text(self._certificate(public, machine) + "\n")
            hosts = f"@cert-authority {machine.vm} {self.credentials.host_authority.public}\n"
            key.with_suffix(".hosts").write_text(hosts)
        values = {
            "CertificateFile": key.with_suffix(".cert"),
            "UserKnownHostsFile": key.with_suffix(".hosts"),
            "GlobalKnownHostsFile": "/dev/null",
            "HostKeyAlias": machine.vm,
            "StrictHostKeyChecking": "yes",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        flags = [part for name, value in values.items() for part in ("-o", f"{name}={value}")]
        where = ["-p", str(self.port), f"root@{machine.address}"]
        return ["ssh", "-F", "none", "-i", str(key), *flags, *options, *where]

    def _certificate(self, public: str, machine: Machine) -> str:
        now = int(time.time())
        return self.credentials.user_authority.certify_user(
            public.strip(),
            key_id="bench",
            principals=[machine.vm],
            valid_after=now - 3600,
            valid_before=now + 7200,
            extensions=("permit-pty", "permit-port-forwarding"),
        )


@asynccontextmanager
async def inside(cluster: Cluster, directory: Path) -> AsyncIterator[Inside]:
    """Both ways into the machines of a cluster that is up."""
    told = json.loads(await asyncio.to_thread(_environment, cluster))
    headers = {"Authorization": f"Bearer {told['DEDALUS_API_KEY']}"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as session:
        credentials = load_credentials(cluster.paths.pki)
        world = Inside(cluster, directory, told["DEDALUS_BASE_URL"], session, credentials)
        progress("the way into machines is open")
        yield world


def _environment(cluster: Cluster) -> str:
    answer = subprocess.run(
        cluster.command("env", "--json"), capture_output=True, text=True, check=True
    )
    return answer.stdout
