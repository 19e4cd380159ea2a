"""How the use of machines stands in their status, and what of it a replica may write.

Two things make a machine wake that went to sleep by itself: a hold that is new, and another last touch. So neither is
written without need to one that is going to sleep: the end of a session in which the guest was powered off, or what a
dead replica left behind, must not wake it.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from machine_operator.api.machine import Activity, Hold, PowerRequest
from machine_operator.api.phases import DesiredState, Phase, Power
from machine_operator.api.timestamps import format_timestamp
from machine_operator.gateway.activity.uses import Report, UseKind
from machine_operator.gateway.views import MachineView
from machine_operator.lifecycle.goal import AUTOSLEEP, GUEST, overtaken

__all__ = [
    "activity_body",
    "asleep",
    "cleared",
    "decision_to_sleep",
    "fresh",
    "manager_of",
    "stale",
]

Object = dict[str, Any]

_KINDS: Final = frozenset(UseKind)


def manager_of(replica: str) -> str:
    """The field manager of a replica's part of the activity."""
    return f"machine-operator-gateway-{replica}"


# ---- what a machine looks like


def asleep(view: MachineView) -> bool:
    """Whether it sleeps, or nothing keeps it from that any more."""
    return view.desired_state is DesiredState.SLEEPING and view.phase is not Phase.RUNNING


def decision_to_sleep(view: MachineView) -> PowerRequest | None:
    """The request that has it sleep without anybody having asked for that, if that is what counts now."""
    request = view.machine.status.power_request
    if request is None or view.desired_state is not DesiredState.SLEEPING:
        return None
    by_itself = request.by in (AUTOSLEEP, GUEST) and request.state is Power.SLEEPING
    return request if by_itself and overtaken(view.machine) is None else None


def fresh(decision: PowerRequest | None, *, begun: datetime, unheard: bool) -> bool:
    """Whether a use that began then was not seen by the decision to sleep, and so has to undo it.

    Autosleep has seen all that was told. A guest may be powered off by the use itself.
    """
    if decision is None or not unheard:
        return False
    return decision.by == AUTOSLEEP or begun > decision.at


# ---- what is written


def activity_body(view: MachineView, report: Report, *, replica: str, keep: bool) -> Object:
    """A replica's whole part of the status, good for this version of the machine only; `keep` leaves the last touch as
    it is.
    """
    touch = _last_touch(view)
    if not keep and (touch is None or touch < report.last.stamp):
        touch = report.last.stamp
    holds = [
        Hold(id=f"{replica}.{kind}", kind=kind, since=since, expires_at=report.expires_at)
        for kind, since in report.holds.items()
    ]
    return _body(view, touch, holds)


def _body(view: MachineView, touch: datetime | None, holds: Iterable[Hold]) -> Object:
    activity: Object = {}
    # Never left out: what an apply no longer names, and no other manager has, is removed.
    if touch is not None:
        activity["last_touch_at"] = format_timestamp(touch)
    shown = [hold.to_dict() for hold in holds]
    if shown:
        activity["holds"] = shown
    return {
        "metadata": {
            "uid": view.machine.metadata.uid,
            "resourceVersion": str(view.version),
        },
        "status": {"activity": activity} if activity else {},
    }


def _last_touch(view: MachineView) -> datetime | None:
    return (view.machine.status.activity or Activity()).last_touch_at


# ---- what dead replicas left


def stale(view: MachineView, *, now: datetime, grace: timedelta) -> list[str]:
    """Replicas all of whose holds expired so long ago that nobody is going to renew them."""
    activity = view.machine.status.activity
    if activity is None:
        return []
    latest: dict[str, datetime] = {}
    for hold in activity.holds:
        replica = _replica(hold)
        if replica is not None:
            latest[replica] = max(latest.get(replica, hold.expires_at), hold.expires_at)
    return [replica for replica, until in latest.items() if now - until >= grace]


def cleared(view: MachineView, replica: str) -> Object:
    """The part of a dead replica without its holds.

    The idle clock of a running machine starts with the end of the last hold, so it is kept as the last touch.
    """
    touch = _last_touch(view)
    if view.desired_state is DesiredState.RUNNING:
        activity = view.machine.status.activity or Activity()
        ends = [hold.expires_at for hold in activity.holds if _replica(hold) == replica]
        touch = max([*ends, *([touch] if touch is not None else [])], default=None)
    return _body(view, touch, ())


def _replica(hold: Hold) -> str | None:
    """Whose hold it is; None where no gateway made it."""
    replica, _, kind = hold.id.rpartition(".")
    return replica if replica and kind == hold.kind and kind in _KINDS else None
