"""How the operator is set up: defaults < file < environment < flags.

`SETTINGS` is the one source of every name, default, bound and explanation; the command line, the environment
variables, the keys of the file and docs/operations/configuration.md are all made from it. Everything is checked
before anything starts, and all that is wrong is told at once.
"""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from machine_operator.config.common import KUBECONFIG, LOGGING
from machine_operator.config.options import (
    Setting,
    address,
    authority,
    duration,
    public_key,
    switch,
    text,
    whole,
)
from machine_operator.config.settings import Written, read_settings
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.lifecycle.limits import Limits

__all__ = ["SETTINGS", "ControllerSettings", "Effective", "load_settings"]

_NAMESPACE_FILE: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_OWN_NAMESPACE: Final = "machine-operator"
_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"


SETTINGS: Final = (
    KUBECONFIG,
    Setting(
        "default_image",
        text("IMAGE", "an image reference without blanks", pattern=r"\S+", longest=1024),
        "quay.io/containerdisks/debian:12",
        "Root image of machines that name none.",
    ),
    Setting("ssh_port", whole(1, 65535), "22", "Where the guests' sshd listens."),
    Setting(
        "ssh_user_ca",
        public_key(),
        None,
        "Public key of the authority whose certificates may log in to machines.",
    ),
    Setting(
        "ssh_host_ca",
        authority(),
        None,
        "Private key of the authority that signs the machines' host keys. The gateway asks for its certificates.",
    ),
    Setting(
        "grace_seconds",
        whole(0, 3600),
        "30",
        "How long a guest may take to shut down before its power is cut, in seconds.",
    ),
    Setting("workers", whole(1, 1000), "32", "Machines worked on at a time."),
    Setting(
        "metrics_address",
        address(),
        "0.0.0.0:8080",
        "Where /metrics, /livez and /readyz are served.",
    ),
    *LOGGING,
    Setting(
        "leader_elect",
        switch(),
        "true",
        "Work only while holding the Lease. Without it there must never be a second process.",
    ),
    Setting(
        "lease_namespace",
        text("NAMESPACE", "the name of a namespace", pattern=_LABEL, longest=63),
        None,
        "Where the Lease is.",
        found=f"the pod's namespace, else {_OWN_NAMESPACE} (also with a kubeconfig)",
    ),
    Setting(
        "lease_name",
        text(
            "NAME",
            "lower-case letters, digits, - and .",
            pattern=rf"{_LABEL}(\.{_LABEL})*",
            longest=253,
        ),
        "machine-operator",
        "Name of the Lease. Operators of one cluster must have the same one.",
    ),
    Setting(
        "identity",
        text("TEXT", "text without blanks that no other process has", pattern=r"\S+", longest=253),
        None,
        "Who we are in the Lease. It must differ between processes that live at the same time.",
        found="the host's name and a random part",
    ),
    Setting(
        "minimum_awake",
        duration("0s", "1h"),
        "30s",
        "A machine is not put to sleep sooner than this after it came up.",
    ),
    Setting(
        "start_timeout",
        duration("10s", "1d"),
        "5m",
        "How long a start may take until the machine counts as stuck.",
    ),
    Setting(
        "stop_timeout",
        duration("1s", "1h"),
        "1m",
        "How much longer than grace_seconds a stop may take until the machine counts as stuck.",
    ),
    Setting(
        "resync",
        duration("1m", "1w"),
        "10h",
        "Every machine is looked at once in this time, even if nothing is heard of it.",
    ),
    Setting(
        "pass_limit",
        duration("5s", "10m"),
        "1m",
        "How long one look at one machine may take, requests included.",
    ),
)
"""Everything that can be set, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Settings of one operator process.

    Attributes:
        kubeconfig: path, or None for the pod's service account (or the user's kubeconfig outside of a pod).
        machines: what is the same for all machines.
        limits: how long things may take in a machine's life.
        workers: how many machines are worked on at a time; each worker waits for the network most of the time.
        metrics_address: HOST:PORT of /metrics, /livez and /readyz.
        log_format, log_level: form of the log's lines, and the least important ones.
        leader_elect: whether to work only while holding the Lease.
        lease_namespace, lease_name: where the Lease is.
        identity: who we are in it.
        resync: seconds after which each machine is looked at anyway.
        pass_limit: seconds for one pass over one machine.
    """

    kubeconfig: str | None
    machines: MachineDefaults
    limits: Limits
    workers: int
    metrics_address: str
    log_format: Literal["text", "json", "logfmt"]
    log_level: Literal["debug", "info", "warning", "error"]
    leader_elect: bool
    lease_namespace: str
    lease_name: str
    identity: str
    resync: float
    pass_limit: float


@dataclass(frozen=True, slots=True)
class Effective:
    """What counts in the end.

    Attributes:
        settings: the settings.
        written: how each would be written, and where it comes from.
    """

    settings: ControllerSettings
    written: Written


def load_settings(
    *,
    flags: Mapping[str, Any],
    environ: Mapping[str, str],
    pod_namespace: Path = _NAMESPACE_FILE,
) -> Effective:
    """Put together what the sources say.

    Args:
        flags: by the names of `SETTINGS`, and `config`, the path of the file; None and absent are the same.
        environ: the environment.
        pod_namespace: the file in which a pod finds its namespace.

    Raises:
        SettingsError: something is wrong; each line says where, which key, what, and what is allowed.
    """
    written = read_settings(
        SETTINGS,
        flags=flags,
        environ=environ,
        find_out=lambda values: _find_out(values, pod_namespace),
    )
    return Effective(_settings(written.values), written)


def _find_out(values: dict[str, Any], pod_namespace: Path) -> None:
    """Fill in the defaults that depend on where we run."""
    if "identity" not in values:
        values["identity"] = f"{socket.gethostname()}_{secrets.token_hex(4)}"
    if "lease_namespace" not in values:
        # With a kubeconfig the cluster may be another one than that of our pod.
        inside = "kubeconfig" not in values and pod_namespace.exists()
        found = pod_namespace.read_text().strip() if inside else ""
        values["lease_namespace"] = found or _OWN_NAMESPACE


def _settings(values: Mapping[str, Any]) -> ControllerSettings:
    key, host = values.get("ssh_user_ca"), values.get("ssh_host_ca")
    return ControllerSettings(
        kubeconfig=values.get("kubeconfig"),
        machines=MachineDefaults(
            image=values["default_image"],
            ssh_port=values["ssh_port"],
            ssh_user_ca=key.line if key else "",
            host_authority=host.authority if host else None,
            grace_seconds=values["grace_seconds"],
        ),
        limits=Limits(
            start=values["start_timeout"],
            stop=values["stop_timeout"],
            grace=float(values["grace_seconds"]),
            minimum_awake=values["minimum_awake"],
        ),
        workers=values["workers"],
        metrics_address=values["metrics_address"],
        log_format=values["log_format"],
        log_level=values["log_level"],
        leader_elect=values["leader_elect"],
        lease_namespace=values["lease_namespace"],
        lease_name=values["lease_name"],
        identity=values["identity"],
        resync=values["resync"],
        pass_limit=values["pass_limit"],
    )
