"""What the failure tests share: that a trouble is told wherever people look, and what virt-handler says of a guest."""

from __future__ import annotations

import json
from collections.abc import Callable

from machine_operator.api.phases import REASONS, Reason
from tests.cluster.support import MINUTE, Machine, Object, until

__all__ = ["end_guest", "told", "well", "write_instance"]


def told(
    machine: Machine,
    *,
    phase: str,
    reason: str,
    text: str,
    retryable: bool = True,
    timeout: float = MINUTE,
) -> Object:
    """Wait until the machine tells this trouble, and check every place that tells it: status, conditions, Event,
    `kubectl describe`. Returns the status.
    """

    def said() -> Object:
        found = machine.status
        assert (found.get("phase"), found.get("reason")) == (phase, reason), found
        assert text in found.get("last_error", ""), found
        return found

    status = until(said, f"{machine.name} to say {phase}, {reason}, {text!r}", timeout=timeout)
    assert status["retryable"] is retryable
    conditions = {item["type"]: item for item in status["conditions"]}
    assert {kind: conditions[kind]["status"] for kind in ("Ready", "Stalled", "Reconciling")} == {
        "Ready": "False",
        "Stalled": "True",
        "Reconciling": "False",
    }
    for kind in ("Ready", "Stalled"):
        assert conditions[kind]["reason"] == reason
        assert text in conditions[kind]["message"]
    assert REASONS[Reason(reason)].unblocks in conditions["Stalled"]["message"]

    def noted() -> bool:
        events = machine.events(reason)
        assert any(text in e["message"] and e["type"] == "Warning" for e in events), events
        return True

    until(noted, f"an Event {reason} that says {text!r}", timeout=10)
    story = machine.kubectl("describe", "machine", machine.name).stdout
    assert reason in story.partition("Events:")[2], story
    return status


def well(machine: Machine, *, phase: str = "running", timeout: float = MINUTE) -> Object:
    """Wait until it is as asked, with nothing left of a trouble. Returns the status."""

    def fine() -> Object:
        found = machine.status
        seen = (found.get("phase"), found.get("reason"))
        assert seen == (phase, "DesiredStateReached"), found
        return found

    status = until(fine, f"{machine.name} to be {phase} again", timeout=timeout)
    assert "last_error" not in status
    conditions = {item["type"]: item["status"] for item in status["conditions"]}
    assert (conditions["Ready"], conditions["Stalled"]) == ("True", "False")
    return status


def write_instance(machine: Machine, change: Callable[[Object], None]) -> Object:
    """Change the VMI as virt-handler does, with its certificate: KubeVirt reverts everybody else's word."""

    def written() -> Object:
        vmi = machine.child("vmi")
        change(vmi)
        meta = vmi["metadata"]
        path = (
            f"/apis/kubevirt.io/v1/namespaces/{meta['namespace']}"
            f"/virtualmachineinstances/{meta['name']}"
        )
        body = json.dumps(vmi)
        done = machine.cluster.acts(
            "virt-handler", "replace", "--raw", path, "-f", "-", input=body, check=False
        )
        # Somebody else may have written meanwhile; then the next look has it.
        assert done.returncode == 0, done.stderr
        answer: Object = json.loads(done.stdout)
        return answer

    return until(written, f"virt-handler's word about {machine.name} to be taken")


def end_guest(machine: Machine, *, phase: str) -> str:
    """Its guest is over: `Succeeded` where it powered itself off, `Failed` where it crashed. Returns the VMI's UID."""

    def change(vmi: Object) -> None:
        assert vmi["status"].get("phase") == "Running", vmi["status"]
        vmi["status"]["phase"] = phase

    return str(write_instance(machine, change)["metadata"]["uid"])
