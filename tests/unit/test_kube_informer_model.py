"""Whatever happens to the objects and to the connection, in the end the cache is what the server has, and what was
told adds up to it: each deletion once, nothing twice.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from machine_operator.kube import informer as informer_module
from machine_operator.kube.errors import ApiError
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import SECRETS
from tests.support.apiserver import FakeApi, Object, Request
from tests.support.client import FakeClient
from tests.support.faults import (
    Answer,
    Cut,
    Delay,
    End,
    Fault,
    Garbage,
    Hold,
    Refuse,
    Repeat,
    TimeOut,
)
from tests.support.virtual import eventually, run_virtual

NAMES = ("a", "b", "c", "d", "e")
VALUES = ("", "v", "w", "left out")

changes = st.tuples(
    st.just("put") | st.just("remove") | st.just("own"),
    st.sampled_from(NAMES),
    st.sampled_from(VALUES),
)
pauses = st.tuples(st.just("pause"), st.just(""), st.sampled_from((0.001, 0.01, 1.0, 40.0)))
breaks = st.tuples(st.sampled_from(("cut", "compact", "outage")), st.just(""), st.just(""))
steps = st.lists(changes | changes | pauses | breaks, max_size=25)

stream_faults = st.one_of(
    st.none(),
    st.builds(Repeat, st.integers(0, 4)),
    st.builds(Hold, st.sampled_from((0.02, 3.0, 100.0))),
    st.builds(Cut, st.booleans()),
    st.just(End()),
    st.just(Garbage()),
    st.builds(Refuse, st.sampled_from((410, 429, 500, 504))),
)
faults = st.one_of(
    st.none(),
    st.builds(Answer, st.sampled_from((400, 401, 410, 422, 429, 500, 503))),
    st.builds(TimeOut),
    st.builds(Delay, st.sampled_from((0.02, 2.0, 50.0))),
)


@dataclass(slots=True)
class Plan:
    """What will break: the first so many requests and events are the ones that it may happen to."""

    requests: list[Fault | None]
    events: list[Any]
    aging: set[int]
    streams_lists: bool


plans = st.builds(
    Plan,
    st.lists(faults, max_size=10),
    st.lists(stream_faults, max_size=20),
    st.sets(st.integers(0, 6)),
    st.booleans(),
)


class Model:
    """The server, the informer, and the sum of all that was told and written."""

    def __init__(self, plan: Plan) -> None:
        self.api = FakeApi()
        self.client = FakeClient(self.api, latency=0.003)
        self.client.streams_lists = plan.streams_lists
        self.plan = plan
        self.asked = self.pages = 0
        self.sum: dict[Key, str] = {}
        self.writing = False
        self.informer: Informer[str] = Informer(
            self.client, SECRETS, project=self._project, on_change=self._told
        )
        self.client.faults.rules.append(self._request)
        self.client.faults.stream_rules.append(self._event)

    @staticmethod
    def _project(obj: Object) -> str | None:
        value: str = obj["data"]["v"]
        return None if value == "left out" else value

    def _request(self, asked: Request, _: int) -> Fault | None:
        if asked.writes:
            return None
        if "continue" in asked.params:
            self.pages += 1
            if self.pages in self.plan.aging:
                self.api.compact()
                self.api.break_watches()
        self.asked += 1
        return self.plan.requests[self.asked - 1] if self.asked <= len(self.plan.requests) else None

    def _event(self, _: Object, number: int) -> Any:
        return self.plan.events[number - 1] if number <= len(self.plan.events) else None

    def _told(self, key: Key, old: str | None, new: str | None) -> None:
        assert not self.writing, "an own write is told"
        assert old != new, f"{key}: told without a change"
        assert self.sum.get(key) == old, f"{key}: {old!r} was not the last that was told"
        assert self.informer.cache.get(key) == new
        self._note(key, new)

    def _note(self, key: Key, value: str | None) -> None:
        if value is None:
            self.sum.pop(key, None)
        else:
            self.sum[key] = value

    async def step(self, what: str, name: str, how: Any) -> None:
        match what:
            case "put":
                if ("secrets", "ns", name) in self.api.objects:
                    self.api.edit("secrets", name, lambda obj: obj["data"].update(v=how))
                else:
                    meta = {"name": name, "namespace": "ns"}
                    self.api.put("secrets", {"metadata": meta, "data": {"v": how}})
            case "remove":
                if ("secrets", "ns", name) in self.api.objects:
                    self.api.remove("secrets", name)
            case "own":
                await self._own(name, how)
            case "pause":
                await asyncio.sleep(how)
            case "cut":
                self.api.break_watches()
            case "compact":
                self.api.compact()
                self.api.break_watches()
            case "outage":
                self.api.down = True
                self.api.break_watches()
                await asyncio.sleep(20.0)
                self.api.down = False

    async def _own(self, name: str, value: str) -> None:
        try:
            answer = await self.client.apply(
                SECRETS, name, {"data": {"v": value}}, namespace="ns", manager="m"
            )
        except ApiError:
            return
        self.writing = True
        self.informer.wrote(answer)
        self.writing = False
        key = Key("ns", name)
        self._note(key, self.informer.cache.get(key))

    def truth(self) -> dict[Key, str]:
        return {
            Key("ns", obj["metadata"]["name"]): obj["data"]["v"]
            for obj in self.api.all("secrets")
            if obj["data"]["v"] != "left out"
        }


async def tell(plan: Plan, before: list[str], story: list[tuple[str, str, Any]]) -> None:
    model = Model(plan)
    for name in before:
        await model.step("put", name, "v")
    task = asyncio.create_task(model.informer.run())

    def agreed() -> bool:
        if task.done():
            task.result()
        return model.informer.synced.is_set() and dict(model.informer.cache) == model.truth()

    for step in story:
        await model.step(*step)
        if task.done():
            task.result()
    await eventually(
        agreed, within=3000.0, state=lambda: (dict(model.informer.cache), model.truth())
    )
    # Late repetitions change nothing any more.
    await asyncio.sleep(400.0)
    assert agreed()
    assert model.sum == model.truth()
    known = set(model.informer._versions)
    assert known >= set(model.informer.cache)
    assert len(known - set(model.informer.cache)) <= sum(what == "own" for what, _, _ in story)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@given(plan=plans, before=st.lists(st.sampled_from(NAMES), unique=True), story=steps)
@example(
    plan=Plan([], [Repeat(after=3)], set(), streams_lists=True),
    before=["a", "b", "c"],
    story=[("pause", "", 0.01), ("remove", "a", ""), ("pause", "", 1.0)],
)
def test_in_the_end_the_cache_is_what_the_server_has(
    plan: Plan, before: list[str], story: list[tuple[str, str, Any]]
) -> None:
    page, informer_module._PAGE = informer_module._PAGE, 2
    try:
        run_virtual(tell(plan, before, story))
    finally:
        informer_module._PAGE = page
