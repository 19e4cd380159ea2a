"""dedalus-sdk 0.1.0 inside a machine: executions, artifacts, previews, SSH sessions, terminals."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import connect as open_websocket
from witness import connect, done, each, main, say, settled

STRICT = {"_strict_response_validation": True}


async def executions(mode: str, *, machine_id: str) -> None:
    """Commands, their output and their events."""
    client = connect(mode, **STRICT)
    runs = client.machines.executions

    async def run(name: str, **request: Any) -> Any:
        begun = await done(runs.create(machine_id=machine_id, **request))
        where = {"machine_id": machine_id, "execution_id": begun.execution_id}
        ended = await settled(
            lambda: runs.retrieve(**where), ("wake_in_progress", "queued", "running")
        )
        output = await done(runs.output(**where))
        facts = {"begun": begun, "ended": ended, "output": output}
        say(name, **{key: value.to_dict(mode="json") for key, value in facts.items()})
        return where

    where = await run("hello", command=["echo", "hello from inside"])
    events = [event.to_dict(mode="json") async for event in each(await done(runs.events(**where)))]
    say("events", events=events)
    await run(
        "whole",
        command=["/bin/sh", "-c", 'cat; echo "$GREETING in $(pwd)"; echo aside >&2; exit 3'],
        cwd="/tmp",
        env={"GREETING": "salve"},
        stdin="from outside\n",
    )
    await run("signal", command=["/bin/sh", "-c", "kill -9 $$"])
    await run("missing", command=["/no/such/program"])
    await run("late", command=["sleep", "60"], timeout_ms=500)
    begun = await done(runs.create(machine_id=machine_id, command=["sleep", "60"]))
    gone = await done(runs.delete(machine_id=machine_id, execution_id=begun.execution_id))
    ended = await settled(
        lambda: runs.retrieve(machine_id=machine_id, execution_id=begun.execution_id),
        ("wake_in_progress", "queued", "running"),
    )
    say("cancelled", gone=gone.to_dict(mode="json"), ended=ended.to_dict(mode="json"))
    found = [item.execution_id async for item in each(await done(runs.list(machine_id=machine_id)))]
    say("list", found=found)


async def artifacts(mode: str, *, machine_id: str) -> None:
    """A file that a run leaves behind."""
    client = connect(mode, **STRICT)
    runs = client.machines.executions
    program = (
        'head -c 300000 /dev/urandom >"$DEDALUS_ARTIFACTS_DIR/noise.bin"; '
        'sha256sum <"$DEDALUS_ARTIFACTS_DIR/noise.bin"'
    )
    begun = await done(runs.create(machine_id=machine_id, command=["/bin/sh", "-c", program]))
    where = {"machine_id": machine_id, "execution_id": begun.execution_id}
    ended = await settled(lambda: runs.retrieve(**where), ("wake_in_progress", "queued", "running"))
    output = await done(runs.output(**where))
    [ref] = ended.artifacts
    one = {"machine_id": machine_id, "artifact_id": ref.artifact_id}
    artifact = await done(client.machines.artifacts.retrieve(**one))
    content = httpx.get(artifact.download_url).content
    part = httpx.get(artifact.download_url, headers={"Range": "bytes=100-199"})
    say(
        "artifact",
        artifact=artifact.to_dict(mode="json"),
        told=output.stdout.split()[0],
        found=hashlib.sha256(content).hexdigest(),
        part=[part.status_code, part.content == content[100:200]],
    )
    items = [
        item.artifact_id
        async for item in each(await done(client.machines.artifacts.list(machine_id=machine_id)))
    ]
    await done(client.machines.artifacts.delete(**one))
    say("removed", listed=items, after=httpx.get(artifact.download_url).status_code)


async def previews(mode: str, *, machine_id: str, port: int) -> None:
    """A server in the machine, seen from outside. `port` is one that it listens on."""
    client = connect(mode, **STRICT)
    shown = client.machines.previews
    preview = await done(shown.create(machine_id=machine_id, port=port, visibility="public"))
    where = {"machine_id": machine_id, "preview_id": preview.preview_id}
    preview = await settled(lambda: shown.retrieve(**where), ("wake_in_progress",))
    answer = _visit(preview.url)
    say(
        "preview", preview=preview.to_dict(mode="json"), status=answer.status_code, text=answer.text
    )
    items = [item.preview_id async for item in each(await done(shown.list(machine_id=machine_id)))]
    closed = await done(shown.delete(**where))
    after = _visit(preview.url).status_code
    say("closed", listed=items, status=closed.status, after=after)


def _visit(url: str) -> httpx.Response:
    """As a browser does, which knows where names below `localhost` are; the C library may not."""
    named = httpx.URL(url)
    there = named.copy_with(host="127.0.0.1")
    host = named.netloc.decode()
    return httpx.get(there, headers={"Host": host}, timeout=60)


async def ssh(mode: str, *, machine_id: str) -> None:
    """The flow of `dedalus ssh`, with the system's own ssh and scp."""
    client = connect(mode, **STRICT)
    sessions = client.machines.ssh
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        key = directory / "key"
        _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key))
        public = key.with_name("key.pub").read_text()
        session = await done(sessions.create(machine_id=machine_id, public_key=public))
        where = {"machine_id": machine_id, "session_id": session.session_id}
        session = await settled(lambda: sessions.retrieve(**where), ("wake_in_progress",))
        options = _options(directory, session.connection)
        target = f"{session.connection.ssh_username}@{session.connection.endpoint}"
        port = str(session.connection.port)
        there = _run("ssh", *options, "-p", port, target, "echo over ssh; exit 7", code=7)
        sent = directory / "sent"
        sent.write_bytes(bytes(range(256)) * 400)
        _run("scp", *options, "-P", port, str(sent), f"{target}:brought")
        _run("scp", *options, "-P", port, f"{target}:brought", str(directory / "back"))
        same = (directory / "back").read_bytes() == sent.read_bytes()
        closed = await done(sessions.delete(**where))
        _run("ssh", *options, "-p", port, target, "true", code=255)
        say("ssh", session=session.to_dict(mode="json"), said=there, same=same, after=closed.status)


