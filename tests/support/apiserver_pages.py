"""Lists, whole and in pages: all pages of a list are of one moment, and a token for the next one does not live long."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from tests.support.apiserver_rules import failure

__all__ = ["Pages"]

Object = dict[str, Any]

_LIFETIME = 300.0
"""Seconds; a real server forgets versions about five minutes after they were replaced."""


@dataclass(frozen=True, slots=True)
class _Rest:
    version: int
    items: list[Object]
    until: float


class Pages:
    """Hands out lists."""

    def __init__(self) -> None:
        self._rests: dict[str, _Rest] = {}
        self._number = 0

    def forget(self) -> None:
        """The tokens that are out are no longer good."""
        self._rests.clear()

    def answer(
        self, params: dict[str, str], *, version: int, items: Callable[[], list[Object]]
    ) -> Object:
        """The answer to a list request.

        Raises:
            Expired: the token of the next page is too old.
        """
        token, limit = params.get("continue"), int(params.get("limit") or 0)
        if token:
            rest = self._rests.get(token)
            if rest is None or _now() > rest.until:
                text = (
                    "The provided continue parameter is too old to display a consistent list result. "
                    "You can start a new list without the continue parameter."
                )
                raise failure(410, "Expired", text)
            version, found = rest.version, rest.items
        else:
            found = items()
            if params.get("resourceVersion") == "0":
                limit = 0  # answered from the watch cache, which knows no pages
        meta: Object = {"resourceVersion": str(version)}
        if limit and len(found) > limit:
            meta["continue"] = self._token(version, orjson.loads(orjson.dumps(found[limit:])))
            if not params.get("labelSelector") and not params.get("fieldSelector"):
                meta["remainingItemCount"] = len(found) - limit
            found = found[:limit]
        return {"kind": "List", "metadata": meta, "items": found}

    def _token(self, version: int, rest: list[Object]) -> str:
        self._number += 1
        token = base64.urlsafe_b64encode(b'{"v":"meta.k8s.io/v1","n":%d}' % self._number).decode()
        self._rests[token] = _Rest(version, rest, _now() + _LIFETIME)
        return token


def _now() -> float:
    return asyncio.get_running_loop().time()
