"""The head of a request to a guest, and answers that come in any pieces."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from machine_operator.gateway.previews.http import (
    AnswerReader,
    BadAnswer,
    BadRequest,
    NoAnswer,
    request_head,
)

OK = b"HTTP/1.1 200 OK\r\n"


class Scripted:
    """A stream that says what it is told to, piece by piece, and then ends."""

    usable = False

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self.pieces = list(pieces)

    async def read(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    async def write(self, data: bytes) -> None:
        raise AssertionError(data)

    def close(self) -> None:
        self.pieces = []


async def read(pieces: Iterable[bytes], method: str = "GET") -> tuple[AnswerReader, bytes]:
    reader = AnswerReader(Scripted(pieces), method)
    await reader.head()
    body = b""
    while not reader.done:
        body += await reader.body()
    return reader, body + await reader.body()


SIZED = OK + b"Content-Length: 5\r\nX-A: 1\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;a=b\r\nllo\r\n0\r\nX-T: 1\r\n\r\n"
TO_THE_END = OK + b"X-A: 1\r\n\r\nhello"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" + SIZED
OLD = b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello"
CLOSING = OK + b"Content-Length: 5\r\nConnection: close\r\n\r\nhello"


@pytest.mark.parametrize(
    ("raw", "reusable"),
    [
        (SIZED, True),
        (CHUNKED, True),
        (TO_THE_END, False),
        (INTERIM, True),
        (OLD, False),
        (CLOSING, False),
    ],
)
async def test_an_answer_is_the_same_wherever_it_is_cut(raw: bytes, reusable: bool) -> None:
    for cut in range(len(raw)):
        reader, body = await read([raw[:cut], raw[cut:]] if cut else [raw])
        assert (reader.status, body, reader.reusable) == (200, b"hello", reusable), cut
    reader, body = await read([raw[place : place + 1] for place in range(len(raw))])
    assert (reader.status, body, reader.reusable) == (200, b"hello", reusable)


@pytest.mark.parametrize("raw", [SIZED, CHUNKED, CLOSING])
async def test_an_answer_that_is_broken_off_is_never_whole(raw: bytes) -> None:
    for cut in range(1, len(raw)):
        with pytest.raises(BadAnswer) as failed:
            await read([raw[:cut]])
        assert not isinstance(failed.value, NoAnswer)
    with pytest.raises(NoAnswer):
        await read([])


@pytest.mark.parametrize(
    ("method", "head", "length"),
    [
        ("HEAD", OK + b"Content-Length: 5\r\n\r\n", True),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n", False),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", False),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", False),
    ],
)
async def test_answers_without_a_body(method: str, head: bytes, length: bool) -> None:
    reader, body = await read([head], method)
    assert body == b""
    assert reader.reusable
    assert any(name == b"content-length" for name, _ in reader.headers) == length
    reader, body = await read([head + b"hello"], method)
    assert (body, reader.reusable) == (b"", False)


async def test_bytes_after_an_answer_end_the_stream() -> None:
    for more in (SIZED, b"x", b"\0"):
        reader, body = await read([SIZED + more])
        assert (body, reader.reusable) == (b"hello", False)


async def test_what_is_between_two_neighbours_stays_there() -> None:
    raw = (
        OK + b"Connection: X-Hop, Content-Length\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Date: now\r\nSet-Cookie: a=1\r\nSET-COOKIE: b=2\r\nContent-Length: 0\r\n\r\n"
    )
    reader, _ = await read([raw])
    assert reader.headers == [
        (b"set-cookie", b"a=1"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"0"),
    ]


@pytest.mark.parametrize(
    ("target", "value"),
    [
        (b"/a b", b"1"),
        (b"/a\r\nX: 1", b"1"),
        (b"", b"1"),
        (b"/\x7f", b"1"),
        (b"/", b"a\r\nX-Evil: 1"),
        (b"/", b"a\nX-Evil: 1"),
        (b"/", b"a\rX"),
    ],
)
def test_nothing_gets_out_of_its_line(target: bytes, value: bytes) -> None:
    with pytest.raises(BadRequest):
        request_head("GET", target, [(b"x-a", value)], more=[])


def test_the_head_of_a_request() -> None:
    sent = [
        (b"host", b"pv.test"),
        (b"connection", b"close, X-Hop, Host"),
        (b"x-hop", b"1"),
        (b"content-length", b"5"),
        (b"content-length", b"6"),
        (b"transfer-encoding", b"chunked"),
        (b"expect", b"100-continue"),
        (b"accept", b"*/*"),
    ]
    head = request_head("PUT", b"/%2F?x", sent, more=[(b"content-length", b"5")], leave_out=[])
    assert head == (
        b"PUT /%2F?x HTTP/1.1\r\nhost: pv.test\r\naccept: */*\r\ncontent-length: 5\r\n\r\n"
    )
