"""How many may stand at the door of the SSH gateway: connections that have not shown yet who they are.

Each costs memory, and each key exchange time of a process that has other things to do. So they come in at a bounded
rate, and where too many stand there, the one that has stood there longest has to go: whoever means it is through in a
moment, and whoever only keeps a place loses it.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Final, Generic, TypeVar

__all__ = ["Door"]

_PLACES: Final = 256
_PER_SECOND: Final = 50.0
_AT_ONCE: Final = 200

T = TypeVar("T", bound=Hashable)


class Door(Generic[T]):
    """Who stands there. It lets no more in than allowed, and says who has to make room.

    Args:
        places: how many may stand there.
        per_second: how many may come, on the whole.
        at_once: how many may come in a moment.
    """

    def __init__(
        self, *, places: int = _PLACES, per_second: float = _PER_SECOND, at_once: int = _AT_ONCE
    ) -> None:
        self._places, self._per_second, self._at_once = places, per_second, float(at_once)
        self._standing: dict[T, None] = {}
        self._allowance, self._seen = float(at_once), 0.0

    def __len__(self) -> int:
        return len(self._standing)

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._standing))

    def come(self, who: T, *, now: float) -> T | None:
        """Somebody comes at `now`, in seconds of any clock; who has to go for it, be it themselves, or None."""
        earned = (now - self._seen) * self._per_second
        self._allowance, self._seen = min(self._at_once, self._allowance + earned), now
        if self._allowance < 1.0:
            return who
        self._allowance -= 1.0
        evicted = next(iter(self._standing)) if len(self._standing) >= self._places else None
        if evicted is not None:
            del self._standing[evicted]
        self._standing[who] = None
        return evicted

    def leave(self, who: T) -> None:
        """They are through, or gone."""
        self._standing.pop(who, None)
