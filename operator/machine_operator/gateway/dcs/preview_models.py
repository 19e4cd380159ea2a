"""The bodies of the operations on previews and ports, under the names that they have in the contracts."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from machine_operator.gateway.dcs.models import Body, Int64, whole

__all__ = [
    "CreatePortRequest",
    "CreatePreviewRequest",
    "PortListResponse",
    "PortResponse",
    "PreviewListResponse",
    "PreviewResponse",
]

Status = Literal["wake_in_progress", "ready", "closed", "expired", "failed"]
Protocol = Literal["http", "https"]
Visibility = Literal["public", "private", "org"]


Port = Annotated[
    int,
    Field(
        strict=True,
        ge=1,
        le=65535,
        description="Where the service listens in the machine.",
        json_schema_extra={"format": "int64"},
    ),
    BeforeValidator(whole),
]


class CreatePortRequest(Body):
    """A port that is to be reached from outside."""

    port: Port
    protocol: Protocol = Field(
        default="http", description="What the service speaks; its certificate is not looked at."
    )


class CreatePreviewRequest(CreatePortRequest):
    """A new preview."""

    visibility: Visibility = Field(
        default="private",
        description="Who may see it: anybody, the API key that asked for it, or those of the organisation.",
    )


class _Answer(Body):
    machine_id: str
    status: Status
    port: Int64
    protocol: Protocol
    created_at: datetime
    url: str | None = Field(
        default=None,
        description="Where it can be seen, once it is ready. Links to what is not public are good for an hour.",
    )
    ready_at: datetime | None = None
    expires_at: datetime | None = None
    retry_after_ms: Int64 | None = Field(default=None, description="When to ask again.")
    error_code: str | None = None
    error_message: str | None = None


class PreviewResponse(_Answer):
    """A preview."""

    preview_id: str
    visibility: Visibility


class PortResponse(_Answer):
    """A port."""

    port_id: str


class PreviewListResponse(Body):
    """One page of previews, the newest first."""

    items: list[PreviewResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")


class PortListResponse(Body):
    """One page of ports, the newest first."""

    items: list[PortResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")
