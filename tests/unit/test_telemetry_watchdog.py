"""The watchdog and loops that are really blocked, with small limits."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest

from machine_operator.telemetry.watchdog import STUCK, Finding, Judge, Watchdog
from tests.support.virtual import eventually

DIES = """
LAST_WORDS = 5
import asyncio, logging, time
from machine_operator.telemetry.watchdog import Watchdog
logging.basicConfig()
async def main():
    async with Watchdog(warn=0.05, limit=0.1, last_words=LAST_WORDS):
        time.sleep(30)
asyncio.run(main())
"""

LOG_IS_STUCK = DIES.replace(
    "logging.basicConfig()",
    """
class Stuck(logging.Handler):
    def emit(self, record):
        time.sleep(30)
logging.getLogger().addHandler(Stuck())
""",
).replace("LAST_WORDS = 5", "LAST_WORDS = 0.1")


def block_until(holds: Callable[[], bool], *, within: float = 10.0) -> None:
    """Blocks the loop's thread, on purpose."""
    deadline = time.monotonic() + within
    while not holds():
        assert time.monotonic() < deadline, "the watchdog does not see that the loop is blocked"
        time.sleep(0.01)


async def test_a_blocked_loop_is_seen(caplog: pytest.LogCaptureFixture) -> None:
    stuck: list[str] = []

    def told(text: str) -> int:
        return sum(text in record.getMessage() for record in caplog.records)

    async with Watchdog(
        warn=0.05,
        limit=0.15,
        on_stuck=lambda: stuck.append(threading.current_thread().name),
        beat=0.01,
    ):
        block_until(lambda: bool(stuck))
        await eventually(lambda: told("turns again"), within=10.0, state=lambda: caplog.text)
        assert stuck[0] == "watchdog"
        stacks = [record.stack_info for record in caplog.records if record.stack_info]
        assert "the one of the event loop" in stacks[0]
        assert "block_until" in stacks[0], "the culprit is not in the stacks"
        assert all(record.levelno >= logging.WARNING for record in caplog.records)
        seen = len(stuck)
        block_until(lambda: len(stuck) > seen)  # the second time as the first
    assert told("cannot go on") == len(stuck)


async def test_a_turning_loop_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    stuck: list[int] = []
    lags: list[float] = []
    async with Watchdog(
        warn=3.0, limit=5.0, on_stuck=lambda: stuck.append(1), on_lag=lags.append, beat=0.01
    ):
        await eventually(lambda: len(lags) >= 3, within=10.0, state=lambda: lags)
    assert not stuck
    assert not caplog.records
    assert all(lag >= 0.0 for lag in lags)


async def test_lag_is_measured() -> None:
    lags: list[float] = []
    async with Watchdog(on_lag=lags.append, beat=0.01):
        await eventually(lambda: lags, within=10.0)
        lags.clear()
        blocked = time.monotonic() + 0.1
        block_until(lambda: time.monotonic() > blocked)
        await eventually(lambda: lags, within=10.0)
        assert lags[0] >= 0.05


async def test_it_ends_with_its_block() -> None:
    def running() -> bool:
        return any(thread.name == "watchdog" for thread in threading.enumerate())

    async with Watchdog():
        assert running()
    assert not running()


@pytest.mark.parametrize("program", [DIES, LOG_IS_STUCK], ids=["log works", "log is stuck"])
def test_a_stuck_process_ends(program: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=False,
        timeout=20,
        env={"PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == STUCK, done.stderr
    if program is DIES:
        assert "cannot go on" in done.stderr
        assert "time.sleep(30)" in done.stderr or "in main" in done.stderr


# ---- what a look says, without a clock


def looks(*marks_and_times: tuple[float, float]) -> list[str]:
    """The findings of looks at (mark, now), each in time."""
    judge = Judge(warn=10.0, limit=60.0, beat=1.0)
    return [judge.look(now=now, planned=now, mark=mark).name for mark, now in marks_and_times]


def test_each_thing_is_said_once() -> None:
    assert looks((0, 10), (0, 11), (0, 60), (0, 61), (61.5, 62), (62, 63)) == [
        "SLOW",
        "NOTHING_NEW",
        "STUCK",
        "NOTHING_NEW",
        "RECOVERED",
        "NOTHING_NEW",
    ]


def test_a_loop_that_turned_again_gets_all_of_its_time() -> None:
    assert looks((0, 10), (40, 41), (40, 50), (40, 99), (40, 100)) == [
        "SLOW",
        "RECOVERED",
        "SLOW",
        "NOTHING_NEW",
        "STUCK",
    ]


def test_the_stacks_come_before_the_end_however_late_the_look_is() -> None:
    assert looks((0, 500), (0, 500)) == ["SLOW", "STUCK"]


def test_a_process_that_was_stopped_is_not_stuck() -> None:
    judge = Judge(warn=10.0, limit=60.0, beat=1.0)
    assert judge.look(now=500.0, planned=10.0, mark=0.0) is Finding.FROZEN
    assert judge.look(now=510.0, planned=510.0, mark=500.0) is Finding.SLOW


def test_looks_are_rare_while_all_is_well() -> None:
    judge = Judge(warn=10.0, limit=60.0, beat=1.0)
    assert judge.pause(now=1.0, mark=0.5) == 9.5
    assert judge.pause(now=30.0, mark=0.5) == 0.0
    judge.look(now=10.5, planned=10.5, mark=0.5)
    assert judge.pause(now=10.5, mark=0.5) == 1.0
    assert judge.pause(now=60.0, mark=0.5) == 0.5
