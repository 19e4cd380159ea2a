"""Local clusters of a benchmark's own: a directory and a name that nobody else has, gone at the end however it ends.

They are driven as a person would, by the command line in processes of their own, so that what is timed is what a
person waits for.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from machine_operator.local.hollow.rundir import GuestRecord, run_directories
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.processes import resident_mib
from machine_operator.local.settings import ClusterSettings, read_json

__all__ = ["BenchError", "Cluster", "processor_seconds", "progress", "scratch", "terminable"]

_UP_LIMIT = 1800.0
"""Seconds; the first one may have to build everything."""

_DOWN_LIMIT = 120.0


class BenchError(Exception):
    """The benchmark could not be carried out; the message says why."""


def progress(text: str) -> None:
    """Say what is being measured now (on standard error: the table is the output)."""
    print(text, file=sys.stderr, flush=True)


def terminable() -> None:
    """Let SIGTERM unwind like Ctrl-C does, so that everything that was started is taken down."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGINT)

    # A shell without job control starts background jobs with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, interrupt)


@contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """An empty directory, removed at the end; also what Go made read-only in it."""
    directory = Path(tempfile.mkdtemp(prefix="mo-bench-", dir=parent))
    try:
        yield directory
    finally:
        _remove(directory)


def _remove(directory: Path) -> None:
    # Only directories matter: a file in a writable directory can be removed whatever its own mode is.
    for folder, names, _ in os.walk(directory):
        for name in names:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o700)
    shutil.rmtree(directory)


def processor_seconds(pid: int) -> float:
    """What a process has used so far, in seconds of one processor."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Cluster:
    """One local cluster; as a context manager it is taken down and removed at the end.

    Args:
        directory: gets its data.
        options: more arguments for `local up`.
    """

    def __init__(self, directory: Path, *options: str) -> None:
        name = f"bench-{secrets.token_hex(3)}"
        self.paths = ClusterPaths(name=name, data=directory / name)
        self._options = options
        self._program = Path(sys.executable).with_name("machine-operator")

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        if self.paths.data.exists():
            self.down()
            _remove(self.paths.data)

    def command(self, *words: str) -> list[str]:
        """The argv of a `local` command for this cluster."""
        which = ["--name", self.paths.name, "--data", str(self.paths.data)]
        return [str(self._program), "local", words[0], *which, *words[1:]]

    def up(self) -> float:
        """Bring it up; returns the seconds that the command took."""
        return self._timed("up", *self._options, limit=_UP_LIMIT)

    def down(self) -> float:
        """Take it down; returns the seconds that the command took."""
        return self._timed("down", limit=_DOWN_LIMIT)

    def status(self) -> dict[str, Any]:
        """What `local status --json` says."""
        answer = subprocess.run(
            self.command("status", "--json"),
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        value: dict[str, Any] = json.loads(answer.stdout)
        return value

    @property
    def settings(self) -> ClusterSettings:
        """Ports and the like; only after `up`."""
        settings = ClusterSettings.load(self.paths.settings)
        if settings is None:
            raise BenchError(f"{self.paths.settings} is not there")
        return settings

    def environment(self) -> dict[str, str]:
        """Our own environment, with kubectl pointed at this cluster."""
        path = f"{self.paths.bin}{os.pathsep}{os.environ['PATH']}"
        return {**os.environ, "KUBECONFIG": str(self.paths.kubeconfig), "PATH": path}

    def kubectl(self, *words: str, stdin: str | None = None, limit: float = 120.0) -> str:
        """Run kubectl and return what it printed."""
        answer = subprocess.run(
            [str(self.paths.bin / "kubectl"), *words],
            input=stdin,
            env=self.environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
        )
        if answer.returncode != 0:
            raise BenchError(f"kubectl {' '.join(words)}: {answer.stderr.strip()}")
        return answer.stdout

    # ---- its processes

    def guests(self) -> list[GuestRecord]:
        """The guests whose QEMU runs."""
        records = [directory.record() for directory in run_directories(self.paths.node)]
        return [r for r in records if r and r.process and r.process.alive()]

    def processes(self) -> dict[str, int]:
        """Name -> pid of everything but guests."""
        state = read_json(self.paths.state) or {}
        found = {"supervisor": int(state["supervisor"]["pid"])}
        for name, component in state["components"].items():
            found[name] = int(component["process"]["pid"])
        return found

    def resident(self) -> dict[str, float]:
        """Name -> resident MiB of everything but guests."""
        sizes = {name: resident_mib(pid) for name, pid in self.processes().items()}
        gone = [name for name, size in sizes.items() if size is None]
        if gone:
            raise BenchError(f"not running any more: {', '.join(gone)}; logs: {self.paths.logs}")
        return {name: size for name, size in sizes.items() if size is not None}

    def wait_quiet(self, *, limit: float = 20.0) -> None:
        """Wait until the control plane has worked off what it was told, or for `limit` seconds."""
        deadline = time.monotonic() + limit
        before = self.processor_seconds()
        while time.monotonic() < deadline:
            time.sleep(0.5)
            after = self.processor_seconds()
            if after - before < 0.06:  # of 0.5 s of one core; idle it uses a third of that
                return
            before = after

    def processor_seconds(self) -> float:
        """What everything but guests has used so far, in seconds of one processor."""
        return sum(processor_seconds(pid) for pid in self.processes().values())

    def _timed(self, *words: str, limit: float) -> float:
        begun = time.monotonic()
        try:
            answer = subprocess.run(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                timeout=limit,
            )
        except subprocess.TimeoutExpired as error:
            raise BenchError(f"`local {words[0]}` took more than {limit:.0f} s") from error
        if answer.returncode != 0:
            raise BenchError(f"`local {' '.join(words)}` failed: {answer.stderr.strip()[-2000:]}")
        return time.monotonic() - begun
