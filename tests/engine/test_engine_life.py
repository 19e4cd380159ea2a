"""The life of a machine, driven through the engine over a simulated cluster: what happens, and with how many writes."""

from __future__ import annotations

import base64
from typing import Any

from tests.support.apiserver import FakeApi
from tests.support.machines import KEY
from tests.support.virtual import eventually, run_virtual
from tests.support.world import World

VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"


def host_key(api: FakeApi) -> str:
    """The private host key in the only seed."""
    return base64.b64decode(api.find("secrets")["data"]["ssh-host-key"]).decode()


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


async def running(world: World, name: str = "box", **spec: Any) -> None:
    world.create(name, **spec)
    await world.phase("running", name, reason="DesiredStateReached")
    await world.quiet()


def test_from_nothing_to_running() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            world.create()
            status = await world.phase("running", reason="DesiredStateReached")
            await world.quiet()
            assert process.client.written <= 8, world.api.writes()
        assert status["node"] == "node-1"
        assert status["addresses"] == ["10.0.0.7"]
        assert status["effective"] == {"vcpu": 0.25, "memory_mib": 512, "storage_gib": 10}
        assert conditions(world.status()) == {
            "Ready": "True",
            "Reconciling": "False",
            "Stalled": "False",
            "Awake": "True",
            "Scheduled": "True",
            "StorageReady": "True",
            "GuestReachable": "True",
            "RestartPending": "False",
        }
        for plural in (VMS, VMIS, CLAIMS, "secrets"):
            assert len(world.api.all(plural)) == 1

    run_virtual(scenario())


def test_the_steady_state_writes_nothing() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            before, version = process.client.written, world.api.version
            for _ in range(5):
                world.api.break_watches()
                await world.quiet(seconds=600.0)
            assert process.client.written == before, world.api.writes()[-5:]
            assert world.api.version == version

    run_virtual(scenario())


def test_a_restart_writes_nothing() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            await running(world, "other", desired_state="running")
        async with world.operator() as second:
            await world.quiet()
            assert second.client.written == 0, world.api.writes()[-5:]

    run_virtual(scenario())


def test_sleep_and_wake_by_the_spec() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            disk, key = world.api.find(CLAIMS), host_key(world.api)
            first = process.client.written
            world.edit(desired_state="sleeping")
            await world.phase("stopping")
            status = await world.phase("sleeping")
            await world.quiet()
            asleep = process.client.written
            assert asleep - first <= 6
            assert world.api.all(VMIS) == []
            assert conditions(status)["Ready"] == "True"
            assert (status.get("node"), status.get("addresses")) == (None, [])
            world.edit(desired_state="running")
            await world.phase("starting")
            status = await world.phase("running")
            await world.quiet()
            assert process.client.written - asleep <= 8
            assert status["wake_count"] == 1
            assert world.api.find(CLAIMS)["metadata"]["uid"] == disk["metadata"]["uid"]
            assert host_key(world.api) == key

    run_virtual(scenario())


def test_sleep_and_wake_by_request() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            world.request_power("sleeping", sequence=1)
            status = await world.phase("sleeping")
            assert status["desired_power"] == {"state": "sleeping", "why": "requested by ada"}
            assert status["power_request"]["sequence"] == 1, "the gateway's field was overwritten"
            world.request_power("running", sequence=2)
            status = await world.phase("running", reason="DesiredStateReached")
            assert status["wake_count"] == 1
        assert "desired_state" not in world.api.find("machines")["spec"]

    run_virtual(scenario())


def test_the_revision_only_grows() -> None:
    async def scenario() -> None:
        world = World()
        seen: list[int] = []

        def listen(kind: str, plural: str, body: dict[str, Any]) -> None:
            if plural == "machines" and (body.get("status") or {}).get("revision"):
                seen.append(int(body["status"]["revision"]))

        world.api.listeners.append(listen)
        async with world.operator():
            await running(world)
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")
            world.edit(desired_state="running", autosleep="never")
            await world.phase("running")
            world.edit(desired_state="destroyed")
            await world.phase("destroyed")
        assert seen == sorted(seen)
        assert len(set(seen)) >= 8

    run_virtual(scenario())


def test_deleting_leaves_nothing() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            before = process.client.written
            world.delete()
            await world.phase("destroying")
            await eventually(world.gone, state=world.describe)
            await world.quiet()
            assert world.api.objects == {}
            assert process.client.written - before <= 9

    run_virtual(scenario())


def test_retain_keeps_the_disk_and_lets_it_go() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world, reclaim_policy="Retain")
            world.delete()
            await eventually(world.gone, state=world.describe)
            await world.quiet()
        disk = world.api.find(CLAIMS)
        assert not disk["metadata"].get("ownerReferences")
        assert disk["status"]["phase"] == "Bound"
        assert {plural for plural, _, _ in world.api.objects} == {CLAIMS}

    run_virtual(scenario())


def test_destroyed_stays_as_a_record_until_it_is_deleted() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            world.edit(desired_state="destroyed")
            status = await world.phase("destroyed")
            await world.quiet()
            assert {plural for plural, _, _ in world.api.objects} == {"machines"}
            assert conditions(status)["Ready"] == "False"
            before = process.client.written
            await world.quiet(seconds=600.0)
            assert process.client.written == before
            world.delete()
            await eventually(world.gone, state=world.describe)

    run_virtual(scenario())


def test_a_name_can_be_used_again() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            first = world.api.find("machines")["metadata"]["uid"]
            world.delete()
            await eventually(world.gone, state=world.describe)
            await running(world)
            assert world.api.find("machines")["metadata"]["uid"] != first
            assert len(world.api.all(VMS)) == 1

    run_virtual(scenario())


def test_a_bigger_disk_grows_in_place() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            disk = world.api.find(CLAIMS)
            world.edit(storage_gib=20)
            await eventually(
                lambda: world.status().get("effective", {}).get("storage_gib") == 20,
                state=world.describe,
            )
            await world.quiet()
            grown = world.api.find(CLAIMS)
            assert grown["metadata"]["uid"] == disk["metadata"]["uid"]
            assert grown["spec"]["resources"]["requests"]["storage"] == "20Gi"
            assert world.status()["phase"] == "running"
            assert len(world.kubevirt.starts) == 1, "growing a disk needs no restart"

    run_virtual(scenario())


def test_other_authorized_keys_leave_the_host_key() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            key, seed = host_key(world.api), world.api.find("secrets")
            world.edit(ssh_authorized_keys=[KEY])
            await world.quiet()
            renewed = world.api.find("secrets")
            assert renewed["data"]["userdata"] != seed["data"]["userdata"]
            assert renewed["metadata"]["uid"] == seed["metadata"]["uid"]
            assert host_key(world.api) == key

    run_virtual(scenario())


def test_other_sizes_wait_for_the_next_start() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            world.edit(memory_mib=1024)
            await eventually(
                lambda: conditions(world.status())["RestartPending"] == "True",
                state=world.describe,
            )
            assert len(world.kubevirt.starts) == 1
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")
            world.edit(desired_state="running")
            status = await world.phase("running")
            assert status["effective"]["memory_mib"] == 1024
            assert conditions(status)["RestartPending"] == "False"

    run_virtual(scenario())


def test_many_machines_start_side_by_side() -> None:
    async def scenario() -> None:
        world = World()
        names = [f"box-{number}" for number in range(40)]
        async with world.operator() as process:
            for name in names:
                world.create(name)
            for name in names:
                await world.phase("running", name)
            await world.quiet()
            assert process.client.written <= 8 * len(names)
        assert len(world.kubevirt.starts) == len(names)

    run_virtual(scenario())
