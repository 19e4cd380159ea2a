"""What goes wrong around a machine: it is said with its root cause, and it ends when the cause does."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from machine_operator.api.names import NAME_LABEL, UID_LABEL
from machine_operator.controller.engine import Engine
from machine_operator.kube.errors import ApiError
from tests.support.apiserver import FakeApi, Request, failure
from tests.support.machines import DEFAULTS
from tests.support.virtual import eventually, run_virtual
from tests.support.world import Operator, World

VMS, VMIS, CLAIMS = "virtualmachines", "virtualmachineinstances", "persistentvolumeclaims"
QUOTA = (
    "exceeded quota: team, requested: requests.memory=512Mi, "
    "used: requests.memory=8Gi, limited: requests.memory=8Gi"
)


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {c["type"]: c["status"] for c in status["conditions"]}


def refusing(api: FakeApi, plural: str, error: ApiError) -> list[bool]:
    """Refuse to create or change this kind while the answer holds [True]."""
    on = [True]

    def rule(request: Request) -> ApiError | None:
        hit = on[0] and request.plural == plural and request.verb in ("create", "apply")
        return error if hit else None

    api.refuse.append(rule)
    return on


async def running(world: World, **spec: Any) -> None:
    world.create(**spec)
    await world.phase("running", reason="DesiredStateReached")
    await world.quiet()


def test_an_image_is_corrected_while_it_cannot_be_pulled() -> None:
    async def scenario() -> None:
        world = World()
        world.kubevirt.bad_images.add("registry.example/typo:1")
        async with world.operator():
            world.create(image="registry.example/typo:1")
            status = await world.phase("failed", reason="ImageNotAvailable")
            assert "typo:1" in status["last_error"]
            assert status["retryable"] is True
            assert conditions(status)["Stalled"] == "True"
            await world.quiet()
            world.edit(image="registry.example/right:1")
            await world.phase("running", reason="DesiredStateReached")
        assert world.status().get("last_error") is None
        assert world.api.find(VMS)["spec"]["runStrategy"] == "RerunOnFailure"

    run_virtual(scenario())


def test_no_node_has_room() -> None:
    async def scenario() -> None:
        world = World()
        world.kubevirt.unschedulable = "0/3 nodes are available: 3 Insufficient memory."
        async with world.operator() as process:
            world.create()
            status = await world.phase("placement_pending", reason="Unschedulable")
            assert status["last_error"] == world.kubevirt.unschedulable
            await world.quiet()
            before = process.client.written
            await world.quiet(seconds=600.0)
            assert process.client.written == before, "waiting costs writes"
            world.kubevirt.unschedulable = None
            await world.phase("running", reason="DesiredStateReached")

    run_virtual(scenario())


def test_a_machine_that_waits_for_room_can_be_put_to_sleep() -> None:
    async def scenario() -> None:
        world = World()
        world.kubevirt.unschedulable = "0/3 nodes are available"
        async with world.operator():
            world.create()
            await world.phase("placement_pending", reason="Unschedulable")
            world.edit(desired_state="sleeping")
            await world.phase("sleeping", reason="DesiredStateReached")

    run_virtual(scenario())


def test_the_pods_quota_is_exceeded() -> None:
    async def scenario() -> None:
        world = World()
        world.kubevirt.pod_quota = f'pods "virt-launcher-x" is forbidden: {QUOTA}'
        async with world.operator():
            world.create()
            status = await world.phase("failed", reason="QuotaExceeded")
            assert QUOTA in status["last_error"]
            world.kubevirt.pod_quota = None
            await world.phase("running", reason="DesiredStateReached")

    run_virtual(scenario())


def test_a_webhook_refuses_the_instance() -> None:
    async def scenario() -> None:
        world = World()
        world.kubevirt.refuses = "policy: no machines on Sundays"
        async with world.operator():
            world.create()
            status = await world.phase("failed", reason="VirtualMachineRefused")
            assert "Sundays" in status["last_error"]
            world.kubevirt.refuses = None
            await world.phase("running", reason="DesiredStateReached")

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("plural", "error", "reason"),
    [
        (VMS, failure(403, "Forbidden", QUOTA), "QuotaExceeded"),
        (CLAIMS, failure(403, "Forbidden", QUOTA), "QuotaExceeded"),
        (CLAIMS, failure(403, "Forbidden", "no such class"), "StorageNotAvailable"),
        (VMS, failure(422, "Invalid", "admission webhook"), "VirtualMachineRefused"),
        ("secrets", failure(403, "Forbidden", "RBAC: not allowed"), "InternalError"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__class__.__name__,
)
def test_a_refused_write_is_said_and_tried_again(plural: str, error: ApiError, reason: str) -> None:
    async def scenario() -> None:
        world = World()
        on = refusing(world.api, plural, error)
        async with world.operator():
            world.create()
            status = await world.phase("accepted", reason=reason)
            assert error.message in status["last_error"]
            on[0] = False
            await world.phase("running", reason="DesiredStateReached", within=600.0)
        assert world.status().get("last_error") is None

    run_virtual(scenario())


def test_a_refused_write_is_tried_again_ever_more_rarely() -> None:
    async def scenario() -> None:
        world = World()
        refusing(world.api, VMS, failure(403, "Forbidden", QUOTA))
        async with world.operator():
            world.create()
            await world.phase("accepted", reason="QuotaExceeded")
            await asyncio.sleep(3600.0)
            tries = world.api.writes().count(f"apply {VMS}/{_vm_name(world)}")
            assert 8 <= tries <= 30, f"{tries} tries in an hour"

    run_virtual(scenario())


def _vm_name(world: World) -> str:
    return world.api.find(CLAIMS)["metadata"]["name"].removesuffix("-home")


def test_a_message_that_changes_each_time_does_not_defeat_the_back_off() -> None:
    """Quota messages carry what is used just now; each new text is a status write, which must not be a new try."""

    async def scenario() -> None:
        world = World()
        count = [0]

        def rule(request: Request) -> ApiError | None:
            if (request.verb, request.plural) != ("apply", VMS):
                return None
            count[0] += 1
            return failure(403, "Forbidden", f"exceeded quota: team, used: {count[0]}")

        world.api.refuse.append(rule)
        async with world.operator():
            world.create()
            await world.phase("accepted", reason="QuotaExceeded")
            before = count[0]
            await asyncio.sleep(60.0)
            assert count[0] - before <= 12, f"{count[0] - before} tries in a minute"

    run_virtual(scenario())


def test_a_disk_that_cannot_grow_does_not_keep_a_machine_from_sleeping() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            text = "only dynamically provisioned pvc can be resized"
            refusing(world.api, CLAIMS, failure(403, "Forbidden", text))
            world.edit(storage_gib=20)
            status = await world.phase("running", reason="StorageNotResizable")
            assert text in status["last_error"]
            world.edit(desired_state="sleeping")
            await eventually(lambda: world.api.all(VMIS) == [], state=world.describe)
            world.edit(desired_state="running")
            await eventually(
                lambda: any(v["status"]["phase"] == "Running" for v in world.api.all(VMIS)),
                state=world.describe,
            )

    run_virtual(scenario())


def test_a_storm_of_conflicts_passes() -> None:
    async def scenario() -> None:
        world = World()
        left = [25]

        def rule(request: Request) -> ApiError | None:
            if not request.writes or left[0] <= 0 or request.verb == "create":
                return None
            left[0] -= 1
            return failure(409, "Conflict", "the object has been modified")

        world.api.refuse.append(rule)
        async with world.operator():
            world.create()
            await world.phase("running", reason="DesiredStateReached", within=4000.0)
            await world.quiet()
        assert left[0] == 0
        assert len(world.api.all(VMS)) == len(world.api.all(CLAIMS)) == 1

    run_virtual(scenario())


def test_an_outage_in_the_middle_is_waited_for() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            world.create()
            await eventually(lambda: world.api.all(VMS), state=world.describe)
            world.api.down = True
            world.api.break_watches()
            await asyncio.sleep(600.0)
            assert not process.engine.failed
            requests = len(world.api.log)
            await asyncio.sleep(600.0)
            # Four informers and the feed of Machines, each at most every 15 s in the long run.
            assert len(world.api.log) - requests <= 4 * 45 + 650, "no pause between the tries"
            world.api.down = False
            await world.phase("running", reason="DesiredStateReached", within=400.0)
            await world.quiet()
            assert len(world.api.all(VMIS)) == 1

    run_virtual(scenario())


def test_what_vanished_while_the_watch_was_away_is_noticed() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            name = _vm_name(world)
            # Gone without an event: as after an outage longer than the server's memory.
            world.api.remove(VMIS, name)
            world.api.compact()
            world.api.break_watches()
            # Nobody can tell any more who ended it; a machine that rests wakes when it is used.
            status = await world.phase("sleeping", reason="DesiredStateReached")
            assert status["power_request"]["by"] == "guest"
            world.touch()
            await world.phase("running", reason="DesiredStateReached")
            assert ("virtualmachines", "ns", name) in world.api.objects

    run_virtual(scenario())


def test_a_vm_that_somebody_deletes_is_made_again() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            disk = world.api.find(CLAIMS)["metadata"]["uid"]
            world.api.remove(VMS, _vm_name(world))
            await eventually(lambda: len(world.kubevirt.starts) == 2, state=world.describe)
            await world.phase("running", reason="DesiredStateReached")
            assert world.api.find(CLAIMS)["metadata"]["uid"] == disk

    run_virtual(scenario())


def test_a_crash_of_the_guest_is_seen_and_overcome() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            await running(world)
            world.kubevirt.crash(_vm_name(world))
            await world.phase("starting")
            status = await world.phase("running", reason="DesiredStateReached")
            assert status.get("wake_count") == 0, "a crash is no wake"

    run_virtual(scenario())


def test_a_lost_disk_stops_the_machine_for_good() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator() as process:
            await running(world)
            world.edit(desired_state="sleeping")
            await world.phase("sleeping")
            await world.quiet()
            world.api.remove(CLAIMS, f"{_vm_name(world)}-home")
            status = await world.phase("failed", reason="StorageLost")
            assert status["retryable"] is False
            before = process.client.written
            world.edit(desired_state="running")
            await world.quiet(seconds=600.0)
            assert world.api.all(CLAIMS) == [], "an empty disk took the place of the lost one"
            assert process.client.written - before <= 1
        async with world.operator():
            await world.quiet(seconds=600.0)
            assert world.api.all(CLAIMS) == [], "forgotten over a restart"
            world.delete()
            await eventually(world.gone, state=world.describe)

    run_virtual(scenario())


def test_an_engine_that_cannot_go_on_says_so() -> None:
    """The shell then ends the process, and whoever runs it starts it again."""

    async def scenario() -> None:
        world = World()
        told = asyncio.Event()
        process = Operator(world.api)
        process.engine = Engine(process.client, defaults=DEFAULTS, on_failure=told.set)

        async def broken() -> None:
            raise RuntimeError("a bug in a cache")

        process.engine.children.run = broken  # type: ignore[method-assign]
        await process.start()
        await asyncio.wait_for(told.wait(), 5.0)
        assert process.engine.failed
        await process.stop()

    run_virtual(scenario())


def test_a_child_that_cannot_be_read_leaves_the_others_alone() -> None:
    async def scenario() -> None:
        world = World()
        async with world.operator():
            world.create()
            await world.phase("running")
            odd = {
                "metadata": {
                    "name": "odd",
                    "namespace": "ns",
                    "labels": {UID_LABEL: "u", NAME_LABEL: "box"},
                },
                "spec": {"template": {}},
                "status": "not an object",
            }
            world.api.handle(Request("create", VMS, "ns", None, None, odd, {}))
            world.create("second")
            await world.phase("running", "second")

    run_virtual(scenario())
