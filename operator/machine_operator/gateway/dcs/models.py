"""The bodies of the machine operations, under the names that they have in the contract.

Requests are closed and strict: an unknown member, a number in quotes or a null is a mistake that its sender wants to
hear of. What may be asked for is what a Machine may have, so bounds are read off its own model and written down nowhere
else. Members that DCS gained later are optional in requests and always there in answers, which are the union of what
the generations of clients read: `status.phase` and `phase`, and `created_at` outside of lists too.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Le
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from machine_operator.api import rules
from machine_operator.api.durations import (
    AUTOSLEEP_PATTERN,
    MAX_LENGTH,
    MAX_SECONDS,
    format_duration,
    parse_autosleep,
)
from machine_operator.api.machine import MachineSpec
from machine_operator.api.phases import DesiredState, Phase

__all__ = [
    "CreateMachineRequest",
    "LifecycleResponse",
    "LifecycleStatus",
    "MachineListItem",
    "MachineListResponse",
    "UpdateMachineRequest",
    "stamp",
    "whole",
]


def _tidy(schema: dict[str, Any]) -> None:
    """In JSON a member that is None is not there, so no member is nullable, and None is no default."""
    schema["properties"] = {
        name: _without_null(member) for name, member in schema.get("properties", {}).items()
    }


def _without_null(member: dict[str, Any]) -> dict[str, Any]:
    kept = [branch for branch in member.get("anyOf", ()) if branch.get("type") != "null"]
    rest = {
        name: value
        for name, value in member.items()
        if name not in ("anyOf", "title") and (name, value) != ("default", None)
    }
    merged = {**kept[0], **rest} if kept else rest
    if "const" in merged:  # the same, in words that generators of OpenAPI 3.0 know too
        merged["enum"] = [merged.pop("const")]
    return merged


def stamp(moment: datetime | None) -> str | None:
    """RFC 3339 in UTC, with milliseconds."""
    if moment is None:
        return None
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


class Body(BaseModel):
    """What all bodies share: they are closed."""

    model_config = ConfigDict(extra="forbid", frozen=True, json_schema_extra=_tidy)


# --- sizes, as requests may give them


def _least(field: str) -> float:
    return next(float(m.ge) for m in MachineSpec.model_fields[field].metadata if isinstance(m, Ge))  # type: ignore[arg-type]


def _most(field: str) -> float:
    return next(float(m.le) for m in MachineSpec.model_fields[field].metadata if isinstance(m, Le))  # type: ignore[arg-type]


def _in_steps(vcpu: float) -> float:
    if vcpu % rules.VCPU_STEP != 0:  # exact: quarters are whole numbers in binary
        raise ValueError(f"must be a multiple of {rules.VCPU_STEP}")
    return vcpu


def _no_truth(value: Any) -> Any:
    """A bool is an int to Python, but no number to anybody else."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "must be a number")
    return value


def whole(value: Any) -> Any:
    """2048.0 is an integer: JSON Schema says so, and some JSON writers know floats only. For a BeforeValidator."""
    return int(value) if isinstance(value, float) and value.is_integer() else _no_truth(value)


def _duration(text: str) -> str:
    parse_autosleep(text)
    return text


Vcpu = Annotated[
    float,
    Field(
        strict=True,
        allow_inf_nan=False,
        ge=_least("vcpu"),
        le=_most("vcpu"),
        description="CPU in vCPUs.",
        json_schema_extra={"format": "double", "multipleOf": rules.VCPU_STEP},
    ),
    AfterValidator(_in_steps),
    BeforeValidator(_no_truth),
]
MemoryMib = Annotated[
    int,
    Field(
        strict=True,
        ge=int(_least("memory_mib")),
        le=int(_most("memory_mib")),
        description="Memory in MiB.",
        json_schema_extra={"format": "int64"},
    ),
    BeforeValidator(whole),
]
StorageGib = Annotated[
    int,
    Field(
        strict=True,
        ge=int(_least("storage_gib")),
        le=int(_most("storage_gib")),
        description="Storage in GiB. It can grow later, but never shrink.",
        json_schema_extra={"format": "int64"},
    ),
    BeforeValidator(whole),
]
Autosleep = Annotated[
    str,
    Field(
        strict=True,
        max_length=MAX_LENGTH,
        description=(
            "How long the machine may idle before it sleeps: units w, d, h, m, s from large to small such as 5m or "
            "1w3d, a number of seconds such as 1800, or never."
        ),
        json_schema_extra={"pattern": AUTOSLEEP_PATTERN},
    ),
    AfterValidator(_duration),
]
AutosleepSeconds = Annotated[
    int,
    Field(
        strict=True,
        ge=0,
        le=MAX_SECONDS,
        description="The same in seconds; 0 is never. For clients that do not know autosleep.",
        json_schema_extra={"format": "int64"},
    ),
    BeforeValidator(whole),
]


