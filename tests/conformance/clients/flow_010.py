"""dedalus-sdk 0.1.0: If-Match is demanded, machines are watched, every answer is held against the models."""

from __future__ import annotations

import time
from typing import Any

import dedalus_sdk
from witness import SMALL, connect, done, each, main, say, told

STRICT = {"_strict_response_validation": True}


async def life(mode: str) -> None:
    """One machine from its creation to its end, and two more to have pages."""
    client = connect(mode, **STRICT)
    machine = await done(client.machines.create(**SMALL))
    say("create", machine=machine.to_dict(mode="json"))
    machine_id = machine.machine_id
    await _watch(client, machine_id)

    machine = await done(client.machines.retrieve(machine_id=machine_id))
    seen = machine.status.revision
    machine = await done(
        client.machines.update(machine_id=machine_id, if_match=seen, memory_mib=512)
    )
    say("update", machine=machine.to_dict(mode="json"), seen=seen)
    await _watch(client, machine_id)

    for verb in ("sleep", "wake", "wake"):
        machine = await done(client.machines.retrieve(machine_id=machine_id))
        call = getattr(client.machines, verb)
        machine = await done(call(machine_id=machine_id, if_match=machine.status.revision))
        say(verb, machine=machine.to_dict(mode="json"))
        await _watch(client, machine_id)

    first = await done(client.machines.create(**SMALL, idempotency_key=f"same-{mode}"))
    again = await done(client.machines.create(**SMALL, idempotency_key=f"same-{mode}"))
    other = await done(client.machines.create(**SMALL))
    say("same", first=first.to_dict(mode="json"), again=again.to_dict(mode="json"))

    pages = await done(client.machines.list(limit=1))
    found = [item.machine_id async for item in each(pages)]
    say("pages", found=found, made=[machine_id, first.machine_id, other.machine_id])

    for one in found:
        await _destroy(client, one)
    pages = await done(client.machines.list())
    say("left", found=[item.machine_id async for item in each(pages)])


async def _watch(client: Any, machine_id: str) -> None:
    started = time.monotonic()
    events = [
        event.to_dict(mode="json")
        async for event in each(await done(client.machines.watch(machine_id=machine_id)))
    ]
    say("watch", events=events, seconds=round(time.monotonic() - started, 1))


async def _destroy(client: Any, machine_id: str) -> None:
    machine = await done(client.machines.retrieve(machine_id=machine_id))
    machine = await done(
        client.machines.delete(machine_id=machine_id, if_match=machine.status.revision)
    )
    say("delete", machine=machine.to_dict(mode="json"))
    await _watch(client, machine_id)
    try:
        machine = await done(client.machines.retrieve(machine_id=machine_id))
    except dedalus_sdk.NotFoundError:
        say("gone", machine_id=machine_id, phase=None)
    else:
        say("gone", machine_id=machine_id, phase=machine.status.phase)


async def errors(mode: str, *, reader: str, stranger: str) -> None:
    """What is refused, by the classes of the client. `reader` and `stranger` are API keys."""
    client = connect(mode, **STRICT)
    machine = await done(client.machines.create(**SMALL, idempotency_key=f"errors-{mode}"))
    machine_id, nobody = machine.machine_id, "dm-00000000-0000-4000-8000-000000000000"
    invalid = connect(mode, api_key="dsk-nonsense", **STRICT)
    await told("key invalid", invalid.machines.list)
    keyless = {"Authorization": dedalus_sdk.omit}
    await told("key missing", lambda: client.machines.list(extra_headers=keyless))
    reading = connect(mode, api_key=reader, **STRICT)
    await told("scope", lambda: reading.machines.create(**SMALL))
    say("reader", machine=(await done(reading.machines.retrieve(machine_id=machine_id))).machine_id)
    elsewhere = connect(mode, dedalus_org_id="00000000-0000-4000-8000-000000000000", **STRICT)
    await told("org", lambda: elsewhere.machines.retrieve(machine_id=machine_id))
    alien = connect(mode, api_key=stranger, **STRICT)
    await told("other org", lambda: alien.machines.retrieve(machine_id=machine_id))
    await told("missing", lambda: client.machines.retrieve(machine_id=nobody))
    await told("watch missing", lambda: client.machines.watch(machine_id=nobody))
    await told("bad id", lambda: client.machines.retrieve(machine_id="a/b c"))
    await told("stale", lambda: client.machines.sleep(machine_id=machine_id, if_match="0"))
    await told(
        "key reused",
        lambda: client.machines.create(
            vcpu=2, memory_mib=256, storage_gib=1, idempotency_key=f"errors-{mode}"
        ),
    )
    await told("quarter", lambda: client.machines.create(vcpu=0.3, memory_mib=256, storage_gib=1))
    await told(
        "too much", lambda: client.machines.create(vcpu=1, memory_mib=200_000, storage_gib=1)
    )
    await done(client.machines.update(machine_id=machine_id, if_match="*", storage_gib=2))
    await told(
        "shrink",
        lambda: client.machines.update(machine_id=machine_id, if_match="*", storage_gib=1),
    )
    await told(
        "member",
        lambda: client.machines.create(**SMALL, extra_body={"colour": "green"}),
    )
    await done(client.machines.delete(machine_id=machine_id, if_match="*"))
    await told("wake destroyed", lambda: client.machines.wake(machine_id=machine_id, if_match="*"))


async def limits(mode: str) -> None:
    """Against a gateway with a read each second and a change each minute."""
    client = connect(mode, **STRICT)
    for _ in range(2):
        started = time.monotonic()
        await done(client.machines.list())
        say("read", seconds=round(time.monotonic() - started, 2))
    patient = client.with_options(max_retries=0)
    nobody = "dm-00000000-0000-4000-8000-000000000000"
    for number in range(2):
        await told(
            f"change {number}", lambda: patient.machines.wake(machine_id=nobody, if_match="1")
        )


async def headers(mode: str, *, key: str) -> None:
    """Both ways to send a key at once, and the other one alone."""
    client = connect(mode, x_api_key=key, **STRICT)
    await done(client.machines.list(limit=0))
    await done(client.machines.list(extra_headers={"Authorization": dedalus_sdk.omit}))
    await told("cursor", lambda: client.machines.list(cursor="cursor"))


if __name__ == "__main__":
    main({"life": life, "errors": errors, "limits": limits, "headers": headers})
