"""Head and body of an answer in one write.

uvicorn writes them one after the other, and for a short answer the second system call costs as much as making it. Only
answers whose length is known are joined; streams go out as they come.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

__all__ = ["OneWrite"]


class OneWrite:
    """The transport of one answer: a head whose body comes next is held until it does."""

    __slots__ = ("_cycle", "_held", "_transport", "is_closing")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._held: bytes | None = None
        self._transport: Any = cycle.transport
        self.is_closing = cycle.transport.is_closing

    def write(self, data: bytes) -> None:
        """Write, or hold a head back."""
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(held + data)
        elif self._body_follows(data):
            self._held = data
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Write what is held, and close."""
        held, self._held = self._held, None
        if held is not None:
            self._transport.write(held)
        self._transport.close()

    def _body_follows(self, data: bytes) -> bool:
        cycle = self._cycle
        has_body = cycle.chunked_encoding is False and cycle.expected_content_length > 0
        return has_body and cycle.scope["method"] != "HEAD" and data.startswith(b"HTTP/1.1 ")
