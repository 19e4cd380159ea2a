"""Schedules of anything that can happen, over the engine and a simulated cluster in virtual time.

A schedule is a list of steps, each after a pause: what people and gateways ask for, what goes wrong in guests, nodes,
KubeVirt and the API server, operators that die, come back and run side by side, events that come late, twice or not
at all. Then all faults end, and after a while each machine has to be where it was asked to be, with one of each child,
and nothing more is written.
"""

from __future__ import annotations

import asyncio
import os
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support import tally
from tests.support.chaos import NAMES, STEPS, Stage, heal
from tests.support.fleet import Fleet
from tests.support.verdict import Witness, lost_touch, trespasses, unlike
from tests.support.virtual import run_virtual
from tests.support.world import World

pytestmark = pytest.mark.timeout(3600)

SCHEDULES = int(os.environ.get("MACHINE_OPERATOR_SCHEDULES", "0"))
"""How many schedules are tried, each time other ones; without it a few that are always the same."""

_ROUNDS = 3_000_000
_PATIENCE = 7200.0

steps = st.tuples(
    st.sampled_from([0.0, 0.03, 0.4, 3.0, 20.0, 90.0, 400.0]),
    st.sampled_from(sorted(STEPS)),
    st.sampled_from(NAMES),
    st.integers(0, 7),
)
# Lists of a drawn length: left to itself Hypothesis draws mostly short ones.
schedules = st.integers(1, 25).flatmap(lambda n: st.lists(steps, min_size=n, max_size=n))
Schedule = list[tuple[float, str, str, int]]


async def play(schedule: Schedule) -> None:
    world = World()
    witness = Witness(world.api)
    fleet = Fleet(world)
    stage = Stage(world, fleet)
    await fleet.start()
    try:
        STEPS["create"](stage, NAMES[0], 0)
        for pause, what, name, n in schedule:
            await asyncio.sleep(pause)
            STEPS[what](stage, name, n)
        await asyncio.sleep(1.0)
        await heal(stage)
        await settle(stage)
        await assert_still(stage)
    finally:
        await fleet.stop()
    faults = [*witness.faults]
    for name in NAMES:
        machine = stage.machine(name)
        if machine is not None:
            lost = lost_touch(machine, stage.touches.get(name))
            faults += [*([lost] if lost else []), *trespasses(world.api, name)]
    assert not faults


async def settle(stage: Stage) -> None:
    """Wait until everything is as it has to be."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    while faults := [fault for name in NAMES if (fault := unlike(stage.world.api, name))]:
        told = [stage.world.describe(name) for name in NAMES]
        assert loop.time() < deadline, f"{faults} after {_PATIENCE} s; {told}"
        await asyncio.sleep(10.0)


async def assert_still(stage: Stage) -> None:
    """Nothing changes any more, and nothing is written."""
    await asyncio.sleep(700.0)  # after ten minutes without trouble, earlier troubles are forgotten
    process, before = stage.fleet.running[0], len(stage.world.api.log)
    written = process.client.written
    await asyncio.sleep(600.0)
    late = stage.world.api.writes(before)
    assert process.client.written == written, f"still writing: {late}"
    faults = [fault for name in NAMES if (fault := unlike(stage.world.api, name))]
    assert not faults


FOUND: list[Schedule] = [
    # A VMI that somebody deletes before it is up counts as a failed start, and KubeVirt does not start another one.
    [(0.4, "image", "box", 1), (0.0, "image", "box", 3), (3.0, "delete_vmi", "box", 6)],
    [
        (3.0, "orphan_vm", "box", 7), (20.0, "delete_vm", "box", 0), (3.0, "power_off", "box", 0),
        (0.4, "hold", "box", 4), (0.4, "kill", "box", 3), (0.0, "delete_vmi", "box", 1),
    ],
    [(0.0, "cluster", "other", 6), (0.0, "create", "other", 2), (0.4, "delete_vmi", "other", 7)],
    # A claim without a volume cannot be made larger.
    [(0.0, "create", "other", 7), (0.4, "grow", "other", 6)],
    # A status without stamps.
    [(3.0, "scribble", "box", 7), (0.0, "autosleep", "box", 2)],
    # A VM that is made anew while its machine waits for the next try.
    [
        (0.4, "pause", "box", 3), (0.4, "delete_vm", "box", 2), (400.0, "late_event", "box", 0),
        (20.0, "delete_vm", "box", 5),
    ],
]  # fmt: skip
"""Schedules that went wrong once."""


@pytest.mark.parametrize("number", range(len(FOUND)))
def test_what_went_wrong_once_ends_well(number: int) -> None:
    run_virtual(play(FOUND[number]), rounds=_ROUNDS)
    tally.count("schedules")
    tally.count("steps of schedules", len(FOUND[number]))


@settings(
    max_examples=SCHEDULES or 500,
    derandomize=not SCHEDULES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(schedule=schedules)
def test_any_schedule_ends_well(schedule: Schedule) -> None:
    run_virtual(play(schedule), rounds=_ROUNDS)
    tally.count("schedules")
    tally.count("steps of schedules", len(schedule))


MACHINES = int(os.environ.get("MACHINE_OPERATOR_MACHINES", "40"))


def test_a_day_of_traffic_leaves_the_spec_to_its_users() -> None:
    """People edit, gateways touch and ask, autosleep and guests do as they do; nobody else ever owns a field there."""

    async def day() -> None:
        world, dice = World(), random.Random(1)
        names = [f"m-{number}" for number in range(MACHINES)]
        async with world.operator():
            for name in names:
                world.create(name, autosleep=dice.choice(["5m", "1h", "never"]))
                await asyncio.sleep(0.2)
            for _ in range(4 * MACHINES):
                name = dice.choice(names)
                match dice.randrange(5):
                    case 0:
                        world.touch(name)
                    case 1:
                        world.hold("ssh-1", 600.0, name)
                    case 2:
                        state = dice.choice(["running", "sleeping"])
                        world.request_power(state, name, sequence=None)
                    case 3:
                        world.edit(name, desired_state=dice.choice(["running", "sleeping"]))
                    case _:
                        world.edit(name, memory_mib=dice.choice([512, 1024]))
                await asyncio.sleep(86_400.0 / (4 * MACHINES))
        for name in names:
            assert trespasses(world.api, name) == []
            assert "machine-operator" in world.api.owners("machines", name)
        tally.count("machines of a simulated day", len(names))

    run_virtual(day(), rounds=20_000_000)
