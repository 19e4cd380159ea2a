"""`local ssh`: the system's ssh, through KubeVirt's port-forward, with a certificate that lives for minutes.

The machine trusts the cluster's user authority (its seed says so), so no key of the user's has to be in the guest.
It is known by the certificate that the host authority made for its key. Both certificates are for the name of its VM.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.errors import NotFound
from machine_operator.kube.portforward import portforward
from machine_operator.kube.resources import MACHINES
from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.names import child_names
from machine_operator.kubevirt.seed import LOGIN_USER
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.settings import ClusterSettings

__all__ = ["SshError", "forward_stdio", "ssh_command"]

_CERTIFICATE_LIFE = 3600
_EXTENSIONS = ("permit-pty", "permit-port-forwarding", "permit-agent-forwarding", "permit-user-rc")
_CHUNK = 65536


class SshError(Exception):
    """The machine cannot be logged in to now; the message says why and what to do."""


async def ssh_command(
    paths: ClusterPaths, *, namespace: str, machine: str, command: Sequence[str]
) -> list[str]:
    """The argv of an ssh client that logs in to `machine`.

    Raises:
        SshError: there is no such machine, or it is not running.
    """
    settings = ClusterSettings.load(paths.settings)
    if settings is None:
        raise SshError(f"there is no cluster in {paths.data}: run `machine-operator local up`")
    async with KubeClient(await connect(str(paths.kubeconfig))) as client:
        found = await _running_machine(client, namespace, machine)
    vm = child_names(found["metadata"]["uid"]).vm
    directory = paths.data / "ssh"
    directory.mkdir(mode=0o700, exist_ok=True)
    known_hosts = directory / "known_hosts"
    authority = (paths.pki / "ssh-host-ca.pub").read_text()
    _replace(known_hosts, f"@cert-authority * {authority}".encode(), mode=0o600)
    identity, certificate = _issue_certificate(directory, paths.pki / "ssh-user-ca", vm=vm)
    forward = [sys.executable, "-m", "machine_operator.cli.main", "local", "forward"]
    where = ["--name", paths.name, "--data", str(paths.data), "--namespace", namespace]
    proxy = shlex.join([*forward, *where, vm, str(settings.ssh_port)])
    options = {
        "ProxyCommand": proxy.replace("%", "%%"),
        "IdentityFile": _quoted(identity),
        "CertificateFile": _quoted(certificate),
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": _quoted(known_hosts),
        # What its certificate has to be for.
        "HostKeyAlias": vm,
        "StrictHostKeyChecking": "yes",
        "LogLevel": "ERROR",
    }
    flags = [part for name, value in options.items() for part in ("-o", f"{name}={value}")]
    return ["ssh", "-F", "none", *flags, f"{LOGIN_USER}@{machine}.{namespace}", *command]


def _quoted(path: Path) -> str:
    """A path as a value of an ssh option, where spaces separate and percent signs mean something."""
    return f'"{str(path).replace("%", "%%")}"'


async def _running_machine(client: KubeClient, namespace: str, machine: str) -> dict[str, Any]:
    try:
        found = await client.get(MACHINES, machine, namespace=namespace)
    except NotFound as error:
        raise SshError(f"there is no machine {machine!r} in namespace {namespace!r}") from error
    status = found.get("status") or {}
    phase = status.get("phase", "accepted")
    if phase != "running":
        wake = ""
        if phase == "sleeping":
            patch = '{"spec":{"desired_state":"running"}}'
            wake = f"; wake it: kubectl -n {namespace} patch machine {machine} --type merge -p '{patch}'"
        why = status.get("last_error") or status.get("reason") or "not observed yet"
        raise SshError(f"machine {namespace}/{machine} is {phase} ({why}){wake}")
    return found


def _issue_certificate(directory: Path, authority: Path, *, vm: str) -> tuple[Path, Path]:
    """The user's key, made once, with a fresh certificate of the cluster's authority for one VM: both files.

    The key stays the same, so that two logins at once cannot mix one's key with the other's certificate.
    """
    path = directory / "identity"
    public = _own_key(path).public_key()
    now = int(time.time())
    certificate = Authority.load(authority.read_bytes()).certify_user(
        public.public_bytes(
            serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
        ).decode(),
        key_id="local ssh",
        principals=[vm],
        # The guest's clock may be behind by what its boot took.
        valid_after=now - 3600,
        valid_before=now + _CERTIFICATE_LIFE,
        extensions=_EXTENSIONS,
    )
    issued = directory / f"{vm}-cert.pub"
    _replace(issued, f"{certificate}\n".encode(), mode=0o600)
    return path, issued


def _own_key(path: Path) -> ed25519.Ed25519PrivateKey:
    if not path.exists():
        private = ed25519.Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.OpenSSH,
            serialization.NoEncryption(),
        )
        draft = path.with_name(f".{path.name}.{os.getpid()}.new")
        _replace(draft, private, mode=0o600)
        with contextlib.suppress(FileExistsError):  # another login was faster: its key is as good
            os.link(draft, path)
        draft.unlink()
    return _load(path)


def _load(path: Path) -> ed25519.Ed25519PrivateKey:
    key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)  # noqa: S101 - we made it
    return key


def _replace(path: Path, content: bytes, *, mode: int) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    draft.rename(path)


async def forward_stdio(paths: ClusterPaths, *, namespace: str, instance: str, port: int) -> None:
    """Carry standard input and output to and from a port of the VM until either side ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with (
        KubeClient(await connect(str(paths.kubeconfig))) as client,
        portforward(client, namespace=namespace, instance=instance, port=port) as socket,
    ):
        up = asyncio.create_task(_upwards(reader, socket))
        async for message in socket:
            if message.type == aiohttp.WSMsgType.BINARY:
                # A full pipe blocks here, and so slows the guest's side down: that is wanted.
                await loop.run_in_executor(None, _write_all, message.data)
        up.cancel()
        await asyncio.gather(up, return_exceptions=True)


async def _upwards(reader: asyncio.StreamReader, socket: aiohttp.ClientWebSocketResponse) -> None:
    while chunk := await reader.read(_CHUNK):
        await socket.send_bytes(chunk)
    await socket.close()


def _write_all(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
