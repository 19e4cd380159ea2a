"""HTTP/1.1 towards the guest: the head of a request, and an answer that is read piece by piece.

The bytes of a path and of values go through as they came. What is between two neighbours only is not passed on: the
fields that `Connection` names, and the framing, which each side has its own of. Interim answers and trailers are left
out. A guest may send anything at all, so heads are bounded in bytes and fields, and so is what frames a body.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import httptools

from machine_operator.gateway.previews.tunnels import Stream

__all__ = ["AnswerReader", "BadAnswer", "BadRequest", "Header", "NoAnswer", "request_head"]

Header = tuple[bytes, bytes]

_HEAD_BYTES: Final = 64 * 1024
_HEAD_FIELDS: Final = 256
_FRAME_BYTES: Final = 64 * 1024
"""What may come without any of it being body: chunk extensions and trailers."""

_HOP: Final = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
_OURS: Final = _HOP | {
    b"content-length",
    b"expect",  # the server has said 100 itself
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-port",
    b"x-forwarded-prefix",
    b"x-forwarded-proto",
}
"""Fields of a request that are written anew, or not at all."""

_TARGET: Final = re.compile(rb"[^\x00-\x20\x7f]+")
_VALUE_FAULT: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")


class BadRequest(Exception):
    """A request that cannot be passed on as what it is."""


class BadAnswer(Exception):
    """The guest's answer is no HTTP, or too much of it."""


class NoAnswer(BadAnswer):
    """The guest closed the stream without a byte of an answer."""


def request_head(
    method: str,
    target: bytes,
    headers: Iterable[Header],
    *,
    more: Iterable[Header],
    leave_out: Iterable[bytes] = (),
) -> bytes:
    """The head of a request to a guest.

    Args:
        method: a token.
        target: path and query as they came.
        headers: of the client, names in lower case.
        more: fields that are added; those that frame a body are among them.
        leave_out: more names that are not passed on.

    Raises:
        BadRequest: something in it would end the line that it is in.
    """
    headers = list(headers)
    dropped = _OURS.union(
        leave_out, *(named_by(value) for name, value in headers if name == b"connection")
    )
    lines = [b"%s %s HTTP/1.1" % (method.encode("latin-1"), target)]
    # Host and the like first, as everybody has it.
    lines += [
        b"%s: %s" % field for field in headers if field[0] not in dropped or field[0] == b"host"
    ]
    lines += [b"%s: %s" % field for field in more]
    head = b"\r\n".join(lines) + b"\r\n\r\n"
    ends = len(lines) + 1
    if not _TARGET.fullmatch(target) or (head.count(b"\n"), head.count(b"\r")) != (ends, ends):
        raise BadRequest("the request has a line break or a blank where none belongs")
    return head


def named_by(connection: bytes) -> set[bytes]:
    """The fields that a `Connection` field names."""
    return {name.strip().lower() for name in connection.split(b",")}


