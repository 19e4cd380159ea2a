"""Cursors: a place there and back, and nothing else is one."""

from __future__ import annotations

import base64
import re
import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from machine_operator.gateway.cursors import CursorError, read_cursor, write_cursor
from tests.support.machines import UID

MOMENTS = st.floats(allow_nan=False, allow_infinity=False)


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


@given(moment=MOMENTS, uuid=st.uuids().map(str))
def test_a_place_comes_back_as_it_was(moment: float, uuid: str) -> None:
    text = write_cursor((moment, uuid))
    assert read_cursor(text) == (moment, uuid)
    assert re.fullmatch("[A-Za-z0-9_-]{1,128}", text), "it goes into a query as it is"


@given(st.text(max_size=200))
@example("cursor")
@example("")
@example("=")
@example("\ud800")
@example(encoded(b""))
def test_any_other_text_is_refused_or_a_place(text: str) -> None:
    try:
        place = read_cursor(text)
    except CursorError:
        return
    assert read_cursor(write_cursor(place)) == place


@given(st.binary(max_size=90))
def test_any_bytes_are_refused_or_a_place(raw: bytes) -> None:
    try:
        moment, uuid = read_cursor(encoded(raw))
    except CursorError:
        return
    assert struct.pack(">d", moment) + uuid.encode() == raw


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack(">d", float("nan")) + UID.encode(),
        struct.pack(">d", float("inf")) + UID.encode(),
        struct.pack(">d", 1.0),
        struct.pack(">d", 1.0) + b"dm-" + UID.encode(),
        struct.pack(">d", 1.0) + UID.upper().encode(),
        struct.pack(">d", 1.0) + UID.encode() + b"\0",
        struct.pack(">d", 1.0) + UID[:-1].encode() + b"\xff",
        b"short",
    ],
)
def test_a_forged_place_is_refused(raw: bytes) -> None:
    with pytest.raises(CursorError, match="none that this server made"):
        read_cursor(encoded(raw))


@pytest.mark.parametrize("number", [129, 1_000_000])
def test_a_long_text_is_not_even_decoded(number: int) -> None:
    with pytest.raises(CursorError, match="too long"):
        read_cursor("A" * number)
