"""How an execution can end, in the words that DCS clients know.

With an exit code the program ended, one way or another; without one it never ran, or was not left to its end.
"""

from __future__ import annotations

import signal as signals
from dataclasses import dataclass, replace
from typing import Any

from machine_operator.gateway.access import Readiness
from machine_operator.guest.job import Ended

__all__ = [
    "CANCELLED",
    "EXPIRED",
    "INTERRUPTED",
    "MACHINE_GONE",
    "NOT_ROUTABLE",
    "Outcome",
    "not_prepared",
    "of_ended",
    "without_machine",
]

_LONGEST = 500
_REJECTED = "exec_init_rejected"
"""How the guest begins to say that a program could not be started."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of an execution; the members are those of answers and events."""

    status: str
    exit_code: int | None = None
    signal: int | None = None
    error_code: str | None = None
    error_message: str | None = None

    def values(self) -> dict[str, Any]:
        """As columns."""
        return {name: getattr(self, name) for name in self.__slots__}


CANCELLED = Outcome("cancelled")
EXPIRED = Outcome(
    "expired",
    error_code="execution_timed_out",
    error_message="execution exceeded timeout_ms",
)
MACHINE_GONE = Outcome(
    "failed", error_code="machine_not_found", error_message="machine no longer exists"
)
NOT_ROUTABLE = Outcome(
    "failed",
    error_code="machine_not_routable",
    error_message="machine is not routable for execution",
)
INTERRUPTED = Outcome(
    "failed",
    error_code="execution_runner_interrupted",
    error_message="the machine stopped before the execution had ended",
)


def of_ended(ended: Ended) -> Outcome:
    """What became of a program that was left to its end, or could not be started."""
    if ended.overdue:
        return EXPIRED
    if ended.failure is not None:
        why = _clean(ended.failure)
        if not why.startswith(_REJECTED):
            return replace(INTERRUPTED, error_message=why)
        return Outcome("failed", error_code="host_agent_execute_failed", error_message=why)
    if ended.signal is not None:
        return Outcome(
            "failed",
            exit_code=128 + ended.signal,
            signal=ended.signal,
            error_code=f"signal: {ended.signal}",
            error_message=f"the program was killed by {_name(ended.signal)}",
        )
    if ended.exit_code is None:
        return INTERRUPTED
    return Outcome("succeeded" if ended.exit_code == 0 else "failed", exit_code=ended.exit_code)


def not_prepared(why: str) -> Outcome:
    """The guest could not be made ready to run the program, as with a disk that is full."""
    return Outcome(
        "failed", error_code="execution_runner_prepare_failed", error_message=_clean(why)
    )


def without_machine(readiness: Readiness, *, begun: bool) -> Outcome | None:
    """The end of an execution whose machine is not ready; None: it waits, since it has not begun."""
    match readiness:
        case Readiness.GONE:
            return MACHINE_GONE
        case Readiness.FAILED:
            return NOT_ROUTABLE
        case Readiness.WAKING | Readiness.READY:
            return INTERRUPTED if begun else None


def _clean(text: str) -> str:
    """Words from a guest: as many as are of use, and such as any database takes."""
    return text[:_LONGEST].replace("\0", "?").encode("utf-8", "replace").decode()


def _name(number: int) -> str:
    try:
        return f"signal {number} ({signals.Signals(number).name})"
    except ValueError:
        return f"signal {number}"
