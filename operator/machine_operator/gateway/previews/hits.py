"""Which preview a request is for, by one look at its path and its host."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from starlette.types import Scope

from machine_operator.gateway.previews.access import no_such_preview
from machine_operator.gateway.problems import Problem

__all__ = ["Finder", "Hit"]

_PATH: Final = b"/previews/"
_ID: Final = re.compile(rb"pv-[0-9a-f]{32}")
_PORT: Final = re.compile(rb"(?::[0-9]*)?")


@dataclass(frozen=True, slots=True)
class Hit:
    """Which preview a request is for.

    Attributes:
        id: of the preview.
        host: of the request, as it was sent.
        prefix: what of the path is ours; empty where the preview has a host of its own.
        target: the rest of the path.
    """

    id: str
    host: bytes
    prefix: bytes
    target: bytes

    @property
    def path(self) -> str:
        """Where the preview's addresses begin."""
        return self.prefix.decode() + "/"


class Finder:
    """Finds it.

    Args:
        domain: the preview domain, or None; a port in it is of no interest here.
    """

    def __init__(self, domain: str | None) -> None:
        name = (domain or "").partition(":")[0].rstrip(".")
        self._suffix = f".{name}".encode() if name else None

    def find(self, scope: Scope) -> Hit | None:
        """The preview that a request is for; None: it is for the API.

        Raises:
            Problem: 400, 404: it is for none.
        """
        raw: bytes = scope.get("raw_path") or b"/"
        host = b""
        if self._suffix is not None:
            for name, value in scope["headers"]:
                if name == b"host":
                    host = value
                    break
            if self._suffix in host.lower():
                hit = _by_host(scope, host, raw, suffix=self._suffix)
                if hit is not None:
                    return hit
        if not raw.startswith(_PATH):
            return None
        id, slash, rest = raw[len(_PATH) :].partition(b"/")
        if not _ID.fullmatch(id):
            raise no_such_preview()
        return Hit(id.decode(), _one_host(scope), _PATH + id, slash + rest)


def _by_host(scope: Scope, host: bytes, raw: bytes, *, suffix: bytes) -> Hit | None:
    name, colon, port = host.strip().lower().partition(b":")
    name = name.removesuffix(b".")
    if not name.endswith(suffix) or not name.startswith(b"pv-"):
        return None  # beside the previews, the domain may be somebody else's
    id = name[: -len(suffix)]
    if not _PORT.fullmatch(colon + port):
        raise Problem(400, "the Host of the request is none")
    if not _ID.fullmatch(id):
        raise no_such_preview()
    return Hit(id.decode(), _one_host(scope), b"", raw)


def _one_host(scope: Scope) -> bytes:
    """The Host of a request.

    Raises:
        Problem: 400, it has several: others on the way may have believed another one.
    """
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if len(hosts) > 1:
        raise Problem(400, "the request has more than one Host")
    return hosts[0] if hosts else b""
