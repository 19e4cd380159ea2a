"""API keys against a small API server: made, accepted, expired, revoked, and their last use noted."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from machine_operator.api.timestamps import format_timestamp
from machine_operator.gateway import keys
from machine_operator.gateway.identity import Caller
from machine_operator.gateway.keys import (
    ApiKey,
    KeyRing,
    NewKey,
    UnreadableKeyError,
    key_id,
    new_key,
    read_key,
)
from machine_operator.gateway.orgs import ORG_LABEL
from machine_operator.gateway.problems import Coded
from machine_operator.kube.errors import ApiError
from tests.support.apiserver import FakeApi, Request, failure
from tests.support.client import FakeClient
from tests.support.clock import EPOCH, wall_clock
from tests.support.virtual import eventually, run_virtual

Object = dict[str, Any]


def make(org: str = "acme", **options: Any) -> NewKey:
    return new_key(org, now=EPOCH, **options)


def placed(key: NewKey) -> Object:
    """Its Secret as it is in the cluster."""
    return {**key.secret, "metadata": {**key.secret["metadata"], "namespace": "ns"}}


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def bearer(token: str) -> Headers:
    return Headers({"Authorization": f"Bearer {token}"})


class Gate:
    """A key ring that runs on a small API server."""

    def __init__(self) -> None:
        self.api = FakeApi()
        self.client = FakeClient(self.api)
        self.ring = KeyRing(self.client, namespace="ns", now=lambda: wall_clock().timestamp())

    def put(self, key: NewKey) -> NewKey:
        self.api.put("secrets", placed(key))
        return key

    def says(self, token: str) -> str:
        """`org`, or status and code of the refusal."""
        try:
            return self.ring.authenticate(bearer(token)).org
        except Coded as error:
            return f"{error.status} {error.error_code}"

    def noted(self, key: NewKey) -> str | None:
        found = self.api.find("secrets", f"api-key-{key.id}")["metadata"]["annotations"]
        value = found.get(keys.LAST_USED)
        return None if value is None else str(value)

    def patches(self) -> int:
        return sum(request.verb == "patch" for request in self.api.log)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self.client:
            task = asyncio.create_task(self.ring.run())
            try:
                await eventually(self.ring.synced.is_set, within=10)
                yield
                assert not task.done(), task.exception()
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)


def play(scenario: Callable[[Gate], Coroutine[Any, Any, None]], *given_keys: NewKey) -> None:
    async def run() -> None:
        gate = Gate()
        for key in given_keys:
            gate.put(key)
        async with gate.running():
            await scenario(gate)

    run_virtual(run())


# ---- the form of keys


def test_a_new_key_keeps_its_token_out_of_the_secret() -> None:
    key = make(scopes=["machines:write", "machines:read"], description="for CI")
    assert key_id(key.token) == key.id
    secret_part = key.token.split("-", 2)[2]
    assert secret_part not in str(key.secret)
    assert secret_part not in repr(key)
    assert len(base64.urlsafe_b64decode(secret_part + "=")) == 32
    assert key.secret["data"] == {
        "sha256": encoded(hashlib.sha256(key.token.encode()).hexdigest()),
        "scopes": encoded("machines:read machines:write"),
    }
    assert key.secret["immutable"] is True
    annotations = key.secret["metadata"]["annotations"]
    assert annotations == {keys.CREATED: format_timestamp(EPOCH), keys.DESCRIPTION: "for CI"}


def test_no_two_keys_are_alike() -> None:
    made = [make() for _ in range(100)]
    assert len({key.id for key in made}) == len({key.token[16:] for key in made}) == 100


def test_what_is_made_can_be_read() -> None:
    key = make(scopes=["machines:read"], expires_at=EPOCH)
    read = read_key(placed(key))
    digest = hashlib.sha256(key.token.encode()).digest()
    expected = ApiKey(key.id, "acme", digest, frozenset({"machines:read"}), EPOCH.timestamp())
    assert read == expected
    assert digest.hex() not in repr(read)
    assert read_key(placed(make())).scopes == {"*"}


@pytest.mark.parametrize(
    ("org", "scopes", "why"),
    [
        ("Acme", ["*"], "'Acme' cannot be an org"),
        ("kube-system", ["*"], "belong to Kubernetes"),
        ("acme", ["machines:fly"], "no scope 'machines:fly'; there are: .*machines:read"),
        ("acme", [], "without a scope"),
    ],
)
def test_what_cannot_be_a_key_is_not_made(org: str, scopes: list[str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        new_key(org, scopes=scopes, now=EPOCH)


def test_a_key_may_be_named_by_id_secret_or_token() -> None:
    key = make()
    assert {key_id(key.id), key_id(f"api-key-{key.id}"), key_id(key.token)} == {key.id}
    for text in ("", "api-key-", key.id.upper(), key.token[:40], f"{key.id}\n", "../../x"):
        assert key_id(text) is None


def spoil(**changes: Any) -> Object:
    """The Secret of a key with something wrong in it."""
    secret = placed(make())
    for path, value in changes.items():
        node = secret
        *parents, last = path.split("__")
        for part in parents:
            node = node[part]
        node[last] = value
    return secret


SPOILT = [
    (spoil(type="Opaque"), "type"),
    (spoil(metadata__labels={}), "label"),
    (spoil(metadata__labels={ORG_LABEL: "kube-system"}), "label"),
    (spoil(metadata__name="something"), "name"),
    (spoil(metadata__name="abcdefabcdef"), "name"),
    (spoil(data=None), "sha256"),
    (spoil(data__sha256="TOPSECRET!"), "base64"),
    (spoil(data__sha256=7), "base64"),
    (spoil(data__sha256=encoded("TOPSECRET")), "hex"),
    (spoil(data__sha256=base64.b64encode(b"\xff\xfe").decode()), "base64"),
    (spoil(data__scopes=""), "scopes"),
    (spoil(data__scopes=encoded("TOPSECRET")), "scopes"),
    (spoil(metadata__annotations={keys.EXPIRES: "soon"}), "RFC 3339"),
    (spoil(metadata__annotations={keys.EXPIRES: "2026-01-01T00:00:00"}), "RFC 3339"),
]


@pytest.mark.parametrize(("secret", "why"), SPOILT)
def test_a_secret_that_is_no_key_says_why_and_nothing_of_its_data(secret: Object, why: str) -> None:
    with pytest.raises(UnreadableKeyError, match=why) as caught:
        read_key(secret)
    assert "TOPSECRET" not in str(caught.value)


# ---- authentication


def test_a_key_is_accepted_for_what_it_is() -> None:
    key = make(scopes=["machines:read"])

    async def scenario(gate: Gate) -> None:
        expected = Caller("acme", f"api-key:{key.id}", frozenset({"machines:read"}), key.id)
        assert gate.ring.authenticate(bearer(key.token)) == expected
        assert gate.ring.authenticate(Headers({"x-api-key": key.token})) == expected

    play(scenario, key)


def test_no_key_and_a_wrong_key_are_told_apart_but_not_why_it_is_wrong() -> None:
    key, other = make(), make("other")

    async def scenario(gate: Gate) -> None:
        with pytest.raises(Coded) as caught:
            gate.ring.authenticate(Headers({}))
        assert (caught.value.status, caught.value.error_code) == (401, "AUTH_REQUIRED")
        wrong = [
            make().token,  # an id that nobody has
            f"{key.token[:-1]}{'a' if key.token[-1] != 'a' else 'b'}",
            f"{key.token}a",
            f"dsk-{key.id}-{other.token[17:]}",  # the secret of another key
            key.token.upper(),
            "dsk-",
            "hunter2",
        ]
        answers = set()
        for token in wrong:
            with pytest.raises(Coded) as caught:
                gate.ring.authenticate(bearer(token))
            answers.add((caught.value.status, str(caught.value.body())))
        assert len(answers) == 1
        assert answers.pop()[0] == 401

    play(scenario, key, other)


@given(st.one_of(st.binary(max_size=120), st.from_regex(rb"dsk-[a-z0-9]{12}-[\w-]{43}.?")))
def test_whatever_comes_as_a_token_is_a_401(value: bytes) -> None:
    async def scenario(gate: Gate) -> None:
        for raw in ((b"authorization", b"Bearer " + value), (b"x-api-key", value)):
            with pytest.raises(Coded) as caught:
                gate.ring.authenticate(Headers(raw=[raw]))
            assert caught.value.status == 401

    play(scenario)


def test_a_key_expires_at_its_moment() -> None:
    key = make(expires_at=datetime.fromtimestamp(EPOCH.timestamp() + 60, UTC))

    async def scenario(gate: Gate) -> None:
        await asyncio.sleep(50 - asyncio.get_running_loop().time())
        assert gate.says(key.token) == "acme"
        await asyncio.sleep(10)
        assert gate.says(key.token) == "401 AUTH_INVALID"

    play(scenario, key)


def test_new_keys_are_accepted_and_revoked_ones_refused_within_two_seconds() -> None:
    async def scenario(gate: Gate) -> None:
        key = gate.put(make())
        await eventually(lambda: gate.says(key.token) == "acme", within=2)
        gate.api.remove("secrets", f"api-key-{key.id}")
        await eventually(lambda: gate.says(key.token) == "401 AUTH_INVALID", within=2)

    play(scenario)


def test_a_key_without_its_label_or_in_deletion_is_revoked_too() -> None:
    first, second = make(), make()

    async def scenario(gate: Gate) -> None:
        name = f"api-key-{first.id}"
        gate.api.edit("secrets", name, lambda obj: obj["metadata"]["labels"].pop(keys.KEY_LABEL))
        name = f"api-key-{second.id}"
        gate.api.edit("secrets", name, lambda obj: obj["metadata"].update(finalizers=["x/y"]))
        gate.api.remove("secrets", name)
        for key in (first, second):
            await eventually(lambda key=key: gate.says(key.token) == "401 AUTH_INVALID", within=2)

    play(scenario, first, second)


def test_before_the_keys_are_known_nobody_is_refused_for_good() -> None:
    key = make()

    async def scenario() -> None:
        gate = Gate()
        gate.put(key)
        gate.api.down = True
        async with gate.client:
            task = asyncio.create_task(gate.ring.run())
            await asyncio.sleep(5)
            assert gate.says(key.token) == "503 DEPENDENCY_UNAVAILABLE"
            assert gate.says("hunter2") == "401 AUTH_INVALID"
            gate.api.down = False
            await eventually(lambda: gate.says(key.token) == "acme", within=60)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    run_virtual(scenario())


def test_a_ring_that_hears_nothing_stops_vouching_for_keys() -> None:
    key = make()

    async def scenario(gate: Gate) -> None:
        gate.api.down = True
        gate.api.break_watches()
        await asyncio.sleep(100)
        assert gate.says(key.token) == "acme"
        await asyncio.sleep(100)
        assert gate.says(key.token) == "503 DEPENDENCY_UNAVAILABLE"
        gate.api.remove("secrets", f"api-key-{key.id}")
        gate.api.down = False
        await eventually(lambda: gate.says(key.token) == "401 AUTH_INVALID", within=60)

    play(scenario, key)


def test_a_quiet_ring_goes_on_vouching() -> None:
    key = make()

    async def scenario(gate: Gate) -> None:
        for _ in range(20):
            await asyncio.sleep(171)
            assert gate.says(key.token) == "acme"

    play(scenario, key)


def test_unreadable_secrets_are_told_once_and_without_their_data(
    caplog: pytest.LogCaptureFixture,
) -> None:
    good, bad = make(), make()
    bad.secret["data"]["sha256"] = encoded("TOPSECRET")

    async def scenario(gate: Gate) -> None:
        assert len(gate.ring) == 1
        for number in range(3):
            value = str(number)
            gate.api.edit(
                "secrets", f"api-key-{bad.id}", lambda obj, v=value: obj["metadata"].update(x=v)
            )
            await asyncio.sleep(1)
        assert gate.says(bad.token) == "401 AUTH_INVALID"
        assert gate.says(good.token) == "acme"

    with caplog.at_level(logging.DEBUG):
        play(scenario, good, bad)
    told = [record for record in caplog.records if "is no API key" in record.getMessage()]
    assert len(told) == 1
    assert bad.id in told[0].getMessage()
    assert "TOPSECRET" not in caplog.text
    assert bad.secret["data"]["sha256"] not in caplog.text


def test_no_token_is_ever_logged(caplog: pytest.LogCaptureFixture) -> None:
    key = make()

    async def scenario(gate: Gate) -> None:
        gate.says(key.token)
        gate.says(f"{key.token}x")
        await asyncio.sleep(10)
        gate.api.remove("secrets", f"api-key-{key.id}")
        await eventually(lambda: gate.says(key.token) != "acme", within=2)

    with caplog.at_level(logging.DEBUG):
        play(scenario, key)
    assert f"API key {key.id} of org acme is revoked" in caplog.text
    assert key.token[17:] not in caplog.text


# ---- last use


def test_the_last_use_is_noted_soon_and_then_once_a_minute() -> None:
    key, idle = make(), make()

    async def scenario(gate: Gate) -> None:
        gate.says(key.token)
        used = format_timestamp(wall_clock().replace(microsecond=0))
        await eventually(lambda: gate.noted(key) is not None, within=10)
        assert gate.noted(key) == used
        for _ in range(600):
            await asyncio.sleep(1)
            gate.says(key.token)
        assert 8 <= gate.patches() <= 11, gate.patches()
        last = format_timestamp(wall_clock().replace(microsecond=0))
        await eventually(lambda: gate.noted(key) == last, within=70, state=lambda: gate.noted(key))
        assert gate.noted(idle) is None
        quiet = gate.patches()
        await asyncio.sleep(1000)
        assert gate.patches() == quiet

    play(scenario, key, idle)


def test_failing_notes_disturb_no_request_and_come_later(caplog: pytest.LogCaptureFixture) -> None:
    bad, good = make(), make()

    async def scenario(gate: Gate) -> None:
        def refused(request: Request) -> ApiError | None:
            if request.verb == "patch" and request.name == f"api-key-{bad.id}":
                return failure(403, "Forbidden", "no")
            return None

        gate.api.refuse.append(refused)
        assert [gate.says(key.token) for key in (bad, good)] == ["acme", "acme"]
        await eventually(lambda: gate.noted(good) is not None, within=130)
        tries = gate.patches()
        await asyncio.sleep(600)
        assert gate.patches() - tries <= 11
        gate.api.refuse.clear()
        await eventually(lambda: gate.noted(bad) is not None, within=70)

    play(scenario, bad, good)
    warned = [r for r in caplog.records if "could not be noted" in r.getMessage()]
    assert {record.levelno for record in warned} == {logging.WARNING}
    assert bad.id in warned[0].getMessage()


def test_a_key_that_is_revoked_before_its_note_is_forgotten() -> None:
    key = make()

    async def scenario(gate: Gate) -> None:
        await asyncio.sleep(1)
        gate.says(key.token)
        gate.api.remove("secrets", f"api-key-{key.id}")
        await asyncio.sleep(100)
        assert gate.patches() <= 1
        assert gate.ring._used == {}

    play(scenario, key)


def test_two_replicas_do_not_both_note_the_same_minute() -> None:
    key = make()

    async def scenario(gate: Gate) -> None:
        second = Gate()
        second.api, second.client = gate.api, FakeClient(gate.api)
        second.ring = KeyRing(
            second.client, namespace="ns", now=lambda: wall_clock().timestamp() + 0.4
        )
        async with second.running():
            for _ in range(600):
                gate.says(key.token)
                second.says(key.token)
                await asyncio.sleep(1)
        assert gate.patches() <= 14, gate.patches()

    play(scenario, key)
