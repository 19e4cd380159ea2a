"""What is read is what was written, on any replica; and what is answered while something that is needed is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from machine_operator.gateway import marks as marks_module
from machine_operator.gateway.machines import Machines
from machine_operator.gateway.problems import Coded
from machine_operator.store.marks import WriteMarks
from tests.support.apiserver import FakeApi
from tests.support.asgi import Answer
from tests.support.client import FakeClient
from tests.support.faults import Answer as Failed
from tests.support.faults import Hold, TimeOut
from tests.support.gateway import ORG, Cluster, Replica, until
from tests.support.virtual import run_virtual

NAME = "dm-0b7c4a52-93a5-4f0e-9d5e-0d7a1c9e4b21"
ONE = f"/v1/machines/{NAME}"
BEHIND = 0.15
"""Seconds by which a watch is behind in these tests; it is waited for, and not until the limit of 2 s."""


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    made = Cluster(tmp_path)
    put(made)
    return made


def put(cluster: Cluster) -> None:
    sizes = {"vcpu": 1, "memory_mib": 512, "storage_gib": 1}
    metadata = {"name": NAME, "namespace": ORG}
    cluster.api.put("machines", {"metadata": metadata, "spec": sizes})


@asynccontextmanager
async def pair(cluster: Cluster) -> AsyncIterator[tuple[Replica, Replica]]:
    async with cluster.gateway(several=True) as one, cluster.gateway(several=True) as other:
        yield one, other


def hold_back(replica: Replica, *, seconds: float = BEHIND) -> None:
    """Its watches bring Machines later."""
    replica.client.faults.stream_rules.append(
        lambda event, _: Hold(seconds) if event["object"].get("kind") == "Machine" else None
    )


def refused(answer: Answer, message: str) -> None:
    """It is a 503 of Format A that can be repeated."""
    body = answer.json()
    assert (answer.status, answer.headers["content-type"]) == (503, "application/json"), body
    assert (body["error_code"], body["message"]) == ("DEPENDENCY_UNAVAILABLE", message)
    assert body["retryable"] is True
    assert "x-should-retry" not in answer.headers


# ---- read your writes


@pytest.mark.parametrize("key", ["k", None])
@pytest.mark.parametrize("elsewhere", [True, False])
async def test_a_read_behind_a_write_sees_it_on_any_replica(
    cluster: Cluster, elsewhere: bool, key: str | None
) -> None:
    async with pair(cluster) as (one, other):
        hold_back(one)
        hold_back(other)
        reader = other if elsewhere else one
        written = await one.call("PATCH", ONE, json={"memory_mib": 1024}, key=key)
        began = time.perf_counter()
        read = await reader.call("GET", ONE)
        took = time.perf_counter() - began
        assert (read.body, read.headers["etag"]) == (written.body, written.headers["etag"])
        assert took < 1.5, "it waits for the watch, and no longer"
        new = await one.create(key, vcpu=2)
        listed = (await reader.call("GET", "/v1/machines")).json()["items"]
        assert new in listed


async def test_a_change_behind_a_write_elsewhere_is_decided_on_what_was_written(
    cluster: Cluster,
) -> None:
    async with pair(cluster) as (one, other):
        hold_back(other)
        tag = (await one.call("POST", f"{ONE}/sleep", key="k")).headers["etag"]
        again = await other.call("POST", f"{ONE}/sleep", key="k2", if_match=tag)
        assert (again.status, again.headers["etag"]) == (202, tag)
        ended = await one.call("DELETE", ONE)
        assert ended.status == 202
        late = await other.call("PATCH", ONE, json={"vcpu": 2})
        assert (late.status, late.json()["error_code"]) == (409, "INVALID_STATE")


async def test_one_replica_alone_waits_for_no_watch(cluster: Cluster) -> None:
    async with cluster.gateway() as replica:
        hold_back(replica, seconds=20.0)
        written = await replica.call("PATCH", ONE, json={"memory_mib": 1024}, key="k")
        assert (await replica.call("GET", ONE)).body == written.body
        new = await replica.create("k")
        assert new in (await replica.call("GET", "/v1/machines")).json()["items"]


async def test_a_read_waits_only_for_what_its_own_organisation_wrote(cluster: Cluster) -> None:
    async with pair(cluster) as (one, other):
        await other.caught_up()
        hold_back(other, seconds=20.0)
        await one.call("POST", "/v1/machines", json={}, org="other", key="k")
        began = time.perf_counter()
        assert (await other.call("GET", ONE)).status == 200
        assert time.perf_counter() - began < 1.0


async def test_a_watch_that_does_not_come_holds_reads_up_for_a_moment_only(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(marks_module, "_LIMIT", 0.1)
    async with pair(cluster) as (one, other):
        hold_back(other, seconds=20.0)
        await one.call("PATCH", ONE, json={"memory_mib": 1024}, key="k")
        stale = await other.call("GET", ONE)
        assert (stale.status, stale.json()["memory_mib"]) == (200, 512)
        assert "did not reach version" in caplog.text
        assert not other.machines._waiting


async def test_a_replica_whose_watch_has_just_broken_waits_for_the_next_one(
    cluster: Cluster,
) -> None:
    async with pair(cluster) as (one, other):
        cluster.api.break_watches()
        await until(lambda: other.machines.informer.behind)
        written = await one.call("PATCH", ONE, json={"memory_mib": 1024}, key="k")
        assert other.machines.informer.behind, "too slow to tell anything"
        assert (await other.call("GET", ONE)).body == written.body


class Slow:
    """Makes looks at the marks slow: the answer is what was so when it was asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks, self.go = 0, asyncio.Event()
        really = WriteMarks.of

        async def of(marks: WriteMarks, org: str) -> int:
            self.looks += 1
            version = await really(marks, org)
            await self.go.wait()
            return version

        monkeypatch.setattr(WriteMarks, "of", of)


