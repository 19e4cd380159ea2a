"""Many knocks at once: machines are woken a few at a time, org by org, and each once."""

from __future__ import annotations

import asyncio

import pytest

from machine_operator.gateway.access import NotUsable, Readiness
from machine_operator.gateway.wakes import QueueFull, Wakes
from tests.support.access import Way, a_sleeper, virtual_clock, way_in
from tests.support.apiserver import FakeApi, Object, Request, failure
from tests.support.faults import Answer, TimeOut
from tests.support.virtual import eventually, run_virtual


@pytest.fixture(autouse=True)
def _virtual_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    virtual_clock(monkeypatch)


def asleep(api: FakeApi, *names: str, namespace: str = "ns") -> None:
    for name in names:
        api.put("machines", a_sleeper(name, namespace=namespace))


def requests(api: FakeApi) -> list[str]:
    """Machines that power requests were made for, in order."""
    return [
        f"{r.namespace}/{r.name}"
        for r in api.log
        if r.params.get("fieldManager") == "machine-operator-gateway-power"
    ]


def report(api: FakeApi, key: str, phase: str, **status: object) -> None:
    """What the controller does."""
    namespace, name = key.split("/")
    stored = api.objects["machines", namespace, name]
    body: Object = {"status": {"phase": phase, **status}}
    request = Request(
        "apply", "machines", namespace, name, "status", body, {"fieldManager": "controller"}
    )
    request.params["force"] = "true"
    assert stored is not None
    api.handle(request)


def test_five_hundred_knocks_on_one_machine_are_one_request() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "box")
        async with way_in(api) as way:
            view = way.view()
            for _ in range(250):
                assert way.access.knock(view, by="ada") is Readiness.WAKING
            await asyncio.sleep(0.007)
            for _ in range(250):
                assert way.access.knock(view, by="bob") is Readiness.WAKING
            await asyncio.sleep(1.0)
            assert requests(api) == ["ns/box"]
            request = api.find("machines", "box")["status"]["power_request"]
            assert (request["state"], request["by"], request["sequence"]) == ("running", "ada", 2)
            assert (way.access.wakes.asked, way.access.wakes.coalesced) == (1, 499)

    run_virtual(scenario())


def test_five_hundred_machines_of_one_org_neither_sink_the_cluster_nor_starve_others() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, *(f"m{n:03}" for n in range(500)), namespace="big")
        asleep(api, "one", "two", namespace="small")
        async with way_in(api, wake_limit=10, wake_org_limit=6) as way:
            wakes = way.access.wakes
            for n in range(500):
                way.access.knock(way.view(f"m{n:03}", namespace="big"), by="ada")
            await asyncio.sleep(0.1)
            assert sorted(requests(api)) == [f"big/m{n:03}" for n in range(6)]
            for name in ("one", "two"):
                way.access.knock(way.view(name, namespace="small"), by="bob")
            await asyncio.sleep(0.1)
            assert sorted(requests(api)[6:]) == ["small/one", "small/two"]
            up = 0
            while up < 502:
                for key in requests(api)[up:]:
                    report(api, key, "starting")
                    await asyncio.sleep(0.05)
                    assert wakes.rising <= 10
                    report(api, key, "running")
                    up += 1
                await asyncio.sleep(0.1)
            assert len(requests(api)) == len(set(requests(api))) == 502
            await eventually(lambda: wakes.rising == 0)
            assert (wakes.waiting, wakes._by_org, wakes._waiting) == (0, {}, {})

    run_virtual(scenario(), rounds=1_000_000)


def test_orgs_take_turns() -> None:
    async def scenario() -> None:
        api = FakeApi()
        for org in "abc":
            asleep(api, "x", "y", "z", namespace=org)
        async with way_in(api, wake_limit=1, wake_org_limit=1) as way:
            for org in "abc":
                for name in "xyz":
                    way.access.knock(way.view(name, namespace=org), by="ada")
            for n in range(9):
                await eventually(lambda n=n: len(requests(api)) == n + 1)  # type: ignore[misc]
                report(api, requests(api)[-1], "running")
            assert requests(api) == [f"{org}/{name}" for name in "xyz" for org in "abc"]

    run_virtual(scenario())


@pytest.mark.parametrize("how", ["running", "failed", "deleted", "asleep again"])
def test_a_slot_is_given_back(how: str) -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "a", "b")
        async with way_in(api, wake_limit=1) as way:
            for name in "ab":
                way.access.knock(way.view(name), by="ada")
            await asyncio.sleep(50.0)
            assert requests(api) == ["ns/a"]
            match how:
                case "running" | "failed":
                    report(api, "ns/a", how)
                case "deleted":
                    api.edit("machines", "a", lambda m: m["metadata"].update(finalizers=[]))
                    api.remove("machines", "a")
                case "asleep again":
                    api.edit("machines", "a", lambda m: m["spec"].update(desired_state="sleeping"))
            await asyncio.sleep(0.1)
            assert requests(api) == ["ns/a", "ns/b"]

    run_virtual(scenario())


def test_a_slot_is_given_back_after_two_minutes() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "a", "b", "c")
        async with way_in(api, wake_limit=2) as way:
            for name in "abc":
                way.access.knock(way.view(name), by="ada")
            await asyncio.sleep(119.0)
            assert requests(api) == ["ns/a", "ns/b"]
            await asyncio.sleep(2.0)
            assert requests(api) == ["ns/a", "ns/b", "ns/c"]
            assert way.access.readiness(way.view("a")) is Readiness.WAKING

    run_virtual(scenario())


