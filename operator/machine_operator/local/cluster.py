"""What the command line does with a local cluster: up, down, status.

`up` and `down` exclude each other by a lock. The cluster itself is one detached supervisor process; after a kill -9
of that, its old processes are found by their mark and ended before anything new is started.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine_operator.local.apikey import read_api_key
from machine_operator.local.binaries import ensure_binaries
from machine_operator.local.certificates import create_certificates
from machine_operator.local.guest.image import ensure_guest
from machine_operator.local.hollow.guests import stop_guests
from machine_operator.local.kubeconfig import write_kubeconfigs
from machine_operator.local.locks import exclusive
from machine_operator.local.logfiles import tail
from machine_operator.local.paths import ClusterPaths
from machine_operator.local.ports import choose_ports
from machine_operator.local.processes import (
    ProcessRecord,
    end_processes,
    marked_processes,
    resident_mib,
)
from machine_operator.local.progress import Progress
from machine_operator.local.requirements import check_requirements
from machine_operator.local.settings import PORTS, ClusterSettings, read_json, write_json

__all__ = [
    "ClusterError",
    "ComponentStatus",
    "Status",
    "Wanted",
    "down",
    "end_leftovers",
    "environment",
    "status",
    "up",
]

_READY_LIMIT = 300.0
_STOP_LIMIT = 60.0
_LOCK_LIMIT = 600.0
_DISK_MIB = 1024
_GUEST_GRACE = 10.0
_DURATIONS = "up.json"


class ClusterError(Exception):
    """The cluster cannot be brought up or taken down; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class ComponentStatus:
    """One process: `memory_mib` is None where it does not run."""

    name: str
    pid: int
    alive: bool
    restarts: int
    memory_mib: float | None


@dataclass(frozen=True, slots=True)
class Status:
    """The cluster as seen from outside.

    `phase` is one of absent, stopped, starting, ready, stopping, failed, orphaned (its supervisor was killed).
    `ports` has what listens on 127.0.0.1, by name; it is empty where nothing runs.
    `steps` has the seconds by step of the control plane's start, `durations` those of the whole `up` around it.
    """

    phase: str
    message: str
    server: str
    ports: dict[str, int]
    components: tuple[ComponentStatus, ...]
    steps: dict[str, float]
    durations: dict[str, float]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the caller of `up` asked for."""

    qemu: bool = True
    controller: bool = True
    gateway: bool = True
    ssh_port: int | None = None
    prebuilt: Path | None = None


def up(paths: ClusterPaths, *, cache: Path, wanted: Wanted, progress: Progress) -> None:
    """Bring the cluster up, or wait for it where it is on its way; a running one is left as it is.

    Raises:
        ClusterError: it did not come up, or runs with other options.
    """
    check_requirements(qemu=wanted.qemu)
    binaries = ensure_binaries(cache, source=None, prebuilt=wanted.prebuilt, progress=progress)
    if wanted.qemu:
        with progress.step("guest image"):
            ensure_guest(cache, progress=progress.note)
    with exclusive(paths.data / "up.lock", on_wait=progress.note, timeout=_LOCK_LIMIT):
        running = _supervisor(paths) is not None
        if running:
            _check_same(paths, wanted)
        else:
            end_leftovers(paths, say=progress.note)
            _prepare(paths, binaries=binaries, cache=cache, wanted=wanted)
            _start_supervisor(paths)
        with progress.step("control plane"):
            _await_ready(paths, progress)
        if not running:
            steps = {name: round(seconds, 2) for name, seconds in progress.durations.items()}
            write_json(paths.data / _DURATIONS, {"steps": steps})


def down(paths: ClusterPaths, *, say: Callable[[str], None]) -> None:
    """Take the cluster down; its data stays. Harmless where nothing runs.

    Raises:
        ClusterError: a process could not be ended.
    """
    if not paths.data.exists():
        return
    with exclusive(paths.data / "up.lock", on_wait=say, timeout=_LOCK_LIMIT):
        supervisor = _supervisor(paths)
        if supervisor is not None:
            supervisor.signal(signal.SIGTERM)
            deadline = time.monotonic() + _STOP_LIMIT
            while supervisor.alive() and time.monotonic() < deadline:
                time.sleep(0.02)
            end_processes([supervisor], grace=0)
        end_leftovers(paths, say=say)
        shutil.rmtree(paths.scratch, ignore_errors=True)  # a killed supervisor could not
        state = read_json(paths.state) or {}
        write_json(paths.state, {**state, "phase": "stopped", "message": "", "components": {}})


def status(paths: ClusterPaths) -> Status:
    """What runs, from the supervisor's own state and from /proc."""
    settings, state = ClusterSettings.load(paths.settings), read_json(paths.state)
    if settings is None or state is None:
        return Status("absent", f"no cluster in {paths.data}", "", {}, (), {}, {})
    phase, message = str(state["phase"]), str(state["message"])
    if phase not in ("stopped", "failed") and _supervisor(paths) is None:
        phase, message = "orphaned", "its supervisor is gone; `local up` or `local down` cleans up"
    rows = [_component(name, value) for name, value in state.get("components", {}).items()]
    durations = (read_json(paths.data / _DURATIONS) or {}).get("steps", {})
    return Status(
        phase=phase,
        message=message,
        server=settings.server,
        ports=settings.ports if rows else {},
        components=tuple(rows),
        steps=state.get("steps", {}),
        durations=durations,
    )


