"""What the operations of all kinds share: pages, answers, and the checks in their order.

`SubResourceFrame` is for what belongs to a machine. Reads of it are served from the store and never wake anything; they
are allowed for as long as the machine itself can be read.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import Request
from starlette.responses import Response

from machine_operator.gateway.failures import invalid_state, unprocessable
from machine_operator.gateway.gateway import Gateway
from machine_operator.gateway.idempotency import Answer, read_key
from machine_operator.gateway.idempotency import Request as Repeatable
from machine_operator.gateway.identity import Caller, Verb
from machine_operator.gateway.machine_ids import PREFIX
from machine_operator.gateway.problems import Fault, Scope
from machine_operator.gateway.views import MachineView
from machine_operator.store.subresources import Place

__all__ = [
    "Asked",
    "SubResourceFrame",
    "json_answer",
    "list_answer",
    "read_limit",
    "read_place",
    "write_place",
]

_PAGE: Final = 50
_LONGEST_PAGE: Final = 200
_LONGEST_CURSOR: Final = 512

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """Somebody who may do what they ask for, with a machine of theirs.

    Attributes:
        caller, org: who, and for which organisation.
        view: the machine.
        machine_id: its id, in the spelling of the request.
        age: seconds by which all that may be out of date.
    """

    caller: Caller
    org: str
    view: MachineView
    machine_id: str
    age: float = 0.0


class SubResourceFrame:
    """The frame of the operations on one kind of sub-resource.

    Args:
        gateway: the services.
        plural: of the kind, as in paths: `executions`.
    """

    def __init__(self, gateway: Gateway, plural: str) -> None:
        self.gateway = gateway
        self.plural = plural

    async def read(self, request: Request, *, verb: Verb = Verb.GET) -> Asked:
        """The checks of a read.

        Raises:
            GatewayError: the first that does not hold.
        """
        return await self._asked(request, verb=verb, scope=Scope.READ)

    async def change(self, request: Request, *, verb: Verb = Verb.USE) -> Asked:
        """The checks of a change, up to the existence of the machine.

        Raises:
            GatewayError: the first that does not hold.
        """
        return await self._asked(request, verb=verb, scope=Scope.MUTATE)

    async def once(
        self,
        request: Request,
        asked: Asked,
        body: Mapping[str, Any],
        work: Callable[[str | None], Awaitable[Body]],
    ) -> Response:
        """Carry out a POST at most once, and answer 200 with what it made.

        Args:
            request: the request.
            asked: what its checks gave.
            body: all that was asked for, for the comparison with a repetition.
            work: makes it, given the Idempotency-Key, of which `own_id` makes the same id each time.
        """
        key = self.key(request)
        path = f"/v1/machines/{asked.view.uuid}/{self.plural}"
        content = orjson.dumps(dict(body), option=orjson.OPT_SORT_KEYS)

        async def do() -> Answer:
            return Answer(200, orjson.dumps(await work(key)))

        answer = await self.gateway.idempotency.once(
            Repeatable(asked.org, "POST", path, key, content), do
        )
        return json_answer(answer.status, answer.body, headers=answer.headers)

    def key(self, request: Request) -> str | None:
        """The request's Idempotency-Key."""
        required = self.gateway.settings.strict_idempotency
        return read_key(request.headers.get("idempotency-key"), required=required)

    def own_id(self, asked: Asked, key: str) -> bytes:
        """20 bytes that are the same whenever this request is repeated, and for no other one."""
        parts = (self.plural, asked.org, asked.view.uuid, key)
        return hashlib.sha256("\0".join(parts).encode()).digest()[:20]

    def refuse_ended(self, asked: Asked) -> None:
        """Refuse new sub-resources of a machine that is destroyed, or about to be.

        Raises:
            GatewayError: 409.
        """
        if asked.view.desired_state == "destroyed":
            raise invalid_state(
                current_desired="destroyed",
                current_observed="destroyed",
                expected_observed="running",
                target="running",
            )

    async def _asked(self, request: Request, *, verb: Verb, scope: Scope) -> Asked:
        admitted = await self.gateway.admit(request, verb=verb, scopes=(scope,))
        await self.gateway.freshness.of(admitted.org)
        age = self.gateway.machines.age
        spelled = request.path_params["machine_id"]
        view = self.gateway.machines.find(admitted.org, spelled)
        own = PREFIX + view.uuid if spelled.startswith(PREFIX) else view.uuid
        return Asked(admitted.caller, admitted.org, view, own, age)


def list_answer(items: Sequence[Body], more: str | None, *, age: float = 0.0) -> Response:
    """A page; `more` is the cursor of the next one."""
    body: Body = {"items": list(items)}
    if more is not None:
        body["next_cursor"] = more
    return json_answer(200, orjson.dumps(body), age=age)


def json_answer(
    status: int,
    body: bytes,
    *,
    etag: str | None = None,
    age: float = 0.0,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """An answer; `age` is by how many seconds it may be out of date."""
    more = dict(headers or {})
    if etag is not None:
        more["ETag"] = etag
    if age:
        more["Age"] = str(round(age))
    return Response(body, status_code=status, media_type="application/json", headers=more)


def read_limit(request: Request) -> int:
    """The length of the page that is asked for.

    Raises:
        Problem: 422, it is none.
    """
    text = request.query_params.get("limit")
    if not text:
        return _PAGE
    if not text.isascii() or not text.removeprefix("+").isdigit() or len(text) > 18:
        raise unprocessable(Fault("query.limit", "use a whole number from 0", text))
    return min(int(text), _LONGEST_PAGE) or _PAGE


def write_place(place: Place) -> str:
    """A place in a list of sub-resources as a cursor."""
    raw = place[0].to_bytes(8) + place[1].encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_place(request: Request) -> Place | None:
    """The place that the request's cursor stands for; None without one.

    Raises:
        Problem: 422, it is none of ours.
    """
    text = request.query_params.get("cursor")
    if not text:
        return None
    place = _parse_place(text) if len(text) <= _LONGEST_CURSOR else None
    # A moment that no clock shows would be too large for the database.
    if place is None or place[0] >> 48 or write_place(place) != text:
        raise unprocessable(Fault("query.cursor", "the cursor is none that this server made", text))
    return place


def _parse_place(text: str) -> Place | None:
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        return int.from_bytes(raw[:8]), raw[8:].decode("ascii")
    except (binascii.Error, ValueError):
        return None
