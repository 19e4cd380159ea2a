"""The body of a request, never more of it than allowed and never for longer."""

from __future__ import annotations

import asyncio
from typing import Final

from starlette.requests import Request

from machine_operator.gateway import failures
from machine_operator.gateway.problems import Problem

__all__ = ["LARGEST_BODY", "read_body"]

LARGEST_BODY: Final = 1024 * 1024
"""Bytes."""


async def read_body(request: Request, *, limit: int = LARGEST_BODY, seconds: float = 30) -> bytes:
    """The whole body.

    Whatever is left unread is the server's business: it ends the connection.

    Args:
        request: whose body; it can be read once.
        limit: bytes.
        seconds: how long the client may take to send it.

    Raises:
        Problem: 413 or 408: it is too long, or does not come.
        ClientDisconnect: there is nobody to answer any more.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise failures.too_large(limit)
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(body) + len(chunk) > limit:
                    raise failures.too_large(limit)
                body += chunk
    except TimeoutError:
        raise Problem(
            408, f"the request body did not come within {seconds:g} s: send it again"
        ) from None
    return bytes(body)
