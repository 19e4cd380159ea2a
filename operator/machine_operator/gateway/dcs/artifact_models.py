"""The bodies of the operations on artifacts, under the names that they have in the contract."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from machine_operator.gateway.dcs.models import Body, Int64

__all__ = ["ArtifactListResponse", "ArtifactResponse"]


class ArtifactResponse(Body):
    """A file that an execution has left."""

    artifact_id: str
    machine_id: str
    execution_id: str | None = None
    name: str
    size_bytes: Int64
    mime_type: str | None = Field(default=None, description="As its name suggests.")
    sha256: str | None = Field(default=None, description="Of its content, in hex.")
    created_at: datetime
    expires_at: datetime | None = Field(default=None, description="Until when it is kept.")
    download_url: str | None = Field(
        default=None, description="Good for some minutes, without any other permission."
    )


class ArtifactListResponse(Body):
    """One page of artifacts, the newest first."""

    items: list[ArtifactResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")
