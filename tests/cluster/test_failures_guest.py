"""A guest that ends, hangs or dies: virt-handler says so, and the operator makes of it what people need to know."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from tests.cluster.failures import end_guest, told, well, write_instance
from tests.cluster.support import MINUTE, Cluster, Machine, Object, until

pytestmark = pytest.mark.cluster


@pytest.fixture
def cluster(impatient_cluster: Cluster) -> Cluster:
    return impatient_cluster


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def test_a_guest_that_crashes_again_and_again_is_held_off_and_then_tried_again(
    machine: Machine,
) -> None:
    machine.apply().wait_phase("running").wait_ready()
    dead: set[str] = set()
    for number in (1, 2):
        dead.add(end_guest(machine, phase="Failed"))
        # The first ones cost nothing: it is started again at once.
        until(
            lambda: machine.child("vmi")["metadata"]["uid"] not in dead, "the guest to be started"
        )
        well(machine)
        assert machine.status["backoff"]["failures"] == number
        assert "next_retry_at" not in machine.status["backoff"]
    until(lambda: machine.events("GuestCrashed"), "an Event about the crashes", timeout=10)

    dead.add(end_guest(machine, phase="Failed"))
    text = "The VM ended 3 times in a row without being told to. The next try is at"
    status = told(machine, phase="failed", reason="CrashLoop", text=text)
    backoff = status["backoff"]
    assert backoff["failures"] == 3
    pause = moment(backoff["next_retry_at"]) - moment(status["last_transition_at"])
    assert 8 <= pause.total_seconds() <= 12
    until(lambda: machine.child("vm")["spec"]["runStrategy"] == "Halted", "the VM to be held off")
    until(lambda: machine.cluster.items("vmi", namespace=machine.namespace) == [], "it to be off")

    found = well(machine, timeout=30)
    assert moment(found["last_transition_at"]) >= moment(backoff["next_retry_at"])
    assert found["backoff"]["failures"] == 3, "it is not forgotten before it has run for a while"
    assert machine.child("vmi")["metadata"]["uid"] not in dead


def test_a_guest_that_powers_itself_off_sleeps_and_is_no_crash(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    end_guest(machine, phase="Succeeded")
    status = well(machine, phase="sleeping")
    request = status["power_request"]
    assert (request["state"], request["by"]) == ("sleeping", "guest")
    assert "requested by guest" in status["desired_power"]["why"]
    assert "backoff" not in status
    assert machine.cluster.items("vmi", namespace=machine.namespace) == []
    until(lambda: machine.events("GuestPoweredOff"), "an Event about it", timeout=10)


def test_a_guest_that_dies_before_it_was_up_is_told_as_kubevirt_counts_it(machine: Machine) -> None:
    """Its image cannot be pulled, so there is time to take its pod away: KubeVirt takes that for a crash."""
    machine.apply(image="registry.invalid/none:1")
    until(lambda: machine.status.get("reason") == "ImageNotAvailable", "the image to be missed")
    machine.kubectl("delete", "pods", "--all", "--wait=false")
    text = "The VM ended once before it was up; the next try is at"
    status = told(machine, phase="failed", reason="CrashLoop", text=text)
    assert status["backoff"]["failures"] == 1
    assert moment(status["backoff"]["next_retry_at"]) > moment(status["last_transition_at"])
    assert machine.child("vm")["status"]["printableStatus"] == "CrashLoopBackOff"
    machine.patch(image=None)
    well(machine, timeout=MINUTE)


def test_a_guest_that_an_io_error_paused_is_told_until_it_goes_on(machine: Machine) -> None:
    machine.apply().wait_phase("running").wait_ready()
    now = machine.status["last_progress_at"]
    condition: dict[str, Any] = {
        "type": "Paused",
        "status": "True",
        "reason": "PausedIOError",
        "message": "VMI was paused, low-level IO error detected",
        "lastProbeTime": now,
        "lastTransitionTime": now,
    }

    def pause(vmi: Object) -> None:
        vmi["status"]["conditions"].append(condition)

    def go_on(vmi: Object) -> None:
        kept = [item for item in vmi["status"]["conditions"] if item["type"] != "Paused"]
        vmi["status"]["conditions"] = kept

    write_instance(machine, pause)
    text = "PausedIOError: VMI was paused, low-level IO error detected"
    told(machine, phase="running", reason="GuestPaused", text=text)
    write_instance(machine, go_on)
    well(machine)
    until(lambda: machine.events("Recovered"), "an Event that it is over", timeout=10)
