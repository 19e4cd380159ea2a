"""Events in virtual time: told once, counted after that, never in the way, never for ever."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from typing_extensions import override

from machine_operator.kube import events as module
from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import (
    ApiError,
    KubeError,
    TooManyRequests,
    Unreachable,
    from_status,
)
from machine_operator.kube.events import EventRecorder, ObjectRef
from machine_operator.kube.series import KNOWN
from tests.support.virtual import eventually, run_virtual

WALL = datetime(2026, 3, 1, tzinfo=UTC)
QUIET = module.QUIET
Object = dict[str, Any]


def failure(code: int, reason: str, message: str) -> ApiError:
    """The error that a client makes of such an answer."""
    return from_status(code, {"kind": "Status", "reason": reason, "message": message})


class EventClient(KubeClient):
    """Keeps Events by name, as kube-apiserver does."""

    def __init__(self) -> None:
        super().__init__(Connection(server="http://fake"))
        self.events: dict[str, Object] = {}
        self.log: list[str] = []
        self.trouble: Callable[[str, Any], KubeError | None] = lambda _method, _body: None
        self.lose_answers = False

    @override
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Object:
        self.log.append(f"{method} {path}")
        await asyncio.sleep(0.01)
        error = self.trouble(method, body)
        if error is not None:
            raise error
        name = path.rpartition("/")[2] if method == "PATCH" else body["metadata"]["name"]
        if method == "POST" and name in self.events:
            raise failure(409, "AlreadyExists", f'events "{name}" already exists')
        if method == "PATCH" and name not in self.events:
            raise failure(404, "NotFound", f'events "{name}" not found')
        self.events[name] = self.events.get(name, {}) | body
        if self.lose_answers:
            raise Unreachable("the connection broke")
        return self.events[name]

    @property
    def told(self) -> list[tuple[str, int]]:
        """Message and count of each."""
        return [(event["message"], event["count"]) for event in self.events.values()]


def machine(name: str = "m", namespace: str = "ns") -> ObjectRef:
    return ObjectRef("machines.dedaluslabs.ai/v1alpha1", "Machine", namespace, name, f"uid-{name}")


class Desk:
    """A recorder in virtual time."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.client = EventClient()
        self.recorder = EventRecorder(
            self.client,
            component="machine-operator",
            instance="pod-1",
            clock=loop.time,
            now=lambda: WALL + timedelta(seconds=loop.time()),
            jitter=lambda: 0.0,
        )

    def note(self, message: str = "it works", *, about: ObjectRef | None = None) -> None:
        self.recorder.note(
            about or machine(), type="Normal", reason="Started", message=message, action="Start"
        )

    @asynccontextmanager
    async def running(self):
        task = asyncio.create_task(self.recorder.run())
        yield
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


def test_an_event_as_kubectl_describe_wants_it():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note()
            await eventually(lambda: desk.client.events, within=1.0)
        ((name, event),) = desk.client.events.items()
        assert desk.client.log == ["POST /api/v1/namespaces/ns/events"]
        assert name.startswith("m.")
        assert event == {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": "ns"},
            "involvedObject": {
                "apiVersion": "machines.dedaluslabs.ai/v1alpha1",
                "kind": "Machine",
                "namespace": "ns",
                "name": "m",
                "uid": "uid-m",
            },
            "type": "Normal",
            "reason": "Started",
            "message": "it works",
            "action": "Start",
            "source": {"component": "machine-operator"},
            "reportingComponent": "machine-operator",
            "reportingInstance": "pod-1",
            "firstTimestamp": "2026-03-01T00:00:00Z",
            "lastTimestamp": "2026-03-01T00:00:00Z",
            "count": 1,
        }

    run_virtual(scenario())


def test_repetition_is_counted_and_written_every_five_minutes():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            for _ in range(1000):  # 1000 s
                desk.note()
                await asyncio.sleep(1.0)
            assert len(desk.client.events) == 1
            assert [line.split()[0] for line in desk.client.log] == ["POST"] + ["PATCH"] * 3
            await asyncio.sleep(QUIET + 1)  # what came since is flushed without a further one
            assert desk.client.told == [("it works", 1000)]
            (event,) = desk.client.events.values()
            assert event["lastTimestamp"] == "2026-03-01T00:16:39Z"
            assert event["firstTimestamp"] == "2026-03-01T00:00:00Z"
            written = len(desk.client.log)
            await asyncio.sleep(10 * QUIET)
            assert len(desk.client.log) == written, "a series at rest is written"

    run_virtual(scenario())


def test_what_comes_again_after_the_window_is_a_new_event():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note()
            await asyncio.sleep(3700.0)
            desk.note()
            await eventually(lambda: len(desk.client.events) == 2, within=1.0)

    run_virtual(scenario())


def test_an_event_that_the_server_forgot_is_told_again_with_what_is_new():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note()
            await asyncio.sleep(1.0)
            desk.client.events.clear()
            desk.note()
            desk.note()
            await asyncio.sleep(QUIET + 1)
            assert desk.client.told == [("it works", 2)]

    run_virtual(scenario())


def test_a_lost_answer_makes_no_second_event():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.client.lose_answers = True
            desk.note()
            await asyncio.sleep(0.5)
            desk.note()
            desk.client.lose_answers = False
            await asyncio.sleep(60.0)
            assert desk.client.told == [("it works", 2)]

    run_virtual(scenario())