class AnswerReader:
    """One answer.

    Args:
        stream: where it comes from.
        method: of the request: the answer to HEAD has no body, whatever its head says.
    """

    def __init__(self, stream: Stream, method: str) -> None:
        self._stream = stream
        self._answer = _Answer(method)
        self._came = 0  # bytes before the end of the head

    @property
    def touched(self) -> bool:
        """Whether anything has come."""
        return self._came > 0

    @property
    def status(self) -> int:
        """Its code, once `head` has returned."""
        return self._answer.status

    @property
    def headers(self) -> list[Header]:
        """Those that are to be passed on, names in lower case."""
        return self._answer.headers

    @property
    def done(self) -> bool:
        """Whether all of it has come."""
        return self._answer.done

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent over the stream, once it is done."""
        return self._answer.keep_alive and not self._answer.excess

    async def head(self) -> None:
        """Read up to the end of the head.

        Raises:
            NoAnswer, BadAnswer: there is none that could be passed on.
            StreamLost: the stream broke.
        """
        answer = self._answer
        while True:
            data = await self._stream.read()
            if not data:
                if self._came:
                    raise BadAnswer("the service closed the connection in the middle of a head")
                raise NoAnswer("the service closed the connection without an answer")
            self._came += len(data)
            answer.feed(data)
            if answer.status:
                return
            if self._came > _HEAD_BYTES:
                raise BadAnswer("the head of the answer is too long")

    async def body(self) -> bytes:
        """The next piece of the body; empty where there is none, which is so only at the end.

        Raises:
            BadAnswer: it is broken off, or is framed wrongly.
            StreamLost: the stream broke.
        """
        answer = self._answer
        while not (answer.pieces or answer.done):
            data = await self._stream.read()
            if data:
                answer.feed(data)
            elif answer.to_the_end:
                answer.done = True
            else:
                raise BadAnswer("the service closed the connection in the middle of a body")
        pieces, answer.pieces = answer.pieces, []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Answer:
    """What the parser has made of an answer so far.

    Attributes:
        status, headers: 0 and none before the end of the head.
        pieces: of the body, that nobody has taken yet.
        done: all has come.
        to_the_end: the body ends where the stream does.
        keep_alive: the guest leaves the stream open.
        excess: more has come than the answer.
    """

    def __init__(self, method: str) -> None:
        self.status = 0
        self.headers: list[Header] = []
        self.pieces: list[bytes] = []
        self.done = self.to_the_end = self.keep_alive = self.excess = False
        self._method = method
        self._parser = httptools.HttpResponseParser(self)
        self._interim = False
        self._fields: list[Header] = []
        self._field_bytes = 0
        self._silent = 0  # bytes since the last one of the body

    def feed(self, data: bytes) -> None:
        self._silent += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            if isinstance(cause, BadAnswer):
                raise cause from None
            if not self.done:
                raise BadAnswer("the service's answer is no HTTP/1.1") from error
            self.excess = True
        if self.status and not self.done and self._silent > _FRAME_BYTES:
            raise BadAnswer("the frame of the answer's body is too long")

    def on_message_begin(self) -> None:
        if self.status:
            self.excess = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.status:
            return  # a trailer, or of an answer that nobody has asked for
        self._field_bytes += len(name) + len(value)
        if len(self._fields) >= _HEAD_FIELDS or self._field_bytes > _HEAD_BYTES:
            raise BadAnswer("the head of the answer is too long")
        if _VALUE_FAULT.search(value):
            raise BadAnswer("the head of the answer has control characters in it")
        self._fields.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if self.status:
            return
        status = self._parser.get_status_code()
        if 100 <= status < 200 and status != 101:
            self._interim = True
            self._fields = []
            return
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            raise BadAnswer("the service's answer is no HTTP/1.1")
        if not 200 <= status < 600:
            raise BadAnswer(f"the service answers with the status {status}")
        codings = [value.lower() for name, value in self._fields if name == b"transfer-encoding"]
        if codings not in ([], [b"chunked"]):
            raise BadAnswer("the answer has a transfer coding other than chunked")
        sized = any(name == b"content-length" for name, _ in self._fields)
        self.status = status
        self.to_the_end = not (codings or sized)
        self.keep_alive = self._parser.should_keep_alive()
        self.headers = _passed_on(self._fields, length=not codings and status not in (204, 304))
        self.done = self._bodiless
        self._silent = 0

    def on_body(self, data: bytes) -> None:
        self._silent = 0
        if self.done:
            self.excess = True
        else:
            self.pieces.append(data)

    def on_message_complete(self) -> None:
        if self._interim:
            self._interim = False
        elif self.status:
            self.done = True

    @property
    def _bodiless(self) -> bool:
        return self._method == "HEAD" or self.status in (204, 304)


def _passed_on(fields: list[Header], *, length: bool) -> list[Header]:
    # Our server says what time it is itself.
    dropped = {*_HOP, b"date"}.union(
        *(named_by(value) for name, value in fields if name == b"connection")
    )
    if length:
        dropped.discard(b"content-length")
    else:
        dropped.add(b"content-length")
    return [field for field in fields if field[0] not in dropped]
