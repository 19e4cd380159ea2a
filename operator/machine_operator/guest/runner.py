"""Runs programs in one guest, detached: they do not depend on us or on the connection.

`scripts/runner.sh` does the work there, told by lines over one channel, which is started anew when it has ended. What
it starts for us it tells us about at once, with a short output; what others have started, it is asked about. Longer
output and artifacts are files of the guest, read by SFTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Literal

import asyncssh

from machine_operator.guest.channel import Channel
from machine_operator.guest.conversation import Conversation
from machine_operator.guest.errors import GuestError, GuestLost
from machine_operator.guest.files import Files
from machine_operator.guest.job import (
    ArtifactFile,
    Ended,
    Job,
    check_id,
    job_line,
    quoted,
    too_long,
)
from machine_operator.guest.places import Places
from machine_operator.guest.spool import Absent, Counts, Gone, Place, Reply, Said, Seen
from machine_operator.guest.watch import Watch

__all__ = ["ArtifactFile", "Ended", "Job", "Runner"]

_POLL = 0.5
_GRACE = 0.3
"""Seconds in which output may still come after the program has ended: from what it left behind, if that has it."""

_LATE_READERS = 10.0
"""Seconds more, while less has come than the program wrote."""

_READ_AFTER = 0.1
"""Seconds of a program's life after which its output is read while it runs, which takes programs of their own."""

_STARTING = 10.0
"""Seconds that it can take from the claim of a job to its start; a keeper that needs longer was killed."""

_TOO_LONG = "exec_init_rejected: the arguments and variables are longer than a program can be given"
_INLINE = 2048
_REMEMBERED = 4096
_MOST_ARTIFACTS = 1000
_FORGET = 50
_PATIENCE = 10
"""Seconds after the end of a job's time in which the guest leaves it to us to end it."""


