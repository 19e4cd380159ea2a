"""A client with one open status stream for each machine, and a bare watch of the same machines beside them.

Both run on one loop and one clock, so the difference between an event of the watch and the same state (the same
version) in the stream of its machine is what the gateway adds. The job comes as JSON in a file, see `Job`; a file
appears once all streams have shown their first state, and the result is written to another one.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import uvloop
from clusters import BenchError
from feed import Object, follow
from typing_extensions import override

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import connect
from machine_operator.kube.resources import MACHINES

__all__ = ["Heard", "Job"]

_EVENT = re.compile(rb"id: (\d+)\nevent: status\ndata: ")
_AT_A_TIME = 50
_OPEN_LIMIT = 120.0


@dataclass(frozen=True, slots=True)
class Job:
    """What is listened to.

    Attributes:
        port: of the gateway, on loopback.
        headers: with what its client comes.
        ids: the machines; each gets a stream, and one change.
        kubeconfig: for the watch.
        namespace: where they are.
        ready: file to make when all streams are open.
        result: file to write the result to.
        limit: seconds from then on until what is missing is lost.
    """

    port: int
    headers: dict[str, str]
    ids: list[str]
    kubeconfig: str
    namespace: str
    ready: str
    result: str
    limit: float


@dataclass(slots=True)
class Heard:
    """What came.

    Attributes:
        delays: milliseconds from the watch's event to the stream's; below 0 where the stream was first.
        lost: changes that the watch has told and a stream has not, and changes that nobody told.
        ended: streams that ended early.
        opened: seconds in which all streams were opened.
    """

    delays: list[float] = field(default_factory=list)
    lost: int = 0
    ended: int = 0
    opened: float = 0.0


class _Stream(asyncio.Protocol):
    """One stream; `told` has each version and when it came."""

    def __init__(self, request: bytes, *, on_event: asyncio.Event) -> None:
        self._request = request
        self._got = b""
        self._on_event = on_event
        self.told: dict[int, float] = {}
        self.first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are not of that class, but are like it.
        self.transport = cast("asyncio.Transport", transport)
        self.transport.write(self._request)

    @override
    def data_received(self, data: bytes) -> None:
        now = time.monotonic()
        self._got += data
        if not self.first.done() and not b"HTTP/1.1 200 ".startswith(self._got[:13]):
            self.first.set_exception(BenchError(f"a stream was refused: {self._got[:600]!r}"))
        # An event has come once its empty line has. Sizes of chunks stand between events, and match nothing.
        while (end := self._got.find(b"\n\n")) >= 0:
            event, self._got = _EVENT.search(self._got, 0, end), self._got[end + 2 :]
            if event is not None:
                self.told.setdefault(int(event[1]), now)
                self._on_event.set()
                if not self.first.done():
                    self.first.set_result(None)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self.ended = True
        if not self.first.done():
            self.first.set_exception(BenchError(f"a stream ended at once: {self._got[:600]!r}"))


class _Listeners:
    def __init__(self, job: Job) -> None:
        self._job = job
        self._streams: dict[str, _Stream] = {}
        self._changes: dict[str, tuple[int, float]] = {}
        self._event = asyncio.Event()

    async def run(self) -> Heard:
        job = self._job
        async with KubeClient(await connect(job.kubeconfig)) as client:
            begun = time.monotonic()
            async with asyncio.timeout(_OPEN_LIMIT):
                await self._open_all()
            opened = time.monotonic() - begun
            listed = asyncio.Event()

            def take(_: str, item: Object) -> None:
                if listed.is_set():
                    version = int(item["metadata"]["resourceVersion"])
                    self._changes.setdefault(item["metadata"]["name"], (version, time.monotonic()))
                    self._event.set()

            watch = asyncio.create_task(
                follow(client, MACHINES, take, namespace=job.namespace, listed=listed.set)
            )
            await listed.wait()
            _make(job.ready)
            await self._until_all()
            watch.cancel()
        return self._summary(opened)

    async def _open_all(self) -> None:
        slots = asyncio.Semaphore(_AT_A_TIME)
        lines = "".join(f"{name}: {value}\r\n" for name, value in self._job.headers.items())

        async def one(name: str) -> None:
            head = (
                f"GET /v1/machines/{name}/status/stream HTTP/1.1\r\n"
                f"Host: 127.0.0.1:{self._job.port}\r\n{lines}\r\n"
            )
            stream = self._streams[name] = _Stream(head.encode(), on_event=self._event)
            async with slots:
                await asyncio.get_running_loop().create_connection(
                    lambda: stream, "127.0.0.1", self._job.port
                )
                await stream.first

        async with asyncio.TaskGroup() as group:
            for name in self._job.ids:
                group.create_task(one(name))

    async def _until_all(self) -> None:
        deadline = time.monotonic() + self._job.limit
        while self._missing() and time.monotonic() < deadline:
            self._event.clear()
            try:
                async with asyncio.timeout_at(asyncio.get_running_loop().time() + 1):
                    await self._event.wait()
            except TimeoutError:
                continue
            await asyncio.sleep(0.1)  # looking through all of them is no work for each event

    def _missing(self) -> int:
        told = sum(version in self._streams[n].told for n, (version, _) in self._changes.items())
        return len(self._streams) - told

    def _summary(self, opened: float) -> Heard:
        delays = [
            1000 * (self._streams[name].told[version] - at)
            for name, (version, at) in self._changes.items()
            if version in self._streams[name].told
        ]
        ended = sum(stream.ended for stream in self._streams.values())
        return Heard(delays, lost=self._missing(), ended=ended, opened=opened)


def _make(path: str) -> None:
    Path(path).touch()


if __name__ == "__main__":
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    heard = uvloop.run(_Listeners(job).run())
    draft = Path(f"{job.result}.draft")
    draft.write_text(json.dumps(asdict(heard)))
    draft.rename(job.result)
