"""How often a start went wrong in a row, and when the next one is due: shown in `status.backoff`.

KubeVirt holds starts back only where the guest never came up; that count is shown as it is. A guest that dies after
it was up is started again at once and for ever, and a guest that never answers is left alone for ever. Both are
counted here, and from the third failure on the VM stays off until the next try is due. A machine that answers for ten
minutes starts from zero again.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

from machine_operator.api.machine import Backoff
from machine_operator.api.phases import DesiredState, Phase, Reason
from machine_operator.lifecycle.observation import InstancePhase
from machine_operator.lifecycle.situation import Situation

__all__ = ["STABLE", "backoff_of", "holds_off", "pause_after", "retry_is_due"]

STABLE: Final = 600.0
"""Seconds of running after which earlier failures no longer count."""

_FREE: Final = 2
"""So many crashes in a row cost nothing: KubeVirt starts the guest again at once."""

_FIRST_PAUSE: Final = 10.0
_LONGEST_PAUSE: Final = 300.0


def pause_after(failures: int) -> timedelta:
    """How long the VM stays off after so many failures in a row."""
    # Bounded exponent: a count that somebody wrote by hand must not overflow.
    exponent = min(max(failures - _FREE - 1, 0), 10)
    return timedelta(seconds=min(_FIRST_PAUSE * 2.0**exponent, _LONGEST_PAUSE))


def backoff_of(at: Situation) -> Backoff | None:
    """What `status.backoff` has to say now."""
    if at.goal.state is not DesiredState.RUNNING:
        return None
    before, vm = at.seen.machine.status.backoff, at.seen.virtual_machine
    if vm is not None and vm.start_failures:
        counted = before.instance_uid if before else None
        return Backoff(failures=vm.start_failures, next_retry_at=vm.retry_at, instance_uid=counted)
    failures = (before.failures if before else 0) + 1
    crashed = _crashed(at)
    if crashed is not None:
        due = at.now + pause_after(failures) if failures > _FREE else None
        return Backoff(failures=failures, next_retry_at=due, instance_uid=crashed)
    if _gave_up(at):
        uid = before.instance_uid if before else None
        return Backoff(
            failures=failures, next_retry_at=at.now + pause_after(failures), instance_uid=uid
        )
    if at.answers and at.phase_before is Phase.RUNNING and at.lasted(STABLE):
        return None
    return before


def _crashed(at: Situation) -> str | None:
    """UID of a VMI that failed by itself and has not been counted.

    That counts also once the VM is off: it is switched off for this very reason before the status can say so.
    """
    status, instance, uid = at.seen.machine.status, at.seen.instance, at.seen.failed_instance
    failed = instance is not None and instance.phase is InstancePhase.FAILED
    if instance is not None and failed and (at.on or instance.uid == uid):
        uid = instance.uid
    elif status.vm is None or status.vm.instance_uid != uid:
        return None  # an earlier one, or one that was told to stop
    return None if status.backoff is not None and status.backoff.instance_uid == uid else uid


def _gave_up(at: Situation) -> bool:
    """The start takes too long, or ended in nothing: first told now."""
    status = at.seen.machine.status
    told = status.reason in (Reason.START_TIMEOUT, Reason.CRASH_LOOP)
    planned = status.backoff is not None and status.backoff.next_retry_at is not None
    if at.phase_before is Phase.FAILED and told and planned:
        return False
    return at.stuck or (at.down and not at.guest_powered_off and not at.blocked)


def retry_is_due(at: Situation) -> bool:
    """The pause is over."""
    before = at.seen.machine.status.backoff
    return (
        before is not None and before.next_retry_at is not None and before.next_retry_at <= at.now
    )


def holds_off(at: Situation, backoff: Backoff | None) -> bool:
    """The VM has to stay off: its guest died too often, and the next try is not due yet.

    Where KubeVirt itself holds the next start back, nothing needs to be done.
    """
    if backoff is None or backoff.next_retry_at is None or backoff.next_retry_at <= at.now:
        return False
    vm = at.seen.virtual_machine
    kubevirts = vm is not None and vm.start_failures > 0
    return not kubevirts and not at.start_overdue and not at.down and not at.answers
