"""Log lines in their three formats."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from machine_operator.telemetry.logs import FORMATS, LogFormat, configure, fields

log = logging.getLogger("machine_operator.controller.journal")

Read = Callable[[], str]
Start = Callable[..., Read]


@pytest.fixture
def start() -> Iterator[Start]:
    """Sets up logs, and returns what reads them; afterwards all is as before."""
    root = logging.getLogger()
    names = ("kopf", "aiohttp.access", "asyncio", "kubernetes", "urllib3")
    before = (root.level, list(root.handlers), [logging.getLogger(n).level for n in names])

    def begin(format: LogFormat = "text", level: str = "info") -> Read:
        stream = io.StringIO()
        root.handlers[:] = [one for one in root.handlers if one not in before[1]]
        configure(format, level, stream=stream)
        return stream.getvalue

    with warnings.catch_warnings():
        warnings.simplefilter("default")
        yield begin
        logging.captureWarnings(False)
    root.setLevel(before[0])
    root.handlers[:] = before[1]
    for name, level in zip(names, before[2], strict=True):
        logging.getLogger(name).setLevel(level)


def fail(why: str = "two\nlines") -> None:
    raise ValueError(why)


def test_text_is_for_people(start: Start) -> None:
    read = start("text")
    log.info("machine %s", "sleeps", extra=fields(machine="a/b", why="nobody uses it"))
    when, _, rest = read().partition(" INFO ")
    assert len(when) == len("2026-01-02 03:04:05.678")
    assert rest == 'controller.journal: machine sleeps machine=a/b why="nobody uses it"\n'


def test_json_has_one_line_per_record(start: Start) -> None:
    read = start("json")
    try:
        fail()
    except ValueError:
        log.exception("it\nbroke", extra={"machine": "a/b", "code": 409, "ready": False})
    log.info("second", stack_info=True)
    first, second = (json.loads(line) for line in read().splitlines())
    assert first["time"].endswith("Z")
    assert (first["level"], first["logger"]) == ("error", "controller.journal")
    assert (first["msg"], first["machine"], first["code"]) == ("it\nbroke", "a/b", 409)
    assert first["ready"] is False
    assert first["error"].startswith("Traceback")
    assert first["error"].endswith("ValueError: two\nlines")
    assert "test_json_has_one_line" in second["error"]


def test_logfmt_has_one_line_per_record(start: Start) -> None:
    read = start("logfmt")
    try:
        fail()
    except ValueError:
        log.exception('say "no"', extra=fields(why="a=b", none=None, many=[1, "x"], empty=""))
    (line,) = read().splitlines()
    assert ' level=error logger=controller.journal msg="say \\"no\\"" why="a=b" none=null' in line
    assert ' many="[1,\\"x\\"]" empty="" error="Traceback' in line


@pytest.mark.parametrize("format", FORMATS)
def test_nobody_forges_a_line(start: Start, format: LogFormat) -> None:
    read = start(format)
    log.info("name %s", "x\n2026 ERROR \x1b[2J\u2028", extra=fields(y="1\nb=2\x07"))
    assert read().count("\n") == 1
    assert "\x1b" not in read()
    assert "\x07" not in read()


@pytest.mark.parametrize("format", FORMATS)
def test_secrets_do_not_get_through(start: Start, format: LogFormat) -> None:
    read = start(format)
    key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----"
    log.info("seed %s", key, extra=fields(seed={"data": [key.encode()]}, token="c2VjcmV0"))
    log.info(
        "headers %s", {"Authorization": "Bearer c2VjcmV0"}, extra={"authorization": "c2VjcmV0"}
    )
    try:
        fail(key)
    except ValueError:
        log.exception("failed")
    log.info("wrong %d", "Bearer c2VjcmV0")
    assert "c2VjcmV0" not in read()
    assert read().count("redacted") >= 6


@pytest.mark.parametrize("format", FORMATS)
def test_no_record_is_lost(start: Start, format: LogFormat) -> None:
    read = start(format)
    log.info("too %s %s", *["few"])
    log.info("odd", extra=fields(name="n", msg="m", level="l", args=1, huge=2**70, bad="\udcff"))
    log.info("object", extra={"it": object(), "pair": {1: {2}}, "nan": float("nan")})
    lines = read().splitlines()
    assert len(lines) == 3
    assert "too" in lines[0]
    assert "few" in lines[0]
    assert str(2**70) in lines[1]
    if format == "json":
        odd = json.loads(lines[1])
        assert (odd["name"], odd["msg"], odd["msg_"], odd["level_"]) == ("n", "odd", "m", "l")


def test_a_broken_stream_shows_no_arguments(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    logging.getLogger().handlers[-1].stream.close()  # type: ignore[attr-defined]
    log.info("the key %s", "c2VjcmV0")
    told = capsys.readouterr().err
    assert "controller.journal" in told
    assert "c2VjcmV0" not in told


def test_other_libraries_are_quiet(start: Start) -> None:
    read = start("text", "debug")
    for name in ("kopf.objects", "kopf._core.reactor", "aiohttp.access"):
        logging.getLogger(name).info("chatter")
    # kopf's own handler, there where it was imported, asks the record's settings whether to post it.
    settings = SimpleNamespace(posting=SimpleNamespace(enabled=False, level=0, loggers=False))
    logging.getLogger("kopf.objects").warning("news", extra={"settings": settings, "k8s_skip": 1})
    log.debug("ours")
    assert [line.split(" ", 3)[3] for line in read().splitlines()] == [
        "kopf.objects: news",
        "controller.journal: ours",
    ]


def test_warnings_of_python_are_logged(start: Start) -> None:
    read = start("json")
    warnings.warn("soon gone", FutureWarning, stacklevel=1)
    assert "soon gone" in json.loads(read())["msg"]


def test_configuring_again_replaces(start: Start) -> None:
    first, second = start(), start("json", "ERROR")
    log.error("once")
    log.info("not at all")
    assert first() == ""
    assert len(second().splitlines()) == 1


def test_what_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="'loud' is no log level: use debug"):
        configure("text", "loud")
    with pytest.raises(ValueError, match="'xml' is no log format: use one of text, json, logfmt"):
        configure("xml")  # type: ignore[arg-type]
