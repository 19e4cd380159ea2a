"""Opaque cursors of list pages: a place in the order, in base64. They stay valid while machines come and go."""

from __future__ import annotations

import base64
import binascii
import math
import struct

from machine_operator.gateway.machine_ids import bare_id
from machine_operator.gateway.machines import Place

__all__ = ["CursorError", "read_cursor", "write_cursor"]

_LONGEST = 128


class CursorError(ValueError):
    """A text is no cursor of ours."""


def write_cursor(place: Place) -> str:
    """A place as text."""
    raw = struct.pack(">d", place[0]) + place[1].encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_cursor(text: str) -> Place:
    """The place that a text stands for.

    Raises:
        CursorError: it is none of ours.
    """
    if len(text) > _LONGEST:
        raise CursorError("the cursor is too long to be one")
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        (moment,) = struct.unpack(">d", raw[:8])
        uuid = raw[8:].decode("ascii")
    except (binascii.Error, struct.error, UnicodeError, ValueError) as error:
        raise CursorError("the cursor is none that this server made") from error
    if not math.isfinite(moment) or bare_id(uuid) != uuid:
        raise CursorError("the cursor is none that this server made")
    return moment, uuid
