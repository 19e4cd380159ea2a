"""A machine that nobody uses goes to sleep, with real clocks; who uses it delays that, or wakes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.cluster.failures import well
from tests.cluster.support import Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster

IDLE = timedelta(seconds=5)


@pytest.fixture
def cluster(impatient_cluster: Cluster) -> Cluster:
    return impatient_cluster


def used(machine: Machine, *, touch: datetime, holds: Sequence[Object] = ()) -> None:
    """Write the activity as a gateway does: its own part of the status, under its own name."""
    activity = {"last_touch_at": stamp(touch), "holds": list(holds)}
    body = {
        "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
        "kind": "Machine",
        "metadata": {"name": machine.name},
        "status": {"activity": activity},
    }
    machine.kubectl(
        *("apply", "--server-side", "--subresource=status", "--field-manager=machine-gateway"),
        *("-f", "-"),
        input=json.dumps(body),
    )


def stamp(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def due_after(machine: Machine, start: datetime) -> bool:
    """Whether it says that it will sleep when it was idle from `start` on, in whole seconds."""
    due = datetime.fromisoformat(machine.status["next_sleep_at"])
    assert timedelta() <= due - (start + IDLE) < timedelta(seconds=1), due
    return True


def test_use_delays_the_sleep_a_hold_prevents_it_and_use_ends_it(machine: Machine) -> None:
    machine.apply(autosleep="5s").wait_phase("running").wait_ready()
    began = datetime.fromisoformat(machine.status["last_transition_at"])
    assert due_after(machine, began)
    wide = machine.kubectl("get", "machine", "hello", "-o", "wide").stdout.splitlines()
    assert wide[0].endswith("SLEEPS AT")
    assert machine.status["next_sleep_at"] in wide[1]

    touch = datetime.now(UTC)
    used(machine, touch=touch)
    until(lambda: due_after(machine, touch), "the touch to count")

    end = datetime.now(UTC) + timedelta(seconds=2)
    hold = {"id": "s-1", "kind": "terminal", "since": stamp(touch), "expires_at": stamp(end)}
    used(machine, touch=touch, holds=[hold])
    until(lambda: due_after(machine, end), "the hold to count")

    # Nobody comes back, not even to take the hold away.
    status = well(machine, phase="sleeping")
    request = status["power_request"]
    assert (request["state"], request["by"]) == ("sleeping", "autosleep")
    assert request["reason"] == "nobody used it for 5s"
    assert end + IDLE <= datetime.fromisoformat(request["at"]) <= end + 2 * IDLE
    assert "next_sleep_at" not in status
    until(lambda: machine.events("Autosleep"), "an Event about it", timeout=10)
    assert "Goes to sleep: nobody used it for 5s." in machine.kubectl("describe", "machine").stdout

    used(machine, touch=datetime.now(UTC))
    status = well(machine)
    # And the idle clock starts again, with the moment at which it is up.
    up = datetime.fromisoformat(status["last_transition_at"])
    assert due_after(machine, up)
    assert (status["power_request"]["by"], status["wake_count"]) == ("activity", 1)
    until(lambda: machine.events("WokenByUse"), "an Event about it", timeout=10)


def test_a_machine_sleeps_no_sooner_than_the_minimum_after_its_start(machine: Machine) -> None:
    machine.apply(autosleep="1s").wait_phase("running")
    began = datetime.fromisoformat(machine.status["last_transition_at"])
    status = well(machine, phase="sleeping")
    assert datetime.fromisoformat(status["power_request"]["at"]) >= began + timedelta(seconds=3)
