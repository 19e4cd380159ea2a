"""Each request with an Idempotency-Key is carried out at most once; repetitions get the answer of the first.

The store holds one record per organisation, method, path and key. Whoever makes the record works; the others are told
to wait, or get what was answered. Only success is kept: a refusal may be repeated, and then decided anew. The work has
less time than the record's lease, so a record that outlives its lease belongs to a gateway that died, and the next
one with the same request takes it over. That is safe because the work itself can be repeated: names are made of keys,
and changes are decided on what is there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from machine_operator.gateway.failures import (
    idempotency_reused,
    key_in_flight,
    runtime_unavailable,
    store_unavailable,
    unprocessable,
)
from machine_operator.gateway.problems import Fault, GatewayError
from machine_operator.store.database import StoreUnavailable
from machine_operator.store.idempotency import Finished, IdempotencyRecords, InFlight, Started

__all__ = ["Answer", "Idempotency", "Request", "read_key"]

log = logging.getLogger(__name__)

_WORK, _LEASE, _MOMENT = 8.0, 10.0, 1.0
_LONGEST_KEY = 255
_SHOWN = 8
"""Characters of a request's hash that answers tell."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a change is answered with.

    Attributes:
        status: HTTP status code.
        body: JSON.
        etag: entity tag, or None.
        version: resourceVersion of the Machine that was written, for other replicas to wait for; 0 for none.
        headers: others.
    """

    status: int
    body: bytes
    etag: str | None = None
    version: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Request:
    """What makes two requests the same.

    Attributes:
        org: the organisation.
        method, path: with ids in one spelling.
        key: the Idempotency-Key, or None.
        content: the body in a canonical form.
    """

    org: str
    method: str
    path: str
    key: str | None
    content: bytes = b""

    @property
    def hash(self) -> str:
        """Of everything but the key."""
        parts = (self.org.encode(), self.method.encode(), self.path.encode(), self.content)
        return hashlib.sha256(b"\0".join(parts)).hexdigest()


def read_key(header: str | None, *, required: bool) -> str | None:
    """The Idempotency-Key of a request.

    Raises:
        Problem: 422, it is missing where it is required, or it is none.
    """
    if header is None or header == "":
        if required:
            fault = Fault("header.Idempotency-Key", "this header is required")
            raise unprocessable(fault)
        return None
    if len(header) > _LONGEST_KEY or not all("!" <= character <= "~" for character in header):
        raise unprocessable(
            Fault(
                "header.Idempotency-Key",
                f"use 1 to {_LONGEST_KEY} visible ASCII characters without blanks",
            )
        )
    return header


class Idempotency:
    """Carries out changes once.

    Args:
        records: the store.
    """

    def __init__(self, records: IdempotencyRecords) -> None:
        self._records = records

    async def once(self, request: Request, work: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do the work, or replay what it was answered with before.

        Raises:
            GatewayError: the work's own; 409 for a key of another request, 429 while the first one is at work.
        """
        if request.key is None:
            return await _limited(work)
        try:
            began = await self._records.begin(
                org=request.org,
                method=request.method,
                path=request.path,
                key=request.key,
                request_hash=request.hash,
                lease_seconds=_LEASE,
            )
        except StoreUnavailable as error:
            log.error("idempotency: %s", error)
            raise store_unavailable() from error
        if isinstance(began, Finished | InFlight):
            if began.request_hash != request.hash:
                raise idempotency_reused(
                    expected=began.request_hash[:_SHOWN], provided=request.hash[:_SHOWN]
                )
            if isinstance(began, InFlight):
                raise _in_flight(began)
            headers = {**began.headers, "Idempotency-Replayed": "true"}
            return Answer(began.status, began.body, began.etag, headers=headers)
        done = False
        try:
            answer = await _limited(work)
            # Before the client hears of it: what it was told is what every repetition will be told.
            await self._records.finish(
                began,
                status=answer.status,
                body=answer.body,
                etag=answer.etag,
                headers=dict(answer.headers),
                mark=(request.org, answer.version) if answer.version else None,
            )
            done = True
            return answer
        except StoreUnavailable as error:
            log.error("idempotency: %s", error)
            raise store_unavailable() from error
        finally:
            if not done:
                await self._abandon(began)

    async def _abandon(self, began: Started) -> None:
        try:
            await asyncio.shield(self._records.abandon(began))
        except StoreUnavailable as error:
            log.warning("idempotency: a record stays until its lease ends: %s", error)


def _in_flight(began: InFlight) -> GatewayError:
    """A request at work is done in a moment. One that has been for long was left by a gateway that died: the published
    clients try three times, so they are told when its lease ends.
    """
    if began.remaining > _LEASE - _MOMENT:
        return key_in_flight()
    return key_in_flight(retry_after_ms=math.ceil(began.remaining * 1000) + 1)


async def _limited(work: Callable[[], Awaitable[Answer]]) -> Answer:
    try:
        async with asyncio.timeout(_WORK):
            return await work()
    except TimeoutError as error:
        raise runtime_unavailable() from error
