"""The Machine kind as pydantic models: the one source of the CRD, and the way to read an object.

`spec` is the user's and no controller writes it; `status` is written by the controller and, for
`power_request` and `activity`, by gateways: by server-side apply with field managers of their own.
Field names are those of the wire. Defaults of the spec are in the CRD, so the API server fills them
in.

Reading ignores unknown fields, so that an older operator can live with a newer CRD. The CRD itself
is structural and closed, but what happens to an unknown field is the *client's* choice: the API
server prunes it before anything (CEL, admission webhooks and policies) could see it, and the query
parameter `fieldValidation` says whether it is then silent (Ignore), warns (Warn, the default) or
refuses (Strict). `kubectl` asks for Strict. No schema can demand it of every client; a field which
must not be lost silently has to be read back.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from machine_operator.api import names, rules
from machine_operator.api.conditions import Condition
from machine_operator.api.durations import MAX_LENGTH, parse_autosleep
from machine_operator.api.phases import DesiredState, Phase, Power, ReclaimPolicy
from machine_operator.api.rules import Rule, kubernetes
from machine_operator.api.timestamps import Timestamp

__all__ = [
    "Machine",
    "MachineError",
    "MachineSpec",
    "MachineStatus",
    "read_machine",
    "read_machine_anyway",
]


class MachineError(ValueError):
    """An object is not a Machine which this operator understands."""


class Model(BaseModel):
    """What all models share: immutable, and lenient about fields that they do not know."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The object as JSON-ready values; fields which are None are left out."""
        return self.model_dump(mode="json", exclude_none=True)


def _steps(vcpu: float) -> float:
    if vcpu % rules.VCPU_STEP != 0:  # exact: quarters are whole numbers in binary
        raise ValueError(f"vcpu {vcpu} is not a multiple of {rules.VCPU_STEP}")
    return vcpu


def _autosleep(text: str) -> str:
    parse_autosleep(text)
    return text


def _matches(pattern: str, rule: Rule) -> AfterValidator:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        # fullmatch, since Python's $ also matches before a trailing line break, unlike RE2's.
        if compiled.fullmatch(text) is None:
            raise ValueError(rule.message)
        return text

    return AfterValidator(check)


SshKey = Annotated[
    str,
    Field(
        max_length=8192,
        description="One line of a public key file: type, key and comment; without options.",
        json_schema_extra=kubernetes(rules.SSH_KEY),
    ),
    _matches(rules.SSH_KEY_PATTERN, rules.SSH_KEY),
]


class MachineSpec(Model):
    """What the user asks for. No controller writes here, so Git never sees drift."""

    model_config = ConfigDict(json_schema_extra=kubernetes(rules.STORAGE_CLASS_STAYS))

    vcpu: Annotated[float, AfterValidator(_steps)] = Field(
        ge=0.25,
        le=128,
        description=(
            "Processors, in vCPUs and in steps of 0.25; "
            "a fraction is a share of one processor's time."
        ),
        json_schema_extra=kubernetes(rules.VCPU_STEPS),
    )
    memory_mib: int = Field(
        ge=128, le=4_194_304, description="Memory of the guest, in MiB (1024 MiB are 1 GiB)."
    )
    storage_gib: int = Field(
        ge=1,
        le=65_536,
        description="Size of the home disk, in GiB. It can grow later, but never shrink.",
        json_schema_extra=kubernetes(rules.STORAGE_GROWS),
    )
    autosleep: Annotated[str, AfterValidator(_autosleep)] = Field(
        default="5m",
        max_length=MAX_LENGTH,
        description=(
            "How long the machine may idle before it is put to sleep: units w, d, h, m, s from "
            "large to small, such as 5m, 2h30m or 1w3d; or seconds in quotes, "
            'such as "1800"; or never.'
        ),
        json_schema_extra=kubernetes(rules.AUTOSLEEP, rules.AUTOSLEEP_BOUND),
    )
    desired_state: DesiredState = Field(
        default=DesiredState.RUNNING,
        description=(
            "Whether the machine shall be running or sleeping; or destroyed, from which there is "
            "no way back. Autosleep and wake requests apply on top of it until it changes again."
        ),
        json_schema_extra=kubernetes(rules.DESTROYED_STAYS),
    )
    image: Annotated[str, _matches(rules.IMAGE_PATTERN, rules.IMAGE)] | None = Field(
        default=None,
        max_length=1024,
        description=(
            "Reference of the container disk image which the root disk starts from, such as "
            "quay.io/containerdisks/debian:13. Default: the operator's image."
        ),
        json_schema_extra=kubernetes(rules.IMAGE),
    )
    ssh_authorized_keys: tuple[SshKey, ...] = Field(
        default=(),
        max_length=64,
        description="SSH public keys which may log in, one line each, at most 64.",
        json_schema_extra=kubernetes(list_type="set"),
    )
    storage_class: (
        Annotated[str, _matches(rules.STORAGE_CLASS_PATTERN, rules.STORAGE_CLASS)] | None
    ) = Field(
        default=None,
        max_length=253,
        description=(
            "StorageClass of the home disk; cannot change once it is set. "
            "Default: the cluster's default class."
        ),
        json_schema_extra=kubernetes(rules.STORAGE_CLASS),
    )
    reclaim_policy: ReclaimPolicy = Field(
        default=ReclaimPolicy.DELETE,
        description=(
            "What becomes of the home disk when the machine is destroyed or deleted: "
            "Delete it, or Retain it with its data."
        ),
    )


