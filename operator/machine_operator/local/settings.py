"""What a local cluster was asked to be, and the ports that it got: `cluster.json` in its data directory."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

__all__ = ["PORTS", "ClusterSettings", "read_json", "write_json"]

PORTS = (
    "etcd",
    "etcd-peer",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "virt-api",
    "virt-handler",
    "virt-controller",
    "controller",
    "gateway",
    "gateway-metrics",
    "gateway-ssh",
)
"""Everything that listens, each on 127.0.0.1."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The fixed facts of one cluster between `up` and `down`.

    Attributes:
        name: the cluster's name.
        ports: listener -> port.
        binaries: directory of the control plane's executables and `kubevirt.json`.
        images: the image store.
        qemu: False for `--hollow`: VMIs turn Running without a guest.
        controller: whether the operator itself is run too.
        gateway: whether the REST gateway is run too.
        ssh_port: where each machine's sshd listens: 22, or a high port where 22 cannot be bound here.
        default_image: the root image of machines that name none.
    """

    name: str
    ports: dict[str, int]
    binaries: str
    images: str
    qemu: bool = True
    controller: bool = True
    gateway: bool = True
    ssh_port: int = 22
    default_image: str = "machine-guest:12"

    @property
    def server(self) -> str:
        """Base URL of kube-apiserver."""
        return f"https://127.0.0.1:{self.ports['kube-apiserver']}"

    @property
    def rest(self) -> str:
        """Base URL of the gateway."""
        return f"http://127.0.0.1:{self.ports['gateway']}"

    @property
    def network(self) -> str:
        """The loopback network of this cluster's machines.

        Derived from the API server's port, which no two running clusters share; 127.0.x.y is left to others.
        """
        return f"127.{64 + self.ports['kube-apiserver'] % 128}.0.0/16"

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> ClusterSettings | None:
        """What the file says, or None where there is no (readable) file."""
        value = read_json(path)
        return None if value is None else cls(**value)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file that `write_json` wrote; None where there is none."""
    try:
        value = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replace the file in one step, so that no reader ever sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
    draft.rename(path)
