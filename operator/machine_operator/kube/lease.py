"""Leadership by a `coordination.k8s.io` Lease: of several processes one works, the others wait.

    absent, released, ours, or unchanged for `duration`      ──write──> we lead
    changed within `duration` by somebody else               ──────────> wait, look again
    leading                                                  ──write every `retry`──> still leading
    leading, and no write was answered for `deadline`        ──────────> we do not lead, whatever the Lease says

Every write carries the resourceVersion that was read, so of two that want the Lease one gets it. No clock but our
own monotonic one is asked: somebody else's record counts as alive for `duration` after *we* last saw it change, and
our own leadership counts from the moment *before* the write was sent that the server accepted. A leader thus gives
up `duration - deadline` earlier than anybody may take over, however long requests travel and whatever the wall
clocks say; the times in the Lease are for people. There is no fencing beyond that: a write that a leader sent in its
last moment can arrive later, so each write of the operator is harmless under two leaders for a moment.

Who deletes or edits the Lease by hand moves leadership by hand: the old leader notices at its next write, within
`retry` seconds.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import (
    AlreadyExists,
    Conflict,
    Forbidden,
    KubeError,
    NotFound,
    Unreachable,
)
from machine_operator.kube.resources import LEASES, NAMESPACES

__all__ = ["Election"]

log = logging.getLogger(__name__)

Object = dict[str, Any]
T = TypeVar("T")

_REQUEST_LIMIT = 3.0
"""Seconds for one request: several must fit between two renewals and the deadline."""

_LONGEST_FOREIGN = 600.0
"""Seconds that a record of somebody else can claim at most: a mistyped Lease must not lock everybody out for ever."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