def environment(paths: ClusterPaths) -> dict[str, str]:
    """The variables that point tools at this cluster.

    Raises:
        ClusterError: there is no cluster.
    """
    settings = ClusterSettings.load(paths.settings)
    if settings is None:
        raise ClusterError(f"there is no cluster in {paths.data}: run `machine-operator local up`")
    old = os.environ.get("PATH", "").split(os.pathsep)
    rest = [entry for entry in old if entry != str(paths.bin)]
    return {
        "KUBECONFIG": str(paths.kubeconfig),
        "PATH": os.pathsep.join([str(paths.bin), *rest]),
        **_rest(settings, paths),
    }


def _rest(settings: ClusterSettings, paths: ClusterPaths) -> dict[str, str]:
    key = read_api_key(paths) if settings.gateway else None
    return {"DEDALUS_BASE_URL": settings.rest, "DEDALUS_API_KEY": key} if key else {}


# ---- starting


def _prepare(paths: ClusterPaths, *, binaries: Path, cache: Path, wanted: Wanted) -> None:
    paths.data.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(paths.data).free // 2**20
    if free < _DISK_MIB:
        raise ClusterError(
            f"{paths.data} has {free} MiB left; the cluster needs {_DISK_MIB}. "
            "Make room, or choose another place with --data."
        )
    before = ClusterSettings.load(paths.settings)
    settings = ClusterSettings(
        name=paths.name,
        ports=choose_ports(PORTS, previous=before.ports if before else None),
        binaries=str(binaries),
        images=str(cache / "images"),
        qemu=wanted.qemu,
        controller=wanted.controller,
        gateway=wanted.gateway,
        ssh_port=wanted.ssh_port or _ssh_port(),
    )
    create_certificates(paths.pki)
    write_kubeconfigs(paths.kubeconfigs, pki=paths.pki, server=settings.server, cluster=paths.name)
    _link(paths.bin / "kubectl", binaries / "kubectl")
    write_json(paths.settings, settings.to_json())


def _ssh_port() -> int:
    """22 where it can be had on a loopback address; else 2222.

    It cannot for an unprivileged user, nor where the host's own sshd listens on all addresses.
    """
    with socket.socket() as probe:
        try:
            probe.bind(("127.63.255.254", 22))
        except OSError:
            return 2222
        return 22


def _link(link: Path, target: Path) -> None:
    link.parent.mkdir(parents=True, exist_ok=True)
    draft = link.with_name(f".{link.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    draft.symlink_to(target)
    draft.rename(link)


def _start_supervisor(paths: ClusterPaths) -> None:
    paths.state.unlink(missing_ok=True)
    paths.logs.mkdir(parents=True, exist_ok=True)
    with (paths.logs / "supervisor.log").open("ab") as output:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "machine_operator.local.supervisor",
                f"--name={paths.name}",
                f"--data={paths.data}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=paths.data,
            start_new_session=True,
        )
    deadline = time.monotonic() + 30
    while read_json(paths.state) is None:
        if process.poll() is not None or time.monotonic() > deadline:
            raise ClusterError(
                f"the supervisor did not start:\n{tail(paths.logs / 'supervisor.log', lines=8)}"
            )
        time.sleep(0.02)
    # It outlives us on purpose; nothing is to be said about that at our exit.
    process.returncode = 0


def _check_same(paths: ClusterPaths, wanted: Wanted) -> None:
    settings = ClusterSettings.load(paths.settings)
    if settings is not None and settings.qemu != wanted.qemu:
        how = "with QEMU" if settings.qemu else "without QEMU (--hollow)"
        raise ClusterError(
            f"the cluster {paths.name!r} runs already, {how}. Run `machine-operator local down` first, "
            "or give another one a --name of its own."
        )


def _await_ready(paths: ClusterPaths, progress: Progress) -> None:
    deadline = time.monotonic() + _READY_LIMIT
    said = ""
    while time.monotonic() < deadline:
        seen = status(paths)
        if seen.phase == "ready":
            return
        if seen.phase in ("failed", "stopped", "orphaned"):
            raise ClusterError(f"the cluster did not come up: {seen.message}")
        if seen.message != said:
            said = seen.message
            progress.note(f"  {said}")
        time.sleep(0.05)
    raise ClusterError(
        f"the cluster is not ready after {_READY_LIMIT:.0f} s ({said}); see {paths.logs}, "
        "and `machine-operator local down` to give up"
    )


# ---- what others left


def _supervisor(paths: ClusterPaths) -> ProcessRecord | None:
    """The living supervisor of this cluster, or None."""
    value = (read_json(paths.state) or {}).get("supervisor")
    record = ProcessRecord.from_json(value) if value else None
    return record if record is not None and record.alive() else None


def end_leftovers(paths: ClusterPaths, *, say: Callable[[str], None]) -> None:
    """End what a killed supervisor left behind: exactly its own processes, guests by power button first.

    Raises:
        ClusterError: something did not even end with SIGKILL.
    """
    if not marked_processes(paths.data):
        return
    say("ending what an earlier run left behind")
    # Who would start guests again goes first.
    recorded = (read_json(paths.state) or {}).get("components", {})
    active = [
        ProcessRecord.from_json(recorded[name]["process"])
        for name in ("gateway", "controller", "hollow-node")
        if name in recorded
    ]
    end_processes(active, grace=2.0)
    asyncio.run(stop_guests(paths.node, grace=_GUEST_GRACE))
    survivors = end_processes(marked_processes(paths.data), grace=0)
    if survivors:
        pids = ", ".join(str(record.pid) for record in survivors)
        raise ClusterError(f"processes of {paths.data} do not end even by SIGKILL: {pids}")


def _component(name: str, value: dict[str, Any]) -> ComponentStatus:
    record = ProcessRecord.from_json(value["process"])
    alive = record.alive()
    return ComponentStatus(
        name=name,
        pid=record.pid,
        alive=alive,
        restarts=int(value["restarts"]),
        memory_mib=resident_mib(record.pid) if alive else None,
    )
