"""The operator dies at each of its writes, before or after the write took effect; the next one finishes the work.

The end is the one of an undisturbed run; on the way no machine ever has two VMs, VMIs or disks, and the host key is
made once.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.crash.stories import STORIES, Story, start
from tests.support import tally
from tests.support.verdict import Witness, trespasses
from tests.support.virtual import run_virtual
from tests.support.world import Operator, World

Object = dict[str, Any]
pytestmark = pytest.mark.timeout(300)

ONE_OF_A_KIND = ("virtualmachines", "persistentvolumeclaims", "secrets")
_ROUNDS = 1_000_000
_VOLATILE = {
    "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "lastTransitionTime",
    "last_transition_at", "last_progress_at", "instance_uid", "volumeName",
    "phaseTransitionTimestamps", "retryAfterTimestamp", "lastFailedVMIUID",
    "at", "last_touch_at", "next_sleep_at", "next_retry_at", "since", "expires_at",
    "ssh-host-key", "ssh-host-key.pub", "userdata",
    # Counted by whoever sees them; an operator that is away does not.
    "transitions", "revision",
    # Depends on how often there was a start or a write.
    "generation", "ipAddress", "ipAddresses", "addresses",
}  # fmt: skip


async def tell(story: Story, **death: Any) -> tuple[World, Witness, int]:
    """Run a story with an operator that dies as told, and its successor; writes of the first one."""
    world = World()
    witness = Witness(world.api)
    first = Operator(world.api, **death)
    await first.start()
    plot = asyncio.ensure_future(story(world))
    mourner = asyncio.ensure_future(first.client.dead.wait())
    await asyncio.wait({plot, mourner}, return_when=asyncio.FIRST_COMPLETED)
    process = first
    if not plot.done():
        await first.stop()
        process = Operator(world.api)
        await process.start()
    await plot
    await world.quiet(within=4000.0)
    assert not process.engine.failed
    await process.stop()
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
        items = [plain(item) for item in value]
        return sorted(items, key=str) if items and isinstance(items[0], dict) else items
    return value


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two endings differ, in words."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = sorted({*one, *other})
        return [d for k in keys for d in differences(one.get(k), other.get(k), f"{path}.{k}")]
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [d for n, (a, b) in pairs for d in differences(a, b, f"{path}[{n}]")]
    return [] if one == other else [f"{path}: {one!r} and not {other!r}"]


@pytest.mark.parametrize("lost_answer", [False, True], ids=["before", "answer-lost"])
@pytest.mark.parametrize("name", STORIES)
def test_every_write_can_be_the_last(name: str, lost_answer: bool) -> None:
    story = STORIES[name]
    whole, _, writes = run_virtual(tell(story), rounds=_ROUNDS)
    # What all stories have in common, up to running, is told once.
    whole_way = name in ("create", "delete-while-starting")
    common = 0 if whole_way else run_virtual(tell(start), rounds=_ROUNDS)[2]
    assert common < writes <= 60, f"{writes} writes: it goes round and round"
    for number in range(common + 1, writes + 1):
        death = {"die_at": number, "lost_answer": lost_answer}
        world, witness, _ = run_virtual(tell(story, **death), rounds=_ROUNDS)
        told = f"died at write {number} of {writes}"
        assert differences(ending(world), ending(whole)) == [], told
        assert witness.faults == [], told
        for plural in ONE_OF_A_KIND:
            assert len(witness.ever[plural]) == 1, f"{told}: more than one of {plural}"
        if (
            name != "crash-loop"
        ):  # while nobody counts, KubeVirt starts a crashing guest again and again
            assert world.kubevirt.starts == whole.kubevirt.starts, f"{told}: other starts"
        for machine in world.api.all("machines"):
            assert trespasses(world.api, machine["metadata"]["name"]) == [], told
        tally.count("crash points")


@pytest.mark.parametrize("name", STORIES)
def test_dying_again_and_again_still_gets_there(name: str) -> None:
    """Each operator lives for two writes only."""

    async def scenario() -> tuple[World, Witness, int]:
        world = World()
        witness = Witness(world.api)
        plot = asyncio.ensure_future(STORIES[name](world))
        lives = 0
        while not plot.done():
            assert lives < 300, f"no progress over so many lives: {world.describe()}"
            process = Operator(world.api, die_at=2, lost_answer=bool(lives % 2))
            await process.start()
            death = asyncio.ensure_future(process.client.dead.wait())
            await asyncio.wait({plot, death}, return_when=asyncio.FIRST_COMPLETED, timeout=900.0)
            death.cancel()
            await process.stop()
            lives += 1
        await plot
        async with world.operator():
            await world.quiet(within=4000.0)
        return world, witness, lives

    whole, _, _ = run_virtual(tell(STORIES[name]), rounds=_ROUNDS)
    world, witness, lives = run_virtual(scenario(), rounds=_ROUNDS)
    assert lives >= 2
    assert differences(ending(world), ending(whole)) == []
    assert witness.faults == []
    tally.count("lives of operators", lives)


@pytest.mark.parametrize("name", STORIES)
def test_two_operators_side_by_side(name: str) -> None:
    """Leadership is only as good as clocks are; each write has to be safe under two leaders."""

    async def scenario() -> tuple[World, Witness]:
        world = World()
        witness = Witness(world.api)
        async with world.operator():
            async with world.operator(latency=0.007):
                await STORIES[name](world)
            await world.quiet(within=4000.0)
        return world, witness

    whole, _, _ = run_virtual(tell(STORIES[name]), rounds=_ROUNDS)
    world, witness = run_virtual(scenario(), rounds=_ROUNDS)
    assert differences(ending(world), ending(whole)) == []
    assert witness.faults == []
    for plural in ONE_OF_A_KIND:
        assert len(witness.ever[plural]) == 1, f"more than one of {plural}"
