"""Machine events as they come: twice, late, out of order, unreadable. Only what is there counts."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from machine_operator.kube.errors import AlreadyExists
from machine_operator.kube.informer import Key
from tests.support.apiserver import Request
from tests.support.machines import machine_object
from tests.support.virtual import eventually, run_virtual
from tests.support.world import World

BOX = Key("ns", "box")


async def running(world: World) -> None:
    world.create()
    await world.phase("running", reason="DesiredStateReached")
    await world.quiet()


def test_duplicates_cost_nothing() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            before = process.client.written
            for _ in range(50):
                process.engine.saw_machine(world.api.find("machines"))
                await asyncio.sleep(0.01)
            await world.quiet()
            assert process.client.written == before

    run_virtual(scenario())


def test_a_stale_event_changes_nothing() -> None:
    async def scenario() -> None:
        world = World()
        history: list[dict[str, Any]] = []
        world.api.listeners.append(
            lambda kind, plural, body: history.append(body) if plural == "machines" else None
        )
        async with world.operator() as process:
            await running(world)
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")
            await world.quiet()
            version, starts = world.api.version, len(world.kubevirt.starts)
            for old in history[:-1]:
                process.engine.saw_machine(copy.deepcopy(old))
                await asyncio.sleep(1.0)
            await world.quiet()
            assert (world.api.version, len(world.kubevirt.starts)) == (version, starts)

    run_virtual(scenario())


def test_a_late_event_of_an_older_machine_does_not_displace_its_successor() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            old = world.api.find("machines")
            world.delete()
            await eventually(world.gone, state=world.describe)
            await running(world)
            version = world.api.version
            process.engine.saw_machine(old)
            await world.quiet()
            assert world.api.version == version, world.api.changes[-5:]
            assert process.engine.machines.get(BOX).machine.metadata.uid != old["metadata"]["uid"]
            assert len(world.api.all("virtualmachines")) == 1
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")

    run_virtual(scenario())


def test_the_deletion_of_an_older_machine_does_not_take_its_successor() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            old = world.api.find("machines")
            old["metadata"]["uid"] = "11111111-0000-4000-8000-000000000000"
            process.engine.lost_machine(old)
            assert process.engine.machines.get(BOX) is not None

    run_virtual(scenario())


def test_a_machine_that_is_gone_is_forgotten() -> None:
    """The answer to the last write may come after the event that says it is gone."""

    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            world.delete()
            await eventually(world.gone, state=world.describe)
            await world.quiet()
            last = next(
                body for _, kind, plural, body, _ in reversed(world.api.history)
                if plural == "machines" and kind == "DELETED"
            )  # fmt: skip
            process.engine.saw_machine(copy.deepcopy(last))
            await world.quiet()
            assert list(process.engine.machines) == []

    run_virtual(scenario())


def test_a_machine_that_vanished_without_a_word_is_dropped() -> None:
    """kopf says nothing about what vanished during a re-list: our own write finds out, and must not go on for ever."""

    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            assert process._feed is not None
            process._feed.cancel()
            world.api.edit("machines", "box", lambda m: m["metadata"].update(finalizers=[]))
            world.delete()
            assert world.gone()
            await asyncio.sleep(120.0)
            children = {plural for plural, _, _ in world.api.objects}
            assert children == set(), f"children of a machine that is no more: {children}"
            assert process.engine.machines.get(BOX) is None, "it is tried for ever"

    run_virtual(scenario())


def test_a_successor_seen_while_the_old_one_is_found_gone_is_kept() -> None:
    """The 404 is about the old Machine, and comes back when the new one of that name is known already."""

    async def scenario() -> None:
        world = World()
        async with world.operator(latency=0.05):
            await running(world)
            fired: list[Request] = []

            def rule(request: Request) -> None:
                if request.plural == "machines" and request.subresource and not fired:
                    fired.append(request)
                    world.delete()
                    free = {"finalizers": []}
                    world.api.edit("machines", "box", lambda m: m["metadata"].update(free))
                    asyncio.get_running_loop().call_soon(world.create)

            world.api.refuse.append(rule)
            world.edit(desired_state="sleeping")
            await eventually(lambda: fired, state=world.describe)
            await world.phase("running", reason="DesiredStateReached", within=600.0)

    run_virtual(scenario())


def test_an_unreadable_machine_harms_nobody_else() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            process.engine.saw_machine(machine_object(name="odd", spec={"vcpu": 0.3}))
            await running(world)
            assert not process.engine.failed

    run_virtual(scenario())


def test_two_operators_for_a_moment_do_no_harm() -> None:
    """Leadership promises no more than that; each write has to be safe under two of them."""

    async def scenario() -> None:
        world = World()
        keys: set[str] = set()
        world.api.listeners.append(
            lambda kind, plural, body: (
                keys.add(body["data"]["ssh-host-key"]) if plural == "secrets" else None
            )
        )
        async with world.operator() as first, world.operator(latency=0.007):
            world.create()
            await world.phase("running", reason="DesiredStateReached")
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")
            world.edit(desired_state="running")
            await world.phase("running", reason="DesiredStateReached")
            await world.quiet()
            assert not first.engine.failed
        for plural in ("virtualmachines", "persistentvolumeclaims", "virtualmachineinstances"):
            assert len(world.api.all(plural)) == 1
        assert len(keys) == 1, "the host key changed after it was seen"

    run_virtual(scenario())


def test_create_answers_conflict_for_the_same_name() -> None:
    """The fake is as strict as what it stands for: a test of the tests."""

    async def scenario() -> None:
        world = World()
        world.create()
        obj = machine_object()
        with pytest.raises(AlreadyExists, match="already exists"):
            world.api.handle(Request("create", "machines", "ns", None, None, obj, {}))

    run_virtual(scenario())


def test_what_is_told_before_the_caches_are_complete_waits_for_them() -> None:
    """An old machine looks as if it had lost everything then; only one without our finalizer has no children yet."""

    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
        machine = world.api.find("machines")
        before = len(world.api.log)
        async with world.operator(latency=5.0) as process:
            process.engine.saw_machine(machine)
            machine["status"]["last_error"] = "scribbled"
            machine["metadata"]["resourceVersion"] = str(10**6)
            process.engine.saw_machine(machine)
            await asyncio.sleep(4.0)
            assert not process.engine.ready
            assert len(process.engine.queue) == 0
            assert process.engine.queue.in_progress().keys == 0
            assert world.api.writes(before) == []

    run_virtual(scenario())
