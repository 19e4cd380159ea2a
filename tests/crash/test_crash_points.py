"""The operator dies at each of its writes, before or after the write took effect; the next one finishes the work.

The end is the one of an undisturbed run; on the way no machine ever has two VMs, VMIs or disks, and the host key is
made once.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.apiserver import FakeApi
from tests.support.machines import KEY
from tests.support.virtual import eventually, run_virtual
from tests.support.world import Operator, World

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(60)

Story = Callable[[World], Awaitable[None]]

ONE_OF_A_KIND = ("virtualmachines", "virtualmachineinstances", "persistentvolumeclaims", "secrets")
_VOLATILE = {
    "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "lastTransitionTime",
    "last_transition_at", "last_progress_at", "instance_uid", "volumeName",
    "phaseTransitionTimestamp", "retryAfterTimestamp", "at",
    "ssh-host-key", "ssh-host-key.pub", "userdata",
    # Counted by whoever sees them; an operator that is away does not.
    "transitions", "revision",
    # Depends on the UID.
    "machines.dedaluslabs.ai/applied", "machines.dedaluslabs.ai/uid", "serial", "uuid", "generation",
}  # fmt: skip


class Witness:
    """Sees every change, and fails at once where there are two of what may be there once."""

    def __init__(self, api: FakeApi) -> None:
        self.host_keys: set[str] = set()
        self.children: set[tuple[str, str, str]] = set()
        api.listeners.append(self._saw)

    def _saw(self, kind: str, plural: str, body: Object) -> None:
        if plural in ONE_OF_A_KIND:
            self.children.add((plural, body["metadata"]["name"], body["metadata"]["uid"]))
        if plural == "secrets":
            self.host_keys.add(base64.b64decode(body["data"]["ssh-host-key"]).decode())

    def uids(self, plural: str) -> set[str]:
        """UIDs of all objects of a kind that there ever were."""
        return {uid for kind, _, uid in self.children if kind == plural}


async def live(world: World) -> None:
    await world.phase("running", reason="DesiredStateReached", within=900.0)


async def sleep(world: World) -> None:
    await live(world)
    world.edit(desired_state="sleeping")
    await world.phase("sleeping", within=900.0)


async def wake(world: World) -> None:
    await sleep(world)
    # The seed is rendered again with the key that it has.
    world.edit(desired_state="running", storage_gib=20, ssh_authorized_keys=[KEY])
    await world.phase("running", reason="DesiredStateReached", within=900.0)


async def delete(world: World) -> None:
    await live(world)
    world.delete()
    await eventually(world.gone, within=900.0, state=world.describe)


async def retain(world: World) -> None:
    await live(world)
    world.edit(reclaim_policy="Retain")
    world.delete()
    await eventually(world.gone, within=900.0, state=world.describe)


STORIES: dict[str, Story] = {
    "wake": wake,
    "delete": delete,
    "retain": retain,
}


async def tell(story: Story, **death: Any) -> tuple[World, Witness, int]:
    """Run a story with an operator that dies as told, and its successor; writes of the first one."""
    world = World()
    witness = Witness(world.api)
    world.create()
    first = Operator(world.api, **death)
    await first.start()
    plot = asyncio.ensure_future(story(world))
    mourner = asyncio.ensure_future(first.client.dead.wait())
    await asyncio.wait({plot, mourner}, return_when=asyncio.FIRST_COMPLETED)
    if not plot.done():
        await first.stop()
        second = Operator(world.api)
        await second.start()
        await plot
        await world.quiet()
        assert not second.engine.failed
        await second.stop()
    else:
        await plot
        await world.quiet()
        await first.stop()
    mourner.cancel()
    return world, witness, first.client.written


def ending(world: World) -> Any:
    """All objects at the end, without what is random or a moment."""
    objects = [plain(stored.body) for stored in world.api.objects.values()]
    return sorted(objects, key=lambda obj: obj["kind"])


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items() if key not in _VOLATILE}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, str):
        value = re.sub(r"\bm-[0-9a-f]{12}", "m-UID", value)
    return value


@pytest.mark.parametrize("lost_answer", [False, True], ids=["before", "answer-lost"])
@pytest.mark.parametrize("name", STORIES)
def test_every_write_can_be_the_last(name: str, lost_answer: bool) -> None:
    story = STORIES[name]
    whole, _, writes = run_virtual(tell(story))
    expected = ending(whole)
    assert writes >= 15
    # What all stories have in common, up to running, is told once.
    first = 1 if story is wake else 10
    for number in range(first, writes + 1):
        world, witness, _ = run_virtual(tell(story, die_at=number, lost_answer=lost_answer))
        told = f"died at write {number} of {writes}"
        assert ending(world) == expected, told
        assert len(witness.host_keys) == 1, f"{told}: the host key changed"
        for plural in ("virtualmachines", "persistentvolumeclaims", "secrets"):
            assert len(witness.uids(plural)) == 1, f"{told}: more than one of {plural}"
        assert len(world.kubevirt.starts) == len(whole.kubevirt.starts), told


def test_dying_again_and_again_still_gets_there() -> None:
    """Each operator lives for two writes only."""

    async def scenario() -> None:
        world = World()
        witness = Witness(world.api)
        world.create()
        plot = asyncio.ensure_future(wake(world))
        lives = 0
        while not plot.done():
            process = Operator(world.api, die_at=2, lost_answer=bool(lives % 2))
            await process.start()
            death = asyncio.ensure_future(process.client.dead.wait())
            await asyncio.wait({plot, death}, return_when=asyncio.FIRST_COMPLETED, timeout=300.0)
            death.cancel()
            await process.stop()
            lives += 1
        await plot
        assert 5 <= lives <= 40
        assert len(witness.host_keys) == 1
        assert len(witness.uids("persistentvolumeclaims")) == 1

    run_virtual(scenario())
