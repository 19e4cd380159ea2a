"""Power requests against the spec: which one counts."""

from __future__ import annotations

from tests.support.virtual import run_virtual
from tests.support.world import World


def test_a_request_that_the_spec_has_overtaken_does_not_come_back_to_life() -> None:
    """The spec is what it was at the time of the request again, but it had changed in between."""

    async def scenario() -> None:
        world = World()
        async with world.operator():
            world.create(autosleep="60s")
            await world.phase("running", reason="DesiredStateReached")
            await world.phase("sleeping", within=200.0)
            assert world.status()["power_request"]["by"] == "autosleep"
            world.edit(desired_state="sleeping")
            await world.quiet()
            world.edit(desired_state="running", autosleep="never")
            await world.phase("running", reason="DesiredStateReached", within=100.0)

    run_virtual(scenario())