class Election:
    """One process's part in the election.

    Args:
        client: the API server that keeps the Lease.
        namespace: where the Lease is.
        name: of the Lease.
        identity: ours. It has to differ between processes that live at the same time; a Lease that is held under it
            is taken over at once, as a restarted process with a fixed identity should.
        on_change: called with True when we lead and with False when we no longer do, in the loop's thread.
        duration: seconds for which a record of somebody else counts after it was last seen to change.
        deadline: seconds after which a leader that could not renew gives up.
        retry: seconds between two looks, and between two renewals; a little less at random.
        clock: monotonic seconds.
        now: the wall clock, for the times in the Lease.
        jitter: a number between 0 and 1.

    Raises:
        ValueError: the times do not leave a leader room to renew before the others take over.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str,
        name: str,
        identity: str,
        on_change: Callable[[bool], None],
        duration: float = 15.0,
        deadline: float = 10.0,
        retry: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = _utc_now,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        if not 0 < retry < deadline < duration:
            raise ValueError(
                f"lease {namespace}/{name}: retry {retry} s, deadline {deadline} s and duration {duration} s "
                "must grow in this order"
            )
        if not identity:
            raise ValueError(
                f"lease {namespace}/{name}: the identity is empty; give each process its own"
            )
        self._client = client
        self._namespace, self._name, self._identity = namespace, name, identity
        self._on_change = on_change
        self._duration, self._deadline, self._retry = duration, deadline, retry
        self._clock, self._now, self._jitter = clock, now, jitter
        self._leading = False
        self._lease: Object | None = None
        self._seen_at = -math.inf
        self._stamp = ""
        self._told = ""
        self.renewed_at: float | None = None
        """When, by `clock`, the last accepted write was sent; None before the first."""

    @property
    def leads(self) -> bool:
        """Whether we lead at this very moment. Not so after the deadline, even if the loop had no time to tell."""
        return self._leading and self._left() > 0

    @property
    def holder(self) -> str:
        """Who holds the Lease as far as we know; "" for nobody, or not known yet."""
        return _holder(self._lease)

    @property
    def trouble(self) -> str:
        """Why there is no news of the Lease, as a sentence; "" when there is."""
        return self._told

    async def run(self) -> None:
        """Take part until cancelled; then give the Lease back. End what the leader does before that."""
        try:
            while True:
                await self._turn()
                await asyncio.sleep(self._pause())
        finally:
            self._end_leading("the process ends")
            await self._release()

    # ---- one turn

    async def _turn(self) -> None:
        """Renew or look, within what is left of our own time; tell what changed."""
        if self._leading and self._left() <= 0:
            self._end_leading(f"it could not be renewed for {self._deadline:g} s")
        try:
            async with asyncio.timeout(self._left() if self._leading else None):
                await self._try()
            if self._told:
                log.info("lease %s: there is news of it again", self._where)
            self._told = ""
        except TimeoutError:
            log.info("lease %s: no answer before the deadline", self._where)
        except KubeError as error:
            self._complain(error)

    async def _try(self) -> None:
        if self._leading and self._lease is not None and await self._take(self._lease):
            return
        found = await self._read()
        if found is None:
            if self._free(self._lease):
                await self._create()
        elif self._free(found):
            await self._take(found)
        elif self._leading:
            self._end_leading(f"{_holder(found)} holds it")

    async def _read(self) -> Object | None:
        try:
            found = await self._ask(self._client.get(LEASES, self._name, namespace=self._namespace))
        except NotFound:
            return None
        self._saw(found)
        return found

    def _free(self, lease: Object | None) -> bool:
        """Whether we may write ourselves in. A Lease that vanished counts as it was last seen."""
        if _holder(lease) in ("", self._identity):
            return True
        return self._clock() >= self._runs_out_at(lease)

    def _runs_out_at(self, lease: Object | None) -> float:
        """When somebody else's record stops to count, as it was last seen to change."""
        claimed = _spec(lease).get("leaseDurationSeconds") or 0
        return self._seen_at + max(self._duration, min(claimed, _LONGEST_FOREIGN))

    async def _take(self, lease: Object) -> bool:
        """Write ourselves into the Lease as it was read. False: it is another one by now, look again."""
        before = _spec(lease)
        spec = {**before, **self._record()}
        if before.get("holderIdentity") != self._identity:
            spec["acquireTime"] = self._stamp
            spec["leaseTransitions"] = int(before.get("leaseTransitions") or 0) + 1
        try:
            await self._write({**lease, "spec": spec})
        except (Conflict, NotFound) as error:
            # Somebody wrote or deleted it; or our last write arrived, and its answer did not.
            log.info("lease %s: %s", self._where, error)
            return False
        return True

    async def _create(self) -> None:
        spec = {**self._record(), "acquireTime": self._stamp, "leaseTransitions": 0}
        body = {"metadata": {"name": self._name, "namespace": self._namespace}, "spec": spec}
        try:
            await self._write(body)
        except AlreadyExists:
            log.info("lease %s: somebody else was faster", self._where)
        except NotFound as error:
            if error.details.get("kind") != NAMESPACES.plural:
                raise  # a server without leases
            await self._create_namespace(error)

    async def _create_namespace(self, missing: NotFound) -> None:
        """The namespace of the Lease is missing. Where we may not create it, its absence is what people must hear."""
        body = {"metadata": {"name": self._namespace}}
        try:
            await self._ask(self._client.create(NAMESPACES, body))
            log.info("lease %s: created the namespace", self._where)
        except AlreadyExists:
            log.info("lease %s: the namespace has just come into being", self._where)
        except Forbidden:
            raise missing from None

    def _record(self) -> Object:
        # Go reads a MicroTime only with all six digits.
        self._stamp = self._now().astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": math.ceil(self._duration),
            "renewTime": self._stamp,
        }

    async def _write(self, body: Object) -> None:
        sent_at = self._clock()
        if "resourceVersion" in body["metadata"]:
            request = self._client.replace(LEASES, self._name, body, namespace=self._namespace)
        else:
            request = self._client.create(LEASES, body, namespace=self._namespace)
        self._saw(await self._ask(request))
        self.renewed_at = sent_at
        # A process that was frozen between question and answer has won nothing.
        if not self._leading and self._left() > 0:
            self._leading = True
            log.info("lease %s: %s leads", self._where, self._identity)
            self._on_change(True)

    def _saw(self, lease: Object) -> None:
        before = self._lease
        if before is None or _version(before) != _version(lease):
            self._seen_at = self._clock()
        self._lease = lease

    async def _ask(self, request: Awaitable[T]) -> T:
        try:
            async with asyncio.timeout(_REQUEST_LIMIT):
                return await request
        except TimeoutError as error:
            raise Unreachable(f"no answer within {_REQUEST_LIMIT:g} s") from error

    # ---- time

    def _left(self) -> float:
        """Seconds until our leadership runs out."""
        if self.renewed_at is None:
            return 0.0
        return self.renewed_at + self._deadline - self._clock()

    def _pause(self) -> float:
        """Until the next turn: `retry` or a little less, and not beyond a moment at which there is something to do."""
        pause = self._retry * (1.0 - 0.2 * self._jitter())
        if self._leading:
            return max(0.0, min(pause, self._left()))
        if _holder(self._lease) in ("", self._identity):
            return pause
        until_free = self._runs_out_at(self._lease) - self._clock()
        return min(pause, until_free) if until_free > 0 else pause

    # ---- the end

    def _end_leading(self, why: str) -> None:
        if self._leading:
            self._leading = False
            log.info("lease %s: %s no longer leads: %s", self._where, self._identity, why)
            self._on_change(False)

    async def _release(self) -> None:
        """Take our name out of the Lease, so that the next one need not wait. Tried once: it runs out anyway."""
        if not self._stamp:
            return
        # Our last write may have arrived without an answer, or not at all; a namesake's record has another stamp.
        ours = {self._stamp, _spec(self._lease).get("renewTime")}
        try:
            async with asyncio.timeout(_REQUEST_LIMIT):
                found = await self._client.get(LEASES, self._name, namespace=self._namespace)
                spec = _spec(found)
                if _holder(found) == self._identity and spec.get("renewTime") in ours:
                    free = {**found, "spec": {**spec, "holderIdentity": ""}}
                    await self._client.replace(LEASES, self._name, free, namespace=self._namespace)
                    log.info("lease %s: released", self._where)
        except (KubeError, TimeoutError) as error:
            log.info("lease %s: not released, it runs out by itself: %s", self._where, error)

    # ---- words

    @property
    def _where(self) -> str:
        return f"{self._namespace}/{self._name}"

    def _complain(self, error: KubeError) -> None:
        """Say what is in the way, once for each new trouble."""
        sentence = f"lease {self._where}: {error}"
        if isinstance(error, Forbidden) and not _terminating(error):
            sentence += (
                f". Allow get, create and update of {LEASES.plural} ({LEASES.group}) "
                f"in namespace {self._namespace}"
            )
        elif isinstance(error, NotFound) and error.details.get("kind") == NAMESPACES.plural:
            sentence += (
                f". Create it (kubectl create namespace {self._namespace}) "
                "or name another one with --lease-namespace"
            )
        if sentence != self._told:
            self._told = sentence
            log.warning("%s; trying again every %g s", sentence, self._retry)


def _spec(lease: Object | None) -> Object:
    return (lease or {}).get("spec") or {}


def _holder(lease: Object | None) -> str:
    return _spec(lease).get("holderIdentity") or ""


def _version(lease: Object) -> tuple[str, str]:
    return lease["metadata"].get("uid", ""), lease["metadata"]["resourceVersion"]


def _terminating(error: Forbidden) -> bool:
    causes = error.details.get("causes") or []
    return any(cause.get("reason") == "NamespaceTerminating" for cause in causes)
