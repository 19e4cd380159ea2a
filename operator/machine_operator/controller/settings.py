"""How the operator is set up: from flags, each of which is also an environment variable."""

from __future__ import annotations

from dataclasses import dataclass

from machine_operator.kubevirt.settings import MachineDefaults

__all__ = ["ControllerSettings"]


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Settings of one operator process.

    Attributes:
        kubeconfig: path, or None for the pod's service account (or the user's kubeconfig outside of a pod).
        machines: what is the same for all machines.
        workers: how many machines are worked on at a time; each worker waits for the network most of the time.
        metrics_address: HOST:PORT of /metrics, /livez and /readyz.
    """

    kubeconfig: str | None
    machines: MachineDefaults
    workers: int = 32
    metrics_address: str = "0.0.0.0:8080"