class _SizesRequest(Body):
    """Whatever of a machine a request may set. None: the request does not say."""

    vcpu: Vcpu | None = None
    memory_mib: MemoryMib | None = None
    storage_gib: StorageGib | None = None
    autosleep: Autosleep | None = None
    autosleep_seconds: AutosleepSeconds | None = None

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if value is None:
            raise PydanticCustomError("null", "must not be null")
        return value

    @model_validator(mode="after")
    def _of_one_mind(self) -> Self:
        if None not in (self.autosleep, self.autosleep_seconds) and (
            parse_autosleep(self.autosleep or "") != self.autosleep_seconds
        ):
            raise ValueError("autosleep and autosleep_seconds contradict each other: send one")
        return self

    @property
    def autosleep_text(self) -> str | None:
        """What `autosleep` shall be, in one spelling for each meaning: ` 5M `, `300` and seconds=300 are all `5m`."""
        if self.autosleep is not None:
            return format_duration(parse_autosleep(self.autosleep))
        if self.autosleep_seconds is not None:
            return format_duration(self.autosleep_seconds)
        return None


class CreateMachineRequest(_SizesRequest):
    """A new machine. Sizes that are left out are the gateway's defaults."""


class UpdateMachineRequest(_SizesRequest):
    """Changes of a machine. What is left out stays."""


# --- answers

Int64 = Annotated[int, Field(json_schema_extra={"format": "int64"})]
Double = Annotated[float, Field(json_schema_extra={"format": "double"})]


class LifecycleStatus(Body):
    """Where a machine is in its life."""

    phase: Phase
    reason: str = Field(
        description="Why, as one stable word; DesiredStateReached when all is well."
    )
    retryable: bool = Field(description="Whether the control plane goes on trying by itself.")
    revision: str = Field(description="Grows with each accepted change and each phase; the ETag.")
    last_transition_at: datetime = Field(description="When the phase last changed.")
    last_progress_at: datetime = Field(description="When the machine last came nearer its goal.")
    memory_configured_mib: Int64 = Field(description="Memory that was asked for, in MiB.")
    last_error: str | None = Field(
        default=None, description="The root cause, if something is wrong."
    )


class _Lifecycle(Body):
    machine_id: str
    vcpu: Double = Field(description="CPU in vCPUs.")
    memory_mib: Int64 = Field(description="Memory in MiB.")
    storage_gib: Int64 = Field(description="Storage in GiB.")
    desired_state: DesiredState = Field(description="The last accepted intent; phase follows it.")
    autosleep_seconds: Int64 = Field(
        ge=0, le=MAX_SECONDS, description="Idle seconds before the machine sleeps; 0 is never."
    )
    phase: Phase = Field(description="The same as status.phase.")
    status: LifecycleStatus
    created_at: datetime


class LifecycleResponse(_Lifecycle):
    """A machine: the answer to reads and mutations, and the data of `status` events."""


class MachineListItem(_Lifecycle):
    """A machine in a list."""


class MachineListResponse(Body):
    """One page of machines, newest first."""

    items: list[MachineListItem]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")


class MachineNetworkResponse(Body):
    """Where a machine is in its network."""

    machine_id: str
    network_id: str
    network_name: str
    private_ipv4: str = Field(description="Empty while the machine has none.")
    private_ipv6: str = Field(description="Empty while the machine has none.")
    hostname: str


class NetworkGateway(Body):
    """A way into a network."""

    kind: Literal["ssh", "port"]
    protocol: Literal["ssh", "https"]
    hostname: str
    port: int | None = Field(default=None, ge=1, le=65535)


class NetworkResponse(Body):
    """A network of an org's machines."""

    network_id: str
    name: str
    gateways: list[NetworkGateway]


# --- failures


class ErrorDetail(Body):
    """One thing that is wrong with a request."""

    location: str | None = Field(
        default=None, description="Where, such as body.vcpu or query.limit."
    )
    message: str | None = Field(default=None, description="What is wrong, and what is allowed.")
    value: Any = Field(default=None, description="What was there.")


class ErrorModel(Body):
    """Format B: RFC 9457, for every failure without a code of its own."""

    type: str = Field(default="about:blank", json_schema_extra={"format": "uri"})
    title: str | None = Field(default=None, description="The kind of failure.")
    status: Int64 | None = Field(default=None, description="HTTP status code.")
    detail: str | None = Field(default=None, description="What happened this time.")
    instance: str | None = Field(default=None, json_schema_extra={"format": "uri"})
    errors: list[ErrorDetail] | None = Field(default=None, description="Each single fault.")


class CodedError(Body):
    """Format A: a failure with a code that clients branch on."""

    error_code: str = Field(description="In UPPER_SNAKE.")
    message: str
    retryable: bool = Field(description="Whether trying again later may succeed.")
    retry_after_ms: Int64 | None = Field(default=None, description="How long to wait before that.")
    details: dict[str, str] | None = None
