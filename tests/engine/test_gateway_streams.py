"""The status stream: each state once, a clean end, resumption, and nothing that piles up."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from machine_operator.gateway.machines import _PENDING
from tests.support.faults import Delay
from tests.support.gateway import ORG, Cluster, Replica
from tests.support.gateway_stream import Event, Stream
from tests.support.virtual import eventually, run_virtual

NAME = "dm-0b7c4a52-93a5-4f0e-9d5e-0d7a1c9e4b21"
TARGET = f"/v1/machines/{NAME}/status/stream"
PING = 10.0


class Scene:
    """A machine and one gateway, in virtual time."""

    def __init__(self, cluster: Cluster, replica: Replica) -> None:
        self.cluster, self.replica = cluster, replica

    def open(self, last_event_id: str | None = None) -> Stream:
        return self.replica.stream(TARGET, last_event_id=last_event_id)

    async def report(self, phase: str, **status: Any) -> None:
        self.cluster.report(NAME, phase, **status)
        await self.replica.caught_up()

    async def scribble(self) -> None:
        """A change of nothing that a client sees."""
        before = (self.cluster.machine(NAME).get("status") or {}).get("wake_count", 0)
        self.cluster.api.edit(
            "machines", NAME, lambda m: m.setdefault("status", {}).update(wake_count=before + 1)
        )
        await self.replica.caught_up()

    def version(self) -> str:
        return str(self.cluster.machine(NAME)["metadata"]["resourceVersion"])


def play(scenario: Callable[[Scene], Coroutine[Any, Any, None]], **spec: Any) -> None:
    async def run() -> None:
        cluster = Cluster()
        sizes = {"vcpu": 1, "memory_mib": 512, "storage_gib": 1}
        metadata = {"name": NAME, "namespace": ORG}
        cluster.api.put("machines", {"metadata": metadata, "spec": sizes | spec})
        async with cluster.gateway() as replica:
            await scenario(Scene(cluster, replica))
            assert not replica.machines._followers, "somebody is still told of a machine"

    run_virtual(run())


async def told(stream: Stream, *, within: float = 5.0) -> Event:
    event = await stream.event(within=within)
    assert event is not None, "the stream has ended"
    return event


def phases(events: list[Event]) -> list[str]:
    return [event.data["phase"] for event in events if event.name == "status"]


# ---- states


def test_the_state_now_comes_at_once_and_then_each_phase_once_until_all_is_done() -> None:
    async def scenario(scene: Scene) -> None:
        began = asyncio.get_running_loop().time()
        async with scene.open() as stream:
            first = await told(stream)
            assert asyncio.get_running_loop().time() - began < 1.0
            assert stream.status == 200
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            body = (await scene.replica.get(NAME)).items()
            assert (first.name, first.id, first.data.items()) == ("status", scene.version(), body)
            for phase in ("accepted", "placement_pending", "starting"):
                await scene.report(phase)
                await scene.report(phase)  # nothing new
                event = await told(stream)
                assert (event.data["phase"], event.id) == (phase, scene.version())
            await scene.report("running")
            rest = await stream.rest()
        assert phases(rest) == ["running"]
        assert rest[-1].data["status"]["reason"] == "DesiredStateReached"
        frame = rb"id: \d+\nevent: status\ndata: \{[^\n]*\}\n\n"
        assert re.fullmatch(rb"(%s){5}" % frame, stream.raw)

    play(scenario)


def test_nobody_is_kept_waiting_where_all_is_done_already() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.report("running")
        async with scene.open() as stream:
            assert phases(await stream.rest()) == ["running"]

    play(scenario)


@pytest.mark.parametrize(
    ("phase", "status", "ends"),
    [
        ("failed", {"retryable": False}, True),
        ("failed", {"retryable": True}, False),
        ("destroyed", {}, True),
        ("sleeping", {}, False),
        ("running", {"observedGeneration": 0}, False),
    ],
)
def test_a_stream_ends_where_nothing_more_will_come(
    phase: str, status: dict[str, Any], ends: bool
) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            await told(stream)
            await scene.report(phase, **status)
            assert (await told(stream)).data["phase"] == phase
            after = await stream.event(within=PING + 1)
            assert (after is None) == ends, after
            if ends:
                await eventually(lambda: stream.ended, within=1.0)

    play(scenario)


def test_a_change_of_mind_keeps_a_stream_open_until_that_is_done() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            await told(stream)
            await scene.report("starting")
            assert (await told(stream)).data["phase"] == "starting"
            await scene.replica.call("POST", f"/v1/machines/{NAME}/sleep")
            event = await told(stream)
            assert (event.data["phase"], event.data["desired_state"]) == ("starting", "sleeping")
            await scene.report("running")
            assert (await told(stream)).data["status"]["reason"] != "DesiredStateReached"
            await scene.report("stopping")
            await scene.report("sleeping")
            assert phases(await stream.rest()) == ["stopping", "sleeping"]

    play(scenario)


def test_the_deletion_of_the_object_is_the_end_and_is_told_as_destroyed() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.report("starting")
        async with scene.open() as stream:
            first = await told(stream)
            scene.cluster.api.remove("machines", NAME)
            rest = await stream.rest()
        assert phases(rest) == ["destroyed"]
        assert rest[0].data["desired_state"] == "destroyed"
        assert int(rest[0].id or 0) > int(first.id or 0)
        assert int(rest[0].data["status"]["revision"]) > int(first.data["status"]["revision"])
        assert (await scene.replica.call("GET", TARGET)).status == 404

    play(scenario)


def test_a_machine_that_goes_while_the_answer_begins_is_told_as_destroyed() -> None:
    async def scenario(scene: Scene) -> None:
        stream = scene.open(last_event_id=scene.version())
        await asyncio.sleep(0)
        view = scene.replica.machines.find(ORG, NAME)
        scene.cluster.api.remove("machines", NAME)
        await scene.replica.caught_up()
        assert scene.replica.machines.latest(view).version > view.version
        async with stream:
            assert phases(await stream.rest()) == ["destroyed"]

    play(scenario)


# ---- resumption


def test_who_comes_back_is_told_only_what_is_newer() -> None:
    async def scenario(scene: Scene) -> None:
        await scene.report("accepted")
        async with scene.open() as stream:
            bookmark = (await told(stream)).id
        async with scene.open(bookmark) as stream:
            await scene.report("starting")
            event = await told(stream)
            assert (event.data["phase"], event.id) == ("starting", scene.version())
        await scene.report("running")
        async with scene.open(event.id) as stream:
            assert phases(await stream.rest()) == ["running"]
        async with scene.open(scene.version()) as stream:
            assert await stream.rest() == [], "this client knows it all"

    play(scenario)


@pytest.mark.parametrize(
    "odd", ["", "0", "1", "Last-Event-ID", "-5", "1e3", "9" * 20, "9" * 5000, "\u00b2", "\xff"]
)
def test_a_bookmark_that_says_nothing_gets_the_state_now(odd: str) -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open(odd) as stream:
            event = await told(stream, within=1.0)
            assert (event.name, event.data["phase"]) == ("status", "accepted")

    play(scenario)


# ---- silence


def test_silence_is_broken_in_time_and_versions_without_news_become_bookmarks() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            first = await told(stream)
            silent = asyncio.get_running_loop().time()
            for _ in range(3):
                ping = await told(stream, within=15.0)
                assert (ping.name, ping.comment) == (None, "ping")
            assert asyncio.get_running_loop().time() - silent <= 3 * 15.0
            await scene.scribble()
            mark = await told(stream, within=15.0)
            assert (mark.name, mark.id) == ("bookmark", scene.version())
            assert mark.data == {"revision": first.data["status"]["revision"]}
            assert (await told(stream, within=15.0)).comment == "ping"
        async with scene.open(mark.id) as stream:
            await scene.report("running")
            assert phases(await stream.rest()) == ["running"]

    play(scenario)


def test_what_changes_all_the_time_without_news_does_not_keep_a_stream_silent() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            await told(stream)

            async def scribbling() -> None:
                while True:
                    await scene.scribble()
                    await asyncio.sleep(3.0)

            busy = asyncio.create_task(scribbling())
            mark = await told(stream, within=15.0)
            assert mark.name in ("bookmark", None)
            busy.cancel()

    play(scenario)


# ---- readers


def test_a_reader_who_is_slow_misses_states_in_between_and_never_the_last_one() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            await told(stream)
            for number in range(200):
                await scene.report("starting", reason=f"Step{number}")
            (followers,) = scene.replica.machines._followers.values()
            (follower,) = followers
            assert len(follower._pending) <= _PENDING
            await scene.report("running")
            rest = await stream.rest()
        assert rest[-1].data["phase"] == "running"
        assert len(rest) <= _PENDING + 3
        ids = [int(event.id or 0) for event in rest]
        assert ids == sorted(set(ids))

    play(scenario)


def test_a_reader_who_goes_leaves_nothing_behind() -> None:
    async def scenario(scene: Scene) -> None:
        for _ in range(3):
            async with scene.open() as stream:
                await told(stream)
                assert scene.replica.machines._followers
        await eventually(lambda: not scene.replica.machines._followers, within=1.0)

    play(scenario)


def test_readers_of_one_machine_are_all_told() -> None:
    async def scenario(scene: Scene) -> None:
        streams = [scene.open() for _ in range(20)]
        for stream in streams:
            await stream.__aenter__()
        await scene.report("running")
        for stream in streams:
            assert phases(await stream.rest())[-1] == "running"
            await stream.__aexit__()

    play(scenario)


# ---- the end of the gateway, and a watch that breaks


def test_a_gateway_that_ends_ends_its_streams_behind_a_whole_event() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as idle, scene.open() as busy:
            await told(idle)
            await told(busy)
            scene.cluster.report(NAME, "starting")
            await scene.replica.caught_up()
            scene.replica.gateway.draining.set()
            for stream in (idle, busy):
                began = asyncio.get_running_loop().time()
                assert phases(await stream.rest()) in ([], ["starting"])
                assert asyncio.get_running_loop().time() - began < 1.0
                assert stream.raw.endswith(b"\n\n")
        async with scene.open() as late:
            assert phases(await late.rest(within=1.0)) == ["starting"]

    play(scenario)


def test_a_stream_outlives_a_watch_that_breaks() -> None:
    async def scenario(scene: Scene) -> None:
        async with scene.open() as stream:
            await told(stream)
            scene.replica.client.faults.next(
                Delay(3.0), when=lambda asked: asked.verb == "watch" and asked.plural == "machines"
            )
            scene.cluster.api.break_watches()
            scene.cluster.report(NAME, "starting")
            scene.cluster.report(NAME, "running")
            assert phases(await stream.rest(within=20.0))[-1] == "running"

    play(scenario)


def test_before_a_stream_begins_failures_are_answers() -> None:
    async def scenario(scene: Scene) -> None:
        assert (await scene.replica.call("GET", TARGET, org=None)).status == 401
        unknown = await scene.replica.call("GET", TARGET.replace("0b7c", "0b7d"))
        assert (unknown.status, unknown.headers["content-type"]) == (
            404,
            "application/problem+json",
        )

    play(scenario)