def test_who_wakes_or_goes_while_waiting_leaves_the_queue() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "a", "b", "c", "d")
        async with way_in(api, wake_limit=1) as way:
            for name in "abcd":
                way.access.knock(way.view(name), by="ada")
            await asyncio.sleep(1.0)
            api.edit("machines", "b", lambda m: m["spec"].update(desired_state="destroyed"))
            api.edit(
                "machines", "c", lambda m: m["status"]["power_request"].update(state="running")
            )
            await asyncio.sleep(1.0)
            assert way.access.wakes.waiting == 1
            report(api, "ns/a", "running")
            await asyncio.sleep(1.0)
            assert requests(api) == ["ns/a", "ns/d"]

    run_virtual(scenario())


def test_a_wake_that_fails_is_tried_again() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "box")
        async with way_in(api) as way:
            way.client.faults.next(Answer(503), when=lambda r: r.writes, times=2)
            way.client.faults.next(TimeOut(after=True), when=lambda r: r.writes)
            way.access.knock(way.view(), by="ada")
            await asyncio.sleep(60.0)
            assert api.find("machines", "box")["status"]["power_request"]["state"] == "running"
            assert way.access.wakes.failures == 0
            report(api, "ns/box", "running", vm={"name": "m-1", "instance_uid": "i1"})
            assert way.access.readiness(await way.sees()) is Readiness.READY

    run_virtual(scenario())


def test_a_wake_that_never_works_is_given_up_and_told_for_a_while() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "box", "other")
        async with way_in(api, wake_limit=1) as way:
            api.refuse.append(
                lambda r: (
                    failure(500, "InternalError", "no") if r.writes and r.name == "box" else None
                )
            )
            way.access.knock(way.view(), by="ada")
            way.access.knock(way.view("other"), by="ada")
            assert way.access.readiness(way.view()) is Readiness.WAKING
            await eventually(lambda: way.access.wakes.failures == 1)
            assert way.access.readiness(way.view()) is Readiness.FAILED
            await asyncio.sleep(1.0)
            assert requests(api) == ["ns/box"] * 4 + ["ns/other"]
            await asyncio.sleep(31.0)
            assert way.access.readiness(way.view()) is Readiness.WAKING
            api.refuse.clear()
            report(api, "ns/other", "running")
            way.access.knock(way.view(), by="ada")
            await asyncio.sleep(1.0)
            assert requests(api)[5:] == ["ns/box"]

    run_virtual(scenario())


def test_the_next_knock_tries_again_at_once() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "box")
        async with way_in(api) as way:
            way.client.faults.next(Answer(422, "Invalid"), when=lambda r: r.writes)
            way.access.knock(way.view(), by="ada")
            await eventually(lambda: way.access.readiness(way.view()) is Readiness.FAILED)
            assert way.access.knock(way.view(), by="ada") is Readiness.WAKING
            await asyncio.sleep(1.0)
            assert way.access.readiness(way.view()) is Readiness.WAKING
            assert api.find("machines", "box")["status"]["power_request"]["state"] == "running"

    run_virtual(scenario())


def small_queue(way: Way, most: int) -> Wakes:
    way.access.wakes._most = most
    way.access.wakes._limit = 0
    return way.access.wakes


def test_a_full_queue_refuses_and_one_org_cannot_fill_it() -> None:
    async def scenario() -> None:
        api = FakeApi()
        for org in "abc":
            asleep(api, "v", "w", "x", "y", "z", namespace=org)
        async with way_in(api) as way:
            wakes = small_queue(way, 4)
            for name in "vw":
                way.access.knock(way.view(name, namespace="a"), by="ada")
            with pytest.raises(NotUsable, match="too many machines") as refused:
                way.access.knock(way.view("x", namespace="a"), by="ada")
            assert refused.value.retryable
            assert refused.value.readiness is Readiness.WAKING
            way.access.knock(way.view("v", namespace="a"), by="ada")  # it waits already
            for name in "vw":
                way.access.knock(way.view(name, namespace="b"), by="ada")
            with pytest.raises(QueueFull, match="4 machines wait"):
                wakes.ask(way.view("v", namespace="c"), by="ada")
            assert (wakes.waiting, wakes.refused, wakes.coalesced) == (4, 2, 1)
            wakes._limit = 10
            wakes._news.set()
            await asyncio.sleep(1.0)
            assert len(requests(api)) == 4
            way.access.knock(way.view("v", namespace="c"), by="ada")

    run_virtual(scenario())


def test_a_knock_that_nobody_repeats_is_forgotten_in_the_end() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "old", "wanted")
        async with way_in(api) as way:
            wakes = small_queue(way, 10)
            for _ in range(13):
                way.access.knock(way.view("wanted"), by="ada")
                if wakes.waiting == 1:
                    way.access.knock(way.view("old"), by="ada")
                await asyncio.sleep(50.0)
            wakes._limit = 10
            wakes._news.set()
            await asyncio.sleep(1.0)
            assert requests(api) == ["ns/wanted"]
            assert way.access.readiness(way.view("old")) is Readiness.FAILED

    run_virtual(scenario())


def test_what_is_awake_or_on_its_way_is_not_asked_for() -> None:
    async def scenario() -> None:
        api = FakeApi()
        asleep(api, "box")
        async with way_in(api) as way:
            api.edit(
                "machines", "box", lambda m: m["status"]["power_request"].update(state="running")
            )
            report(api, "ns/box", "starting")
            assert way.access.knock(await way.sees(), by="ada") is Readiness.WAKING
            report(api, "ns/box", "running", vm={"name": "m-1", "instance_uid": "i1"})
            assert way.access.knock(await way.sees(), by="ada") is Readiness.READY
            await asyncio.sleep(1.0)
            assert requests(api) == []

    run_virtual(scenario())
