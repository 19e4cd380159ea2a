"""Who is in a preview now: requests and WebSockets under way, counted, and cut when their preview is closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from machine_operator.gateway.problems import Coded

__all__ = ["Visit", "Visits"]


class Visit:
    """One request or WebSocket.

    Attributes:
        over: whether it was cut.
    """

    __slots__ = ("_cut", "over")

    def __init__(self) -> None:
        self.over = False
        self._cut: Callable[[], None] | None = None

    def ended_by(self, cut: Callable[[], None] | None) -> None:
        """What will cut it; None: nothing is open that could be cut."""
        self._cut = cut
        if self.over and cut is not None:
            cut()

    def end(self) -> None:
        """Cut it."""
        self.over = True
        if self._cut is not None:
            self._cut()


class Visits:
    """All of one gateway.

    Args:
        most: at once.
        most_each: at once, of one preview.
    """

    def __init__(self, *, most: int, most_each: int) -> None:
        self._most, self._most_each = most, most_each
        self._here: dict[str, set[Visit]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def previews(self) -> list[str]:
        """The ids of the previews in which somebody is."""
        return list(self._here)

    @contextmanager
    def enter(self, preview_id: str) -> Iterator[Visit]:
        """A visit, for as long as the block runs.

        Raises:
            Coded: 429, there are too many.
        """
        here = self._here.get(preview_id)
        if self._count >= self._most or (here is not None and len(here) >= self._most_each):
            message = "there are too many requests to this preview at once"
            raise Coded(429, "RATE_LIMITED", message, retryable=True, retry_after_ms=1000)
        if here is None:
            here = self._here[preview_id] = set()
        visit = Visit()
        here.add(visit)
        self._count += 1
        try:
            yield visit
        finally:
            self._count -= 1
            here.discard(visit)
            if not here and self._here.get(preview_id) is here:
                del self._here[preview_id]

    def cut(self, preview_id: str) -> None:
        """End all visits of a preview."""
        for visit in list(self._here.get(preview_id, ())):
            visit.end()
