"""What the runner in a guest says: lines, read strictly. A line that is not ours is no line of the runner's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from machine_operator.guest.job import Ended

__all__ = [
    "Absent",
    "Counts",
    "Gone",
    "Known",
    "Place",
    "Reply",
    "Said",
    "Seen",
    "Slots",
    "Starting",
    "parse",
]

_REFUSED = "exec_init_rejected: "
_UNKNOWN = "the guest lost track of it: its keeper was killed"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job's files are: its slot, and how much of its output is kept, if that was said."""

    slot: str
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Counts:
    """How many bytes it wrote."""

    stdout: int
    stderr: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a job.

    Attributes:
        place: where it is.
        ended: None: it runs; else without the counts.
        counts: None: something may still write.
        due: bytes that the program wrote, to whatever files; 0 where that is not known.
    """

    place: Place
    ended: Ended | None = None
    counts: Counts | None = None
    due: int = 0


@dataclass(frozen=True, slots=True)
class Absent:
    """There is no such job."""


@dataclass(frozen=True, slots=True)
class Starting:
    """It has been claimed, and no more yet."""


@dataclass(frozen=True, slots=True)
class Known:
    """It was started before."""


@dataclass(frozen=True, slots=True)
class Gone:
    """It could not be claimed: why."""

    why: str


@dataclass(frozen=True, slots=True)
class Slots:
    """More jobs can be started at once: with these numbers."""

    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Said:
    """A piece of a short output: as much as a shell can hold of it."""

    stream: Literal["stdout", "stderr"]
    data: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """One line.

    Attributes:
        verb: `ready`, `filled`, `started`, `known`, `refused`, `ended`, `said`, `counted`, `state`, `signalled`,
            `forgotten`.
        key: the id of the job, or the number of the request; "" where it is about neither.
        body: what it says.
    """

    verb: str
    key: str
    body: Seen | Absent | Starting | Known | Gone | Said | Counts | Slots | None = None


_STREAMS: Final[dict[str, tuple[Literal["stdout", "stderr"], bytes]]] = {
    # And how the line ended there.
    "out": ("stdout", b"\n"),
    "out-end": ("stdout", b""),
    "err": ("stderr", b"\n"),
    "err-end": ("stderr", b""),
}


def parse(line: bytes, *, token: str) -> Reply | None:
    """Read one line; None: it is not the runner's."""
    mine, _, said = line.partition(b" ")
    if mine != token.encode():
        return None
    verb, _, rest = said.partition(b" ")
    if stream := _STREAMS.get(verb.decode("utf-8", "replace")):
        key, _, data = rest.partition(b" ")
        return Reply("said", key.decode("utf-8", "replace"), Said(stream[0], data + stream[1]))
    try:
        return _parse(*_words(said))
    except (ValueError, IndexError):
        return None


def _words(said: bytes) -> tuple[str, list[str]]:
    verb, *rest = said.decode("utf-8", "replace").rstrip("\r\n").split(" ")
    return verb, rest


def _parse(verb: str, rest: list[str]) -> Reply | None:
    match verb:
        case "ready":
            return Reply(verb, "")
        case "filled":
            return Reply(verb, "", Slots(int(rest[0]), int(rest[1])))
        case "known":
            return Reply(verb, rest[0], Known())
        case "refused":
            return Reply(verb, rest[0], Gone(_REFUSED + " ".join(rest[1:])))
        case "started":
            return Reply(verb, rest[0], Seen(Place(rest[1])))
        case "ended":
            ended = _ended(rest[2], rest[3], rest[4], "0", " ".join(rest[5:]))
            return Reply(verb, rest[0], Seen(Place(rest[1]), ended))
        case "counted":
            return Reply(verb, rest[0], _counts(rest[1], rest[2]))
        case "state":
            return Reply(verb, rest[0], _state(rest[1:]))
        case "signalled" | "forgotten":
            return Reply(verb, rest[0])
        case _:
            return None


def _state(rest: list[str]) -> Seen | Absent | Starting:
    match rest[0]:
        case "absent":
            return Absent()
        case "starting":
            return Starting()
        case "running":
            return Seen(Place(rest[1], int(rest[2])))
        case _:
            pass
    place = Place(rest[1], int(rest[2]))
    ended = _ended(rest[3], rest[4], rest[5], rest[8], " ".join(rest[10:]))
    return Seen(place, ended, _counts(rest[6], rest[7]), due=int(rest[9]))


def _ended(status: str, signal: str, left: str, late: str, why: str) -> Ended:
    more = {"artifacts": left == "1", "overdue": late == "1"}
    if why:
        return Ended(None, None, _REFUSED + why, **more)
    if status == "-":
        return Ended(None, None, _UNKNOWN, **more)
    if int(signal):
        return Ended(None, int(signal), None, **more)
    return Ended(int(status), None, None, **more)


def _counts(out: str, err: str) -> Counts | None:
    return None if out == "-" else Counts(int(out or 0), int(err or 0))
