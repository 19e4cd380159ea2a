"""Changes of machines over REST: what is accepted, what is refused and why, and in which order that is looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from machine_operator.gateway.keys import KEYS_NAMESPACE, new_key
from machine_operator.kube.errors import ApiError
from tests.support.apiserver import Request, failure
from tests.support.asgi import Answer
from tests.support.faults import Answer as Answered
from tests.support.gateway import ORG, Cluster, Replica, until

NOBODY = "dm-00000000-0000-4000-8000-000000000000"


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
async def replica(cluster: Cluster) -> AsyncIterator[Replica]:
    async with cluster.gateway() as replica:
        yield replica


class Box:
    """One machine, made over REST, and running."""

    def __init__(self, cluster: Cluster, replica: Replica, machine_id: str) -> None:
        self.cluster, self.replica, self.id = cluster, replica, machine_id

    async def report(self, phase: str, **status: Any) -> None:
        self.cluster.report(self.id, phase, **status)
        await self.replica.caught_up()

    async def ask(self, method: str, action: str = "", **options: Any) -> Answer:
        return await self.replica.call(method, f"/v1/machines/{self.id}{action}", **options)

    async def patch(self, **options: Any) -> Answer:
        changes = options.pop("changes", {"memory_mib": 4096})
        return await self.ask("PATCH", json=changes, **options)

    async def revision(self) -> int:
        return int((await self.replica.get(self.id))["status"]["revision"])

    def kept(self) -> Any:
        return self.cluster.machine(self.id)


@pytest.fixture
async def box(cluster: Cluster, replica: Replica) -> Box:
    made = Box(cluster, replica, (await replica.create())["machine_id"])
    await made.report("running")
    return made


def code(answer: Answer) -> tuple[int, str]:
    return answer.status, answer.json()["error_code"]


# ---- sizes


async def test_a_change_is_echoed_at_once_and_is_done_when_the_controller_has_seen_it(
    box: Box,
) -> None:
    assert await box.revision() == 2
    answer = await box.patch(changes={"vcpu": 2.5, "storage_gib": 20, "autosleep": "never"})
    body = answer.json()
    assert (answer.status, answer.headers["etag"], body["status"]["revision"]) == (202, '"3"', "3")
    assert (body["vcpu"], body["storage_gib"], body["autosleep_seconds"]) == (2.5, 20, 0)
    assert body["memory_mib"] == 2048
    assert await box.replica.get(box.id) == body
    await box.report("running")
    done = await box.patch(changes={"vcpu": 2.5})
    assert (done.status, done.headers["etag"]) == (200, '"3"')


@pytest.mark.parametrize("changes", [{}, {"vcpu": 1}, {"memory_mib": 2048, "storage_gib": 10}])
async def test_what_is_so_already_is_not_written(box: Box, changes: dict[str, Any]) -> None:
    since, version = len(box.cluster.api.log), box.kept()["metadata"]["resourceVersion"]
    answer = await box.patch(changes=changes, key="k")
    assert (answer.status, answer.headers["etag"]) == (200, '"2"')
    assert box.cluster.patched(since) == []
    assert box.kept()["metadata"]["resourceVersion"] == version


async def test_a_disk_that_shall_shrink_is_refused_by_the_field(box: Box) -> None:
    def rule(asked: Request) -> ApiError | None:
        if asked.verb != "patch" or asked.plural != "machines":
            return None
        text = 'Invalid value: "integer": storage_gib can grow but never shrink'
        cause = {"reason": "FieldValueInvalid", "message": text, "field": "spec.storage_gib"}
        return failure(422, "Invalid", f"Machine is invalid: {text}", causes=[cause])

    box.cluster.api.refuse.append(rule)
    answer = await box.patch(changes={"storage_gib": 5})
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    fault = {"location": "body.storage_gib", "message": "storage_gib can grow but never shrink"}
    assert answer.json()["errors"] == [fault]
    assert (await box.replica.get(box.id))["storage_gib"] == 10


# ---- If-Match


@pytest.mark.parametrize(
    "if_match", ["2", '"2"', 'W/"2"', "*", '"9", "2"', "9,2", "", ' "2" ', '"9", *']
)
async def test_every_spelling_of_the_revision_that_was_seen_is_accepted(
    box: Box, if_match: str
) -> None:
    assert (await box.patch(if_match=if_match)).status == 202


@pytest.mark.parametrize(
    ("if_match", "told"), [("1", "1"), ('"42"', "42"), ("abc", "abc"), ('"1", "7"', "1")]
)
async def test_another_revision_is_a_conflict_that_tells_both(
    box: Box, if_match: str, told: str
) -> None:
    since = len(box.cluster.api.log)
    answer = await box.patch(if_match=if_match, key="k")
    assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
    assert answer.json() == {
        "error_code": "REVISION_MISMATCH",
        "message": "revision mismatch",
        "retryable": True,
        "details": {"expected_revision": "2", "provided_revision": told},
    }
    assert box.cluster.patched(since) == []
    assert (await box.patch(if_match="2", key="k")).status == 202, "the key was not used up"


async def test_a_repetition_with_an_if_match_that_has_become_stale_gets_the_first_answer(
    box: Box,
) -> None:
    first = await box.patch(if_match="2", key="k")
    again = await box.patch(if_match="2", key="k")
    assert (again.status, again.body) == (first.status, first.body)
    assert again.headers["etag"] == first.headers["etag"] == '"3"'
    assert code(await box.patch(if_match="2", key="new")) == (409, "REVISION_MISMATCH")


async def test_changes_at_once_on_two_replicas_are_done_one_after_the_other(
    cluster: Cluster, box: Box
) -> None:
    async with cluster.gateway() as other:
        replicas = [box.replica, other] * 4
        answers = await asyncio.gather(
            *(
                replica.call("PATCH", f"/v1/machines/{box.id}", json={"memory_mib": 1024 + n})
                for n, replica in enumerate(replicas)
            )
        )
    assert [answer.status for answer in answers] == [202] * 8
    last = max(answers, key=lambda answer: int(answer.json()["status"]["revision"]))
    revisions = sorted(int(answer.json()["status"]["revision"]) for answer in answers)
    assert revisions == list(range(3, 11))
    assert box.kept()["spec"]["memory_mib"] == last.json()["memory_mib"]


async def test_of_many_with_the_same_if_match_one_wins(cluster: Cluster, box: Box) -> None:
    async with cluster.gateway() as other:
        replicas = [box.replica, other] * 4
        answers = await asyncio.gather(
            *(
                replica.call(
                    "PATCH", f"/v1/machines/{box.id}", json={"memory_mib": 1024 + n}, if_match="2"
                )
                for n, replica in enumerate(replicas)
            )
        )
    assert sorted(answer.status for answer in answers) == [202] + [409] * 7
    assert {code(answer)[1] for answer in answers if answer.status == 409} == {"REVISION_MISMATCH"}


def once(act: Callable[[], None]) -> Callable[[Request], None]:
    """Something that happens just before a gateway's first write of a machine arrives."""
    left = [act]

    def rule(asked: Request) -> None:
        if left and asked.plural == "machines" and asked.writes:
            left.pop()()

    return rule