class PowerRequest(Model):
    """One request to sleep or to wake."""

    state: Power = Field(description="What was asked for: running or sleeping.")
    by: str = Field(description="Who asked: autosleep, or the name of a user.")
    reason: str | None = Field(default=None, description="Why, as a sentence for people.")
    at: Timestamp = Field(description="When it was accepted.")
    sequence: int = Field(ge=1, description="How many requests there have been, this one included.")
    spec_desired_state: DesiredState = Field(
        description=(
            "spec.desired_state at the time of the request; the request ends when that changes."
        )
    )
    last_touch_at: Timestamp | None = Field(
        default=None,
        description=(
            "status.activity.last_touch_at as autosleep or the guest's power-off had seen it; "
            "their request ends when that changes, so that no touch is lost."
        ),
    )


class Hold(Model):
    """Something which keeps the machine awake for as long as it lasts."""

    id: str = Field(
        min_length=1, max_length=253, description="Name of the hold, unique within the machine."
    )
    kind: str = Field(
        min_length=1,
        max_length=63,
        description="What holds the machine awake, such as execution, terminal, ssh or preview.",
    )
    since: Timestamp = Field(description="When it began.")
    expires_at: Timestamp = Field(
        description="When it ends unless it is renewed, so that a lost holder costs little."
    )


class Activity(Model):
    """Who used the machine, and who uses it now."""

    last_touch_at: Timestamp | None = Field(
        default=None, description="When somebody last used the machine; autosleep counts from here."
    )
    holds: tuple[Hold, ...] = Field(
        default=(),
        max_length=1024,
        description="What keeps the machine awake now. Expired holds no longer count.",
        json_schema_extra=kubernetes(list_type="map", list_map_keys=["id"]),
    )


class DesiredPower(Model):
    """The state to which the controller steers."""

    state: DesiredState = Field(description="Running, sleeping or destroyed.")
    why: str = Field(description="What decided so, as a sentence for people.")
    overtaken: int | None = Field(
        default=None,
        description="sequence of the power request that spec.desired_state has overtaken; it counts no more.",
    )


class Sizes(Model):
    """Sizes of the VM as it runs."""

    vcpu: float = Field(description="Processors, in vCPUs.")
    memory_mib: int = Field(description="Memory, in MiB.")
    storage_gib: int = Field(description="Size of the home disk, in GiB.")


class VirtualMachineRef(Model):
    """The KubeVirt objects behind the machine."""

    name: str = Field(description="Name of the VirtualMachine, in the machine's namespace.")
    uid: str | None = Field(default=None, description="UID of the VirtualMachine.")
    instance_uid: str | None = Field(
        default=None, description="UID of the VirtualMachineInstance; each start has a new one."
    )
    home_claim: str | None = Field(
        default=None, description="Name of the PersistentVolumeClaim which is the home disk."
    )


class Backoff(Model):
    """How often something failed in a row, and when it is tried again."""

    failures: int = Field(ge=0, description="Failures in a row.")
    next_retry_at: Timestamp | None = Field(default=None, description="When the next try is due.")
    instance_uid: str | None = Field(
        default=None, description="UID of the VirtualMachineInstance whose end was counted last."
    )


_ATOMIC = kubernetes(map_type="atomic")


