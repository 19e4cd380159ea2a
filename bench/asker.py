"""A client that asks as fast as it is answered: GETs over a few connections that stay open, as little work as can be.

Each connection has one request under way. Any status but 200 is a failure of the benchmark. The job comes as JSON on
standard input (see `Job`); the result is one JSON object on standard output.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import cast

import uvloop
from clusters import BenchError
from typing_extensions import override

__all__ = ["Job", "ask"]

_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)
_LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is asked.

    Attributes:
        port: where, on loopback.
        targets: in turns.
        headers: with what.
        count: how often in all.
        connections: at the same time.
    """

    port: int
    targets: Sequence[str]
    headers: dict[str, str]
    count: int
    connections: int = 16


class _Connection(asyncio.Protocol):
    """Asks until there is nothing left to ask; then `done` is resolved."""

    def __init__(self, requests: Iterator[bytes], done: asyncio.Future[None]) -> None:
        self._requests = requests
        self._done = done
        self._got = b""
        self._transport: asyncio.Transport

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of that class, but are like it.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    @override
    def data_received(self, data: bytes) -> None:
        got = self._got = self._got + data if self._got else data
        head = got.find(b"\r\n\r\n")
        length = _LENGTH.search(got, 0, head + 2) if head >= 0 else None
        if head >= 0 and length is None:
            self._fail(f"an answer has no length: {got[:200]!r}")
        elif length is not None and len(got) >= head + 4 + int(length[1]):
            if got.startswith(b"HTTP/1.1 200 "):
                self._got = b""
                self._ask()
            else:
                self._fail(f"not answered with 200: {got[:600]!r}")

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"a connection was closed: {exc}")

    def _ask(self) -> None:
        request = next(self._requests, None)
        if request is not None:
            self._transport.write(request)
            return
        if not self._done.done():
            self._done.set_result(None)
        self._transport.close()

    def _fail(self, why: str) -> None:
        if not self._done.done():
            self._done.set_exception(BenchError(why))
            self._transport.abort()


async def _work(job: Job) -> float:
    """Seconds from the first request to the last answer."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in job.headers.items())
    heads = [
        f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{job.port}\r\n{lines}\r\n".encode()
        for target in job.targets
    ]
    requests = itertools.islice(itertools.cycle(heads), job.count)
    loop = asyncio.get_running_loop()
    ends: list[asyncio.Future[None]] = []

    def connection() -> _Connection:
        ends.append(loop.create_future())
        return _Connection(requests, ends[-1])

    begun = time.monotonic()
    for _ in range(job.connections):
        await loop.create_connection(connection, "127.0.0.1", job.port)
    async with asyncio.timeout(_LIMIT):
        await asyncio.gather(*ends)
    return time.monotonic() - begun


def ask(job: Job) -> float:
    """Do a job in a process of its own; the seconds that it took.

    Raises:
        BenchError: something was not answered with 200.
    """
    answer = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(asdict(job)),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=_LIMIT + 30,
    )
    if answer.returncode != 0:
        raise BenchError(f"the client failed: {answer.stderr.strip()[-1000:]}")
    seconds: float = json.loads(answer.stdout)["seconds"]
    return seconds


if __name__ == "__main__":
    json.dump({"seconds": uvloop.run(_work(Job(**json.load(sys.stdin))))}, sys.stdout)
