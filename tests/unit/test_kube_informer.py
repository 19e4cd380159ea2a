"""The informer against a scripted client: what it says, and what it must not believe."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import (
    Expired,
    KubeError,
    ServerError,
    TooManyRequests,
    Unreachable,
)
from machine_operator.kube.informer import Informer, Key
from machine_operator.kube.resources import SECRETS
from tests.support.virtual import run_virtual

Object = dict[str, Any]
Script = list[Any]
"""Of watches: each is a list of events; an exception in it is raised; a number is a pause;
None holds the stream open for ever."""

A, B = Key("ns", "a"), Key("ns", "b")


def item(name: str, version: int, value: str = "") -> Object:
    meta = {"name": name, "namespace": "ns", "resourceVersion": str(version)}
    return {"metadata": meta, "value": value}


def event(kind: str, name: str, version: int, value: str = "") -> Object:
    return {"type": kind, "object": item(name, version, value)}


def bookmark(version: int) -> Object:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}


class Scripted(KubeClient):
    """Answers lists and watches from a script, and notes when each was asked for."""

    def __init__(self, *, lists: Script, watches: list[Script]) -> None:
        super().__init__(Connection(server="http://fake"))
        self.lists, self.watches = lists, watches
        self.asked: list[tuple[str, str, float]] = []

    async def list(self, *args: Any, **kwargs: Any) -> Object:
        self.asked.append(("list", "", asyncio.get_running_loop().time()))
        answer = self.lists.pop(0) if len(self.lists) > 1 else self.lists[0]
        if isinstance(answer, KubeError):
            raise answer
        if isinstance(answer, dict):
            return answer
        version, items = answer
        return {"metadata": {"resourceVersion": str(version)}, "items": items}

    async def watch(
        self, *args: Any, resource_version: str, **kwargs: Any
    ) -> AsyncIterator[Object]:
        self.asked.append(("watch", resource_version, asyncio.get_running_loop().time()))
        script = self.watches.pop(0) if len(self.watches) > 1 else self.watches[0]
        for entry in script:
            if entry is None:
                await asyncio.sleep(1e9)
            if isinstance(entry, float):
                await asyncio.sleep(entry)
                continue
            if isinstance(entry, KubeError):
                raise entry
            if callable(entry):
                entry()
                continue
            yield entry

    def count(self, what: str) -> int:
        return sum(kind == what for kind, _, _ in self.asked)

    def times(self, what: str) -> list[float]:
        return [at for kind, _, at in self.asked if kind == what]


class Run:
    """An informer that runs, and the changes that it told."""

    def __init__(self, client: Scripted) -> None:
        self.client = client
        self.told: list[tuple[str, str | None, str | None]] = []
        self.informer: Informer[str] = Informer(
            client,
            SECRETS,
            project=lambda obj: None if obj["value"] == "-" else str(obj["value"]),
            on_change=lambda key, old, new: self.told.append((key.name, old, new)),
        )
        self.task = asyncio.create_task(self.informer.run())


def play(
    script: Scripted,
    check: Callable[[Run], Coroutine[Any, Any, None] | None],
    *,
    after: float = 10.0,
) -> None:
    async def scenario() -> None:
        run = Run(script)
        await asyncio.sleep(after)
        result = check(run)
        if result is not None:
            await result
        assert not run.task.done(), run.task.exception()
        run.task.cancel()
        await asyncio.gather(run.task, return_exceptions=True)

    run_virtual(scenario())


def gone() -> Expired:
    return Expired("too old resource version", status=410, reason="Expired")


def test_list_then_watch() -> None:
    events = [event("ADDED", "b", 6, "x"), event("MODIFIED", "a", 7, "w"), event("DELETED", "b", 8)]
    script = Scripted(lists=[(5, [item("a", 3, "v")])], watches=[[*events, None]])

    def check(run: Run) -> None:
        assert run.told == [("a", None, "v"), ("b", None, "x"), ("a", "v", "w"), ("b", "x", None)]
        assert dict(run.informer.cache) == {A: "w"}
        assert run.informer.synced.is_set()
        assert script.asked[1][:2] == ("watch", "5")

    play(script, check)


def test_a_relist_tells_what_vanished() -> None:
    script = Scripted(
        lists=[(5, [item("a", 3, "v"), item("b", 4, "x")]), (9, [item("b", 8, "y")])],
        watches=[[gone()], [None]],
    )

    def check(run: Run) -> None:
        assert run.told[2:] == [("b", "x", "y"), ("a", "v", None)]
        assert dict(run.informer.cache) == {B: "y"}
        assert script.count("list") == 2
        assert run.informer.relists == 1

    play(script, check)


def test_the_next_watch_goes_on_where_the_last_one_ended() -> None:
    script = Scripted(
        lists=[(5, [])],
        watches=[[event("ADDED", "a", 6, "v")], [bookmark(40)], [None]],
    )

    def check(_: Run) -> None:
        assert [version for what, version, _ in script.asked if what == "watch"] == ["5", "6", "40"]
        assert script.count("list") == 1

    play(script, check)


def test_changes_of_what_is_not_kept_are_not_told() -> None:
    script = Scripted(
        lists=[(5, [item("a", 3, "v")])], watches=[[event("MODIFIED", "a", 6, "v"), None]]
    )
    play(script, lambda run: _equal(run.told, [("a", None, "v")]))


def _equal(found: object, expected: object) -> None:
    assert found == expected


def test_an_own_write_is_seen_at_once_and_not_told() -> None:
    script = Scripted(lists=[(5, [item("a", 3, "v")])], watches=[[None]])

    def check(run: Run) -> None:
        run.informer.wrote(item("a", 9, "mine"))
        run.informer.wrote(item("b", 10, "mine too"))
        assert dict(run.informer.cache) == {A: "mine", B: "mine too"}
        assert run.told == [("a", None, "v")]

    play(script, check)


def test_the_watch_tells_nothing_of_an_own_write_but_what_came_after_it() -> None:
    run_: list[Run] = []
    events = [event("ADDED", "b", 7, "mine"), event("MODIFIED", "b", 8, "theirs")]
    script = Scripted(
        lists=[(5, [])],
        watches=[
            [
                lambda: run_[0].informer.wrote(item("b", 7, "mine")),
                *events,
                event("DELETED", "b", 9),
                None,
            ]
        ],
    )

    async def scenario() -> None:
        run_.append(Run(script))
        await asyncio.sleep(1.0)
        assert run_[0].told == [("b", "mine", "theirs"), ("b", "theirs", None)]
        run_[0].task.cancel()

    run_virtual(scenario())


def test_older_events_do_not_undo_an_own_write() -> None:
    run_: list[Run] = []
    script = Scripted(
        lists=[(5, [item("a", 3, "v")])],
        watches=[
            [
                lambda: run_[0].informer.wrote(item("a", 9, "mine")),
                event("MODIFIED", "a", 7, "older"),
                event("MODIFIED", "a", 9, "mine"),
                event("MODIFIED", "a", 12, "newer"),
                None,
            ]
        ],
    )

    async def scenario() -> None:
        run_.append(Run(script))
        await asyncio.sleep(1.0)
        assert run_[0].told == [("a", None, "v"), ("a", "mine", "newer")]
        run_[0].task.cancel()

    run_virtual(scenario())


def test_a_late_answer_does_not_bring_back_what_is_gone() -> None:
    """The answer to a write and the watch travel on two connections; a deletion can overtake it."""
    script = Scripted(
        lists=[(5, [])],
        watches=[[event("ADDED", "a", 6, "v"), event("DELETED", "a", 8), None]],
    )

    def check(run: Run) -> None:
        run.informer.wrote(item("a", 6, "v"))
        assert run.informer.get("ns", "a") is None

    play(script, check)


def test_a_relist_keeps_what_was_written_after_it() -> None:
    """A list that was made before our create, and arrives after its answer, knows nothing of it."""
    script = Scripted(lists=[(5, []), (9, [])], watches=[[bookmark(6), gone()], [None]])

    async def scenario() -> None:
        run = Run(script)
        run.informer.wrote(item("a", 20, "mine"))
        await asyncio.sleep(5.0)
        assert run.informer.get("ns", "a") == "mine"
        run.task.cancel()

    run_virtual(scenario())


def test_a_deletion_older_than_our_write_is_not_believed() -> None:
    """The old object's end comes while its successor, which we have made, is known already."""
    run_: list[Run] = []
    script = Scripted(
        lists=[(5, [item("a", 3, "old")])],
        watches=[
            [
                lambda: run_[0].informer.wrote(item("a", 12, "new")),
                event("DELETED", "a", 10),
                event("ADDED", "a", 12, "new"),
                None,
            ]
        ],
    )

    async def scenario() -> None:
        run_.append(Run(script))
        await asyncio.sleep(1.0)
        assert run_[0].told == [("a", None, "old")]
        assert run_[0].informer.get("ns", "a") == "new"
        run_[0].task.cancel()

    run_virtual(scenario())


