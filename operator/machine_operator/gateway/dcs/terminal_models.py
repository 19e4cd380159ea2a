"""The bodies of the operations on terminals, under the names that they have in the contract."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from machine_operator.gateway.dcs.execution_models import Variables
from machine_operator.gateway.dcs.models import Body, Int64, whole
from machine_operator.gateway.terminals.messages import LARGEST_SIZE

__all__ = ["CreateTerminalRequest", "TerminalListResponse", "TerminalResponse"]

_LONGEST = 4096


def _path(text: str) -> str:
    if "\0" in text or "\n" in text or len(text.encode()) > _LONGEST:
        raise ValueError(f"must have at most {_LONGEST} bytes, without NUL and line feeds")
    return text


Size = Annotated[
    int,
    Field(strict=True, ge=0, le=LARGEST_SIZE, json_schema_extra={"format": "int64"}),
    BeforeValidator(whole),
]
Path = Annotated[str, Field(strict=True), AfterValidator(_path)]


class CreateTerminalRequest(Body):
    """A new terminal."""

    width: Size = Field(description="Columns; 0 is 80.")
    height: Size = Field(description="Rows; 0 is 24.")
    shell: Path | None = Field(default=None, description="The program; else /bin/bash.")
    cwd: Path | None = Field(default=None, description="Where it begins; else the home directory.")
    env: Variables | None = Field(
        default=None, description="Variables, besides those that are there anyway."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if value is None:
            raise PydanticCustomError("null", "must not be null")
        return value


class TerminalResponse(Body):
    """A terminal."""

    terminal_id: str
    machine_id: str
    status: Literal["wake_in_progress", "ready", "closed", "expired", "failed"]
    created_at: datetime
    width: Int64 = Field(description="Columns.")
    height: Int64 = Field(description="Rows.")
    protocol: Literal["websocket"] | None = None
    stream_url: str | None = Field(
        default=None,
        description="Where to connect, without any other permission; there once it is ready.",
    )
    ready_at: datetime | None = None
    expires_at: datetime | None = Field(default=None, description="When it ends at the latest.")
    retry_after_ms: Int64 | None = Field(default=None, description="When to ask again.")
    error_code: str | None = None
    error_message: str | None = None


class TerminalListResponse(Body):
    """One page of terminals, the newest first."""

    items: list[TerminalResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")
