"""Hypothesis strategies: any observation at all, also those that should never happen.

Stamps and `now` are drawn close to each other, on and beside the limits, and at both ends of the calendar.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import strategies as st

from machine_operator.api.conditions import ConditionType
from machine_operator.api.machine import Machine
from machine_operator.api.names import ADOPT_ANNOTATION, FINALIZER, PAUSED_ANNOTATION
from machine_operator.api.phases import REASONS, DesiredState, Phase, Reason, ReclaimPolicy
from machine_operator.api.timestamps import format_timestamp
from machine_operator.lifecycle.observation import (
    ClaimView,
    InstancePhase,
    InstanceView,
    NodeView,
    Observation,
    Question,
    RunStrategy,
    Trouble,
    VirtualMachineView,
)
from tests.support.machines import UID, WANTED, a_claim, a_machine, a_seed, a_vm, an_instance

__all__ = ["answers", "machines", "moments", "observations"]

_BASE = datetime(2026, 3, 1, 10, 0, tzinfo=UTC)
_SECONDS = (-3600, -1, 0, 0.00025, 1, 10, 20, 29, 30, 60, 89, 90, 299, 300, 301, 599, 600, 86_400)
_ENDS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_LONG = "pods are forbidden: exceeded quota \u2713 " * 130

moments = st.sampled_from([_BASE + timedelta(seconds=s) for s in _SECONDS]) | st.datetimes(
    min_value=datetime(2026, 1, 1), max_value=datetime(2036, 1, 1), timezones=st.just(UTC)
)
"""What a clock may say."""

_seen_at = moments | st.sampled_from(_ENDS)
_stamps = _seen_at.map(format_timestamp)
_texts = st.text(max_size=20) | st.just(_LONG)
_troubles = st.none() | st.builds(
    Trouble,
    reason=st.sampled_from([reason for reason in Reason if REASONS[reason].is_trouble]),
    message=_texts,
)

_nodes = st.none() | st.builds(
    NodeView,
    name=st.just("node-1"),
    ready=st.booleans(),
    schedulable=st.booleans(),
    message=st.just("Kubelet stopped posting node status."),
)


@st.composite
def _holds(draw: st.DrawFn) -> list[dict[str, str]]:
    return [
        {
            "id": f"exec-{number}",
            "kind": "execution",
            "since": draw(_stamps),
            "expires_at": draw(_stamps),
        }
        for number in range(draw(st.integers(0, 2)))
    ]


@st.composite
def _requests(draw: st.DrawFn) -> dict[str, object]:
    return {
        "state": draw(st.sampled_from(["running", "sleeping"])),
        "by": draw(st.sampled_from(["ada", "autosleep", "guest", "activity"])),
        "at": draw(_stamps),
        "reason": draw(st.none() | _texts),
        "last_touch_at": draw(st.none() | _stamps),
        "sequence": draw(st.integers(1, 1000)),
        "spec_desired_state": draw(st.sampled_from(DesiredState)),
    }


@st.composite
def _statuses(draw: st.DrawFn) -> dict[str, object] | None:
    if draw(st.integers(0, 4)) == 0:
        return None
    status: dict[str, object] = {
        "phase": draw(st.none() | st.sampled_from(Phase)),
        "reason": draw(st.none() | st.sampled_from(Reason)),
        "transitions": draw(st.none() | st.integers(0, 10**6)),
        "wake_count": draw(st.none() | st.integers(0, 10**6)),
        "last_transition_at": draw(st.none() | _stamps),
        "last_progress_at": draw(st.none() | _stamps),
    }
    if draw(st.booleans()):
        status["power_request"] = draw(_requests())
    if draw(st.booleans()):
        status["backoff"] = {
            "failures": draw(st.sampled_from([0, 1, 2, 3, 10**6])),
            "next_retry_at": draw(st.none() | _stamps),
            "instance_uid": draw(st.sampled_from([None, "vmi-uid"])),
        }
    if draw(st.booleans()):
        status["activity"] = {
            "last_touch_at": draw(st.none() | _stamps),
            "holds": draw(_holds()),
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
                "lastTransitionTime": draw(_stamps),
            }
            for kind in draw(st.sets(st.sampled_from(ConditionType)))
        ]
    return status


@st.composite
def machines(draw: st.DrawFn) -> Machine:
    """Any Machine that can be stored."""
    annotations = {}
    if draw(st.integers(0, 5)) == 0:
        annotations[PAUSED_ANNOTATION] = draw(st.sampled_from(["true", "false"]))
    if draw(st.integers(0, 5)) == 0:
        annotations[ADOPT_ANNOTATION] = draw(st.sampled_from(["m-7f3a9c215b1e-home", "old-home"]))
    metadata: dict[str, object] = {
        "generation": draw(st.integers(1, 100)),
        "finalizers": draw(st.sampled_from([[], [FINALIZER], ["other/one"], [FINALIZER, "a/b"]])),
        "annotations": annotations,
    }
    if draw(st.integers(0, 3)) == 0:
        metadata["deletionTimestamp"] = draw(_stamps)
    spec = {
        "desired_state": draw(st.sampled_from(DesiredState)),
        "reclaim_policy": draw(st.sampled_from(ReclaimPolicy)),
        "storage_gib": draw(st.sampled_from([10, 20])),
        "memory_mib": draw(st.sampled_from([512, 1024])),
        "autosleep": draw(st.sampled_from(["5m", "1s", "never", "1w", "9223372036"])),
    }
    return a_machine(spec=spec, status=draw(_statuses()), **metadata)


@st.composite
def _vms(draw: st.DrawFn) -> VirtualMachineView:
    return a_vm(
        deleting=draw(st.booleans()),
        run_strategy=draw(st.sampled_from([*RunStrategy, RunStrategy.ON, "Always", ""])),
        applied=draw(st.sampled_from([WANTED.virtual_machine, "", "other"])),
        halting=draw(st.booleans()),
        start_requested=draw(st.booleans()),
        rests=draw(st.booleans()),
        start_failures=draw(st.sampled_from([0, 0, 1, 40])),
        retry_at=draw(st.none() | _seen_at),
        trouble=draw(_troubles),
    )


@st.composite
def _instances(draw: st.DrawFn) -> InstanceView:
    return an_instance(
        draw(st.sampled_from(InstancePhase)),
        deleting_since=draw(st.none() | _seen_at),
        ready=draw(st.booleans()),
        started_from=draw(st.sampled_from([WANTED.boot, "", "other"])),
        node=draw(st.sampled_from([None, "node-1"])),
        addresses=tuple(f"10.0.0.{n}" for n in range(draw(st.sampled_from([0, 1, 200])))),
        vcpu=draw(st.sampled_from([None, 0.25, 2.0])),
        memory_mib=draw(st.sampled_from([None, 512])),
        trouble=draw(_troubles),
    )


@st.composite
def _claims(draw: st.DrawFn) -> ClaimView:
    bound = draw(st.booleans())
    return a_claim(
        name=draw(st.sampled_from(["m-7f3a9c215b1e-home", "old-home"])),
        deleting=draw(st.booleans()),
        bound=bound,
        capacity_gib=draw(st.sampled_from([10, 20])) if bound else 0,
        applied=draw(st.sampled_from([WANTED.home, "", "other"])),
        owned=draw(st.booleans()),
        machine=draw(st.sampled_from(["box", "other", ""])),
        machine_uid=draw(st.sampled_from([UID, UID, "another-uid", ""])),
        created_at=draw(st.none() | _seen_at),
        foreign_owner=draw(st.booleans()),
    )


_MAYBE_VM = st.none() | _vms()
_MAYBE_INSTANCE = st.none() | _instances()
_MAYBE_HOME = st.none() | _claims()
_REASON_UNBOUND = st.sampled_from([None, None, 'storageclass "x" not found', _LONG])

answers = {
    Question.VIRTUAL_MACHINE: st.tuples(st.just("virtual_machine"), _MAYBE_VM),
    Question.INSTANCE: st.tuples(st.just("instance"), _MAYBE_INSTANCE),
    Question.HOME: st.tuples(st.just("home"), _MAYBE_HOME),
    Question.WHY_UNBOUND: st.tuples(st.just("unbound_because"), _REASON_UNBOUND),
}
"""For each question the member of the observation that its answer changes, and any answer."""


@st.composite
def observations(draw: st.DrawFn) -> Observation:
    """Any Machine with any set of children in any state."""
    seed = draw(st.none() | st.sampled_from([WANTED.seed, "", "other"]))
    return Observation(
        machine=draw(machines()),
        wanted=WANTED,
        virtual_machine=draw(_MAYBE_VM),
        instance=draw(_MAYBE_INSTANCE),
        failed_instance=draw(st.sampled_from([None, None, "vmi-uid", "another-vmi"])),
        home=draw(_MAYBE_HOME),
        seed=None if seed is None else a_seed(applied=seed),
        node=draw(_nodes),
        fault=draw(st.sampled_from([None, None, None, None, "spec.vcpu: too much", _LONG])),
        answered=draw(st.sampled_from([frozenset(), frozenset(Question)])),
        unbound_because=draw(_REASON_UNBOUND),
    )