async def test_reads_that_come_together_share_a_look_which_begins_behind_the_last_of_them(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(cluster) as (one, other):
        hold_back(other)
        slow = Slow(monkeypatch)
        early = [asyncio.create_task(other.call("GET", ONE)) for _ in range(20)]
        await until(lambda: slow.looks)
        # `one` looks before its change as well.
        changing = asyncio.create_task(one.call("PATCH", ONE, json={"memory_mib": 1024}, key="k"))
        await until(lambda: slow.looks == 2)
        assert one.database is not None
        await WriteMarks(one.database).raise_to(ORG, 1)  # the store is done with what came before
        late = [asyncio.create_task(other.call("GET", ONE)) for _ in range(20)]
        await asyncio.sleep(0)
        slow.go.set()
        written = await changing
        after = await asyncio.gather(*[other.call("GET", ONE) for _ in range(20)])
        assert {answer.body for answer in after} == {written.body}
        assert {answer.status for answer in await asyncio.gather(*early, *late)} == {200}
        assert slow.looks <= 6, "61 reads looked one by one"


async def test_a_look_under_way_is_not_shared_with_a_read_that_comes_behind_a_write(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with pair(cluster) as (one, other):
        hold_back(other)
        assert one.database is not None
        slow = Slow(monkeypatch)
        early = asyncio.create_task(other.call("GET", ONE))
        await until(lambda: slow.looks)
        answer = await one.client.request(
            "PATCH",
            f"/apis/machines.dedaluslabs.ai/v1alpha1/namespaces/{ORG}/machines/{NAME}",
            body={"spec": {"memory_mib": 1024}},
            content_type="application/merge-patch+json",
        )
        await WriteMarks(one.database).raise_to(ORG, int(answer["metadata"]["resourceVersion"]))
        late = asyncio.create_task(other.call("GET", ONE))
        await asyncio.sleep(0)
        slow.go.set()
        assert (await late).json()["memory_mib"] == 1024
        assert (await early).status == 200


# ---- the API server is away


def away(scenario: Callable[[Cluster, Replica], Coroutine[Any, Any, None]]) -> None:
    """A scene in virtual time, without a store."""

    async def run() -> None:
        cluster = Cluster()
        put(cluster)
        async with cluster.gateway() as replica:
            await scenario(cluster, replica)

    run_virtual(run())


def test_reads_go_on_for_a_minute_and_say_how_old_they_are() -> None:
    async def scenario(cluster: Cluster, replica: Replica) -> None:
        fresh = await replica.call("GET", ONE)
        assert "age" not in fresh.headers
        cluster.api.down = True
        cluster.api.break_watches()
        began = asyncio.get_running_loop().time()
        for at in (1.0, 20.0, 40.0, 59.0):
            await asyncio.sleep(began + at - asyncio.get_running_loop().time())
            for target in (ONE, "/v1/machines"):
                answer = await replica.call("GET", target)
                assert answer.status == 200
                assert abs(int(answer.headers["age"]) - at) <= 1.0
        assert (await replica.call("GET", ONE)).body == fresh.body
        await asyncio.sleep(3.0)
        for target in (ONE, "/v1/machines", f"{ONE}/status/stream"):
            refused(await replica.call("GET", target), "runtime unavailable")
        cluster.api.down = False
        await asyncio.sleep(60.0)
        assert "age" not in (await replica.call("GET", ONE)).headers

    away(scenario)


def test_silence_of_a_sound_watch_is_no_age() -> None:
    async def scenario(cluster: Cluster, replica: Replica) -> None:
        for _ in range(10):
            await asyncio.sleep(37.0)
            answer = await replica.call("GET", ONE)
            assert (answer.status, answer.headers.get("age")) == (200, None)

    away(scenario)


WRITES: tuple[tuple[str, str, Any], ...] = (
    ("POST", "/v1/machines", {}),
    ("PATCH", ONE, {"memory_mib": 1024}),
    ("POST", f"{ONE}/sleep", None),
    ("DELETE", ONE, None),
)


def test_changes_are_refused_at_once_and_work_again_as_soon_as_it_is_back() -> None:
    async def scenario(cluster: Cluster, replica: Replica) -> None:
        cluster.api.down = True
        cluster.api.break_watches()
        began = asyncio.get_running_loop().time()
        for method, target, json in WRITES:
            answer = await replica.call(method, target, json=json)
            refused(answer, "runtime unavailable")
            assert int(answer.headers["retry-after-ms"]) > 0
        assert asyncio.get_running_loop().time() - began < 1.0
        cluster.api.down = False
        for method, target, json in WRITES:
            assert (await replica.call(method, target, json=json)).status == 202, method

    away(scenario)


def test_an_api_server_that_does_not_answer_is_not_waited_for_for_long() -> None:
    async def scenario(cluster: Cluster, replica: Replica) -> None:
        replica.client.faults.next(TimeOut(), when=lambda asked: asked.writes)
        began = asyncio.get_running_loop().time()
        answer = await replica.call("PATCH", ONE, json={"memory_mib": 1024})
        refused(answer, "runtime unavailable")
        assert asyncio.get_running_loop().time() - began < 10.0

    away(scenario)


def test_how_long_an_overloaded_api_server_wants_us_to_wait_is_passed_on() -> None:
    async def scenario(cluster: Cluster, replica: Replica) -> None:
        busy = Failed(429, "TooManyRequests", retry_after="7")
        replica.client.faults.next(busy, when=lambda asked: asked.writes)
        answer = await replica.call("PATCH", ONE, json={"memory_mib": 1024})
        refused(answer, "runtime unavailable")
        assert answer.headers["retry-after-ms"] == "7000"

    away(scenario)


async def test_before_the_first_list_nothing_is_told() -> None:
    with pytest.raises(Coded) as caught:
        _ = Machines(FakeClient(FakeApi())).age
    assert caught.value.status == 503


# ---- the store is away


async def test_without_the_store_nothing_with_a_key_is_begun(cluster: Cluster) -> None:
    async with cluster.gateway(several=True) as replica:
        assert replica.database is not None
        replica.database.down = True
        since = len(cluster.api.log)
        for method, target, json in WRITES:
            answer = await replica.call(method, target, json=json, key="k")
            refused(answer, "request store unavailable")
            assert int(answer.headers["retry-after-ms"]) > 0
        assert cluster.patched(since) == []
        replica.database.down = False
        for method, target, json in WRITES:
            assert (await replica.call(method, target, json=json, key="k")).status == 202


async def test_without_the_store_reads_go_on_and_so_do_changes_without_a_key(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster.gateway(several=True) as replica:
        assert replica.database is not None
        replica.database.down = True
        assert (await replica.call("GET", ONE)).status == 200
        assert (await replica.call("GET", "/v1/machines")).status == 200
        made = await replica.create(None)
        assert [NAME, made["machine_id"]] == sorted(cluster.names, key=[NAME, *cluster.names].index)
        assert "a write" in caplog.text


# ---- the limiter is away


async def test_without_the_limiter_nothing_is_done(cluster: Cluster) -> None:
    async with cluster.gateway(redis="redis://127.0.0.1:1") as replica:
        since = len(cluster.api.log)
        for method, target, scope in (
            ("GET", ONE, "read_lifecycle_routes"),
            ("DELETE", ONE, "mutating_lifecycle_routes"),
            ("POST", f"{ONE}/sleep", "sleep_lifecycle_routes"),
        ):
            answer = await replica.call(method, target)
            refused(answer, "mutation rate limiter unavailable")
            assert answer.json()["details"] == {
                "rate_limit_backend": "redis",
                "rate_limit_scope": scope,
            }
        assert cluster.patched(since) == []
        assert (await replica.call("GET", ONE, org=None)).status == 401
