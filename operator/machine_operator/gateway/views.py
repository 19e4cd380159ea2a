"""A Machine as DCS shows it: the superset of what the published clients read, in every place alike.

`desired_state` is the intent that counts now, be it from the spec or from a power request, and flips at once when a
change is accepted. The controller needs a moment to follow; until its status does, a phase that contradicts the
intent is not called settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final

import orjson

from machine_operator.api.durations import parse_autosleep
from machine_operator.api.machine import Machine
from machine_operator.api.phases import DesiredState, Phase
from machine_operator.api.revision import revision_of
from machine_operator.gateway.machine_ids import PREFIX, own_id
from machine_operator.lifecycle.goal import goal_of

__all__ = ["MachineView"]

_SETTLED_AS: Final = {
    Phase.RUNNING: DesiredState.RUNNING,
    Phase.SLEEPING: DesiredState.SLEEPING,
    Phase.DESTROYED: DesiredState.DESTROYED,
}
_SETTLED, _ACCEPTED = "DesiredStateReached", "Accepted"


@dataclass(frozen=True)
class MachineView:
    """One state of one machine; what it shows is made once, when first asked for.

    Attributes:
        machine: the object.
        version: its resourceVersion.
        gone: whether the object has been deleted.
    """

    machine: Machine
    version: int
    gone: bool = False

    @property
    def org(self) -> str:
        """The organisation: the namespace."""
        return self.machine.metadata.namespace

    @cached_property
    def uuid(self) -> str:
        """The id without `dm-`."""
        return own_id(self.machine)

    @cached_property
    def created_at(self) -> datetime:
        """When the object was made."""
        return self.machine.metadata.creationTimestamp or datetime.fromtimestamp(0, UTC)

    @cached_property
    def phase(self) -> Phase:
        """Where the machine is in its life; `accepted` before the controller has said anything."""
        if self.gone:
            return Phase.DESTROYED
        phase = self.machine.status.phase or Phase.ACCEPTED
        deleted = self.machine.metadata.deletionTimestamp is not None
        return Phase.DESTROYING if deleted and phase is not Phase.DESTROYED else phase

    @cached_property
    def desired_state(self) -> DesiredState:
        """The intent that counts now."""
        if self.gone:
            return DesiredState.DESTROYED
        return goal_of(self.machine, now=datetime.now(UTC)).state

    @property
    def converged(self) -> bool:
        """Whether everything that was asked for is done."""
        meta, status = self.machine.metadata, self.machine.status
        seen = status.observedGeneration == meta.generation
        return self.gone or (seen and _SETTLED_AS.get(self.phase) is self.desired_state)

    @property
    def final(self) -> bool:
        """Whether nothing more will happen by itself: converged, gone, or failed for good."""
        stuck = self.phase is Phase.FAILED and not self.machine.status.retryable
        return self.converged or self.phase is Phase.DESTROYED or stuck

    @cached_property
    def revision(self) -> str:
        """The revision; deletion of the object is a change as well."""
        return str(int(revision_of(self.machine)) + 1) if self.gone else revision_of(self.machine)

    @property
    def etag(self) -> str:
        """The revision as an entity tag."""
        return f'"{self.revision}"'

    @cached_property
    def body(self) -> dict[str, Any]:
        """The members, with the id in its long spelling."""
        spec, status = self.machine.spec, self._status()
        return {
            "machine_id": PREFIX + self.uuid,
            "vcpu": spec.vcpu,
            "memory_mib": spec.memory_mib,
            "storage_gib": spec.storage_gib,
            "autosleep_seconds": parse_autosleep(spec.autosleep),
            "desired_state": self.desired_state,
            "phase": self.phase,
            "status": status,
            "created_at": _stamp(self.created_at),
        }

    def _status(self) -> dict[str, Any]:
        status, created = self.machine.status, self.created_at
        shown: dict[str, Any] = {
            "phase": self.phase,
            "reason": self._reason(),
            "retryable": self._retryable(),
            "revision": self.revision,
            "last_transition_at": _stamp(status.last_transition_at or created),
            "last_progress_at": _stamp(status.last_progress_at or created),
            "memory_configured_mib": self.machine.spec.memory_mib,
        }
        if status.last_error and not self.gone:
            shown["last_error"] = status.last_error
        return shown

    def _retryable(self) -> bool:
        if self._reason() == _ACCEPTED:
            return True
        return bool(self.machine.status.retryable) and not self.gone

    def _reason(self) -> str:
        if self.gone:
            return _SETTLED
        reason = self.machine.status.reason or _ACCEPTED
        # The controller has not followed yet: what it said last is not true any more.
        return _ACCEPTED if reason == _SETTLED and not self.converged else reason

    @cached_property
    def rendered(self) -> bytes:
        """The body as JSON, with the id in its long spelling."""
        # A copy: orjson's buffer is larger than what is in it, and this is kept.
        return bytes(memoryview(orjson.dumps(self.body)))

    def as_json(self, *, short: bool = False) -> bytes:
        """The body as JSON; `short` spells the id without `dm-`."""
        if not short:
            return self.rendered
        return orjson.dumps({**self.body, "machine_id": self.uuid})


def _stamp(moment: datetime) -> str:
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="seconds") + "Z"