class MachineStatus(Model):
    """What the operator sees. Nothing is required: field managers write parts of it."""

    phase: Phase | None = Field(
        default=None, description="Where the machine is in its life; failed is stuck, see reason."
    )
    reason: str | None = Field(
        default=None,
        description="Why, as one stable CamelCase word; DesiredStateReached when all is well.",
    )
    retryable: bool | None = Field(
        default=None, description="Whether the operator goes on trying by itself."
    )
    revision: str | None = Field(
        default=None,
        description="A decimal number which grows with each accepted change and each new phase.",
    )
    last_transition_at: Timestamp | None = Field(
        default=None, description="When the phase last changed."
    )
    last_progress_at: Timestamp | None = Field(
        default=None, description="When the machine last came nearer to what was asked."
    )
    last_error: str | None = Field(
        default=None, description="The root cause, if something is wrong now, as it was reported."
    )
    transitions: int | None = Field(
        default=None, ge=0, description="How often the phase has changed; a part of the revision."
    )
    observedGeneration: int | None = Field(
        default=None, ge=0, description="The metadata.generation which this status was made from."
    )
    conditions: tuple[Condition, ...] = Field(
        default=(),
        max_length=32,
        description="The state in aspects; see Ready first.",
        json_schema_extra=kubernetes(list_type="map", list_map_keys=["type"]),
    )
    desired_power: DesiredPower | None = Field(
        default=None,
        description="The state to which the controller steers, and what decided so.",
        json_schema_extra=_ATOMIC,
    )
    power_request: PowerRequest | None = Field(
        default=None,
        description=(
            "The newest request to sleep or to wake. It counts until a newer one, "
            "or until spec.desired_state changes."
        ),
        json_schema_extra=_ATOMIC,
    )
    activity: Activity | None = Field(
        default=None, description="Who used the machine, and who does."
    )
    next_sleep_at: Timestamp | None = Field(
        default=None, description="When autosleep will put the machine to sleep if nobody uses it."
    )
    wake_count: int | None = Field(
        default=None, ge=0, description="How often the machine has been woken from sleep."
    )
    effective: Sizes | None = Field(
        default=None,
        description="Sizes of the VM as it runs; they may wait for a restart to become the spec's.",
        json_schema_extra=_ATOMIC,
    )
    vm: VirtualMachineRef | None = Field(
        default=None, description="The KubeVirt objects behind the machine."
    )
    node: str | None = Field(default=None, description="Name of the node which runs the machine.")
    addresses: tuple[Annotated[str, Field(description="IPv4 or IPv6 address.")], ...] = Field(
        default=(),
        max_length=64,
        description="IP addresses of the running machine, the main one first.",
    )
    backoff: Backoff | None = Field(
        default=None,
        description="How often something failed in a row, and when it is tried again.",
        json_schema_extra=_ATOMIC,
    )


class ObjectMeta(Model):
    """The members of metav1.ObjectMeta which the operator reads."""

    name: str
    namespace: str
    uid: str
    generation: int = 0
    resourceVersion: str = ""
    creationTimestamp: Timestamp | None = None
    deletionTimestamp: Timestamp | None = None
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    finalizers: tuple[str, ...] = ()


class Machine(Model):
    """A Machine object as it is stored."""

    apiVersion: str = names.API_VERSION
    kind: str = names.KIND
    metadata: ObjectMeta
    spec: MachineSpec
    status: MachineStatus = MachineStatus()

    @model_validator(mode="after")
    def _is_a_machine(self) -> Self:
        if (self.apiVersion, self.kind) != (names.API_VERSION, names.KIND):
            raise ValueError(
                f"this is a {self.kind} of {self.apiVersion}, not a Machine of {names.API_VERSION}"
            )
        return self


def read_machine(obj: Mapping[str, Any]) -> Machine:
    """The object as it came from the API server, as a model; unknown fields are ignored.

    Raises:
        MachineError: It is no Machine, or a field breaks a rule of this operator, as can be the
            case with objects which were stored before the rule was made. The message names each
            field.
    """
    try:
        return Machine.model_validate(obj)
    except ValidationError as error:
        meta = obj.get("metadata") or {}
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'object'}: {fault['msg']}"
            for fault in error.errors(include_url=False, include_context=False, include_input=False)
        )
        raise MachineError(
            f"machine {meta.get('namespace', '?')}/{meta.get('name', '?')} cannot be read: {faults}"
        ) from error


def read_machine_anyway(obj: Mapping[str, Any]) -> tuple[Machine, str | None]:
    """The object as a model, and what is wrong with its spec (None where nothing is).

    A status that breaks a rule is somebody's handiwork, and the next report replaces it: of it only what can be read
    counts. A spec that cannot be read is stood in for by one that asks for nothing and keeps the disk, so that the
    machine can at least be reported on, and deleted.
    """
    try:
        return read_machine(obj), None
    except MachineError as error:
        fault = str(error)
    whole = {**obj, "status": _readable_status(obj.get("status"))}
    try:
        return read_machine(whole), None
    except MachineError as error:
        fault = str(error)
    return read_machine({**whole, "spec": _STAND_IN}), fault


_STAND_IN: dict[str, Any] = {
    "vcpu": 0.25,
    "memory_mib": 128,
    "storage_gib": 1,
    "desired_state": "sleeping",
    "reclaim_policy": "Retain",
}


def _readable_status(status: Any) -> dict[str, Any]:
    """The members of a status that are valid by themselves."""
    if not isinstance(status, Mapping):
        return {}
    good: dict[str, Any] = {}
    for name, value in status.items():
        try:
            MachineStatus.model_validate({name: value})
        except ValidationError:
            continue
        good[name] = value
    return good