async def test_a_race_that_was_lost_is_decided_again_on_what_is_there_now(box: Box) -> None:
    box.cluster.api.refuse.append(once(lambda: box.cluster.report(box.id, "failed", reason="Oops")))
    assert code(await box.ask("POST", "/sleep")) == (409, "INVALID_STATE")
    await box.report("running")
    box.cluster.api.refuse.append(once(lambda: box.cluster.report(box.id, "stopping")))
    assert code(await box.patch(if_match="4")) == (409, "REVISION_MISMATCH")
    assert (await box.replica.get(box.id))["phase"] == "stopping", "what was read is kept"
    box.cluster.api.refuse.append(once(lambda: box.cluster.report(box.id, "sleeping")))
    assert (await box.patch()).json()["memory_mib"] == 4096


async def test_where_if_match_is_demanded_none_is_a_fault(cluster: Cluster) -> None:
    async with cluster.gateway(strict_if_match=True) as replica:
        box = Box(cluster, replica, (await replica.create())["machine_id"])
        for method, action in (("DELETE", ""), ("POST", "/sleep"), ("POST", "/wake")):
            answer = await box.ask(method, action)
            assert answer.status == 422
            assert answer.json()["errors"][0]["location"] == "header.If-Match"
        assert (await box.patch()).status == 422
        assert (await box.patch(if_match="1")).status == 202


