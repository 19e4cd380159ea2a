"""Hypothesis strategies: any observation at all, also those that should never happen."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import Machine
from machine_operator.api.names import FINALIZER
from machine_operator.api.phases import REASONS, DesiredState, Phase, Reason, ReclaimPolicy
from machine_operator.lifecycle.observation import (
    InstancePhase,
    NodeView,
    Observation,
    Question,
    RunStrategy,
    Trouble,
)
from tests.support.machines import UID, WANTED, a_claim, a_machine, a_seed, a_vm, an_instance

__all__ = ["machines", "moments", "observations"]

THEN = "2026-03-01T10:00:00Z"
_DIGEST = ("", "other")
_HOLD = {
    "id": "exec-1",
    "kind": "execution",
    "since": "2026-03-01T10:00:00Z",
    "expires_at": "2029-03-01T10:00:00Z",
}

moments = st.datetimes(
    min_value=datetime(2026, 1, 1), max_value=datetime(2036, 1, 1), timezones=st.just(UTC)
)
_troubles = st.none() | st.builds(
    Trouble,
    reason=st.sampled_from([reason for reason in Reason if REASONS[reason].is_trouble]),
    message=st.text(max_size=20),
)


_nodes = st.none() | st.builds(
    NodeView,
    name=st.just("node-1"),
    ready=st.booleans(),
    schedulable=st.booleans(),
    message=st.just("Kubelet stopped posting node status."),
)


@st.composite
def _statuses(draw: st.DrawFn) -> dict[str, object] | None:
    if draw(st.integers(0, 4)) == 0:
        return None
    status: dict[str, object] = {
        "phase": draw(st.none() | st.sampled_from(Phase)),
        "reason": draw(st.none() | st.sampled_from(Reason)),
        "transitions": draw(st.none() | st.integers(0, 10**6)),
        "wake_count": draw(st.none() | st.integers(0, 10**6)),
        "last_transition_at": draw(st.none() | st.just(THEN)),
        "last_progress_at": draw(st.none() | st.just(THEN)),
    }
    if draw(st.booleans()):
        status["power_request"] = {
            "state": draw(st.sampled_from(["running", "sleeping"])),
            "by": draw(st.sampled_from(["ada", "autosleep", "guest", "activity"])),
            "at": THEN,
            "last_touch_at": draw(st.none() | st.just(THEN)),
            "sequence": draw(st.integers(1, 1000)),
            "spec_desired_state": draw(st.sampled_from(DesiredState)),
        }
    if draw(st.integers(0, 3)) == 0:
        status["backoff"] = {
            "failures": draw(st.integers(0, 10**6)),
            "next_retry_at": draw(st.none() | st.just(THEN)),
            "instance_uid": draw(st.sampled_from([None, "vmi-uid"])),
        }
    if draw(st.booleans()):
        status["activity"] = {
            "last_touch_at": draw(st.none() | st.just(THEN)),
            "holds": draw(st.sampled_from([[], [_HOLD]])),
        }
    if draw(st.booleans()):
        status["vm"] = {
            "name": "m-7f3a9c215b1e",
            "instance_uid": draw(st.sampled_from([None, "vmi-uid", "another-vmi"])),
            "home_claim": draw(st.sampled_from([None, "m-7f3a9c215b1e-home"])),
        }
    if draw(st.booleans()):
        status["conditions"] = [
            {
                "type": str(kind),
                "status": draw(st.sampled_from(["True", "False", "Unknown"])),
                "reason": "Starting",
                "message": "",
                "lastTransitionTime": THEN,
            }
            for kind in draw(st.sets(st.sampled_from(ConditionType)))
        ]
    return status


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Any Machine that can be stored."""
    metadata: dict[str, object] = {
        "generation": draw(st.integers(1, 100)),
        "finalizers": draw(st.sampled_from([[], [FINALIZER], ["other/one"], [FINALIZER, "a/b"]])),
    }
    if draw(st.integers(0, 3)) == 0:
        metadata["deletionTimestamp"] = THEN
    spec = {
        "desired_state": draw(st.sampled_from(DesiredState)),
        "reclaim_policy": draw(st.sampled_from(ReclaimPolicy)),
        "storage_gib": draw(st.sampled_from([10, 20])),
        "autosleep": draw(st.sampled_from(["5m", "never", "1w"])),
    }
    return a_machine(spec=spec, status=draw(_statuses()), **metadata)


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Any Machine with any set of children in any state."""
    vm = home = seed = instance = None
    if draw(st.booleans()):
        vm = a_vm(
            deleting=draw(st.booleans()),
            run_strategy=draw(st.sampled_from([*RunStrategy, "Always", ""])),
            applied=draw(st.sampled_from([WANTED.virtual_machine, *_DIGEST])),
            halting=draw(st.booleans()),
            start_requested=draw(st.booleans()),
            down=draw(st.booleans()),
            start_failures=draw(st.sampled_from([0, 0, 1, 40])),
            retry_at=draw(st.none() | moments),
            trouble=draw(_troubles),
        )
    if draw(st.booleans()):
        instance = an_instance(
            draw(st.sampled_from(InstancePhase)),
            deleting_since=draw(st.none() | moments),
            ready=draw(st.booleans()),
            started_from=draw(st.sampled_from([WANTED.boot, *_DIGEST])),
            node=draw(st.sampled_from([None, "node-1"])),
            vcpu=draw(st.sampled_from([None, 0.25])),
            memory_mib=draw(st.sampled_from([None, 512])),
            trouble=draw(_troubles),
        )
    if draw(st.booleans()):
        bound = draw(st.booleans())
        home = a_claim(
            deleting=draw(st.booleans()),
            bound=bound,
            capacity_gib=draw(st.sampled_from([10, 20])) if bound else 0,
            applied=draw(st.sampled_from([WANTED.home, *_DIGEST])),
            owned=draw(st.booleans()),
            machine=draw(st.sampled_from(["box", "other", ""])),
            machine_uid=draw(st.sampled_from([UID, UID, "another-uid", ""])),
            created_at=draw(st.none() | moments),
            foreign_owner=draw(st.booleans()),
        )
    if draw(st.booleans()):
        seed = a_seed(applied=draw(st.sampled_from([WANTED.seed, *_DIGEST])))
    return Observation(
        machine=draw(machines()),
        wanted=WANTED,
        virtual_machine=vm,
        instance=instance,
        home=home,
        seed=seed,
        node=draw(_nodes),
        fault=draw(st.sampled_from([None, None, None, "spec.vcpu: too much"])),
        answered=draw(st.sampled_from([frozenset(), frozenset(Question)])),
        unbound_because=draw(st.sampled_from([None, None, 'storageclass "x" not found'])),
    )
