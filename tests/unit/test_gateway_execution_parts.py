"""The parts of executions that need no guest: pieces of output, lines before machines, outcomes, byte ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.gateway.artifacts.ranges import ByteRange, NotSatisfiable, read_range
from machine_operator.gateway.executions.chunks import CHUNK, pieces, whole_characters
from machine_operator.gateway.executions.lines import LineFull, Lines
from machine_operator.gateway.executions.outcomes import of_ended
from machine_operator.guest.job import Ended

# ---- pieces


@pytest.mark.parametrize(
    ("data", "whole"),
    [
        (b"", 0),
        (b"abc", 3),
        ("aé".encode(), 3),
        ("aé".encode()[:-1], 1),
        ("€".encode()[:2], 0),
        ("x😀".encode()[:4], 1),
        (b"\xff", 1),
        (b"\xc0", 1),  # begins nothing
        (b"\x80\x80\x80\x80\x80", 5),
        (b"\xe2\x28", 2),  # a character that does not go on
        (b"\xed\xa0", 2),  # half of a surrogate pair is none
        (b"\xf4\x90", 2),  # beyond Unicode
    ],
)
def test_where_the_last_whole_character_ends(data: bytes, whole: int) -> None:
    assert whole_characters(data) == whole


@given(
    st.lists(st.one_of(st.binary(max_size=8), st.text(max_size=5).map(str.encode)), max_size=30),
    st.lists(st.integers(1, 20), min_size=1, max_size=30),
)
def test_pieces_read_one_by_one_come_to_the_same_text(parts: list[bytes], steps: list[int]) -> None:
    data, shown, position = b"".join(parts), "", 0
    for step in steps:
        for piece in pieces(data[position : position + step], last=False):
            shown += piece.decode(errors="replace")
            position += len(piece)
    for piece in pieces(data[position:], last=True):
        shown += piece.decode(errors="replace")
        position += len(piece)
    assert position == len(data)
    assert shown == data.decode(errors="replace")


def test_long_output_comes_in_pieces_that_end_with_characters() -> None:
    data = ("x" + "é" * CHUNK).encode()
    found = list(pieces(data, last=True))
    assert b"".join(found) == data
    assert all(0 < len(piece) <= CHUNK for piece in found)
    assert all(piece.decode() for piece in found)


# ---- lines


class Runs:
    def __init__(self, **limits: int) -> None:
        self.begun: list[tuple[str, str]] = []
        self.now = 0.0
        self.lines = Lines(
            **{"at_once": 2, "queue": 3, "most": 100, **limits},
            start=lambda machine, id: self.begun.append((machine, id)),
            clock=lambda: self.now,
        )

    def come(self, machine: str, id: str, *, ready: bool = True) -> bool:
        at_once = self.lines.promise(machine, id, ready=ready)
        if not at_once:
            self.lines.wait(machine, id)
        return at_once


def test_so_many_run_so_many_wait_and_no_more_come() -> None:
    runs = Runs()
    assert [runs.come("m", str(n)) for n in range(5)] == [True, True, False, False, False]
    with pytest.raises(LineFull):
        runs.lines.promise("m", "5", ready=True)
    assert runs.begun == []
    runs.lines.drop("m", "0")
    assert runs.begun == [("m", "2")]
    assert not runs.come("m", "6"), "those that wait come first"
    for id in ("1", "2", "3", "4", "6"):
        runs.lines.drop("m", id)
    assert [id for _, id in runs.begun] == ["2", "3", "4", "6"]
    assert runs.lines.machines == []


def test_promises_count_and_can_be_taken_back() -> None:
    runs = Runs(queue=1)
    assert not runs.lines.promise("m", "a", ready=False)
    with pytest.raises(LineFull):
        runs.lines.promise("m", "b", ready=False)
    runs.lines.drop("m", "a")
    assert runs.lines.machines == []
    assert not runs.lines.promise("m", "b", ready=False)


def test_a_line_opens_and_closes_with_its_machine() -> None:
    runs = Runs()
    runs.come("m", "a", ready=False)
    runs.come("m", "b", ready=False)
    assert runs.begun == []
    runs.lines.open("m")
    assert runs.begun == [("m", "a"), ("m", "b")]
    runs.come("m", "c")
    runs.lines.close("m")
    runs.lines.drop("m", "a")
    assert len(runs.begun) == 2
    runs.lines.open("m")
    assert runs.begun[-1] == ("m", "c")


def test_machines_take_turns_where_all_places_are_taken() -> None:
    runs = Runs(at_once=4, queue=100, most=4)
    assert all(runs.come("big", f"first-{n}") for n in range(4))
    for n in range(10):
        runs.come("big", f"b{n}")
    for n in range(2):
        runs.come("small", f"s{n}")
        runs.come("other", f"o{n}")
    for n in range(4):
        runs.lines.drop("big", f"first-{n}")
    # Of four places that are free, each machine gets one before one gets another.
    assert sorted(machine for machine, _ in runs.begun[:3]) == ["big", "other", "small"]
    ended = 0
    while ended < len(runs.begun):
        runs.lines.drop(*runs.begun[ended])
        ended += 1
    assert ended == 14
    assert runs.lines.machines == []


def test_what_runs_already_takes_a_place_even_where_there_is_none() -> None:
    runs = Runs(at_once=1)
    runs.come("m", "a")
    runs.come("m", "b")
    runs.lines.adopt("m", "b")
    runs.lines.adopt("m", "b")
    runs.come("m", "c")
    runs.lines.drop("m", "a")
    assert runs.begun == [], "b has taken the only place"
    runs.lines.drop("m", "b")
    assert runs.begun == [("m", "c")]


# ---- outcomes


@pytest.mark.parametrize(
    ("ended", "status", "exit_code", "signal", "code"),
    [
        (Ended(0, None, None), "succeeded", 0, None, None),
        (Ended(3, None, None), "failed", 3, None, None),
        (Ended(None, 9, None), "failed", 137, 9, "signal: 9"),
        (Ended(None, 64, None), "failed", 192, 64, "signal: 64"),
        (Ended(None, 15, None, overdue=True), "expired", None, None, "execution_timed_out"),
        (
            Ended(None, None, "exec_init_rejected: no such file"),
            "failed",
            None,
            None,
            "host_agent_execute_failed",
        ),
        (
            Ended(None, None, "its keeper was killed"),
            "failed",
            None,
            None,
            "execution_runner_interrupted",
        ),
    ],
)
def test_how_a_program_ended(
    ended: Ended, status: str, exit_code: int | None, signal: int | None, code: str | None
) -> None:
    outcome = of_ended(ended)
    assert (outcome.status, outcome.exit_code, outcome.signal, outcome.error_code) == (
        status,
        exit_code,
        signal,
        code,
    )
    assert (outcome.error_message is None) == (code is None)


def test_words_from_a_guest_are_words_for_any_database() -> None:
    message = of_ended(Ended(None, None, "exec_init_rejected: \0\udcff" + "x" * 9999)).error_message
    assert message is not None
    assert message.startswith("exec_init_rejected: ??x")
    assert len(message) <= 500


# ---- byte ranges


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("bytes=0-0", (0, 1)),
        ("bytes=2-", (2, 10)),
        ("bytes=2-999", (2, 10)),
        ("bytes=-3", (7, 10)),
        ("bytes=-999", (0, 10)),
        ("bytes=-", None),
        ("bytes=5-2", None),
        ("bytes=0-1,3-4", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        ("bytes=0-1" + "9" * 30, None),
        ("bytes=10-", "416"),
        ("bytes=-0", "416"),
    ],
)
def test_ranges(header: str | None, expected: tuple[int, int] | str | None) -> None:
    if expected == "416":
        with pytest.raises(NotSatisfiable):
            read_range(header, size=10)
        return
    found = read_range(header, size=10)
    assert found == (None if expected is None else ByteRange(*expected))  # type: ignore[misc]


def test_nothing_has_no_ranges() -> None:
    with pytest.raises(NotSatisfiable):
        read_range("bytes=0-", size=0)
    assert read_range(None, size=0) is None
