"""What is said to a guest's runner, and what it answers: quoting for a shell, and reading lines."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.guest.job import Ended, Job, check_id, job_line, quoted
from machine_operator.guest.spool import (
    Absent,
    Counts,
    Gone,
    Place,
    Said,
    Seen,
    Slots,
    Starting,
    parse,
)

WORDS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)


def test_any_text_is_one_word_and_one_line() -> None:
    texts = [
        "",
        "a b",
        "it's",
        '$HOME `x` \\ "',
        "new\nline",
        "\n'\n",
        "\r\t",
        "Ł€😀",
        "\udcff",
        "-n",
    ]
    words = b" ".join(map(quoted, texts))
    assert b"\n" not in words
    script = b"newline='\n'\nset -- " + words + b"\nfor word; do printf '%s\\0' \"$word\"; done"
    done = subprocess.run(["/bin/sh"], input=script, capture_output=True, check=True)
    assert done.stdout == b"".join(t.encode("utf-8", "surrogateescape") + b"\0" for t in texts)


@given(WORDS)
def test_a_quoted_word_is_one_word_on_one_line(text: str) -> None:
    word = quoted(text)
    assert b"\n" not in word
    assert shlex.split(word.decode()) == [text.replace("\n", "$newline")]


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_what_no_program_can_be_told_is_an_error(text: str) -> None:
    with pytest.raises(ValueError):
        quoted(text)


def test_variables_that_a_shell_would_not_pass_on_are_set_by_env() -> None:
    env = {"A": "1", "my-var": "2", "IFS": "3", "BASH_ENV": "4", "_x": "5", "LC_ALL": "6"}
    line = job_line(
        Job("j1", ("prog", "x"), cwd="/d", env=env, timeout=0.2, kept_bytes=7), stdin="/i"
    )
    assert line == (
        b"job 'j1' '7' '1' '/i' '/d' '2' 'A=1' 'LC_ALL=6' 'env' 'my-var=2' 'IFS=3' 'BASH_ENV=4' '_x=5' 'prog' 'x'"
    )


@pytest.mark.parametrize(
    "job",
    [
        Job("j", (), cwd="/"),
        Job("j", ("a",), cwd="/", env={"": "x"}),
        Job("j", ("a",), cwd="/", env={"a=b": "x"}),
        Job("j", ("a",), cwd="/", env={"a": "x\0"}),
        Job("../j", ("a",), cwd="/"),
        Job("j", ("a\0",), cwd="/"),
    ],
)
def test_a_job_that_cannot_be_is_an_error(job: Job) -> None:
    with pytest.raises(ValueError):
        job_line(job, stdin="/dev/null")


@pytest.mark.parametrize("identity", ["", "a b", "a/b", "..", "a'b", "-a", "a" * 101, "a\n", "é"])
def test_ids_are_words_of_a_file_name(identity: str) -> None:
    with pytest.raises(ValueError):
        check_id(identity)


def test_a_job_does_not_show_its_secrets() -> None:
    job = Job("j", ("a",), cwd="/", env={"TOKEN": "hunter2"}, stdin=b"hunter2")
    assert "hunter2" not in repr(job)


@pytest.mark.parametrize(
    ("line", "verb", "key", "body"),
    [
        ("ready", "ready", "", None),
        ("filled 7 9", "filled", "", Slots(7, 9)),
        ("started j t-1 99", "started", "j", Seen(Place("t-1"))),
        (
            "ended j t-1 3 0 1 ",
            "ended",
            "j",
            Seen(Place("t-1"), Ended(3, None, None, artifacts=True)),
        ),
        ("ended j t-1 137 9 0 ", "ended", "j", Seen(Place("t-1"), Ended(None, 9, None))),
        (
            "ended j t-1 127 0 0 a b: not found",
            "ended",
            "j",
            Seen(Place("t-1"), Ended(None, None, "exec_init_rejected: a b: not found")),
        ),
        ("counted j 5 6", "counted", "j", Counts(5, 6)),
        ("out j a  b\r", "said", "j", Said("stdout", b"a  b\r\n")),
        ("out j ", "said", "j", Said("stdout", b"\n")),
        ("err-end j x", "said", "j", Said("stderr", b"x")),
        ("refused j no room", "refused", "j", Gone("exec_init_rejected: no room")),
        ("state j absent", "state", "j", Absent()),
        ("state j starting", "state", "j", Starting()),
        ("state j running t-1 10", "state", "j", Seen(Place("t-1", 10))),
        (
            "state j ended t-1 10 0 0 0 5 6 1 9 ",
            "state",
            "j",
            Seen(Place("t-1", 10), Ended(0, None, None, overdue=True), Counts(5, 6), due=9),
        ),
        (
            "state j ended t-1 10 143 15 0 - - 0 0 ",
            "state",
            "j",
            Seen(Place("t-1", 10), Ended(None, 15, None)),
        ),
    ],
)
def test_what_the_runner_says(line: str, verb: str, key: str, body: object) -> None:
    reply = parse(f"tok {line}".encode(), token="tok")
    assert reply is not None
    assert (reply.verb, reply.key, reply.body) == (verb, key, body)


def test_output_is_bytes() -> None:
    reply = parse(b"tok err j \xff\xfe \0", token="tok")
    assert reply is not None
    assert reply.body == Said("stderr", b"\xff\xfe \0\n")


def test_a_job_whose_keeper_is_gone_has_failed_for_no_reason_of_its_own() -> None:
    reply = parse(b"tok state j ended t-1 10 - 0 0 - - 0 0 ", token="tok")
    assert reply is not None
    assert isinstance(reply.body, Seen)
    assert reply.body.ended is not None
    assert "lost track" in (reply.body.ended.failure or "")


@pytest.mark.parametrize(
    "line",
    [b"", b"tok", b"Welcome to Linux", b"other ready", b"tok ended j", b"tok what j", b"\xff\xfe"],
)
def test_other_lines_are_not_the_runners(line: bytes) -> None:
    assert parse(line, token="tok") is None
