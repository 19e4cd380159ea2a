"""What a machine goes through while the operator dies: each story ends where the machine can stay."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable

from tests.support.machines import KEY
from tests.support.virtual import eventually
from tests.support.world import World

__all__ = ["STORIES", "Story", "start"]

Story = Callable[[World], Awaitable[None]]

REACHED = "DesiredStateReached"
LONG = 2000.0


def create(world: World) -> None:
    """A Machine whose UID, and so all that is made from it, is the same in each run."""
    random.seed(0)
    world.create(autosleep="never")


async def start(world: World) -> None:
    """From nothing to running."""
    create(world)
    await world.phase("running", reason=REACHED, within=LONG)


async def sleep(world: World) -> None:
    await start(world)
    world.edit(desired_state="sleeping")
    await world.phase("sleeping", reason=REACHED, within=LONG)


async def wake(world: World) -> None:
    await sleep(world)
    # The seed is rendered again with the key that it has.
    world.edit(desired_state="running", storage_gib=20, ssh_authorized_keys=[KEY])
    await world.phase("running", reason=REACHED, within=LONG)
    await grown(world, 20)


async def requests(world: World) -> None:
    """The same by power requests."""
    await start(world)
    world.request_power("sleeping", sequence=None)
    await world.phase("sleeping", reason=REACHED, within=LONG)
    world.request_power("running", sequence=None)
    await world.phase("running", reason=REACHED, within=LONG)


async def wake_while_stopping(world: World) -> None:
    await start(world)
    world.kubevirt.guests.stubborn[world.vm_name()] = 20.0
    world.edit(desired_state="sleeping")
    await world.phase("stopping", within=LONG)
    world.edit(desired_state="running")
    await eventually(lambda: len(world.kubevirt.starts) == 2, within=LONG, state=world.describe)
    await world.phase("running", reason=REACHED, within=LONG)


async def grow(world: World) -> None:
    await start(world)
    world.edit(storage_gib=20)
    await grown(world, 20)


async def resize(world: World) -> None:
    """Other sizes wait for the next start."""
    await start(world)
    world.edit(vcpu=2, memory_mib=1024)
    await condition(world, "RestartPending", "True")
    world.edit(desired_state="sleeping")
    await world.phase("sleeping", reason=REACHED, within=LONG)
    world.edit(desired_state="running")
    await world.phase("running", reason=REACHED, within=LONG)
    await condition(world, "RestartPending", "False")


async def image(world: World) -> None:
    await start(world)
    world.edit(image="registry.example/root:2")
    await condition(world, "RestartPending", "True")
    world.edit(desired_state="sleeping")
    await world.phase("sleeping", reason=REACHED, within=LONG)
    world.edit(desired_state="running")
    await world.phase("running", reason=REACHED, within=LONG)


async def autosleep(world: World) -> None:
    """It falls asleep by itself, is touched, and falls asleep once more."""
    await start(world)
    world.edit(autosleep="1m")
    await world.phase("sleeping", reason=REACHED, within=LONG)
    world.touch()
    await world.phase("running", reason=REACHED, within=LONG)
    await world.phase("sleeping", reason=REACHED, within=LONG)


async def power_off(world: World) -> None:
    await start(world)
    world.kubevirt.power_off(world.vm_name())
    await world.phase("sleeping", reason=REACHED, within=LONG)
    world.touch()
    await world.phase("running", reason=REACHED, within=LONG)


async def crash_loop(world: World) -> None:
    """The guest dies right after each boot, is held off, and is well again."""
    await start(world)
    vm = world.vm_name()
    world.kubevirt.crash_loop(vm, "late")
    await world.phase("failed", reason="CrashLoop", within=LONG)
    world.kubevirt.crash_loop(vm, None)
    await world.phase("running", reason=REACHED, within=LONG)
    # Until the crashes no longer count.
    await eventually(lambda: "backoff" not in world.status(), within=LONG, state=world.describe)


async def delete(world: World) -> None:
    await start(world)
    world.delete()
    await eventually(world.gone, within=LONG, state=world.describe)


async def retain(world: World) -> None:
    await start(world)
    world.edit(reclaim_policy="Retain")
    world.delete()
    await eventually(world.gone, within=LONG, state=world.describe)


async def destroy(world: World) -> None:
    await start(world)
    world.edit(desired_state="destroyed")
    await world.phase("destroyed", reason=REACHED, within=LONG)


async def delete_while_starting(world: World) -> None:
    create(world)
    await asyncio.sleep(0.3)
    world.delete()
    await eventually(world.gone, within=LONG, state=world.describe)


async def grown(world: World, size: int) -> None:
    """Wait until the home disk has this size."""

    def there() -> bool:
        return (world.status().get("effective") or {}).get("storage_gib") == size

    await eventually(there, within=LONG, state=world.describe)


async def condition(world: World, kind: str, status: str) -> None:
    """Wait for a condition."""

    def there() -> bool:
        conditions = world.status().get("conditions") or []
        return any((c["type"], c["status"]) == (kind, status) for c in conditions)

    await eventually(there, within=LONG, state=world.describe)


STORIES: dict[str, Story] = {
    "create": start,
    "sleep": sleep,
    "wake": wake,
    "requests": requests,
    "wake-while-stopping": wake_while_stopping,
    "grow": grow,
    "resize": resize,
    "image": image,
    "autosleep": autosleep,
    "power-off": power_off,
    "crash-loop": crash_loop,
    "delete": delete,
    "retain": retain,
    "destroy": destroy,
    "delete-while-starting": delete_while_starting,
}
