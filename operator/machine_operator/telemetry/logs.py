"""Structured logs on one stream: a sentence for people, and fields for machines.

    log.info("machine sleeps", extra=fields(machine="team-a/hello", phase="sleeping"))

is, by format:

    text    2026-01-02 03:04:05.678 INFO controller.journal: machine sleeps machine=team-a/hello phase=sleeping
    logfmt  time=2026-01-02T03:04:05.678Z level=info logger=... msg="machine sleeps" machine=team-a/hello phase=sleeping
    json    {"time":"2026-01-02T03:04:05.678Z","level":"info","logger":"...","msg":"machine sleeps","machine":...}

In json and logfmt a record is one line whatever is in it, tracebacks included; in text only tracebacks have several.
Nothing leaves without having gone through `redaction`. Other libraries' chatter is kept down.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

import orjson
from typing_extensions import override

from machine_operator.telemetry.redaction import redact, redact_value

__all__ = ["FORMATS", "LogFormat", "configure", "fields"]

LogFormat = Literal["text", "json", "logfmt"]
FORMATS: tuple[LogFormat, ...] = ("text", "json", "logfmt")

_QUIET = ("aiohttp.access", "asyncio", "kopf", "kubernetes", "urllib3")
"""Loggers that are heard from WARNING on. kopf tells each event at INFO or DEBUG."""

_PACKAGE = "machine_operator."

_OWN = frozenset(
    (*logging.LogRecord("", 0, "", 0, "", (), None).__dict__, "message", "asctime", "taskName")
)
"""Attributes of every record; all others were given as `extra`."""

_FOREIGN = frozenset(("k8s_skip", "settings"))
"""Extras by which kopf's parts talk to each other."""

_HEAD = frozenset(("time", "level", "logger", "msg", "error"))

_PLAIN = re.compile(r"[^\s\"=\\\x00-\x1f\x7f]+")


def fields(**values: Any) -> dict[str, Any]:
    """The `extra` of a log call. Unlike in a plain dict, any name will do, also those of a record's own attributes."""
    return {"fields": values}


def configure(
    format: LogFormat = "text", level: str = "INFO", *, stream: TextIO | None = None
) -> None:
    """Set up the process's logs; calling it again replaces what it did before.

    Args:
        format: text for people at a terminal; json or logfmt for collectors.
        level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in any case.
        stream: where to; standard error where not given.

    Raises:
        ValueError: there is no such format or level.
    """
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"{level!r} is no log level: use debug, info, warning, error or critical")
    if format not in FORMATS:
        raise ValueError(f"{format!r} is no log format: use one of {', '.join(FORMATS)}")
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one, _Handler)]:
        root.removeHandler(handler)
    handler = _Handler(stream or sys.stderr)
    handler.setFormatter({"text": _Text, "json": _Json, "logfmt": _Logfmt}[format]())
    root.addHandler(handler)
    root.setLevel(number)
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))
    logging.captureWarnings(True)


class _Handler(logging.StreamHandler[TextIO]):
    """Its complaints about itself show no arguments of a record, which would go out unredacted."""

    @override
    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        where = f"{record.name}, line {record.lineno}"
        try:
            sys.stderr.write(f"a log record of {where} was lost: {type(error).__name__}\n")
        except (OSError, ValueError):
            return  # standard error is gone as well: there is nobody left to tell


class _Formatter(logging.Formatter):
    """What the formats have in common."""

    def _message(self, record: logging.LogRecord) -> str:
        try:
            return redact(record.getMessage())
        except (TypeError, ValueError, KeyError) as error:
            return redact(f"{record.msg!r} with arguments {record.args!r} that do not fit: {error}")

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        given = {
            name: value for name, value in record.__dict__.items() if name not in _OWN | _FOREIGN
        }
        bundled = given.pop("fields", None)
        if isinstance(bundled, Mapping):
            given.update(bundled)
        elif bundled is not None:
            given["fields"] = bundled
        return {
            f"{name}_" if name in _HEAD else name: redact_value(name, value)
            for name, value in given.items()
        }

    def _error(self, record: logging.LogRecord) -> str:
        parts = []
        if record.exc_info and record.exc_info[0] is not None:
            parts.append(self.formatException(record.exc_info))
        elif record.exc_text:
            parts.append(record.exc_text)
        if record.stack_info:
            parts.append(record.stack_info)
        return redact("\n".join(parts))

    def _head(self, record: logging.LogRecord) -> dict[str, Any]:
        moment = datetime.fromtimestamp(record.created, tz=UTC)
        head = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix(_PACKAGE),
            "msg": self._message(record),
            **self._fields(record),
        }
        error = self._error(record)
        return head | {"error": error} if error else head


class _Json(_Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        # Surrogates (undecodable bytes of a file name) are no JSON.
        head = self._head(record)
        try:
            return orjson.dumps(head, default=str).decode()
        except orjson.JSONEncodeError:
            return orjson.dumps(_clean(head), default=str).decode()


class _Logfmt(_Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        return _pairs(self._head(record))


class _Text(_Formatter):
    @override
    def format(self, record: logging.LogRecord) -> str:
        head = self._head(record)
        error = head.pop("error", "")
        moment = head.pop("time").replace("T", " ").removesuffix("Z")
        level, logger = head.pop("level").upper(), head.pop("logger")
        line = f"{moment} {level} {logger}: {_one_line(head.pop('msg'))}"
        if head:
            line = f"{line} {_pairs(head)}"
        return f"{line}\n{error}" if error else line


def _pairs(values: Mapping[str, Any]) -> str:
    return " ".join(f"{_key(name)}={_value(value)}" for name, value in values.items())


def _key(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name) or "_"


def _value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, dict | list):
        value = orjson.dumps(_clean(value), default=str).decode()
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return '"' + _one_line(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def _one_line(text: str) -> str:
    """Control characters are escaped: nobody forges a line, or steers a terminal."""
    text = text.replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode() for one in text
    )


def _clean(value: Any) -> Any:
    """Without surrogates, and with keys and numbers that JSON has."""
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_clean(one) for one in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, int) and abs(value) >= 2**63:
        return str(value)
    return value
