"""Who turns Machines into VMs on a plane: the operator, or one of its two floors, each a process of its own."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from enum import StrEnum
from pathlib import Path
from typing import Any

from clusters import BenchError
from load import Taken
from plane import Plane, Process

from machine_operator.local.components import components

__all__ = ["Arm", "load", "machines", "metrics", "start_arm", "start_operator", "start_stub"]

_HERE = Path(__file__).parent
_START_LIMIT = 60.0

Object = dict[str, Any]


class Arm(StrEnum):
    """What is compared.

    FLOOR creates the children and nothing else; WRITING also writes what a Machine's contract asks for.
    """

    FLOOR = "floor"
    WRITING = "floor with status"
    OPERATOR = "operator"

    @property
    def end(self) -> str:
        """What the load waits for, by the name that `load.py` has for it."""
        return "instance-ready" if self is Arm.FLOOR else "machine-ready"


def start_arm(plane: Plane, arm: Arm) -> Process:
    """Start one; returns when it works."""
    if arm is Arm.OPERATOR:
        return start_operator(plane)
    settings, ready = plane.settings, plane.paths.data / "floor.ready"
    command = [
        *(sys.executable, str(_HERE / "floor.py")),
        *("--kubeconfig", plane.kubeconfig("operator")),
        *("--image", settings.default_image),
        *("--ssh-user-ca", str(plane.paths.pki / "ssh-user-ca.pub")),
        *("--ready", str(ready)),
        *(["--writes"] if arm is Arm.WRITING else []),
    ]
    return plane.start("floor", command, ready=ready)


def start_stub(plane: Plane) -> Process:
    """Start what answers VMs, with KubeVirt's own identity."""
    ready = plane.paths.data / "stub.ready"
    command = [
        *(sys.executable, str(_HERE / "stub.py")),
        *("--kubeconfig", plane.kubeconfig("virt-controller")),
        *("--ready", str(ready)),
    ]
    return plane.start("stub", command, ready=ready)


def start_operator(
    plane: Plane,
    *options: str,
    name: str = "controller",
    port: str = "controller",
    wait: bool = True,
) -> Process:
    """Start the operator as local mode does.

    Args:
        plane: where.
        options: more of its options.
        name: of its log.
        port: the name of the port of its metrics.
        wait: return only once it is ready.
    """
    command = components(plane.settings, plane.paths)["controller"].command
    address = f"--metrics-address=127.0.0.1:{plane.settings.ports[port]}"
    process = plane.start(name, [*command, address, *options])
    deadline = time.monotonic() + _START_LIMIT
    while wait and _get(plane, "readyz", port=port) is None:
        process.check()
        if time.monotonic() > deadline:
            raise BenchError(f"the operator was not ready after {_START_LIMIT:.0f} s")
        time.sleep(0.05)
    return process


def _get(plane: Plane, path: str, *, port: str = "controller") -> str | None:
    url = f"http://127.0.0.1:{plane.settings.ports[port]}/{path}"
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            text: str = answer.read().decode()
            return text
    except (urllib.error.URLError, OSError):
        return None


def metrics(plane: Plane, name: str, *, port: str = "controller") -> float | None:
    """The sum over all labels of one of the operator's metrics; None where it (or the operator) is not there."""
    found = None
    for line in (_get(plane, "metrics", port=port) or "").splitlines():
        series, _, value = line.rpartition(" ")
        if series.partition("{")[0] == name:
            found = (found or 0.0) + float(value)
    return found


def machines(count: int, *, prefix: str = "m") -> list[Object]:
    """Machines to create, as small as the stub's arms are alike with any size."""
    spec = {"vcpu": 0.25, "memory_mib": 256, "storage_gib": 1, "autosleep": "never"}
    return [{"metadata": {"name": f"{prefix}-{n:05}"}, "spec": spec} for n in range(count)]


def load(
    kubeconfig: str,
    bodies: list[Object],
    *,
    scratch: Path,
    namespace: str,
    rate: float,
    end: str,
    limit: float = 120.0,
) -> Taken:
    """Run a load in a process of its own, so that nothing else delays its clock; see `load.offer`."""
    file = scratch / f"load-{secrets.token_hex(4)}.jsonl"
    file.write_text("".join(json.dumps(body) + "\n" for body in bodies))
    words = {"kubeconfig": kubeconfig, "namespace": namespace, "bodies": str(file), "end": end}
    words |= {"rate": str(rate), "limit": str(limit)}
    options = [f"--{name}={value}" for name, value in words.items()]
    try:
        answer = subprocess.run(
            [sys.executable, str(_HERE / "load.py"), *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=len(bodies) / rate + limit + 60,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"the load of {len(bodies)} at {rate}/s did not end") from error
    finally:
        file.unlink(missing_ok=True)
    if answer.returncode != 0:
        raise BenchError(f"the load failed: {answer.stderr.strip()[-2000:]}")
    return Taken(**json.loads(answer.stdout))
