"""Schedules of anything that can happen, over the engine and a simulated cluster in virtual time.

A schedule is a list of steps, each after a pause: what people and gateways ask for, what goes wrong in guests, nodes,
KubeVirt and the API server, operators that die, come back and run side by side, events that come late, twice or not
at all. Then all faults end, and after a while each machine has to be where it was asked to be, with one of each child,
and nothing more is written.
"""

from __future__ import annotations

import asyncio
import os

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
            faults += [lost_touch(machine, stage.touches.get(name)), *trespasses(world.api, name)]
    assert not any(faults), faults


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


@settings(
    max_examples=SCHEDULES or 150,
    derandomize=not SCHEDULES,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(schedule=st.lists(steps, min_size=1, max_size=25))
def test_any_schedule_ends_well(schedule: Schedule) -> None:
    run_virtual(play(schedule), rounds=_ROUNDS)
    tally.count("schedules")
    tally.count("steps of schedules", len(schedule))
