"""A program to be run in a guest, and how it ended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import ceil

__all__ = ["ArtifactFile", "Ended", "Job", "check_id", "job_line", "quoted", "too_long"]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")
_PLAIN_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")

# What Linux takes: of one argument or variable, and about all together (a quarter of the usual stack, less some room).
_LONGEST_WORD = 131_071
_MOST_WORDS = 1_900_000

# A shell gives these a meaning of its own, or does not let go of them: `env` sets them instead.
_SHELLS_OWN = frozenset(
    [
        "IFS",
        "ENV",
        "UID",
        "EUID",
        "PPID",
        "OPTIND",
        "OPTARG",
        "OPTERR",
        "LINENO",
        "RANDOM",
        "SRANDOM",
        "SECONDS",
        "EPOCHSECONDS",
        "EPOCHREALTIME",
        "SHELLOPTS",
        "GROUPS",
        "DIRSTACK",
        "FUNCNAME",
        "FUNCNEST",
        "HISTCMD",
        "HISTFILE",
        "HISTSIZE",
        "PIPESTATUS",
        "POSIXLY_CORRECT",
        "TMOUT",
        "PS4",
        "REPLY",
        "MAIL",
        "MAILPATH",
        "GLOBIGNORE",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "CDPATH",
    ]
)


@dataclass(frozen=True, slots=True)
class Job:
    """What to run.

    Attributes:
        id: letters, digits, `-` and `_`; what has been started once is not started again.
        argv: the program and its arguments; no shell is in between.
        cwd: where it begins.
        env: added to the environment of a login.
        stdin: all that it can read.
        timeout: seconds; whoever asked for it ends it then, and the guest itself if that one is gone.
        kept_bytes: of each stream, from the beginning.
    """

    id: str
    argv: tuple[str, ...]
    cwd: str
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    stdin: bytes = field(default=b"", repr=False)
    timeout: float = 3600.0
    kept_bytes: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ended:
    """How it ended: exactly one of the first three is there.

    Attributes:
        exit_code: 0 to 255.
        signal: what it died of.
        failure: why the program could not be started, or that nobody knows how it ended.
        stdout_bytes: what it wrote, also where less was kept.
        stderr_bytes: the same.
        artifacts: whether there is anything in the directory for them.
        overdue: its time was over, and the guest ended it because nobody else did.
    """

    exit_code: int | None
    signal: int | None
    failure: str | None
    stdout_bytes: int = 0
    stderr_bytes: int = 0
    artifacts: bool = False
    overdue: bool = False


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file that a job has left to be collected.

    Attributes:
        name: relative to the job's directory; bytes that are no UTF-8 are surrogates.
        size: bytes, when it was looked at.
    """

    name: str
    size: int


def check_id(identity: str) -> str:
    """The id.

    Raises:
        ValueError: it cannot be one.
    """
    if not _ID.fullmatch(identity):
        raise ValueError(f"{identity!r} cannot be the id of a job")
    return identity


def quoted(text: str) -> bytes:
    """As one word of a shell, without a newline: that is in a variable, because requests are lines.

    Raises:
        ValueError: it has a NUL, or half of a surrogate pair.
    """
    data = text.encode("utf-8", "surrogateescape")
    if b"\0" in data:
        raise ValueError("there is a NUL in it, which neither arguments nor variables can have")
    return b"'" + data.replace(b"'", b"'\\''").replace(b"\n", b"'\"$newline\"'") + b"'"


def job_line(job: Job, *, stdin: str) -> bytes:
    """The request that starts it.

    Args:
        job: what to run.
        stdin: path of a file with its standard input.

    Raises:
        ValueError: something in it cannot be said to a program.
    """
    argv = list(job.argv)
    if not argv:
        raise ValueError("there is no program")
    plain: list[str] = []
    odd: list[str] = []
    for name, value in job.env.items():
        if not name or "=" in name:
            raise ValueError(f"{name!r} cannot be the name of a variable")
        (plain if _is_plain(name) else odd).append(f"{name}={value}")
    if odd:
        argv = ["env", *odd, *argv]
    words = [
        *(check_id(job.id), str(job.kept_bytes), str(max(1, ceil(job.timeout)))),
        *(stdin, job.cwd, str(len(plain)), *plain, *argv),
    ]
    return b"job " + b" ".join(map(quoted, words))


def too_long(job: Job) -> bool:
    """Whether no kernel would start it, however good the program is."""
    words = [*job.argv, *(f"{name}={value}" for name, value in job.env.items())]
    sizes = [len(word.encode("utf-8", "surrogateescape")) for word in words]
    return max(sizes, default=0) > _LONGEST_WORD or sum(sizes) + 9 * len(sizes) > _MOST_WORDS


def _is_plain(name: str) -> bool:
    return (
        _PLAIN_NAME.fullmatch(name) is not None
        and name not in _SHELLS_OWN
        and not name.startswith("BASH")
    )
