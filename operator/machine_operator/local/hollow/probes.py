"""Readiness probes of guests.

kubelet would connect to the pod's address. Here QEMU's forwarding accepts a connection at once,
long before the guest listens, so accepting proves nothing: the guest itself must have said
something. For SSH that is its banner, or, in our own image, a line on the console that says that
its sshd listens. And a guest that boots in emulation must not be hammered: each connection makes
sshd fork. So the first attempt waits for the guest's own word on the console (or for a while,
where an image has none), attempts before success are patient, and after success they are rare.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from machine_operator.local.hollow.console import ConsoleWatch
from machine_operator.local.hollow.waiting import wait_within

__all__ = ["Probe", "Prober", "probe_of"]

log = logging.getLogger(__name__)

_UNMARKED = 8.0
"""Seconds after which a guest without a marker is tried for the first time."""

_PATIENCE = 15.0
"""Seconds that an attempt waits for the guest's first byte before the guest was ever ready."""

_GENTLE = 60.0
"""Least seconds between attempts on a guest that is ready."""

_SSH = b"SSH-"


@dataclass(frozen=True, slots=True)
class Probe:
    """A readiness probe that we can do; times are seconds.

    Attributes:
        kind: "speaks" wants bytes that begin like SSH's banner, "answers" wants a live TCP peer,
            "http" a good HTTP status.
    """

    kind: Literal["speaks", "answers", "http"]
    port: int
    initial_delay: float
    period: float
    timeout: float
    failures: int
    path: str = "/"


def probe_of(vmi: Mapping[str, Any], *, ssh_ports: tuple[int, ...] = (22, 2222)) -> Probe | None:
    """The readiness probe of a VMI; None where it has none, or one that needs a guest agent.

    It is taken from the VMI, not from the pod: KubeVirt adds 10 s to the pod's initial delay for
    libvirt's start, which there is none of here.
    """
    probe = vmi["spec"].get("readinessProbe")
    if not probe:
        return None
    tcp, http = probe.get("tcpSocket"), probe.get("httpGet")
    target = tcp or http
    if not target or not isinstance(target.get("port"), int):
        return None
    port = int(target["port"])
    kind: Literal["speaks", "answers", "http"] = "http"
    if tcp:
        kind = "speaks" if port in ssh_ports else "answers"
    return Probe(
        kind=kind,
        port=port,
        initial_delay=float(probe.get("initialDelaySeconds") or 0),
        period=float(probe.get("periodSeconds") or 10),
        timeout=float(probe.get("timeoutSeconds") or 1),
        failures=int(probe.get("failureThreshold") or 3),
        path=str((http or {}).get("path") or "/"),
    )


class Prober:
    """Probes one guest until cancelled.

    Args:
        address: where its ports are forwarded.
        console: its console log, watched for the marker.
        restarted: set when the guest was reset.
        on_change: called when `ready` changes.
        already: the guest was ready before (it was adopted).
    """

    def __init__(
        self,
        probe: Probe,
        *,
        address: str,
        console: ConsoleWatch,
        restarted: asyncio.Event,
        on_change: Callable[[], None],
        already: bool = False,
    ) -> None:
        self.ready = already
        self._probe = probe
        self._address = address
        self._console = console
        self._restarted = restarted
        self._on_change = on_change
        self._spoke = already
        self._failed = 0

    async def run(self) -> None:
        """Probe for ever."""
        if not self.ready:
            await asyncio.sleep(self._probe.initial_delay)
        while True:
            if not self.ready:
                await self._until_worth_trying()
                # QEMU tells of one reboot more than once; what came before now is this one.
                self._restarted.clear()
            self._judge(self._listens() or await self._attempt())
            if self.ready and self._failed == 0:
                pause = max(self._probe.period, _GENTLE)
            else:
                pause = self._probe.period
            if await wait_within(self._restarted, pause):
                self._restart()

    def _restart(self) -> None:
        self._restarted.clear()
        self._console.forget()
        self._spoke = False
        self._set(ready=False)

    def _judge(self, good: bool) -> None:
        if good:
            self._failed = 0
            self._spoke = True
            self._set(ready=True)
            return
        self._failed += 1
        if self._failed >= self._probe.failures:
            self._set(ready=False)

    def _set(self, *, ready: bool) -> None:
        if self.ready != ready:
            self.ready = ready
            self._on_change()

    async def _until_worth_trying(self) -> None:
        if self._spoke:
            return
        try:
            async with asyncio.timeout(_UNMARKED):
                await self._console.marker()
        except TimeoutError:
            return
        self._spoke = True

    def _listens(self) -> bool:
        """Whether it has just said that its sshd does: to connect would find nothing else, at the worst time."""
        first = not self.ready and self._failed == 0
        return first and self._probe.kind == "speaks" and self._probe.port in self._console.ports

    async def _attempt(self) -> bool:
        """One attempt. While the guest has not spoken, the marker cuts a pending one short.

        An early connection may hang in QEMU for many seconds, since its first packets found no
        guest to take them; a new one after the marker goes through at once.
        """
        if self._spoke:
            return await self._ask(limit=max(self._probe.timeout, 5.0))
        attempt = asyncio.create_task(self._ask(limit=_PATIENCE))
        marker = asyncio.create_task(self._console.marker())
        try:
            await asyncio.wait({attempt, marker}, return_when=asyncio.FIRST_COMPLETED)
            if attempt.done():
                return attempt.result()
        finally:
            for task in (attempt, marker):
                task.cancel()
            await asyncio.gather(attempt, marker, return_exceptions=True)
        self._spoke = True
        return await self._ask(limit=_PATIENCE)

    async def _ask(self, *, limit: float) -> bool:
        try:
            async with asyncio.timeout(limit):
                reader, writer = await asyncio.open_connection(self._address, self._probe.port)
        except (OSError, TimeoutError):
            return False
        try:
            return await self._listen(reader, writer, limit=limit)
        except OSError:
            return False
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, limit: float
    ) -> bool:
        if self._probe.kind == "http":
            request = f"GET {self._probe.path} HTTP/1.0\r\nHost: {self._address}\r\n\r\n"
            writer.write(request.encode())
        try:
            async with asyncio.timeout(limit):
                first = await reader.read(16)
        except TimeoutError:
            # A server that waits for its client to speak first is silent too. That counts only
            # from a guest that is known to be up, or QEMU alone would pass for one.
            return self._probe.kind == "answers" and self._spoke
        match self._probe.kind:
            case "speaks":
                return first.startswith(_SSH)
            case "http":
                return first[9:10] in (b"2", b"3")
            case "answers":
                return bool(first)