class Runner:
    """The programs of one guest, over one connection.

    Every method raises GuestLost where the connection breaks: what was asked for may have happened or not, and can be
    asked for again. Ids are of letters, digits, `-` and `_`; others are a ValueError.
    """

    def __init__(
        self,
        connection: asyncssh.SSHClientConnection,
        files: Files,
        *,
        places: Places,
        path: str,
        install: Callable[[], Awaitable[str]],
        patience: int = _PATIENCE,
    ) -> None:
        """Nothing happens before something is asked for.

        Args:
            connection: to the guest.
            files: of the same guest.
            places: where things are in it.
            path: where the script should be.
            install: brings it there; returns the path.
            patience: seconds after the end of a job's time in which the guest leaves it to us to end it.
        """
        self._files, self._places = files, places
        self._talk = Conversation(
            connection,
            places=places,
            path=path,
            install=install,
            patience=patience,
            on_reply=self._take,
            on_lost=self._lose,
        )
        self._watches: OrderedDict[str, Watch] = OrderedDict()
        self._known: OrderedDict[str, Place] = OrderedDict()
        self._starting: OrderedDict[str, float] = OrderedDict()
        self._numbers = itertools.count(1)

    @property
    def busy(self) -> bool:
        """Whether anybody waits for something, or a program that we have started runs."""
        running = any(watch.ended is None and not watch.lost for watch in self._watches.values())
        return running or self._talk.waiting

    @property
    def channels(self) -> int:
        """Channels of the connection that are its own."""
        return int(self._talk.live)

    async def start(self, job: Job) -> None:
        """Start it, unless a job of that id has been started, by whomever; returns when it runs.

        A program that cannot be started is a job that has ended, with `failure`.

        Raises:
            ValueError: something in it cannot be said to a program, such as a NUL.
            GuestError: its input cannot be brought there.
        """
        job_line(job, stdin="")
        watch = self._watches.get(job.id)
        if watch is not None and not watch.lost:
            await self._talk.within(asyncio.shield(watch.started))
            return
        watch = self._watches[job.id] = Watch(kept_bytes=job.kept_bytes)
        if too_long(job):
            self._tell(watch, Reply("refused", job.id, Gone(_TOO_LONG)))
            return
        try:
            reply = await self._start(job, watch)
        except BaseException as error:
            # Whether it runs is asked about, if anybody wants to know.
            self._watches.pop(job.id, None)
            watch.lose()
            if not watch.started.done():
                watch.started.set_exception(GuestLost(f"{job.id} was not started: {error!r}"))
            with contextlib.suppress(GuestError, asyncio.CancelledError):
                watch.started.exception()
            raise
        if reply.verb == "known":
            self._watches.pop(job.id, None)
        self._forget_watches()

    async def ended(self, job_id: str, *, timeout: float) -> Ended | None:
        """How it ended, waiting for that up to `timeout` seconds; None: it runs.

        Raises:
            GuestError: there is no such job, so the guest has been started anew, or has been told to forget it.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        while True:
            watch = self._watches.get(job_id)
            if watch is not None and not watch.lost:
                if not await watch.wait_ended(timeout=deadline - loop.time()):
                    return None
                if complete := await self._complete(job_id, watch):
                    return complete
                continue  # the channel has ended: ask over another one
            state = await self.state(job_id)
            if isinstance(state, Ended):
                return state
            if state == "absent":
                raise GuestError(f"there is no {job_id} in the guest")
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(min(_POLL, deadline - loop.time()))

    async def state(self, job_id: str) -> Ended | Literal["running", "absent"]:
        """What is known of it in the guest now, whoever started it."""
        watch = self._watches.get(check_id(job_id))
        if watch is not None and watch.ended is not None and watch.ended.failure is not None:
            return watch.ended  # it may have left no trace there
        seen = (await self._talk.ask(f"state {job_id}", ("state", job_id))).body
        late_at = asyncio.get_running_loop().time() + _LATE_READERS
        while isinstance(seen, Seen) and seen.ended is not None and seen.counts is None:
            await asyncio.sleep(_GRACE)
            sizes = await self._sizes(seen.place)
            come = sizes.stdout + sizes.stderr >= min(seen.due, seen.place.kept or 0)
            seen = (await self._talk.ask(f"state {job_id}", ("state", job_id))).body
            # In a guest that is short of time the readers of its pipes come to that late. It may also have written to
            # other files, so there is an end to waiting.
            if come or asyncio.get_running_loop().time() > late_at:
                break
        if isinstance(seen, Absent):
            return "absent"
        if not isinstance(seen, Seen):
            return self._still_starting(job_id)
        new = job_id not in self._known
        self._remember(job_id, seen.place)
        if seen.ended is not None:
            return _with(seen.ended, seen.counts or await self._sizes(seen.place))
        if new and self._talk.channel is not None:
            # Whoever started it may be gone before it had its output read.
            self._talk.channel.send_soon(f"watch {job_id}".encode())
        return "running"

    async def kill(self, job_id: str, signal_number: int) -> None:
        """Send a signal to all of its process group, unless it has ended."""
        watch = self._watches.get(check_id(job_id))
        if watch is not None and not watch.started.done():
            await self._talk.within(asyncio.shield(watch.started))
        await self._talk.ask(f"signal {job_id} {int(signal_number)}", ("signalled", job_id))

    async def output(
        self, job_id: str, stream: Literal["stdout", "stderr"], *, offset: int, limit: int
    ) -> AsyncGenerator[bytes, None]:
        """What is kept of a stream, from `offset` on, at most `limit` bytes, piece by piece: while it runs, what there
        is so far.
        """
        watch = self._watches.get(job_id)
        if watch is not None and (said := watch.whole(stream)) is not None:
            if piece := said[offset : offset + max(0, limit)]:
                yield piece
            return
        place = await self._place(job_id)
        if place is None:
            return
        if place.kept is not None:
            limit = min(limit, place.kept - offset)
        file = self._stream(place, stream)
        pieces = self._files.stream(file, offset=offset, length=max(0, limit))
        with contextlib.suppress(FileNotFoundError):
            async with contextlib.aclosing(pieces):
                async for piece in pieces:
                    yield piece

    async def artifacts(self, job_id: str) -> list[ArtifactFile]:
        """The regular files that it has left, the first thousand of them; links are not followed."""
        place = await self._place(job_id)
        for directory in self._directories(place):
            if found := await self._files.regular_files(directory, most=_MOST_ARTIFACTS):
                return [ArtifactFile(name, size) for name, size in found]
        return []

    async def read_artifact(self, job_id: str, name: str) -> AsyncGenerator[bytes, None]:
        """One of them, piece by piece.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise FileNotFoundError(name)
        for directory in self._directories(await self._place(job_id)):
            path = f"{directory}/{name}"
            if await self._files.size(path) is not None:
                async with contextlib.aclosing(self._files.stream(path)) as pieces:
                    async for piece in pieces:
                        yield piece
                return
        raise FileNotFoundError(name)

    async def forget(self, job_ids: Iterable[str]) -> None:
        """Remove all that is left of them in the guest."""
        ids = [check_id(job_id) for job_id in job_ids]
        for first in range(0, len(ids), _FORGET):
            some, number = ids[first : first + _FORGET], str(next(self._numbers))
            await self._talk.ask(f"forget {number} {' '.join(some)}", ("forgotten", number))
            for job_id in some:
                self._watches.pop(job_id, None)
                self._known.pop(job_id, None)
                self._starting.pop(job_id, None)

    async def close(self) -> None:
        """End the channel; what runs goes on."""
        await self._talk.close()

    # --- over the channel

    async def _start(self, job: Job, watch: Watch) -> Reply:
        channel = await self._talk.open()
        base = f"{self._places.spool}/{job.id}.{channel.token}"
        stdin = "/dev/null"
        if job.stdin:
            stdin = f"{base}.in"
            await self._files.write(stdin, job.stdin)
        line = job_line(job, stdin=stdin)
        if len(line) > _INLINE:  # a shell reads what may be a pipe byte by byte
            await self._files.write(f"{base}.job", line + b"\n")
            line = b". " + quoted(f"{base}.job")
        watch.channel = channel
        await self._talk.start(channel, line)
        return await self._talk.within(watch.started)

    def _take(self, reply: Reply) -> None:
        watch = self._watches.get(reply.key)
        if watch is not None:
            self._tell(watch, reply)

    def _tell(self, watch: Watch, reply: Reply) -> None:
        match reply.verb, reply.body:
            case "started", Seen(place):
                watch.see(place, None)
                asyncio.get_running_loop().call_later(_READ_AFTER, self._read, reply.key)
            case "ended", Seen(place, ended):
                watch.see(place, ended)
            case "refused", Gone(why):
                watch.see(Place(""), Ended(None, None, why))
                watch.count(Counts(0, 0))
            case "said", Said() as said:
                watch.hear(said)
            case "counted", Counts() as counts:
                watch.count(counts)
                self._talk.fill()
            case _:
                pass
        if watch.place is not None and watch.place.slot:
            self._remember(reply.key, watch.place)
        if reply.verb in ("started", "known", "refused", "ended") and not watch.started.done():
            watch.started.set_result(reply)

    def _lose(self, channel: Channel) -> None:
        for watch in self._watches.values():
            if watch.channel is channel:
                if not watch.started.done():
                    watch.started.set_exception(GuestLost("the runner has ended"))
                    watch.started.exception()
                watch.lose()

    def _read(self, job_id: str) -> None:
        watch = self._watches.get(job_id)
        if watch is not None and watch.ended is None and watch.channel is not None:
            watch.channel.send_soon(f"watch {job_id}".encode())

    # --- what is known

    async def _complete(self, job_id: str, watch: Watch) -> Ended | None:
        if watch.ended is None:
            return None
        await watch.wait_counted(timeout=_GRACE)
        if watch.counts is not None:
            return _with(watch.ended, watch.counts)
        if watch.lost or watch.place is None or watch.channel is None:
            return None
        # What it left behind has its pipes: they are read from now on, so that it can go on writing.
        watch.channel.send_soon(f"watch {job_id}".encode())
        state = await self.state(job_id)
        return state if isinstance(state, Ended) else None

    async def _sizes(self, place: Place) -> Counts:
        """So far, where something that the program left behind may still write."""
        out = await self._files.size(self._stream(place, "stdout"))
        err = await self._files.size(self._stream(place, "stderr"))
        return Counts(out or 0, err or 0)

    async def _place(self, job_id: str) -> Place | None:
        if check_id(job_id) not in self._known:
            await self.state(job_id)
        return self._known.get(job_id)

    def _stream(self, place: Place, stream: Literal["stdout", "stderr"]) -> str:
        return f"{self._places.spool}/{place.slot}.{'out' if stream == 'stdout' else 'err'}"

    def _directories(self, place: Place | None) -> Sequence[str]:
        if place is None:
            return ()
        return f"{self._places.artifacts}/{place.slot}", f"{self._places.spool}/{place.slot}.d"

    def _still_starting(self, job_id: str) -> Ended | Literal["running"]:
        now = asyncio.get_running_loop().time()
        if now - self._starting.setdefault(job_id, now) > _STARTING:
            return Ended(None, None, "the guest lost track of it: its keeper was killed")
        _bound(self._starting)
        return "running"

    def _remember(self, job_id: str, place: Place) -> None:
        before = self._known.get(job_id)
        kept = place.kept if place.kept is not None or before is None else before.kept
        self._known[job_id] = replace(place, kept=kept)
        _bound(self._known)

    def _forget_watches(self) -> None:
        """Those that ended long ago and were never asked about: the guest knows of them, too."""
        while len(self._watches) > _REMEMBERED:
            oldest = next(iter(self._watches))
            if self._watches[oldest].ended is None and not self._watches[oldest].lost:
                break
            del self._watches[oldest]


def _with(ended: Ended, counts: Counts) -> Ended:
    return replace(ended, stdout_bytes=counts.stdout, stderr_bytes=counts.stderr)


def _bound(memory: OrderedDict[str, Place] | OrderedDict[str, float]) -> None:
    while len(memory) > _REMEMBERED:
        memory.popitem(last=False)
