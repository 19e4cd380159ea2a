"""The informer against an API server that breaks in every way: list by watch, pages, fallbacks, back-off."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest

from machine_operator.kube.client import KubeClient, RequestRecord
from machine_operator.kube.connection import Connection
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import SECRETS
from machine_operator.kube.transport import WireRequest, WireStream
from tests.support.apiserver import FakeApi, Object, Request
from tests.support.client import FakeClient, FakeTransport
from tests.support.faults import Answer, Cut, End, Fault, Garbage, Hold, Refuse, Repeat, TimeOut
from tests.support.virtual import eventually, run_virtual


class Bench:
    """A server with some secrets, and an informer of them; `told` is folded into `fold`."""

    def __init__(self, *, streams_lists: bool = True) -> None:
        self.api = FakeApi()
        self.records: list[RequestRecord] = []
        self.client = FakeClient(self.api, on_request=self.records.append)
        self.client.streams_lists = streams_lists
        self.told: list[tuple[str, str | None, str | None]] = []
        self.fold: dict[Key, str] = {}
        self.informer = self.informed()
        self.task: asyncio.Task[None] | None = None

    def informed(self) -> Informer[str]:
        return Informer(self.client, SECRETS, project=self._project, on_change=self._changed)

    @staticmethod
    def _project(obj: Object) -> str | None:
        assert obj["kind"] == "Secret"
        value: str | None = obj["data"]["v"]
        return None if value == "left out" else value

    def _changed(self, key: Key, old: str | None, new: str | None) -> None:
        assert self.fold.get(key) == old, f"{key}: {old} was never told"
        assert self.informer.cache.get(key) == new, "the cache changes first"
        self.told.append((key.name, old, new))
        if new is None:
            del self.fold[key]
        else:
            self.fold[key] = new

    def put(self, name: str, value: str = "v") -> None:
        self.api.put(
            "secrets", {"metadata": {"name": name, "namespace": "ns"}, "data": {"v": value}}
        )

    def edit(self, name: str, value: str) -> None:
        self.api.edit("secrets", name, lambda obj: obj["data"].update(v=value))

    def truth(self) -> dict[Key, str]:
        return {
            Key("ns", obj["metadata"]["name"]): obj["data"]["v"]
            for obj in self.api.all("secrets")
            if obj["data"]["v"] != "left out"
        }

    async def start(self) -> None:
        self.task = asyncio.create_task(self.informer.run())
        await self.informer.synced.wait()

    async def agree(self, *, within: float = 200.0) -> None:
        """Wait until the cache is what the server has, and what was told adds up to it."""

        def agreed() -> bool:
            assert self.task is None or not self.task.done(), self.task
            return dict(self.informer.cache) == self.truth() == self.fold

        await eventually(agreed, within=within, state=lambda: (self.informer.cache, self.truth()))

    def count(self, verb: str) -> int:
        return sum(record.verb == verb for record in self.records)

    def lists(self) -> list[dict[str, str]]:
        return [asked.params for asked in self.api.log if asked.verb == "list"]


def play(
    story: Callable[[Bench], Coroutine[Any, Any, None]], *, streams_lists: bool = True
) -> None:
    async def scenario() -> None:
        bench = Bench(streams_lists=streams_lists)
        await story(bench)
        assert bench.task is not None
        assert not bench.task.done(), bench.task
        bench.task.cancel()
        await asyncio.gather(bench.task, return_exceptions=True)

    run_virtual(scenario())


# ---- the beginning


def test_a_list_by_watch_is_one_request() -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        bench.put("b", "left out")
        await bench.start()
        assert dict(bench.informer.cache) == {Key("ns", "a"): "v"}
        bench.edit("a", "w")
        bench.put("c")
        bench.edit("b", "in")
        await bench.agree()
        assert [record.verb for record in bench.records] == ["watch"]

    play(story)


def test_nothing_is_synced_before_the_list_by_watch_is_whole() -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            bench.put(name)
        bench.client.faults.stream_rules.append(lambda _, n: Cut() if n == 3 else None)
        bench.task = asyncio.create_task(bench.informer.run())
        await eventually(lambda: len(bench.informer.cache) == 2)
        assert not bench.informer.synced.is_set()
        bench.api.remove("secrets", "a")
        await bench.informer.synced.wait()
        await bench.agree()
        assert bench.informer.relists == 0, "the first one is none"

    play(story)


def test_what_vanished_while_nobody_watched_is_told_once() -> None:
    async def story(bench: Bench) -> None:
        for name in "abc":
            bench.put(name)
        await bench.start()
        bench.api.break_watches()
        for name in "ab":
            bench.api.remove("secrets", name)
        bench.put("b", "anew")
        bench.api.compact()
        await bench.agree()
        assert bench.told.count(("a", "v", None)) == 1
        assert bench.told[-2:] == [("b", "v", "anew"), ("a", "v", None)]
        assert bench.informer.relists == 1

    play(story)


REFUSALS: list[Fault] = [Answer(400, "BadRequest"), Answer(422, "Invalid")]


@pytest.mark.parametrize("refusal", REFUSALS, ids=str)
def test_a_server_without_lists_by_watch_is_asked_once(refusal: Fault) -> None:
    def by_watch(asked: Request) -> bool:
        return "sendInitialEvents" in asked.params

    async def story(bench: Bench) -> None:
        bench.put("a")
        bench.client.faults.next(refusal, when=by_watch, times=100)
        began = asyncio.get_running_loop().time()
        await bench.start()
        assert asyncio.get_running_loop().time() - began < 0.5, "it is no reason to wait"
        bench.api.break_watches()
        bench.edit("a", "w")
        bench.api.compact()
        await bench.agree()
        assert not bench.client.streams_lists
        assert [record.code for record in bench.records].count(refusal.status) == 1  # type: ignore[union-attr]
        assert bench.count("list") == 2
        other: Informer[str] = Informer(
            bench.client, SECRETS, project=str, on_change=lambda *_: None
        )
        task = asyncio.create_task(other.run())
        await other.synced.wait()
        assert bench.count("list") == 3, "the other informers of the client know it, too"
        task.cancel()

    play(story)


class OldTransport(FakeTransport):
    """A server that ignores parameters that it does not know: no end of the list ever comes."""

    asked = 0

    def stream(self, request: WireRequest) -> AbstractAsyncContextManager[WireStream]:
        params = dict(request.params)
        self.asked += "sendInitialEvents" in params
        params.pop("sendInitialEvents", None)
        params.pop("resourceVersionMatch", None)
        return super().stream(WireRequest("GET", request.path, params))


def test_a_server_that_ignores_the_question_is_listed() -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        transport = OldTransport(bench.api)
        bench.client = KubeClient(Connection(server="http://old"), transport=transport)  # type: ignore[assignment]
        bench.informer = bench.informed()
        await bench.start()
        await bench.agree()
        assert transport.asked == 1
        assert len(bench.lists()) == 1
        assert asyncio.get_running_loop().time() < 62.0, "the first bookmark gives it away"

    play(story)


def test_a_busy_server_is_not_taken_for_one_that_cannot() -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        bench.client.faults.next(Answer(429, retry_after="20"))
        await bench.start()
        assert 20.0 <= asyncio.get_running_loop().time() <= 25.0
        assert bench.client.streams_lists
        assert bench.count("list") == 0

    play(story)


# ---- pages


def test_a_long_list_comes_in_pages() -> None:
    async def story(bench: Bench) -> None:
        for number in range(1201):
            bench.put(f"s{number:04}")
        await bench.start()
        await bench.agree()
        assert [(asked.get("limit"), "continue" in asked) for asked in bench.lists()] == [
            ("500", False),
            ("500", True),
            ("500", True),
        ]

    play(story, streams_lists=False)


@pytest.mark.parametrize("first", [True, False], ids=["at the start", "again"])
def test_a_page_that_is_too_old_makes_one_whole_list(first: bool) -> None:
    async def story(bench: Bench) -> None:
        for number in range(1100):
            bench.put(f"s{number:04}")
        if not first:
            await bench.start()
            bench.api.break_watches()
            bench.put("more")
            bench.api.compact()
        pages = 0

        def aging(asked: Request, _: int) -> None:
            nonlocal pages
            pages += "continue" in asked.params
            if pages == 1 and "continue" in asked.params:
                # Between the first page and the second one, things happen to both.
                bench.api.remove("secrets", "s0001")
                bench.api.remove("secrets", "s1001")
                bench.edit("s0002", "w")
                bench.api.compact()

        bench.client.faults.rules.append(aging)
        before = len(bench.lists())
        if first:
            await bench.start()
        else:
            await eventually(lambda: bench.informer.relists == 1)
        await bench.agree()
        asked = bench.lists()[before:]
        assert [(one.get("limit"), "continue" in one) for one in asked] == [
            ("500", False),
            ("500", True),
            (None, False),
        ]
        for name in ("s0001", "s1001"):
            assert sum(one[0] == name and one[2] is None for one in bench.told) <= 1

    play(story, streams_lists=False)


# ---- trouble on the way


@pytest.mark.parametrize(
    ("fault", "relists"),
    [
        (Cut(), 0),
        (Cut(delivered=True), 0),
        (End(), 0),
        (Garbage(), 0),
        (Refuse(500, "InternalError"), 0),
        (Refuse(429, "TooManyRequests"), 0),
        (Refuse(504, "Timeout"), 0),
        (Refuse(410, "Expired"), 1),
        (Repeat(), 0),
        (Repeat(after=2), 0),
        (Hold(5.0), 0),
        (Hold(200.0), 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("streams_lists", [True, False], ids=["by watch", "list"])
def test_a_watch_that_breaks_loses_nothing(fault: Any, relists: int, streams_lists: bool) -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        await bench.start()
        at = bench.client.faults.seen + 2
        bench.client.faults.stream_rules.append(lambda _, n: fault if n == at else None)
        bench.put("b")
        bench.api.remove("secrets", "a")
        bench.put("c")
        bench.put("d")
        bench.edit("c", "w")
        await bench.agree(within=400.0)
        assert [one for one in bench.told if one[0] == "a"] == [("a", None, "v"), ("a", "v", None)]
        assert bench.informer.relists == relists

    play(story, streams_lists=streams_lists)


@pytest.mark.parametrize(
    "fault",
    [Answer(500), Answer(503, retry_after="9"), Answer(401), Answer(403), TimeOut()],
    ids=str,
)
def test_a_watch_that_cannot_begin_is_tried_again_without_a_list(fault: Fault) -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        await bench.start()
        bench.client.faults.next(fault, times=3)
        bench.api.break_watches()
        bench.edit("a", "w")
        await bench.agree(within=600.0)
        assert bench.informer.relists == 0
        assert bench.count("list") == 0

    play(story)


def test_an_outage_of_ten_minutes() -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        bench.put("b")
        await bench.start()
        heard = bench.informer.heard_at
        bench.api.down = True
        bench.api.break_watches()
        await asyncio.sleep(600.0)
        assert bench.informer.heard_at == heard
        assert dict(bench.informer.cache) == bench.truth(), "what was known stays known"
        assert len(bench.records) < 50
        bench.api.remove("secrets", "a")
        bench.api.down = False
        await bench.agree(within=31.0)

    play(story)


def test_an_own_write_during_a_list_is_kept() -> None:
    async def story(bench: Bench) -> None:
        bench.put("a")
        bench.client.faults.stream_rules.append(lambda _, n: Hold(5.0) if n == 2 else None)
        bench.task = asyncio.create_task(bench.informer.run())
        await eventually(lambda: len(bench.informer.cache) == 1)
        body = {"metadata": {"name": "mine", "namespace": "ns"}, "data": {"v": "mine"}}
        bench.informer.wrote(await bench.client.create(SECRETS, body, namespace="ns"))
        await bench.informer.synced.wait()
        assert bench.informer.get("ns", "mine") == "mine"
        await asyncio.sleep(60.0)
        assert bench.told == [("a", None, "v")]

    play(story)
