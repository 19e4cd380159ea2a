"""When a machine that nobody uses goes to sleep.

The idle clock starts with the last touch, the last request to run, the end of the last hold, or the moment at which
the machine came up, whichever is latest. A live hold ends in the future, so while one lives the clock has not even
started; one whose holder is gone ends at its expiry. All of it comes from stamps in the status: a restarted operator
finds the same moment, and there is no timer that could be lost.
"""

from __future__ import annotations

from datetime import datetime

from machine_operator.api.durations import parse_autosleep
from machine_operator.api.machine import Activity, Machine
from machine_operator.api.phases import Power
from machine_operator.lifecycle.clocks import after
from machine_operator.lifecycle.limits import Limits

__all__ = ["sleeps_at"]


def sleeps_at(machine: Machine, *, awake_since: datetime, limits: Limits) -> datetime | None:
    """When autosleep is due for a machine that runs since then; None for `never`."""
    idle = parse_autosleep(machine.spec.autosleep)
    if not idle:
        return None
    activity = machine.status.activity or Activity()
    starts = [awake_since, *(hold.expires_at for hold in activity.holds)]
    if activity.last_touch_at is not None:
        starts.append(activity.last_touch_at)
    request = machine.status.power_request
    if request is not None and request.state is Power.RUNNING:
        # The touch behind a wake may bear the stamp of a slow clock, and must not be lost for that.
        starts.append(request.at)
    due = max(after(max(starts), idle), after(awake_since, limits.minimum_awake))
    # People read it: whole seconds, and none too early.
    return after(due.replace(microsecond=0), 1 if due.microsecond else 0)
