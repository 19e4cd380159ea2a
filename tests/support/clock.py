"""The wall clock of tests: in a virtual loop it starts on a Sunday morning and jumps with the loop; else it is real."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

from tests.support.virtual import VirtualLoop

__all__ = ["EPOCH", "stamp", "wall_clock"]

EPOCH = datetime(2026, 3, 1, 10, 0, 0, tzinfo=UTC)
"""What the wall clock shows when a virtual loop begins."""


def wall_clock() -> datetime:
    """Now, with a zone."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return datetime.now(UTC)
    if isinstance(loop, VirtualLoop):
        return EPOCH + timedelta(seconds=loop.time())
    return datetime.now(UTC)


def stamp(moment: datetime | None = None) -> str:
    """As Kubernetes writes it: UTC in whole seconds. Now, where no moment is given."""
    at = (moment or wall_clock()).astimezone(UTC)
    return at.replace(microsecond=0, tzinfo=None).isoformat() + "Z"
