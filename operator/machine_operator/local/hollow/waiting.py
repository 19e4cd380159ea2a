"""Waiting for an event for a limited time.

`asyncio.wait_for` in Python 3.11 can swallow a cancellation that arrives in the very moment in
which its awaitable completes; `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio

__all__ = ["first_of", "wait_within"]


async def wait_within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for `event`, at most `seconds`; tells whether it is set."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return event.is_set()
    return True


async def first_of(*events: asyncio.Event, seconds: float | None = None) -> None:
    """Wait until any of `events` is set, at most `seconds`."""
    tasks = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
