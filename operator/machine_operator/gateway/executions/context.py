"""What all executions of a gateway share while they run, and what the state of their machines means for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from machine_operator.gateway.access import Access
from machine_operator.gateway.artifacts.artifacts import Artifacts
from machine_operator.gateway.executions.outcomes import MACHINE_GONE, Outcome, without_machine
from machine_operator.gateway.settings import GatewaySettings
from machine_operator.gateway.views import MachineView
from machine_operator.store.executions import Execution, ExecutionRecords

__all__ = ["Context", "Patience"]


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds.

    Attributes:
        mark: a program that has ended by then is not told to be running in between.
        first_look: from then until the first look for output: whoever writes much waits for that.
        look: between two looks for output, at first; a hundredth of the time that it has run, later.
        longest_look: between two looks, at most.
        connect: for a connection, in one try.
        unreachable: for which a guest may be out of reach altogether.
        term: between TERM and KILL.
        kill: after KILL.
        last_output: to get what a guest that is going away still has.
        retry: between two tries, at first; twice as long each time.
        longest_retry: between two tries, at most.
    """

    mark: float = 0.05
    first_look: float = 0.1
    look: float = 0.5
    longest_look: float = 10.0
    connect: float = 60.0
    unreachable: float = 180.0
    term: float = 5.0
    kill: float = 10.0
    last_output: float = 2.0
    retry: float = 0.25
    longest_retry: float = 5.0


@dataclass(frozen=True, slots=True)
class Context:
    """What all runs of a gateway share.

    Attributes:
        latest: tells what has become of a machine.
        copying: how many copies of output are made at once.
    """

    records: ExecutionRecords
    access: Access
    artifacts: Artifacts
    settings: GatewaySettings
    latest: Callable[[MachineView], MachineView]
    copying: asyncio.Semaphore
    patience: Patience
    clock: Callable[[], datetime]

    def ending(self) -> dict[str, Any]:
        """Columns of any end: when it was, and until when it can be read."""
        now = self.clock()
        kept = timedelta(seconds=self.settings.execution_retention)
        return {"completed_at": now, "expires_at": now + kept}

    def of_machine(
        self, view: MachineView | None, execution: Execution, *, begun: bool
    ) -> tuple[bool, Outcome | None]:
        """Whether an execution waits for its machine, or how it ends because of that.

        Args:
            view: the machine; None for one that is gone.
            execution: which.
            begun: whether it may have begun, which it has in one boot of the machine only.
        """
        if view is None or view.machine.metadata.uid != execution.machine_uid:
            return False, MACHINE_GONE
        target = self.access.target(view)
        if target is not None and (not begun or target.instance_uid == execution.instance_uid):
            return False, None
        outcome = without_machine(self.access.readiness(view), begun=begun)
        return outcome is None, outcome
