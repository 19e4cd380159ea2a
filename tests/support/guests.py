"""Guests that need no SSH: programs are coroutines, spools are dicts, and everything that goes wrong is on purpose.

A `GuestWorld` is all guests, which live on when a gateway dies. Each gateway has its own `FakeGuests`, its connections
into that world, with the interface of `guest/guests.py`, `guest/guest.py` and `guest/runner.py`.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from machine_operator.guest.errors import GuestError, GuestLost, GuestUnreachable
from machine_operator.guest.job import ArtifactFile, Ended, Job
from machine_operator.guest.target import GuestTarget

__all__ = ["Boot", "FakeGuest", "FakeGuests", "FakeRunner", "GuestWorld", "Spooled"]

Program = Callable[["Spooled"], Awaitable[int]]
Step = Callable[[str], Awaitable[None]]

_PIECE = 1024 * 1024


@dataclass
class Spooled:
    """One job in a guest.

    Attributes:
        gate: programs that wait, wait for it.
    """

    job: Job
    world: GuestWorld
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    artifacts: dict[str, bytes] = field(default_factory=dict)
    signals: list[int] = field(default_factory=list)
    ignores: frozenset[int] = frozenset()
    ended: Ended | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def kept(self, stream: str) -> bytes:
        return bytes(getattr(self, stream)[: self.job.kept_bytes])

    def end(self, exit_code: int | None, signal: int | None, failure: str | None = None) -> None:
        if self.ended is None:
            counts = (len(self.stdout), len(self.stderr), bool(self.artifacts))
            self.ended = Ended(exit_code, signal, failure, *counts)
            self.over.set()

    async def run(self, program: Program | None) -> None:
        if program is None:
            self.end(None, None, f"exec_init_rejected: {self.job.argv[0]}: not found")
            return
        code = await program(self)
        self.end(code, None)

    def kill(self, number: int) -> None:
        self.signals.append(number)
        if self.ended is None and number not in self.ignores:
            assert self.task is not None
            self.task.cancel()
            self.end(None, number)


@dataclass
class Boot:
    """One start of a machine: what it has is gone with it."""

    instance_uid: str
    up: bool = True
    jobs: dict[str, Spooled] = field(default_factory=dict)
    starts: Counter[str] = field(default_factory=Counter)
    forgotten: list[str] = field(default_factory=list)

    def stop(self) -> None:
        """As when its power is cut."""
        self.up = False
        for spooled in self.jobs.values():
            if spooled.task is not None:
                spooled.task.cancel()


class GuestWorld:
    """All guests.

    Attributes:
        programs: what there is to be run, by name.
        gates: `wait NAME` waits for these.
        leaves: what `leave` leaves.
    """

    def __init__(self) -> None:
        self.boots: dict[str, Boot] = {}
        self.gates: dict[str, asyncio.Event] = {}
        self.leaves: dict[str, bytes] = {}
        self.running: Counter[str] = Counter()
        self.most_running: Counter[str] = Counter()
        self.programs: dict[str, Program] = {
            "true": _exits(0),
            "false": _exits(1),
            "echo": _echo,
            "cat": _cat,
            "printenv": _printenv,
            "wait": _wait,
            "hang": _hang,
            "stubborn": _stubborn,
            "leave": _leave,
            "pwd": _pwd,
        }

    def boot(self, instance_uid: str) -> Boot:
        """A guest that has just started; or that is there."""
        return self.boots.setdefault(instance_uid, Boot(instance_uid))

    def gate(self, name: str) -> asyncio.Event:
        return self.gates.setdefault(name, asyncio.Event())

    async def close(self) -> None:
        """End all programs."""
        tasks = [s.task for b in self.boots.values() for s in b.jobs.values() if s.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start(self, boot: Boot, job: Job) -> None:
        if job.id in boot.jobs:
            return
        boot.starts[job.id] += 1
        spooled = boot.jobs[job.id] = Spooled(job, self)
        spooled.task = asyncio.create_task(self._run(boot, spooled))

    async def _run(self, boot: Boot, spooled: Spooled) -> None:
        uid = boot.instance_uid
        self.running[uid] += 1
        self.most_running[uid] = max(self.most_running[uid], self.running[uid])
        try:
            await spooled.run(self.programs.get(spooled.job.argv[0]))
        finally:
            self.running[uid] -= 1


@dataclass
class FakeGuests:
    """One gateway's connections.

    Attributes:
        step: called before and after everything that is asked of a guest, with its name; may raise or block.
        trouble: what the next attempts to connect raise.
        cut: operations that lose the connection, by name: how often. The operation itself happens.
    """

    world: GuestWorld
    step: Step | None = None
    trouble: list[Exception] = field(default_factory=list)
    cut: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    unreachable: bool = False

    async def connect(self, target: GuestTarget) -> Any:
        self.calls["connect"] += 1
        await asyncio.sleep(0)
        if self.trouble:
            raise self.trouble.pop(0)
        boot = self.world.boots.get(target.instance_uid)
        if self.unreachable or boot is None or not boot.up:
            raise GuestUnreachable("the guest does not answer")
        return FakeGuest(target, FakeRunner(self, boot))

    def drop(self, machine_uid: str) -> None:
        self.calls["drop"] += 1


@dataclass
class FakeGuest:
    """One connection."""

    target: GuestTarget
    runner: FakeRunner


class FakeRunner:
    """The runner at the other end of it."""

    def __init__(self, guests: FakeGuests, boot: Boot) -> None:
        self._guests = guests
        self._boot = boot

    async def start(self, job: Job) -> None:
        async with self._asked("start"):
            self._guests.world.start(self._boot, job)

    async def ended(self, id: str, *, timeout: float) -> Ended | None:
        async with self._asked("ended"):
            spooled = self._boot.jobs.get(id)
            if spooled is None:
                raise GuestError(f"there is no {id} in the guest")
            down = asyncio.create_task(self._down())
            over = asyncio.create_task(spooled.over.wait())
            try:
                await asyncio.wait(
                    {over, down}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                for task in (over, down):
                    task.cancel()
                await asyncio.gather(over, down, return_exceptions=True)
            return spooled.ended

    async def state(self, id: str) -> Ended | Literal["running", "absent"]:
        async with self._asked("state"):
            spooled = self._boot.jobs.get(id)
            return "absent" if spooled is None else spooled.ended or "running"

    async def kill(self, id: str, signal_number: int) -> None:
        async with self._asked("kill"):
            if id in self._boot.jobs:
                self._boot.jobs[id].kill(signal_number)

    async def output(
        self, id: str, stream: str, *, offset: int, limit: int
    ) -> AsyncGenerator[bytes, None]:
        end, piece = offset + limit, b"something"
        while piece and offset < end:
            async with self._asked("output"):
                spooled = self._boot.jobs.get(id)
                stop = min(end, offset + _PIECE)
                piece = b"" if spooled is None else spooled.kept(stream)[offset:stop]
            if piece:
                offset += len(piece)
                yield piece

    async def artifacts(self, id: str) -> list[ArtifactFile]:
        async with self._asked("artifacts"):
            files = self._boot.jobs[id].artifacts
            return [ArtifactFile(name, len(content)) for name, content in files.items()]

    async def read_artifact(self, id: str, name: str) -> AsyncGenerator[bytes, None]:
        content = self._boot.jobs[id].artifacts[name]
        for start in range(0, len(content), 1000):
            async with self._asked("read_artifact"):
                pass
            yield content[start : start + 1000]

    async def forget(self, ids: Iterable[str]) -> None:
        async with self._asked("forget"):
            for id in ids:
                self._boot.forgotten.append(id)
                self._boot.jobs.pop(id, None)

    def _asked(self, name: str) -> _Asked:
        return _Asked(self._guests, self._boot, name)

    async def _down(self) -> None:
        while self._boot.up and not self._guests.unreachable:  # noqa: ASYNC110 - both are plain switches
            await asyncio.sleep(0.005)


@dataclass
class _Asked:
    """Something that is asked of a guest: the request goes there, and the answer comes back."""

    guests: FakeGuests
    boot: Boot
    name: str

    async def __aenter__(self) -> None:
        self.guests.calls[self.name] += 1
        if self.guests.step is not None:
            await self.guests.step(self.name)
        self._there()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        if kind is not None:
            return
        self._there()
        if self.guests.cut[self.name] > 0:
            self.guests.cut[self.name] -= 1
            raise GuestLost(f"the connection broke in {self.name}")
        if self.guests.step is not None:
            await self.guests.step(f"{self.name} done")

    def _there(self) -> None:
        if not self.boot.up or self.guests.unreachable:
            raise GuestLost("the connection broke")


# ---- programs


def _exits(code: int) -> Program:
    async def program(_: Spooled) -> int:
        return code

    return program


async def _echo(spooled: Spooled) -> int:
    spooled.stdout += " ".join(spooled.job.argv[1:]).encode() + b"\n"
    return 0


async def _cat(spooled: Spooled) -> int:
    spooled.stdout += spooled.job.stdin
    return 0


async def _printenv(spooled: Spooled) -> int:
    for name in spooled.job.argv[1:]:
        spooled.stdout += spooled.job.env[name].encode() + b"\n"
    return 0


async def _pwd(spooled: Spooled) -> int:
    spooled.stdout += spooled.job.cwd.encode()
    return 0


async def _wait(spooled: Spooled) -> int:
    """`wait GATE [text before [text after [exit code]]]`."""
    _, gate, before, after, code, *_ = *spooled.job.argv, "", "", "0"
    spooled.stdout += before.encode()
    await spooled.world.gate(gate).wait()
    spooled.stdout += after.encode()
    spooled.stderr += b"done"
    return int(code or 0)


async def _hang(_: Spooled) -> int:
    await asyncio.Future()
    return 0


async def _stubborn(spooled: Spooled) -> int:
    spooled.ignores = frozenset({15})
    await asyncio.Future()
    return 0


async def _leave(spooled: Spooled) -> int:
    spooled.artifacts.update(spooled.world.leaves)
    return 0