# ---- sleep and wake


async def test_sleep_moves_the_revision_once_and_each_phase_once_more(box: Box) -> None:
    answer = await box.ask("POST", "/sleep")
    body = answer.json()
    assert (answer.status, answer.headers["etag"]) == (202, '"3"')
    assert (body["desired_state"], body["phase"]) == ("sleeping", "running")
    assert body["status"]["reason"] == "Accepted", "running is not what was asked for any more"
    request = box.kept()["status"]["power_request"]
    assert (request["state"], request["sequence"]) == ("sleeping", 1)
    assert request["spec_desired_state"] == "running"
    assert request["by"].startswith("api-key:")
    assert "desired_state" not in box.kept()["spec"], "the spec is its owner's"
    assert (await box.ask("POST", "/sleep")).headers["etag"] == '"3"'
    await box.report("stopping")
    again = await box.ask("POST", "/sleep")
    assert (again.status, again.headers["etag"]) == (202, '"4"')
    await box.report("sleeping")
    done = await box.ask("POST", "/sleep")
    assert (done.status, done.headers["etag"]) == (200, '"5"')
    assert done.json()["status"]["reason"] == "DesiredStateReached"


async def test_wake_is_accepted_on_the_way_to_sleep_and_is_nothing_while_running(box: Box) -> None:
    awake = await box.ask("POST", "/wake")
    assert (awake.status, awake.headers["etag"]) == (200, '"2"')
    await box.ask("POST", "/sleep")
    await box.report("stopping")
    answer = await box.ask("POST", "/wake")
    assert (answer.status, answer.headers["etag"]) == (202, '"5"')
    assert (answer.json()["desired_state"], answer.json()["phase"]) == ("running", "stopping")
    assert box.kept()["status"]["power_request"]["sequence"] == 2


async def test_sleep_is_accepted_before_the_machine_runs(
    cluster: Cluster, replica: Replica
) -> None:
    box = Box(cluster, replica, (await replica.create())["machine_id"])
    answer = await box.ask("POST", "/sleep")
    assert (answer.status, answer.json()["desired_state"]) == (202, "sleeping")


@pytest.mark.parametrize(
    ("action", "desired", "expected", "target"),
    [("/sleep", "running", "running", "sleeping"), ("/wake", "sleeping", "sleeping", "running")],
)
async def test_a_machine_that_failed_is_not_switched(
    box: Box, action: str, desired: str, expected: str, target: str
) -> None:
    box.cluster.api.edit("machines", box.id, lambda m: m["spec"].update(desired_state=desired))
    await box.report("failed", reason="StorageLost")
    answer = await box.ask("POST", action)
    assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
    assert answer.json() == {
        "error_code": "INVALID_STATE",
        "message": "requested lifecycle transition is invalid for current machine state",
        "retryable": False,
        "details": {
            "current_desired_state": desired,
            "current_observed_state": "error",
            "expected_observed_state": expected,
            "target_desired_state": target,
        },
    }


async def test_a_reboot_is_kubevirts_and_answers_with_the_machine_on_its_way(box: Box) -> None:
    assert code(await box.ask("POST", "/reboot")) == (409, "INVALID_STATE"), "it has no VM"
    await box.report("running", vm={"name": "m-1"})
    asked: list[Request] = []

    def restarts(request: Request) -> bool:
        asked.extend([request] * (request.subresource == "restart"))
        return request.subresource == "restart"

    box.replica.client.faults.next(Answered(200), when=restarts)
    answer = asyncio.create_task(box.ask("POST", "/reboot?force=true"))
    await until(lambda: asked)
    box.cluster.report(box.id, "starting")
    assert (await answer).status == 202
    assert (await answer).json()["phase"] == "starting"
    assert (asked[0].name, asked[0].body) == ("m-1", {"gracePeriodSeconds": 0})
    assert code(await box.ask("POST", "/reboot")) == (409, "INVALID_STATE")


# ---- the end


