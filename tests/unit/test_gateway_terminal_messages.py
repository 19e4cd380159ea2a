"""What a terminal's WebSocket says, and what it understands."""

from __future__ import annotations

import base64

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.gateway.terminals.messages import (
    CLOSED,
    Fault,
    Input,
    Resize,
    error_message,
    is_plain,
    output_message,
    read_message,
)


@given(st.binary(max_size=200))
def test_bytes_come_through(data: bytes) -> None:
    message = orjson.loads(output_message(data))
    assert message == {"type": "output", "data": base64.b64encode(data).decode()}
    typed = orjson.dumps({**message, "type": "input"}).decode()
    assert read_message(typed) == Input(data)
    assert read_message(data) == Input(data)


@given(st.text(max_size=60))
def test_no_text_breaks_it(text: str) -> None:
    assert isinstance(read_message(text), Fault | Resize | Input)
    assert is_plain(text) is False


@pytest.mark.parametrize(
    ("message", "meaning"),
    [
        ('{"type":"resize","width":1,"height":1000}', Resize(1, 1000)),
        ('{"cols":80,"rows":24}', Resize(80, 24)),
        ('{"type":"input","data":""}', Input(b"")),
        ('{"type":"input","data":"YQ==","more":1}', Input(b"a")),
    ],
)
def test_what_it_understands(message: str, meaning: object) -> None:
    assert read_message(message) == meaning


@pytest.mark.parametrize(
    "message",
    [
        '{"type":"resize","width":0,"height":1}',
        '{"type":"resize","width":1,"height":1001}',
        '{"type":"resize","width":1.0,"height":1}',
        '{"type":"resize","width":null,"height":1}',
        '{"type":"resize","width":1}',
        '{"cols":-1,"rows":24}',
        '{"cols":true,"rows":24}',
    ],
)
def test_sizes_that_are_none(message: str) -> None:
    fault = read_message(message)
    assert isinstance(fault, Fault)
    assert fault.code == "invalid_size"
    assert "from 1 to 1000" in fault.message


@pytest.mark.parametrize(
    "message",
    ["", "x", "1", '"input"', "[1]", '{"type":1}', '{"type":"input","data":"a"}', '{"cols":80}'],
)
def test_messages_that_are_none(message: str) -> None:
    fault = read_message(message)
    assert isinstance(fault, Fault)
    assert fault.code == "invalid_message"


def test_what_is_typed_is_in_no_message_of_ours() -> None:
    secret = base64.b64encode(b"hunter2").decode()
    for data in (secret, secret[:-1]):
        told = read_message(f'{{"type":"input","data":"{data}"}}')
        assert "hunter2" not in repr(told)
        assert secret[:-1] not in repr(told)


def test_which_way_a_client_speaks() -> None:
    assert is_plain(b"")
    assert is_plain('{"cols":80,"rows":24}')
    assert not is_plain('{"type":"resize","width":1,"height":1}')
    assert not is_plain("no json")


def test_what_it_says() -> None:
    assert orjson.loads(CLOSED) == {"type": "closed"}
    assert orjson.loads(error_message("a", 'b"')) == {
        "type": "error",
        "error_code": "a",
        "error_message": 'b"',
    }
