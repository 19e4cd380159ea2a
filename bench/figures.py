"""What every benchmark hands in: figures with what they must be, the machine they were taken on, and the raw numbers.

A report prints itself as a table and writes `bench/results/NAME.json`. A figure that falls short is a result like any
other: it says so in `holds`, and the benchmark still ends well.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["ROOT", "Figure", "Report", "measured", "percentile", "single"]

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

RESULTS = ROOT / "bench" / "results"


@dataclass(frozen=True, slots=True)
class Figure:
    """One number.

    Attributes:
        name: what was measured, in words.
        value: the median where it was measured several times.
        unit: of the value.
        limit: the most that it may be; None where there is no such bound.
        least: the least that it may be. Without either bound a number only explains others.
        lowest, highest, count: the spread behind the value.
    """

    name: str
    value: float
    unit: str
    limit: float | None = None
    lowest: float | None = None
    highest: float | None = None
    count: int = 1
    least: float | None = None

    @property
    def must(self) -> str | None:
        """What it must be, in words; None where nothing is asked of it."""
        if self.limit is not None and self.limit == self.least:
            return f"== {self.limit:g}"
        bounds = (("<=", self.limit), (">=", self.least))
        words = [f"{sign} {bound:g}" for sign, bound in bounds if bound is not None]
        return ", ".join(words) or None

    @property
    def holds(self) -> bool | None:
        """Whether it is as it must be; None where nothing is asked of it."""
        if self.must is None:
            return None
        low_enough = self.limit is None or self.value <= self.limit
        return low_enough and (self.least is None or self.value >= self.least)

    def to_json(self) -> dict[str, Any]:
        """For the results file."""
        return {
            "name": self.name,
            "value": _rounded(self.value),
            "unit": self.unit,
            "must": self.must,
            "holds": self.holds,
            "min": _rounded(self.lowest),
            "max": _rounded(self.highest),
            "n": self.count,
        }


def measured(
    name: str,
    values: Sequence[float],
    unit: str,
    *,
    limit: float | None = None,
    least: float | None = None,
) -> Figure:
    """The median of several measurements, with their spread."""
    return Figure(
        name,
        statistics.median(values),
        unit,
        limit=limit,
        lowest=min(values),
        highest=max(values),
        count=len(values),
        least=least,
    )


def single(
    name: str, value: float, unit: str, *, limit: float | None = None, least: float | None = None
) -> Figure:
    """A single measurement."""
    return Figure(name, value, unit, limit=limit, least=least)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below or at which `percent` of all lie (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


@dataclass(slots=True)
class Report:
    """The figures of one benchmark, as they come in."""

    name: str
    figures: list[Figure] = field(default_factory=list)
    raw: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.machine = _machine()

    def add(self, *figures: Figure) -> None:
        """Take figures in."""
        self.figures += figures

    def note_load(self, when: str) -> None:
        """Write down how busy the machine is: a figure from a busy machine proves little."""
        entry = {"when": when, "at": _utc(), "load": [_rounded(v) for v in os.getloadavg()]}
        self.raw.setdefault("load", []).append(entry)

    def show(self) -> None:
        """Print the table."""
        table = Table(box=None, title=f"{self.name}: {self.machine['summary']}", title_style="")
        for title in ("FIGURE", "VALUE", "MIN", "MAX", "N", "UNIT", "MUST", "HOLDS"):
            number = title in ("VALUE", "MIN", "MAX", "N")
            table.add_column(title, justify="right" if number else "left", no_wrap=True)
        for figure in self.figures:
            row = figure.to_json()
            table.add_row(
                figure.name,
                *(_spelled(row[key]) for key in ("value", "min", "max")),
                str(figure.count),
                figure.unit,
                row["must"] or "",
                {True: "yes", False: "NO", None: ""}[figure.holds],
            )
        # Wide enough for the longest name also where the output is a file.
        Console(width=max(shutil.get_terminal_size().columns, 132), highlight=False).print(table)

    def write(self, path: Path | None = None) -> Path:
        """Write the results file, in one step."""
        path = path or RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        value = {
            "machine": self.machine,
            "figures": [figure.to_json() for figure in self.figures],
            "raw": _plain(self.raw),
        }
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        draft.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n")
        draft.replace(path)
        return path


def _machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    facts = {
        "processors": os.cpu_count() or 1,
        "processor": _processor(),
        "memory_gib": round(memory, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "qemu": _first_line("qemu-system-x86_64", "--version"),
        "commit": _first_line("git", "-C", str(ROOT), "describe", "--always", "--dirty"),
        "taken": _utc(),
    }
    words = f"{facts['processors']} processors ({facts['processor']}), {facts['memory_gib']} GiB"
    return {"summary": words, **facts}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _first_line(*command: str) -> str:
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return "not installed"
    return answer.stdout.partition("\n")[0].strip() or "unknown"


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _plain(value: Any) -> Any:
    """The same with all numbers to a thousandth: more digits are noise."""
    match value:
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case float():
            return _rounded(value)
        case _:
            return value


def _spelled(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"