async def test_a_machine_is_destroyed_readable_for_a_while_and_then_forgotten(box: Box) -> None:
    first = await box.ask("DELETE", key="k")
    assert (first.status, first.headers["etag"]) == (202, '"3"')
    assert first.json()["desired_state"] == "destroyed"
    await box.report("destroying")
    since = len(box.cluster.api.log)
    assert (await box.ask("DELETE")).status == 202
    assert box.cluster.patched(since) == []
    await box.report("destroyed")
    done = await box.ask("DELETE")
    assert (done.status, done.headers["etag"], done.json()["phase"]) == (200, '"5"', "destroyed")
    assert (await box.ask("DELETE", key="k")).body == first.body
    assert (await box.replica.call("GET", "/v1/machines")).json() == {"items": []}
    keep = timedelta(seconds=box.replica.gateway.settings.keep_destroyed)
    await box.replica.upkeep.round(datetime.now(UTC) + keep - timedelta(seconds=5))
    assert (await box.replica.get(box.id))["phase"] == "destroyed"
    await box.replica.upkeep.round(datetime.now(UTC) + keep + timedelta(seconds=2))
    await box.replica.caught_up()
    assert box.cluster.names == []
    assert (await box.ask("GET")).status == (await box.ask("DELETE")).status == 404


async def test_only_machines_that_were_made_over_rest_are_forgotten(
    cluster: Cluster, replica: Replica
) -> None:
    spec = {"vcpu": 1, "memory_mib": 512, "storage_gib": 1, "desired_state": "destroyed"}
    cluster.api.put("machines", {"metadata": {"name": "mine", "namespace": ORG}, "spec": spec})
    cluster.report("mine", "destroyed")
    await replica.caught_up()
    await replica.upkeep.round(datetime.now(UTC) + timedelta(days=30))
    assert cluster.names == ["mine"]


@pytest.mark.parametrize("phase", ["running", "destroying", "destroyed"])
async def test_nothing_is_changed_about_a_destroyed_machine(box: Box, phase: str) -> None:
    await box.ask("DELETE")
    await box.report(phase)
    observed = "running" if phase == "running" else "destroyed"
    for method, action, target in (
        ("PATCH", "", "running"),
        ("POST", "/wake", "running"),
        ("POST", "/sleep", "sleeping"),
    ):
        answer = await box.ask(method, action, json={"vcpu": 2} if method == "PATCH" else None)
        assert (answer.status, answer.headers["x-should-retry"]) == (409, "false")
        assert answer.json()["details"] == {
            "current_desired_state": "destroyed",
            "current_observed_state": observed,
            "expected_observed_state": "sleeping" if target == "running" and action else "running",
            "target_desired_state": target,
        }


# ---- in which order things are looked at


async def test_who_asks_comes_first_then_the_body_the_machine_the_key_and_the_revision(
    cluster: Cluster, box: Box
) -> None:
    def missing(**options: Any) -> Any:
        return box.replica.call("PATCH", f"/v1/machines/{NOBODY}", **options)

    assert code(await missing(org=None, json={"x": 1})) == (401, "AUTH_REQUIRED")
    foreign = {"X-Dedalus-Org-Id": "somebody"}
    assert code(await missing(headers=foreign, json={"x": 1})) == (403, "AUTH_ORG_MISMATCH")
    key = new_key(ORG, scopes=["machines:read"], now=datetime.now(UTC))
    metadata = key.secret["metadata"] | {"namespace": KEYS_NAMESPACE}
    cluster.api.put("secrets", {**key.secret, "metadata": metadata})
    reader = {"authorization": f"Bearer {key.token}"}
    await until(lambda: len(box.replica.gateway.authenticator) == 3)  # type: ignore[arg-type]
    assert code(await missing(headers=reader, json={"x": 1})) == (403, "AUTH_SCOPE_FORBIDDEN")
    assert (await box.ask("GET", headers=reader)).status == 200
    assert (await missing(json={"x": 1}, key="k")).status == 422
    first = await box.patch(key="k")
    assert (await missing(json={"memory_mib": 4096}, key="k")).status == 404
    assert (await box.patch(key="k", if_match="1")).body == first.body
    reused = await box.patch(key="k", if_match="1", changes={"vcpu": 2})
    assert code(reused) == (409, "IDEMPOTENCY_KEY_REUSED")
    await box.ask("DELETE")
    assert code(await box.patch(if_match="1")) == (409, "REVISION_MISMATCH")
    assert code(await box.patch()) == (409, "INVALID_STATE")
    assert (await box.patch(key="k")).body == first.body
