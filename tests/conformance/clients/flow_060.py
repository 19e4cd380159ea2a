"""dedalus-sdk 0.6.0: no If-Match, no watch; the phase stands beside the status."""

from __future__ import annotations

from typing import Any

import dedalus_sdk
from witness import connect, done, each, main, say, told, until

SMALL: dict[str, Any] = {"vcpu": 0.5, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}


async def life(mode: str) -> None:
    """One machine from its creation to its end, and two more to have pages."""
    client = connect(mode)
    machine = await done(client.machines.create(**SMALL))
    say("create", machine=machine.to_dict(mode="json"))
    machine_id = machine.machine_id

    async def reach(phase: str) -> None:
        seen = await until(lambda: client.machines.retrieve(machine_id=machine_id), phase)
        say("reached", machine=seen.to_dict(mode="json"))

    await reach("running")
    machine = await done(
        client.machines.update(machine_id=machine_id, memory_mib=512, autosleep="1h30m")
    )
    say("update", machine=machine.to_dict(mode="json"))
    await reach("running")
    machine = await done(client.machines.sleep(machine_id=machine_id))
    say("sleep", machine=machine.to_dict(mode="json"))
    await reach("sleeping")
    machine = await done(client.machines.wake(machine_id=machine_id))
    say("wake", machine=machine.to_dict(mode="json"))
    await reach("running")
    machine = await done(client.machines.reboot(machine_id=machine_id, force=True))
    say("reboot", machine=machine.to_dict(mode="json"))
    await reach("running")

    # Short ids, as this client's documentation has them.
    bare = machine_id.removeprefix("dm-")
    say(
        "bare",
        machine_id=bare,
        answer=(await done(client.machines.retrieve(machine_id=bare))).machine_id,
    )

    key = f"0190e4e57dacf735daf02f1dda2044b0{mode}"
    first = await done(client.machines.create(**SMALL, idempotency_key=key))
    again = await done(client.machines.create(**SMALL, idempotency_key=key))
    # An empty key, as in its examples, means none; and no size at all means the server's own.
    other = await done(client.machines.create(idempotency_key=""))
    say("same", first=first.to_dict(mode="json"), again=again.to_dict(mode="json"))
    say("defaults", machine=other.to_dict(mode="json"))

    pages = await done(client.machines.list(limit=1))
    items = [item async for item in each(pages)]
    say("pages", found=[item.machine_id for item in items], phases=[item.phase for item in items])

    for item in items:
        machine = await done(client.machines.delete(machine_id=item.machine_id))
        say("delete", machine=machine.to_dict(mode="json"))
        seen = await until(
            lambda item=item: client.machines.retrieve(machine_id=item.machine_id), "destroyed"
        )
        say("gone", machine_id=item.machine_id, phase=seen.status.phase)
    pages = await done(client.machines.list())
    say("left", found=[item.machine_id async for item in each(pages)])


async def errors(mode: str) -> None:
    """What is refused, by the classes of the client."""
    client = connect(mode)
    await told(
        "missing",
        lambda: client.machines.retrieve(machine_id="0190e4e5-7dac-735d-af02-f1dda20444b0"),
    )
    await told("quarter", lambda: client.machines.create(vcpu=0.3))
    await told("autosleep", lambda: client.machines.create(autosleep="soon"))
    invalid = connect(mode, api_key="dsk-nonsense")
    await told("key invalid", invalid.machines.list)


if __name__ == "__main__":
    assert dedalus_sdk.__version__
    main({"life": life, "errors": errors})
