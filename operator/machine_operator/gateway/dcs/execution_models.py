"""The bodies of the operations on executions, under the names that they have in the contract.

What no Linux could start is refused when it is asked for: NUL bytes, names of variables with `=` in them, arguments
longer than the kernel takes.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from machine_operator.gateway.dcs.models import Body, Int64, whole

__all__ = [
    "ArtifactRef",
    "CreateExecutionRequest",
    "ExecutionEvent",
    "ExecutionEventsResponse",
    "ExecutionListResponse",
    "ExecutionLogsResponse",
    "ExecutionOutputResponse",
    "ExecutionResponse",
    "LogCapture",
]

_ARGUMENTS: Final = 1000
_LONGEST: Final = 128 * 1024 - 1
"""Bytes of an argument, or of NAME=VALUE: MAX_ARG_STRLEN without the zero at its end."""
_COMMAND: Final = 256 * 1024
_PATH: Final = 4096
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Status = Literal[
    "wake_in_progress", "queued", "running", "succeeded", "failed", "cancelled", "expired"
]


def _argument(text: str) -> str:
    if "\0" in text:
        raise ValueError("must have no NUL characters")
    if len(text.encode()) > _LONGEST:
        raise ValueError(f"must have at most {_LONGEST} bytes")
    return text


def _command(command: list[str]) -> list[str]:
    if sum(len(argument.encode()) for argument in command) > _COMMAND:
        raise ValueError(f"must have at most {_COMMAND} bytes in all: use stdin or env for more")
    if not command[0]:
        raise ValueError("must begin with the name of a program")
    return command


def _directory(path: str) -> str:
    if not path.startswith("/") or "\0" in path or len(path.encode()) > _PATH:
        raise ValueError(f"must be an absolute path of at most {_PATH} bytes, without NUL")
    return path


def _variables(env: dict[str, str]) -> dict[str, str]:
    for name, value in env.items():
        # Neither is told back: people put secrets on either side of the sign.
        if not _NAME.fullmatch(name):
            raise ValueError(
                "the names must be of letters, digits and _, and not begin with a digit"
            )
        if "\0" in value or len(name) + 1 + len(value.encode()) > _LONGEST:
            raise ValueError(
                f"{name[:64]} must have at most {_LONGEST} bytes, and no NUL characters"
            )
    return env


Argument = Annotated[str, Field(strict=True), AfterValidator(_argument)]
Directory = Annotated[str, Field(strict=True), AfterValidator(_directory)]
Stdin = Annotated[str, Field(strict=True)]
Variables = Annotated[dict[str, Annotated[str, Field(strict=True)]], AfterValidator(_variables)]
Milliseconds = Annotated[
    int,
    Field(strict=True, ge=0, json_schema_extra={"format": "int64"}),
    BeforeValidator(whole),
]


class CreateExecutionRequest(Body):
    """A program to be run."""

    command: Annotated[
        list[Argument],
        Field(
            min_length=1,
            max_length=_ARGUMENTS,
            description="The program and its arguments. There is no shell in between.",
            json_schema_extra={"type": ["array", "null"]},
        ),
        AfterValidator(_command),
    ]
    cwd: Directory | None = Field(
        default=None, description="Where it begins: an absolute path; else in the home directory."
    )
    env: Variables | None = Field(
        default=None, description="Variables, besides those that are there anyway."
    )
    stdin: Stdin | None = Field(default=None, description="All that it can read.")
    timeout_ms: Milliseconds | None = Field(
        default=None, description="When it is ended if it still runs; 0 is the server's default."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        if value is None:
            raise PydanticCustomError("null", "must not be null")
        return value


# --- answers


class ArtifactRef(Body):
    """A file that an execution has left."""

    artifact_id: str
    name: str


class LogCapture(Body):
    """How it is with an execution's log beyond its output: none is kept here."""

    state: Literal["pending", "incomplete", "unavailable"]


class ExecutionResponse(Body):
    """An execution. With an exit code the program has ended; a failure without one is not the program's."""

    execution_id: str
    machine_id: str
    status: Status
    command: list[str]
    created_at: datetime
    started_at: datetime | None = None
    completed_at: datetime | None = None
    expires_at: datetime | None = Field(default=None, description="Until when it can be read.")
    cwd: str | None = None
    env_keys: list[str] | None = Field(
        default=None, description="Names of its variables, sorted; nobody is told the values."
    )
    exit_code: Int64 | None = None
    signal: Int64 | None = Field(default=None, description="What has killed the program.")
    error_code: str | None = None
    error_message: str | None = None
    retry_after_ms: Int64 | None = Field(default=None, description="When to ask again.")
    stdout_bytes: Int64 | None = Field(default=None, description="What the program has written.")
    stderr_bytes: Int64 | None = Field(default=None, description="What the program has written.")
    stdout_truncated: bool | None = Field(default=None, description="Whether less was kept.")
    stderr_truncated: bool | None = Field(default=None, description="Whether less was kept.")
    artifacts: list[ArtifactRef] | None = None
    log_capture: LogCapture


class ExecutionListResponse(Body):
    """One page of executions, the newest first."""

    items: list[ExecutionResponse]
    next_cursor: str | None = Field(default=None, description="Where the next page begins, if any.")


class ExecutionOutputResponse(Body):
    """What a program has written so far: UTF-8, with U+FFFD for what is none."""

    execution_id: str
    stdout: str | None = None
    stderr: str | None = None
    stdout_bytes: Int64 | None = None
    stderr_bytes: Int64 | None = None
    stdout_truncated: bool | None = None
    stderr_truncated: bool | None = None


class ExecutionEvent(Body):
    """Something that happened, or a piece of output."""

    sequence: Int64 = Field(description="Grows from 1.")
    type: Literal["lifecycle", "stdout", "stderr"]
    at: datetime
    chunk: str | None = None
    status: Status | None = None
    exit_code: Int64 | None = None
    signal: Int64 | None = None
    error_code: str | None = None
    error_message: str | None = None


class ExecutionEventsResponse(Body):
    """One page of events, the oldest first; there is a cursor for as long as there may be more."""

    items: list[ExecutionEvent]
    next_cursor: str | None = Field(default=None, description="Where the next page begins.")


class ExecutionLogsResponse(Body):
    """How it is with an execution's log."""

    execution_id: str
    capture: LogCapture
