"""Machines over REST: making them, at most once for each key, whatever goes wrong in between."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from machine_operator.gateway.orgs import ORG_LABEL
from machine_operator.kube.errors import ApiError
from tests.support.apiserver import Request, failure
from tests.support.asgi import Answer
from tests.support.faults import Answer as Failed
from tests.support.faults import Delay, Die
from tests.support.gateway import ORG, Cluster, Replica, until

SIZES = {"vcpu": 1, "memory_mib": 2048, "storage_gib": 10}
LEASE = 11.0
"""Seconds after which the record of a gateway that died is free."""
UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
async def replica(cluster: Cluster) -> AsyncIterator[Replica]:
    async with cluster.gateway() as replica:
        yield replica


def creates(asked: Request) -> bool:
    return (asked.verb, asked.plural) == ("create", "machines")


async def post(replica: Replica, key: str | None = "k", **changed: Any) -> Answer:
    return await replica.call("POST", "/v1/machines", json=SIZES | changed, key=key)


def same(one: Answer, other: Answer) -> bool:
    return (one.status, one.body, one.headers["etag"]) == (
        other.status,
        other.body,
        other.headers["etag"],
    )


# ---- a new machine


async def test_a_new_machine_is_answered_with_everything_that_any_client_reads(
    cluster: Cluster, replica: Replica
) -> None:
    answer = await post(replica, autosleep="2h", vcpu=0.75)
    body = answer.json()
    assert (answer.status, answer.headers["etag"]) == (202, '"1"')
    made = cluster.machine(cluster.names[0])
    created = made["metadata"]["creationTimestamp"]
    assert body == {
        "machine_id": made["metadata"]["name"],
        "vcpu": 0.75,
        "memory_mib": 2048,
        "storage_gib": 10,
        "autosleep_seconds": 7200,
        "desired_state": "running",
        "phase": "accepted",
        "status": {
            "phase": "accepted",
            "reason": "Accepted",
            "retryable": True,
            "revision": "1",
            "last_transition_at": created,
            "last_progress_at": created,
            "memory_configured_mib": 2048,
        },
        "created_at": created,
    }
    assert re.fullmatch("dm-" + UUID, body["machine_id"])
    assert made["spec"] == SIZES | {"vcpu": 0.75, "autosleep": "2h"}
    assert made["metadata"]["namespace"] == ORG
    assert await replica.get(body["machine_id"]) == body


async def test_the_first_machine_makes_the_namespace_of_its_organisation(
    cluster: Cluster, replica: Replica
) -> None:
    assert (await replica.call("POST", "/v1/machines", json={}, org="other")).status == 202
    assert cluster.api.find("namespaces", "other")["metadata"]["labels"][ORG_LABEL] == "other"


async def test_without_a_key_each_request_makes_a_machine(
    cluster: Cluster, replica: Replica
) -> None:
    answers = [await replica.call("POST", "/v1/machines", json={}) for _ in range(2)]
    assert [answer.status for answer in answers] == [202, 202]
    assert len({answer.json()["machine_id"] for answer in answers}) == len(cluster.names) == 2
    sizes = {name: answers[0].json()[name] for name in SIZES}
    assert sizes == {"vcpu": 1.0, "memory_mib": 2048, "storage_gib": 10}, "the defaults"


async def test_what_the_installation_cannot_carry_is_refused_and_makes_nothing(
    cluster: Cluster, replica: Replica
) -> None:
    answer = await post(replica, memory_mib=130_000)
    assert answer.status == 400
    assert answer.json()["errors"][0]["location"] == "body.memory_mib"
    assert "memory_mib exceeds capacity" in answer.json()["detail"]
    assert cluster.names == []
    assert (await post(replica)).status == 202, "a refusal does not use up the key"


async def test_a_full_quota_is_told_and_the_same_key_works_once_there_is_room(
    cluster: Cluster, replica: Replica
) -> None:
    def full(asked: Request) -> ApiError | None:
        figures = (
            "requested: count/machines.x=1, used: count/machines.x=5, limited: count/machines.x=5"
        )
        text = f'machines "m" is forbidden: exceeded quota: q, {figures}'
        return failure(403, "Forbidden", text) if creates(asked) else None

    cluster.api.refuse.append(full)
    answer = await post(replica)
    assert (answer.status, answer.json()["error_code"]) == (403, "QUOTA_EXCEEDED")
    cluster.api.refuse.clear()
    assert (await post(replica)).status == 202


# ---- once for each key


async def test_a_repetition_gets_the_first_answer_also_after_a_restart(cluster: Cluster) -> None:
    async with cluster.gateway() as replica:
        first = await post(replica)
        assert "idempotency-replayed" not in first.headers
        cluster.report(cluster.names[0], "running")
        await replica.caught_up()
        again = await post(replica)
    async with cluster.gateway() as replica:
        after = await post(replica)
        assert (await replica.get(first.json()["machine_id"]))["phase"] == "running"
    assert first.status == 202
    assert same(first, again)
    assert same(first, after)
    assert after.headers["idempotency-replayed"] == "true"
    assert len(cluster.names) == 1


async def test_the_same_request_in_other_words_is_the_same(
    cluster: Cluster, replica: Replica
) -> None:
    first = await post(replica, autosleep="300s")
    again = await replica.call(
        "POST",
        "/v1/machines",
        json={"storage_gib": 10, "memory_mib": 2048.0, "vcpu": 1.0, "autosleep": "300s"},
        key="k",
    )
    assert same(first, again)


async def test_a_key_of_another_request_is_a_conflict_with_both_hashes(
    cluster: Cluster, replica: Replica
) -> None:
    await post(replica)
    details = []
    for vcpu in (2, 3, 2):
        answer = await post(replica, vcpu=vcpu)
        assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
        assert answer.json()["error_code"] == "IDEMPOTENCY_KEY_REUSED"
        details.append(answer.json()["details"])
    assert all(re.fullmatch("[0-9a-f]{8}", value) for found in details for value in found.values())
    assert details[0] == details[2] != details[1]
    assert details[0]["expected_request_hash"] == details[1]["expected_request_hash"]
    assert len(cluster.names) == 1


async def test_a_key_belongs_to_one_organisation_and_one_operation(
    cluster: Cluster, replica: Replica
) -> None:
    first = (await post(replica)).json()["machine_id"]
    foreign = await replica.call("POST", "/v1/machines", json=SIZES, key="k", org="other")
    assert foreign.status == 202
    assert foreign.json()["machine_id"] != first
    slept = await replica.call("POST", f"/v1/machines/{first}/sleep", key="k")
    woken = await replica.call("POST", f"/v1/machines/{first}/wake", key="k")
    ended = await replica.call("DELETE", f"/v1/machines/{first}", key="k")
    states = [answer.json()["desired_state"] for answer in (slept, woken, ended)]
    assert states == ["sleeping", "running", "destroyed"]


async def test_while_the_first_request_is_at_work_the_others_are_told_to_wait(
    cluster: Cluster, replica: Replica
) -> None:
    asked: list[Request] = []

    def at_work(request: Request) -> bool:
        asked.extend([request] * creates(request))
        return creates(request)

    replica.client.faults.next(Delay(0.15), when=at_work)
    first = asyncio.create_task(post(replica))
    await until(lambda: asked)
    waiting, other = await post(replica), await post(replica, vcpu=2)
    assert not first.done(), "too slow to tell anything"
    assert (waiting.status, waiting.headers["retry-after-ms"]) == (429, "250")
    assert waiting.json() == {
        "error_code": "RATE_LIMITED",
        "message": "idempotency key is already in-flight",
        "retryable": True,
        "retry_after_ms": 250,
    }
    assert (other.status, other.json()["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert same(await first, await post(replica))


async def test_fifty_at_once_on_two_replicas_make_one_machine(cluster: Cluster) -> None:
    async with cluster.gateway() as one, cluster.gateway() as other:

        async def patient(replica: Replica) -> Answer:
            # 503 as well: two writers of one SQLite file can keep each other waiting for too long on a busy computer.
            async with asyncio.timeout(30.0):
                while True:
                    answer = await post(replica)
                    if answer.status not in (429, 503):
                        return answer
                    await asyncio.sleep(0.05)

        answers = await asyncio.gather(*map(patient, [one, other] * 25))
    assert {answer.status for answer in answers} == {202}
    assert all(same(answers[0], answer) for answer in answers)
    assert len(cluster.names) == 1


# ---- what goes wrong in between


async def test_an_answer_that_was_lost_does_not_make_a_second_machine(
    cluster: Cluster, replica: Replica
) -> None:
    replica.client.faults.next(Failed(504, "Timeout", after=True), when=creates)
    lost = await post(replica)
    assert (lost.status, lost.json()["retryable"]) == (503, True)
    assert len(cluster.names) == 1
    answer = await post(replica)
    assert (answer.status, answer.json()["machine_id"]) == (202, cluster.names[0])
    assert len(cluster.names) == 1


async def test_a_machine_of_a_lost_answer_is_not_given_to_another_request(
    cluster: Cluster, replica: Replica
) -> None:
    replica.client.faults.next(Failed(504, "Timeout", after=True), when=creates)
    await post(replica)
    answer = await post(replica, vcpu=2)
    assert (answer.status, answer.json()["error_code"]) == (409, "IDEMPOTENCY_KEY_REUSED")
    hashes = answer.json()["details"]
    assert hashes["expected_request_hash"] != hashes["provided_request_hash"]


@pytest.mark.parametrize("written", [True, False])
async def test_a_gateway_that_dies_at_the_write_leaves_it_to_the_next_one(
    cluster: Cluster, written: bool
) -> None:
    async with cluster.gateway() as first:
        first.client.faults.next(Die(after=written), when=creates)
        lost = asyncio.create_task(post(first))
        await until(first.client.dead.is_set)
        first.kill()
        assert len(cluster.names) == written
        async with cluster.gateway() as second:
            early = await post(second)
            assert (early.status, early.headers["retry-after-ms"]) == (429, "250")
            cluster.later_by(LEASE)
            late = await post(second)
            again = await post(second)
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
    assert (late.status, late.json()["machine_id"]) == (202, cluster.names[0])
    assert same(late, again)
    assert len(cluster.names) == 1


async def test_a_request_that_is_given_up_can_be_repeated_at_once(
    cluster: Cluster, replica: Replica
) -> None:
    asked: list[Request] = []

    def at_work(request: Request) -> bool:
        asked.extend([request] * creates(request))
        return creates(request)

    replica.client.faults.next(Delay(5.0), when=at_work)
    given_up = asyncio.create_task(post(replica))
    await until(lambda: asked)
    given_up.cancel()
    with pytest.raises(asyncio.CancelledError):
        await given_up
    assert (await post(replica)).status == 202
    assert len(cluster.names) == 1


async def test_a_store_that_goes_away_behind_the_write_costs_a_wait_and_no_second_machine(
    cluster: Cluster, replica: Replica
) -> None:
    assert replica.database is not None
    replica.database.fail_at = 1
    lost = await post(replica)
    assert (lost.status, lost.json()["error_code"]) == (503, "DEPENDENCY_UNAVAILABLE")
    assert len(cluster.names) == 1
    replica.database.fail_at, replica.database.down = None, False
    assert (await post(replica)).status == 429
    cluster.later_by(LEASE)
    answer = await post(replica)
    assert (answer.status, answer.json()["machine_id"]) == (202, cluster.names[0])


# ---- keys that are none


@pytest.mark.parametrize("key", ["a b", "x" * 256, "k\xe9y", "tab\t"])
async def test_what_is_no_key_is_said_to_be_none(
    cluster: Cluster, replica: Replica, key: str
) -> None:
    answer = await post(replica, key=key)
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["location"] == "header.Idempotency-Key"
    assert cluster.names == []


async def test_keys_of_all_clients_are_keys(replica: Replica) -> None:
    for key in ("stainless-python-retry-7e4a1c5e-1d9b-4f0e-8a51-4c9f5a2b7d10", "0" * 32, "~" * 255):
        answer = await post(replica, key=key)
        assert answer.status == 202, key
        assert same(answer, await post(replica, key=key))


async def test_where_keys_are_demanded_none_is_a_fault(cluster: Cluster) -> None:
    async with cluster.gateway(strict_idempotency=True) as replica:
        for key in (None, ""):
            answer = await post(replica, key=key)
            assert answer.status == 422
            assert answer.json()["errors"][0]["location"] == "header.Idempotency-Key"
        assert (await post(replica)).status == 202
    assert len(cluster.names) == 1
