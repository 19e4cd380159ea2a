"""The conditions of a Machine: metav1.Condition, read by `kubectl wait`, Flux and Argo CD.

The controller writes all of them in each status. `Reconciling` and `Stalled` follow kstatus: they
are true when something is unusual, and their being false is the good case.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

__all__ = ["CONDITIONS", "Condition", "ConditionStatus", "ConditionType", "set_conditions"]

ConditionStatus = Literal["True", "False", "Unknown"]


class ConditionType(StrEnum):
    """The conditions which every Machine has, in the order in which its status lists them."""

    READY = "Ready"
    RECONCILING = "Reconciling"
    STALLED = "Stalled"
    AWAKE = "Awake"
    SCHEDULED = "Scheduled"
    STORAGE_READY = "StorageReady"
    GUEST_REACHABLE = "GuestReachable"
    RESTART_PENDING = "RestartPending"


CONDITIONS: Final[Mapping[ConditionType, str]] = MappingProxyType(
    {
        ConditionType.READY: (
            "The machine is as asked and usable on demand: "
            "running and reachable, or asleep and able to wake."
        ),
        ConditionType.RECONCILING: "The operator is on its way to what was asked.",
        ConditionType.STALLED: "The operator cannot go on before somebody changes something.",
        ConditionType.AWAKE: "The machine is on and costs compute.",
        ConditionType.SCHEDULED: "The machine has a node.",
        ConditionType.STORAGE_READY: "The home disk is there, in the size asked for.",
        ConditionType.GUEST_REACHABLE: "The guest's SSH port answers.",
        ConditionType.RESTART_PENDING: "A change of the spec waits for the next start.",
    }
)
"""What the status "True" of each condition means."""

# The limits of metav1.Condition, as controller-gen writes them into every CRD.
_TYPE: Final = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?"
    r"(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
)
_REASON: Final = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One aspect of the machine's state, as a metav1.Condition."""

    type: Annotated[
        str,
        Field(
            max_length=316, pattern=_TYPE, description="Which aspect, in CamelCase, such as Ready."
        ),
    ]
    status: Annotated[
        ConditionStatus, Field(description="Whether it holds: True, False or Unknown.")
    ]
    reason: Annotated[
        str,
        Field(
            min_length=1,
            max_length=1024,
            pattern=_REASON,
            description="Why, as one stable CamelCase word for programs.",
        ),
    ]
    message: Annotated[str, Field(max_length=32768, description="Why, as a sentence for people.")]
    observedGeneration: Annotated[
        int | None,
        Field(ge=0, description="The metadata.generation which this condition was made from."),
    ] = None
    lastTransitionTime: Annotated[
        str | None,
        Field(
            description="When the status last changed (RFC 3339).",
            json_schema_extra={"format": "date-time"},
        ),
    ] = None
    """None in a wanted condition: `set_conditions` stamps it."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(
        json_schema_extra={
            "required": ["type", "status", "lastTransitionTime", "reason", "message"]
        }
    )


def set_conditions(
    previous: Sequence[Mapping[str, Any]], wanted: Sequence[Condition], *, now: str
) -> list[dict[str, Any]]:
    """The conditions to write: exactly the `wanted` ones, stamped.

    `lastTransitionTime` is kept from `previous` while the status stays the same, whatever happens
    to reason and message; otherwise it is the wanted one's own, or else `now` (RFC 3339). The order
    is that of ConditionType, then other types by name, whatever the order of the arguments: so an
    equal outcome is an equal list, and needs no write. Previous conditions which are not wanted are
    left out; in a server-side apply this removes ours and does not claim those of other managers.

    Raises:
        ValueError: `wanted` has a type twice.
    """
    if len({str(c.type) for c in wanted}) < len(wanted):
        twice = {c.type for c in wanted if sum(o.type == c.type for o in wanted) > 1}
        raise ValueError(
            f"conditions of the same type were wanted twice: {', '.join(sorted(twice))}"
        )
    known = {str(old.get("type")): old for old in previous}
    return [_stamped(c, known.get(c.type, {}), now=now) for c in sorted(wanted, key=_position)]


def _stamped(wanted: Condition, old: Mapping[str, Any], *, now: str) -> dict[str, Any]:
    stamp = wanted.lastTransitionTime or now
    if old.get("status") == wanted.status:
        stamp = old.get("lastTransitionTime") or stamp
    # An enum member would be written differently by some serialisers than the plain text it equals.
    fields: dict[str, Any] = {
        "type": str(wanted.type),
        "status": wanted.status,
        "reason": str(wanted.reason),
        "message": wanted.message,
        "lastTransitionTime": str(stamp),
    }
    if wanted.observedGeneration is not None:
        fields["observedGeneration"] = wanted.observedGeneration
    return fields


_ORDER: Final = {str(kind): place for place, kind in enumerate(ConditionType)}


def _position(condition: Condition) -> tuple[int, str]:
    kind = str(condition.type)
    return (_ORDER.get(kind, len(_ORDER)), kind)
