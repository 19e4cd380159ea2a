"""Pieces of output: bytes as they come, cut where a character ends, so that each piece can be read by itself.

What is no UTF-8 is kept as it is, and shown with U+FFFD in its place; pieces read one by one come to the same text as
the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

__all__ = ["CHUNK", "pieces", "whole_characters"]

CHUNK: Final = 64 * 1024
"""Bytes of a piece, at most."""

_LONGEST: Final = 4


def whole_characters(data: bytes) -> int:
    """How many bytes there are before a character at the end that may still be going on."""
    for back in range(1, min(_LONGEST, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue  # inside of a character: its first byte stands before
        if back < _length(byte) and _goes_on(data[-back:]):
            return len(data) - back
        return len(data)
    return len(data)


def pieces(data: bytes, *, last: bool) -> Iterator[bytes]:
    """`data` in pieces; without `last` what may go on at its end is left out."""
    position = 0
    while position < len(data):
        piece = data[position : position + CHUNK]
        ends_here = position + len(piece) == len(data)
        if not (ends_here and last):
            piece = piece[: whole_characters(piece)]
        if not piece:
            return
        yield piece
        position += len(piece)


def _length(first: int) -> int:
    """Bytes of a character that begins with `first`; 1 for what begins none."""
    if 0xC2 <= first <= 0xDF:
        return 2
    if 0xE0 <= first <= 0xEF:
        return 3
    return 4 if 0xF0 <= first <= 0xF4 else 1


def _goes_on(part: bytes) -> bool:
    """Whether the beginning of a character is one of a valid character."""
    try:
        part.decode()
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data"
    return False
