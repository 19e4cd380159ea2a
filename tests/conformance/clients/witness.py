"""What the scenario programs share: one way to write a story for both kinds of client, and to tell what was seen.

The programs run in the environment of a published client and import nothing of this project. They print one JSON
object a line: `step` and what belongs to it. Requests on the wire are told too, as the client's own HTTP library saw
them; so the stories need no proxy between the client and the gateway.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import dedalus_sdk
import httpx

__all__ = ["SMALL", "connect", "done", "each", "main", "say", "settled", "told", "until"]

SMALL: dict[str, Any] = {"vcpu": 1, "memory_mib": 256, "storage_gib": 1}
_TOLD_REQUEST = (
    *("accept", "authorization", "content-length", "content-type", "idempotency-key", "if-match"),
    *("user-agent", "x-api-key", "x-dedalus-org-id", "x-stainless-retry-count"),
    *("x-stainless-read-timeout", "x-scalar-retry-count", "x-scalar-read-timeout"),
)
_TOLD_ANSWER = ("content-type", "etag", "retry-after-ms", "x-should-retry", "idempotency-replayed")
_SECRET = ("authorization", "x-api-key")
_PATIENCE = 30.0


def say(step: str, **facts: Any) -> None:
    """One line for the test."""
    print(json.dumps({"step": step, **facts}), flush=True)


async def done(value: Any) -> Any:
    """The result of a call, whichever kind of client it was made on."""
    return await value if inspect.isawaitable(value) else value


async def each(items: Any) -> AsyncIterator[Any]:
    """What a pager or a stream yields, whichever kind of client it came from."""
    if hasattr(items, "__aiter__"):
        async for item in items:
            yield item
    else:
        for item in items:
            yield item


def connect(mode: str, **options: Any) -> Any:
    """A client, `sync` or `async`, set up by the environment, which tells each of its requests."""
    if mode == "sync":
        hooks: dict[str, list[Callable[..., Any]]] = {"response": [_exchange]}
        http = dedalus_sdk.DefaultHttpxClient(event_hooks=hooks)
        return dedalus_sdk.Dedalus(http_client=http, **options)
    hooks = {"response": [_async_exchange]}
    http = dedalus_sdk.DefaultAsyncHttpxClient(event_hooks=hooks)
    return dedalus_sdk.AsyncDedalus(http_client=http, **options)


async def told(name: str, call: Callable[[], Any]) -> None:
    """Do what is to be refused, and tell how the client puts it."""
    try:
        result = await done(call())
    except dedalus_sdk.APIStatusError as error:
        facts = {"status": error.status_code, "body": error.body}
        say("error", name=name, kind=type(error).__name__, **facts)
    else:
        say("error", name=name, kind=None, result=str(result)[:500])


async def until(look: Callable[[], Any], phase: str) -> Any:
    """Ask again until a machine is in a phase, as clients without a stream do."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        seen = await done(look())
        if seen.status.phase == phase:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE:.0f} s for {phase}; last seen: {seen}")
        await asyncio.sleep(0.1)


async def settled(look: Callable[[], Any], passing: tuple[str, ...]) -> Any:
    """Ask again until something has another status than the `passing` ones; as often as it says itself."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        seen = await done(look())
        if seen.status not in passing:
            return seen
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {_PATIENCE:.0f} s; last seen: {seen}")
        await asyncio.sleep((seen.retry_after_ms or 50) / 1000)


def main(stories: dict[str, Callable[..., Coroutine[Any, Any, None]]]) -> None:
    """`PROGRAM STORY sync|async [JSON]`: the JSON object has the story's arguments."""
    story, mode, *rest = sys.argv[1:]
    asyncio.run(stories[story](mode, **json.loads(rest[0] if rest else "{}")))


def _exchange(response: httpx.Response) -> None:
    request = response.request
    sent = {name: request.headers[name] for name in _TOLD_REQUEST if name in request.headers}
    for name in _SECRET:
        if name in sent:
            sent[name] = sent[name].split(" ")[0] if " " in sent[name] else "key"
    got = {name: response.headers[name] for name in _TOLD_ANSWER if name in response.headers}
    where = request.url.raw_path.decode()
    say("wire", call=f"{request.method} {where}", status=response.status_code, sent=sent, got=got)


async def _async_exchange(response: httpx.Response) -> None:
    _exchange(response)
