"""Reads of machines over REST: ids in both spellings, who sees what, and pages while machines come and go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.gateway.machine_ids import bare_id
from tests.support.gateway import ORG, Cluster, Replica
from tests.support.virtual import run_virtual

SPEC = {"vcpu": 1, "memory_mib": 512, "storage_gib": 1}


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@pytest.fixture
async def replica(cluster: Cluster) -> AsyncIterator[Replica]:
    async with cluster.gateway() as replica:
        yield replica


def numbered(number: int) -> str:
    return f"dm-{UUID(int=number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128)}"


def put(cluster: Cluster, name: str, **metadata: Any) -> None:
    made = {"metadata": {"name": name, "namespace": ORG, **metadata}, "spec": SPEC}
    cluster.api.put("machines", made)


# ---- one machine


async def test_an_id_is_understood_in_both_spellings_and_told_in_the_callers(
    cluster: Cluster, replica: Replica
) -> None:
    long = (await replica.create())["machine_id"]
    short = long.removeprefix("dm-")
    assert (await replica.get(long))["machine_id"] == long
    assert (await replica.get(short))["machine_id"] == short
    patched = await replica.call("PATCH", f"/v1/machines/{short}", json={"vcpu": 2}, key="k")
    assert (patched.status, patched.json()["machine_id"]) == (202, short)
    listed = (await replica.call("GET", "/v1/machines")).json()["items"]
    assert [item["machine_id"] for item in listed] == [long]
    assert await replica.get(short) == {**listed[0], "machine_id": short}
    async with replica.stream(f"/v1/machines/{short}/status/stream") as stream:
        event = await stream.event()
        assert event is not None
        assert event.data["machine_id"] == short


async def test_a_repetition_in_the_other_spelling_is_the_same_request(
    cluster: Cluster, replica: Replica
) -> None:
    long = (await replica.create())["machine_id"]
    first = await replica.call("POST", f"/v1/machines/{long}/sleep", key="k")
    again = await replica.call("POST", f"/v1/machines/{bare_id(long)}/sleep", key="k")
    assert (again.status, again.body) == (first.status, first.body)
    assert cluster.machine(long)["status"]["power_request"]["sequence"] == 1


async def test_a_machine_that_was_made_with_kubectl_is_known_by_its_uid(
    cluster: Cluster, replica: Replica
) -> None:
    put(cluster, "mine")
    await replica.caught_up()
    uid = cluster.machine("mine")["metadata"]["uid"]
    assert (await replica.get(f"dm-{uid}"))["machine_id"] == f"dm-{uid}"
    assert (await replica.call("POST", f"/v1/machines/{uid}/sleep")).status == 202
    assert cluster.machine("mine")["status"]["power_request"]["state"] == "sleeping"
    assert (await replica.call("GET", "/v1/machines/mine")).status == 404


async def test_the_machine_of_another_organisation_is_not_there(replica: Replica) -> None:
    made = (await replica.create())["machine_id"]
    nobodys = numbered(7)
    for method, action in (
        ("GET", ""),
        ("GET", "/status/stream"),
        ("PATCH", ""),
        ("DELETE", ""),
        ("POST", "/sleep"),
        ("POST", "/wake"),
        ("POST", "/reboot"),
    ):
        told = []
        for machine in (made, nobodys):
            json: Any = {} if method == "PATCH" else None
            target = f"/v1/machines/{machine}{action}"
            answer = await replica.call(method, target, json=json, org="other")
            assert (answer.status, answer.headers["content-type"]) == (
                404,
                "application/problem+json",
            )
            told.append(answer.body.replace(machine.encode(), b"ID"))
        assert told[0] == told[1]
    assert (await replica.call("GET", "/v1/machines", org="other")).json() == {"items": []}
    assert (await replica.get(made))["desired_state"] == "running"


@pytest.mark.parametrize(
    "odd",
    [
        "a%2Fb%20c",
        "dm-",
        "x",
        "dm-dm-{}",
        "{}%2Fsleep",
        "%2e%2e",
        "{}%00",
        "é".encode().hex(),
        "9" * 300,
    ],
)
async def test_what_is_no_id_is_nobodys_machine(replica: Replica, odd: str) -> None:
    made = bare_id((await replica.create())["machine_id"])
    target = odd.replace("{}", str(made))
    for method in ("GET", "DELETE"):
        answer = await replica.call(method, f"/v1/machines/{target}")
        expected = 400 if "%00" in odd else 404
        assert (answer.status, answer.headers["content-type"]) == (
            expected,
            "application/problem+json",
        )
    slept = await replica.call("POST", f"/v1/machines/{target}")
    assert slept.status in (400, 404, 405)
    assert (await replica.get(str(made)))["desired_state"] == "running"


async def test_who_has_the_newest_state_is_not_sent_it_again(replica: Replica) -> None:
    made = await replica.create()
    target = f"/v1/machines/{made['machine_id']}"
    for tag, status in (('"1"', 304), ('"7", W/"1"', 304), ('"2"', 200)):
        answer = await replica.call("GET", target, headers={"If-None-Match": tag})
        assert (answer.status, answer.headers["etag"]) == (status, '"1"')


# ---- lists


async def test_a_list_leaves_out_what_is_destroyed_and_no_page_is_empty(
    cluster: Cluster, replica: Replica
) -> None:
    for number in range(4):
        put(cluster, numbered(number))
    await replica.caught_up()
    order = [
        item["machine_id"] for item in (await replica.call("GET", "/v1/machines")).json()["items"]
    ]
    for ended in (order[0], order[2], order[3]):
        cluster.report(ended, "destroyed")
    await replica.caught_up()
    page = (await replica.call("GET", "/v1/machines?limit=1")).json()
    assert [item["machine_id"] for item in page["items"]] == [order[1]]
    assert "next_cursor" not in page


@pytest.mark.parametrize(
    ("query", "number", "more"),
    [
        ("", 50, True),
        ("?limit=0", 50, True),
        ("?limit=", 50, True),
        ("?limit=3", 3, True),
        ("?limit=60", 60, False),
        ("?limit=999999999999", 60, False),
        ("?cursor=", 50, True),
    ],
)
async def test_limits(
    cluster: Cluster, replica: Replica, query: str, number: int, more: bool
) -> None:
    for each in range(60):
        put(cluster, numbered(each))
    await replica.caught_up()
    answer = (await replica.call("GET", f"/v1/machines{query}")).json()
    assert len(answer["items"]) == number
    assert ("next_cursor" in answer) == more


@pytest.mark.parametrize(
    ("query", "location"),
    [
        ("limit=-1", "query.limit"),
        ("limit=ten", "query.limit"),
        ("limit=1.5", "query.limit"),
        ("limit=%D9%A1", "query.limit"),
        ("limit=" + "9" * 5000, "query.limit"),
        ("cursor=cursor", "query.cursor"),
        ("cursor=" + "A" * 100_000, "query.cursor"),
        ("cursor=%00", "query.cursor"),
    ],
)
async def test_what_is_no_limit_or_cursor_is_refused_by_name(
    replica: Replica, query: str, location: str
) -> None:
    answer = await replica.call("GET", f"/v1/machines?{query}")
    assert (answer.status, answer.headers["content-type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["location"] == location
    assert len(answer.body) < 2000


Step = tuple[str, int]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["add", "delete", "destroy", "touch", "wait", "page"]), st.integers(0, 30)
    ),
    max_size=40,
)


@settings(max_examples=60)
@given(before=st.lists(st.booleans(), max_size=12), steps=STEPS, limit=st.integers(1, 4))
def test_who_is_there_throughout_is_on_exactly_one_page(
    before: list[bool], steps: list[Step], limit: int
) -> None:
    async def scenario() -> None:
        cluster = Cluster()
        number = 0
        async with cluster.gateway() as replica:
            for pause in before:
                put(cluster, numbered(number := number + 1))
                await asyncio.sleep(1.0 * pause)
            await replica.caught_up()
            throughout = set(cluster.names)
            seen: list[str] = []
            ended: set[str] = set()
            cursor: str | None = ""
            for what, n in [*steps, *[("page", 0)] * 60]:
                names = cluster.names
                match what:
                    case "add":
                        put(cluster, numbered(number := number + 1))
                    case "delete" if names:
                        cluster.api.remove("machines", names[n % len(names)])
                        throughout.discard(names[n % len(names)])
                        ended.add(names[n % len(names)])
                    case "destroy" if names:
                        cluster.report(names[n % len(names)], "destroyed")
                        throughout.discard(names[n % len(names)])
                        ended.add(names[n % len(names)])
                    case "touch" if names:
                        cluster.api.edit(
                            "machines", names[n % len(names)], lambda m: m["spec"].update(vcpu=2)
                        )
                    case "wait":
                        await asyncio.sleep(1.0)
                    case "page" if cursor is not None:
                        await replica.caught_up()
                        target = f"/v1/machines?limit={limit}&cursor={cursor}"
                        page = (await replica.call("GET", target)).json()
                        seen += [item["machine_id"] for item in page["items"]]
                        assert not ended.intersection(item["machine_id"] for item in page["items"])
                        cursor = page.get("next_cursor")
                        assert page["items"] or cursor is None, "an empty page with more behind it"
            assert cursor is None
        assert len(seen) == len(set(seen)), "a machine came twice"
        assert throughout <= set(seen)
        kept = [name for name in seen if name in throughout]
        created = {
            m["metadata"]["name"]: m["metadata"]["creationTimestamp"]
            for m in cluster.api.all("machines")
        }
        assert kept == sorted(kept, key=lambda name: created[name], reverse=True), "newest first"

    run_virtual(scenario())


async def test_a_list_survives_that_a_name_is_given_to_a_new_machine_unseen(
    cluster: Cluster, replica: Replica
) -> None:
    """While the watch was away a machine was deleted, and another one was made by the same name."""
    put(cluster, numbered(1), finalizers=[])
    put(cluster, numbered(2))
    await replica.caught_up()
    followed = replica.machines.find(ORG, numbered(1))
    cluster.api.down = True
    cluster.api.break_watches()
    cluster.api.remove("machines", numbered(1))
    put(cluster, numbered(1), creationTimestamp=None)
    cluster.api.objects["machines", ORG, numbered(1)].body["metadata"]["creationTimestamp"] = (
        "2001-01-01T00:00:00Z"
    )
    cluster.api.compact()
    cluster.api.down = False
    with replica.machines.followed(followed) as follower:
        assert await follower.next(timeout=5.0) is not None
    cluster.api.remove("machines", numbered(1))
    await replica.caught_up()
    listed = await replica.call("GET", "/v1/machines")
    assert listed.status == 200, "the old place of the machine was forgotten with it"
    assert [item["machine_id"] for item in listed.json()["items"]] == [numbered(2)]
