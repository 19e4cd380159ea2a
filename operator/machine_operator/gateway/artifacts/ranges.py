"""Which bytes of something a request wants (RFC 9110, 14): one range, or all of it.

More ranges than one would need an answer in parts; leaving them unanswered is allowed, so then all of it is sent.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

__all__ = ["ByteRange", "NotSatisfiable", "read_range"]

_ONE: Final = re.compile(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*")


class NotSatisfiable(ValueError):
    """The range is beyond the end."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From `start` to before `end`."""

    start: int
    end: int


def read_range(header: str | None, *, size: int) -> ByteRange | None:
    """The range that a header asks for, of `size` bytes; None: all of it is to be sent.

    Raises:
        NotSatisfiable: 416.
    """
    found = None if header is None else _ONE.fullmatch(header)
    if found is None or found.groups() == ("", ""):
        return None
    first, last = found.groups()
    if not first:
        start, end = max(0, size - int(last)), size
    elif last and int(last) < int(first):
        return None  # no range at all, so it counts as not being there
    else:
        start, end = int(first), min(size, int(last) + 1) if last else size
    if start >= size or start >= end:
        raise NotSatisfiable
    return ByteRange(start, end)
