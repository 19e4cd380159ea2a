"""dedalus-sdk 0.6.0 inside a machine: executions and SSH sessions, by bare machine ids."""

from __future__ import annotations

from typing import Any

from witness import connect, done, each, main, say, settled

_ACTIVE = ("wake_in_progress", "queued", "running")


async def executions(mode: str, *, machine_id: str) -> None:
    """Commands, their output and their events."""
    client = connect(mode)
    runs = client.machines.executions
    bare = machine_id.removeprefix("dm-")

    async def run(name: str, **request: Any) -> Any:
        begun = await done(runs.create(machine_id=bare, **request))
        where = {"machine_id": begun.machine_id, "execution_id": begun.execution_id}
        ended = await settled(lambda: runs.retrieve(**where), _ACTIVE)
        output = await done(runs.output(**where))
        facts = {"begun": begun, "ended": ended, "output": output}
        say(name, **{key: value.to_dict(mode="json") for key, value in facts.items()})
        return where

    where = await run("hello", command=["echo", "hello from inside"])
    events = [event.to_dict(mode="json") async for event in each(await done(runs.events(**where)))]
    say("events", events=events)
    await run("failed", command=["/bin/sh", "-c", "echo aside >&2; exit 3"])
    gone = await done(runs.delete(**where))
    say("deleted", gone=gone.to_dict(mode="json"))


async def ssh(mode: str, *, machine_id: str, public_key: str) -> None:
    """A session, until it can be used, and its end."""
    client = connect(mode)
    sessions = client.machines.ssh
    bare = machine_id.removeprefix("dm-")
    session = await done(sessions.create(machine_id=bare, public_key=public_key))
    where = {"machine_id": session.machine_id, "session_id": session.session_id}
    session = await settled(
        lambda: sessions.retrieve(**where), ("wake_in_progress", "ssh_in_progress")
    )
    say("ready", session=session.to_dict(mode="json"))
    closed = await done(sessions.delete(**where))
    say("closed", session=closed.to_dict(mode="json"))


if __name__ == "__main__":
    main({"executions": executions, "ssh": ssh})