@pytest.mark.parametrize(
    "echo", [event("ADDED", "a", 6, "v"), event("MODIFIED", "a", 7, "w"), event("DELETED", "a", 8)]
)
def test_an_echo_of_what_is_gone_does_not_bring_it_back(echo: Object) -> None:
    events = [event("ADDED", "a", 6, "v"), event("MODIFIED", "a", 7, "w"), event("DELETED", "a", 8)]
    again = event("ADDED", "a", 9, "anew")
    script = Scripted(lists=[(5, [])], watches=[[*events, echo, again, echo, None]])

    def check(run: Run) -> None:
        assert run.told == [
            ("a", None, "v"),
            ("a", "v", "w"),
            ("a", "w", None),
            ("a", None, "anew"),
        ]
        assert dict(run.informer.cache) == {A: "anew"}

    play(script, check)


def test_what_the_projection_leaves_out_is_not_there() -> None:
    """An object can leave, and come back, by what is in it."""
    events = [
        event("MODIFIED", "a", 6, "-"),
        event("ADDED", "b", 7, "-"),
        event("MODIFIED", "a", 6, "-"),
        event("MODIFIED", "a", 3, "v"),
        event("MODIFIED", "b", 8, "x"),
        event("DELETED", "b", 9, "x"),
        event("DELETED", "a", 10, "-"),
    ]
    script = Scripted(
        lists=[(5, [item("a", 3, "v"), item("c", 4, "-")])], watches=[[*events, None]]
    )

    def check(run: Run) -> None:
        assert run.told == [("a", None, "v"), ("a", "v", None), ("b", None, "x"), ("b", "x", None)]
        assert dict(run.informer.cache) == {}

    play(script, check)