def test_one_object_with_too_much_to_say_is_limited_and_others_are_not():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            for number in range(100):
                desk.note(f"news {number}")
            desk.note("something else", about=machine("other"))
            await asyncio.sleep(10.0)
            assert len(desk.client.events) == 26
            assert ("something else", 1) in desk.client.told
            assert desk.recorder.tally.limited == 75
            await asyncio.sleep(300.0)  # one more per five minutes
            desk.note("late news")
            desk.note("later news")
            await asyncio.sleep(10.0)
            assert len(desk.client.events) == 27

    run_virtual(scenario())


def test_an_outage_of_ten_minutes_loses_nothing_and_costs_few_requests():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.client.trouble = lambda *_: Unreachable("refused")
            for number in range(20):
                desk.note(about=machine(f"m{number}"))
            await asyncio.sleep(600.0)
            assert len(desk.client.log) < 40
            desk.client.trouble = lambda *_: None
            await eventually(lambda: len(desk.client.events) == 20, within=32.0)

    run_virtual(scenario())


def test_what_fails_for_ever_is_given_up_and_does_not_hold_up_others():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.client.trouble = lambda _, body: (
                failure(500, "InternalError", "webhook") if body.get("message") == "bad" else None
            )
            desk.note("bad")
            desk.note("good", about=machine("other"))
            await eventually(lambda: desk.client.told == [("good", 1)], within=3.0)
            await eventually(lambda: desk.recorder.tally.given_up == 1, within=1000.0)
            tried = len(desk.client.log)
            await asyncio.sleep(1000.0)
            assert len(desk.client.log) == tried

    run_virtual(scenario())


def test_a_server_that_says_when_is_obeyed():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            wait = TooManyRequests("slow down", status=429, retry_after=20.0)
            desk.client.trouble = lambda *_: wait
            desk.note()
            await asyncio.sleep(19.0)
            assert len(desk.client.log) == 1
            desk.client.trouble = lambda *_: None
            await eventually(lambda: desk.client.events, within=3.0)

    run_virtual(scenario())


@pytest.mark.parametrize(
    "error",
    [
        failure(403, "Forbidden", "unable to create: namespace ns is being terminated"),
        failure(404, "NotFound", 'namespaces "ns" not found'),
        failure(422, "Invalid", "involvedObject.namespace: does not match"),
    ],
    ids=lambda error: error.reason,
)
def test_what_the_server_does_not_take_is_dropped_with_a_line(
    error: KubeError, caplog: pytest.LogCaptureFixture
):
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.client.trouble = lambda *_: error
            desk.note()
            await asyncio.sleep(600.0)
            assert len(desk.client.log) == 1
            assert desk.recorder.tally.refused == 1
            desk.note()  # minutes later it is tried again
            desk.note()
            await asyncio.sleep(1.0)
            assert len(desk.client.log) == 2

    with caplog.at_level(logging.DEBUG, logger=module.__name__):
        run_virtual(scenario())
    assert [record.levelname for record in caplog.records] == ["DEBUG", "DEBUG"]


def test_memory_is_bounded_and_what_gives_way_is_counted():
    async def scenario() -> None:
        desk = Desk()
        for number in range(3 * KNOWN):  # nobody writes
            desk.note(about=machine(f"m{number}"))
        recorder = desk.recorder
        assert recorder.tally.overflowed == 3 * KNOWN - module.WAITING
        assert len(recorder._ready) == module.WAITING
        assert len(recorder._memory.series) == len(recorder._memory.budgets) == KNOWN
        async with desk.running():
            await eventually(lambda: len(desk.client.events) == module.WAITING, within=60.0)
        # The newest ones are those that were kept.
        assert f"m{3 * KNOWN - 1}" in {
            e["involvedObject"]["name"] for e in desk.client.events.values()
        }

    run_virtual(scenario())


def test_the_end_writes_what_is_left_but_not_for_long():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note()
            await asyncio.sleep(1.0)
            desk.note()
            desk.note("last words")
        assert sorted(desk.client.told) == [("it works", 2), ("last words", 1)]
        async with desk.running():
            for number in range(1000):
                desk.note(about=machine(f"m{number}"))
            ended = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - ended <= module.LAST_WORDS + 0.1

    run_virtual(scenario())


def test_a_write_that_the_end_cuts_off_is_written_after_all():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note()
            await asyncio.sleep(0.005)
            assert desk.client.log
        assert desk.client.told == [("it works", 1)]

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("a" * 1024, "a" * 1024),
        ("a" * 1025, "a" * 1021 + "…"),
        ("ä" * 600, "ä" * 510 + "…"),
        ("🙂" * 257, "🙂" * 255 + "…"),
        ("bad \ud800 surrogate", "bad ? surrogate"),
    ],
)
def test_messages_are_cut_between_characters(message: str, expected: str):
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note(message)
            await eventually(lambda: desk.client.events, within=1.0)
        (told,) = desk.client.told
        assert told[0] == expected
        assert len(told[0].encode()) <= 1024

    run_virtual(scenario())


def test_long_names_and_objects_of_the_cluster():
    async def scenario() -> None:
        desk = Desk()
        async with desk.running():
            desk.note(about=machine("a." * 126 + "a", namespace=""))
            await eventually(lambda: desk.client.events, within=1.0)
        ((name, event),) = desk.client.events.items()
        assert len(name) <= 253
        assert ".." not in name
        assert event["metadata"]["namespace"] == "default"
        assert "namespace" not in event["involvedObject"]

    run_virtual(scenario())


def test_a_note_never_raises(caplog: pytest.LogCaptureFixture):
    async def scenario() -> None:
        desk = Desk()
        broken: Any = None
        desk.recorder.note(machine(), type="Normal", reason="X", message=broken, action="Y")

    run_virtual(scenario())
    assert "an error that is ours" in caplog.text
