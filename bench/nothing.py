"""From nothing to `make run` done: a clean clone, an empty home, empty caches; then again, then `make stop`.

The steps are told by what a person sees (the lines that `make run` prints, stamped as they come), by the files that
the steps leave behind, and by the seconds that `local up` writes down for its own steps.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from clusters import BenchError, progress
from figures import ROOT, Report, single

from machine_operator.local.hollow.rundir import run_directories
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.ports import port_is_free
from machine_operator.local.settings import ClusterSettings, read_json

__all__ = ["measure"]

_RUN_LIMIT = 2400.0
_STOP_LIMIT = 120.0
_AGAIN_LIMIT = 60.0
_HERE = ("MACHINE_OPERATOR_", "XDG_", "KUBE", "VIRTUAL_ENV", "PYTHON", "GO", "MAKE", "MFLAGS")
"""Beginnings of variables that must not lead out of the scratch directory."""

Lines = list[tuple[float, str]]


@dataclass(slots=True)
class _Nothing:
    """A clone with a home and caches of its own."""

    directory: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        home = self.directory / "home"
        home.mkdir()
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_HERE)}
        self.environment = {
            **kept,
            "HOME": str(home),
            "XDG_CACHE_HOME": str(home / ".cache"),
            "XDG_CONFIG_HOME": str(home / ".config"),
            "XDG_DATA_HOME": str(home / ".local/share"),
            "XDG_STATE_HOME": str(home / ".local/state"),
            "GOPATH": str(home / "go"),
            "GOMODCACHE": str(home / "go/pkg/mod"),
            "GOCACHE": str(home / ".cache/go-build"),
            **_where_modules_come_from(),
        }

    @property
    def checkout(self) -> Path:
        return self.directory / "checkout"

    @property
    def cluster(self) -> ClusterPaths:
        data = self.directory / "home/.local/share/machine-operator/default"
        return ClusterPaths(name="default", data=data)

    def make(self, target: str, *, limit: float) -> Lines:
        """Run make, echoing; returns its lines with the seconds at which they came.

        The last one, "", is the end.
        """
        # The interpreter itself: a version manager's shim would look for its files in the home that is not there.
        python = Path(sys.base_prefix, "bin", "python3")
        command = ["make", f"PYTHON={python}", target]
        begun = time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=self.checkout,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        alarm = threading.Timer(limit, _end_group, args=(process,))
        alarm.start()
        lines: Lines = []
        try:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append((time.monotonic() - begun, line.rstrip()))
                progress(f"  {lines[-1][0]:6.1f} {lines[-1][1]}")
            code = process.wait()
        finally:
            alarm.cancel()
            _end_group(process)
        if code != 0:
            raise BenchError(f"`make {target}` ended with {code} after {lines[-1:]}")
        return [*lines, (time.monotonic() - begun, "")]


def measure(report: Report, directory: Path) -> None:
    """Clone, `make run`, `make run` again, `make stop`; then look for what was left."""
    nothing = _Nothing(directory)
    begun = time.monotonic()
    _git("clone", "-q", "--no-hardlinks", str(ROOT), str(nothing.checkout))
    report.add(single("git clone", time.monotonic() - begun, "s"))
    report.raw["commit"] = _git("-C", str(nothing.checkout), "rev-parse", "HEAD").strip()
    started = time.time()
    try:
        first = nothing.make("run", limit=_RUN_LIMIT)
        report.note_load("after make run")
        report.add(single("make run, from nothing", first[-1][0], "s"))
        for name, seconds in _steps(nothing, first, started=started).items():
            report.add(single(f"  {name}", seconds, "s"))
        again = nothing.make("run", limit=_RUN_LIMIT)
        report.add(single("make run, again", again[-1][0], "s", limit=_AGAIN_LIMIT))
        ports = _listeners(nothing)
    finally:
        stopped, left = _stop(nothing)
    report.note_load("after make stop")
    report.add(single("make stop", stopped[-1][0], "s"))
    busy = [f"{host}:{port}" for host, port in ports if not port_is_free(port, host=host)]
    report.add(single("processes left", len(left), "", limit=0))
    report.add(single("listening ports left", len(busy), f"of {len(ports)}", limit=0))
    sizes = {name: _gib(directory / name) for name in ("checkout", "home")}
    report.add(*(single(f"disk space of {name}", size, "GiB") for name, size in sizes.items()))
    report.raw["left"] = {"processes": left, "ports": busy}
    report.raw["output"] = {"make run": first, "make run, again": again, "make stop": stopped}


def _stop(nothing: _Nothing) -> tuple[Lines, list[str]]:
    """`make stop`, also after a failure; what even that leaves is told, and ended so that nothing runs on."""
    lines: Lines = [(0.0, "")]
    try:
        if (nothing.checkout / ".venv/bin/machine-operator").exists():
            lines = nothing.make("stop", limit=_STOP_LIMIT)
    finally:
        left = list(_processes_of(nothing.directory))
        for pid, _ in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    return lines, [f"{pid} {command}" for pid, command in left]


def _steps(nothing: _Nothing, lines: Lines, *, started: float) -> dict[str, float]:
    """Seconds by step of the first `make run`."""
    venv = nothing.checkout / ".venv"
    environment = (venv / "pyvenv.cfg").stat().st_mtime - started
    installed = (venv / ".installed").stat().st_mtime - started
    applied = _line(lines, "machine.machines.dedaluslabs.ai/")
    up = _line(lines, "cluster default is up")
    ready, shell = _line(lines, "NAME"), _line(lines, "$ uname")
    durations = (read_json(nothing.cluster.data / "up.json") or {}).get("steps", {})
    known = sum(durations.values())
    return {
        "virtual environment": environment,
        "Python packages": installed - environment,
        **{f"local up: {name}": seconds for name, seconds in durations.items()},
        "system packages, local up: the rest": up - installed - known,
        "kubectl apply": applied - up,
        "machine Ready": ready - applied,
        "uname -a in the machine": lines[-1][0] - shell,
    }


def _line(lines: Lines, beginning: str) -> float:
    for at, text in lines:
        if text.startswith(beginning):
            return at
    raise BenchError(f"`make run` did not print a line that begins with {beginning!r}")


def _listeners(nothing: _Nothing) -> list[tuple[str, int]]:
    """Everything on which the cluster and its machines listen."""
    settings = ClusterSettings.load(nothing.cluster.settings)
    if settings is None:
        raise BenchError(f"`make run` left no {nothing.cluster.settings}")
    found = [("127.0.0.1", port) for port in settings.ports.values()]
    records = [directory.record() for directory in run_directories(nothing.cluster.node)]
    return found + [(record.address, settings.ssh_port) for record in records if record]


def _processes_of(directory: Path) -> Iterator[tuple[int, str]]:
    """Every process that names the directory in its command, environment or working directory, but for our own."""
    name = str(directory).encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes()
            where = os.fsencode((entry / "cwd").readlink())
            if name in command or name in where or name in (entry / "environ").read_bytes():
                yield int(entry.name), command.replace(b"\0", b" ").decode(errors="replace")


def _where_modules_come_from() -> dict[str, str]:
    """Go's own settings file: on a machine with a module mirror of its own, that is where it is named."""
    answer = subprocess.run(
        ["go", "env", "GOENV"], capture_output=True, text=True, check=False, timeout=60
    )
    return {"GOENV": answer.stdout.strip()} if answer.returncode == 0 else {}


def _git(*words: str) -> str:
    answer = subprocess.run(
        ["git", *words], capture_output=True, text=True, check=False, timeout=300
    )
    if answer.returncode != 0:
        raise BenchError(f"git {words[0]}: {answer.stderr.strip()}")
    return answer.stdout


def _end_group(process: subprocess.Popen[str]) -> None:
    """End make and what it started in its session; a cluster is in sessions of its own, and `make stop` ends that."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def _gib(directory: Path) -> float:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            total += Path(folder, name).lstat().st_blocks * 512
    return total / 2**30