def _options(directory: Path, connection: Any) -> list[str]:
    certificate, hosts = directory / "key-cert.pub", directory / "known_hosts"
    certificate.write_text(connection.user_certificate + "\n")
    trust = connection.host_trust
    hosts.write_text(f"@cert-authority {trust.host_pattern} {trust.public_key}\n")
    values = {
        "CertificateFile": certificate,
        "UserKnownHostsFile": hosts,
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
    }
    flags = [part for name, value in values.items() for part in ("-o", f"{name}={value}")]
    return ["-F", "none", "-i", str(directory / "key"), *flags]


def _run(*argv: str, code: int = 0) -> str:
    ended = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=60)
    if ended.returncode != code:
        raise RuntimeError(f"{argv[0]} ended with {ended.returncode}, not {code}: {ended.stderr}")
    return ended.stdout


async def terminals(mode: str, *, machine_id: str) -> None:
    """A shell over the WebSocket, left and found again."""
    client = connect(mode, **STRICT)
    shells = client.machines.terminals
    terminal = await done(
        shells.create(machine_id=machine_id, width=100, height=30, env={"PLACE": "inside"})
    )
    where = {"machine_id": machine_id, "terminal_id": terminal.terminal_id}
    terminal = await settled(lambda: shells.retrieve(**where), ("wake_in_progress",))
    # Where the client's own connect() leads, no server can be: it leaves the braces in the path.
    with open_websocket(terminal.stream_url) as socket:
        _type(socket, "echo $PLACE at $(stty size)\n")
        first = _until(socket, lambda text: "inside at 30 100" in text)
        _send(socket, type="resize", width=120, height=40)
        _type(socket, "sleep 0.3; stty size; echo left'.'\n")
        second = _until(socket, lambda text: "40 120" in text and "left." in text)
    with open_websocket(terminal.stream_url) as socket:
        replayed = _until(socket, lambda text: "left." in text)
        _type(socket, "exit\n")
        last = [json.loads(message) for message in socket]
    say(
        "terminal",
        terminal=terminal.to_dict(mode="json"),
        seen=[first, second],
        replayed=replayed,
        last=last[-1],
        code=socket.protocol.close_code,
    )
    ended = await settled(lambda: shells.retrieve(**where), ("ready",))
    say("ended", status=ended.status)


def _type(socket: Any, text: str) -> None:
    _send(socket, type="input", data=base64.b64encode(text.encode()).decode())


def _send(socket: Any, **message: Any) -> None:
    socket.send(json.dumps(message))


def _until(socket: Any, holds: Callable[[str], bool]) -> str:
    seen = b""
    while not holds(seen.decode(errors="replace")):
        message = json.loads(socket.recv(timeout=60))
        if message["type"] != "output":
            raise RuntimeError(f"not output but {message}; seen: {seen!r}")
        seen += base64.b64decode(message["data"])
    return seen.decode(errors="replace")


if __name__ == "__main__":
    main(
        {
            "executions": executions,
            "artifacts": artifacts,
            "previews": previews,
            "ssh": ssh,
            "terminals": terminals,
        }
    )