@pytest.mark.parametrize(
    "odd",
    [{}, {"metadata": None}, {"metadata": {"name": "x", "resourceVersion": "new"}}, {"value": 1}],
)
def test_an_object_that_cannot_be_read_does_not_end_the_watch(odd: Object) -> None:
    without = item("c", 7)
    del without["value"]
    events = [{"type": "ADDED", "object": odd}, {"type": "ADDED", "object": without}]
    script = Scripted(
        lists=[(5, [odd, item("a", 3, "v")])],
        watches=[[*events, event("ADDED", "b", 8, "x"), None]],
    )

    def check(run: Run) -> None:
        assert dict(run.informer.cache) == {A: "v", B: "x"}
        assert script.count("watch") == 1

    play(script, check)


@pytest.mark.parametrize("answer", [{}, {"text": "<html>"}, {"metadata": {"resourceVersion": ""}}])
def test_what_is_no_list_is_asked_for_again(answer: Object) -> None:
    script = Scripted(lists=[answer, (5, [item("a", 3, "v")])], watches=[[None]])

    def check(run: Run) -> None:
        assert dict(run.informer.cache) == {A: "v"}
        assert script.count("list") == 2

    play(script, check)


def test_the_server_is_not_asked_again_before_it_wants_to_be() -> None:
    busy = TooManyRequests("later", status=429, retry_after=40.0)
    script = Scripted(lists=[busy, (5, [])], watches=[[busy], [None]])

    def check(run: Run) -> None:
        assert run.informer.synced.is_set()
        for what in ("list", "watch"):
            earlier, later = script.times(what)
            assert 40.0 <= later - earlier <= 48.0, what

    play(script, check, after=200.0)


def test_a_stream_that_ends_after_a_good_while_is_followed_by_the_next_at_once() -> None:
    script = Scripted(lists=[(5, [])], watches=[[bookmark(6), 300.0], [None]])

    def check(_: Run) -> None:
        first, second = script.times("watch")
        assert second - first == pytest.approx(300.0, abs=0.01)

    play(script, check, after=400.0)


def test_when_the_server_was_heard_last() -> None:
    script = Scripted(lists=[(5, [])], watches=[[60.0, bookmark(6), 60.0, bookmark(7), None]])

    async def check(run: Run) -> None:
        for expected in (0.0, 60.0, 120.0, 120.0):
            await asyncio.sleep(45.0)
            assert run.informer.heard_at == pytest.approx(expected, abs=0.1)

    async def scenario() -> None:
        run = Run(script)
        assert run.informer.heard_at is None
        await asyncio.sleep(0.001)
        await check(run)
        run.task.cancel()

    run_virtual(scenario())


@pytest.mark.parametrize("what", ["list", "watch"])
def test_an_outage_is_waited_for_with_growing_pauses(what: str) -> None:
    script = (
        Scripted(lists=[Unreachable("no answer")], watches=[[None]])
        if what == "list"
        else Scripted(lists=[(5, [])], watches=[[ServerError("boom", status=500)]])
    )

    def check(_: Run) -> None:
        times = script.times(what)
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert pauses[0] <= 0.8
        assert all(15.0 <= pause <= 30.0 for pause in pauses[6:]), pauses
        assert len(times) <= 50

    play(script, check, after=600.0)


def test_after_an_outage_the_pauses_start_again() -> None:
    failing: list[Script] = [[Unreachable("no answer")] for _ in range(8)]
    script = Scripted(
        lists=[(5, [])],
        watches=[*failing, [event("ADDED", "a", 6), Unreachable("again")], [None]],
    )

    def check(_: Run) -> None:
        times = script.times("watch")
        assert times[-1] - times[-2] <= 0.8

    play(script, check, after=600.0)


@pytest.mark.parametrize("ending", [[gone()], []], ids=["expired", "closed"])
def test_a_watch_that_ends_at_once_does_not_spin(ending: Script) -> None:
    async def scenario() -> None:
        script = Scripted(lists=[(5, [])], watches=[ending])

        def stop_spinning() -> None:
            if len(script.asked) > 500:
                raise AssertionError(f"{len(script.asked)} requests without a pause")

        script.watches = [[stop_spinning, *ending]]
        run = Run(script)
        await asyncio.sleep(60.0)
        if run.task.done():
            run.task.result()
        assert len(script.asked) <= 200
        run.task.cancel()

    run_virtual(scenario())
