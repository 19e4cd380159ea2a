"""How the gateway is set up: defaults < file < environment < flags, like the controller.

`SETTINGS` is the one source of every name, default, bound and explanation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from machine_operator.config.common import KUBECONFIG, LOGGING
from machine_operator.config.options import (
    Setting,
    address,
    duration,
    number,
    secret_url,
    switch,
    text,
    whole,
)
from machine_operator.config.settings import Written, read_settings

__all__ = ["SETTINGS", "GatewaySettings", "load_settings"]

_LABEL: Final = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"

SETTINGS: Final = (
    KUBECONFIG,
    Setting("address", address(), "0.0.0.0:8000", "Where the API is served."),
    Setting(
        "gateway_metrics_address",
        address(),
        "0.0.0.0:8081",
        "Where /metrics, /livez and /readyz are served.",
    ),
    Setting(
        "keys_namespace",
        text("NAMESPACE", "the name of a namespace", pattern=_LABEL, longest=63),
        "machine-operator",
        "Where the Secrets of the API keys are.",
    ),
    Setting(
        "database",
        secret_url("sqlite", "postgresql"),
        "sqlite:///machine-operator-gateway.db",
        "Where idempotency records and usage are kept. More than one replica needs PostgreSQL.",
    ),
    Setting(
        "redis",
        secret_url("redis", "rediss"),
        None,
        "Where rates are counted for all replicas together.",
        found="each replica counts for itself",
    ),
    Setting("read_rate", number(0.1, 1e6), "100", "Reads a second, per organisation."),
    Setting("read_burst", whole(1, 10_000_000), "200", "Reads at once, per organisation."),
    Setting("change_rate", number(0.1, 1e6), "20", "Changes a second, per organisation."),
    Setting("change_burst", whole(1, 10_000_000), "40", "Changes at once, per organisation."),
    Setting("sleep_rate", number(0.1, 1e6), "2", "Sleeps a second, per organisation."),
    Setting("sleep_burst", whole(1, 10_000_000), "4", "Sleeps at once, per organisation."),
    Setting("default_vcpu", number(0.25, 1024), "1", "vCPUs of a machine that names none."),
    Setting("default_memory_mib", whole(128, 4_194_304), "2048", "Memory of one that names none."),
    Setting("default_storage_gib", whole(1, 65_536), "10", "Home disk of one that names none."),
    Setting("max_vcpu", number(0.25, 1024), "128", "The most vCPUs of a machine."),
    Setting("max_memory_mib", whole(128, 4_194_304), "129024", "The most memory of a machine."),
    Setting("max_storage_gib", whole(1, 65_536), "65536", "The largest home disk."),
    Setting(
        "create_orgs",
        switch(),
        "true",
        "Make the namespace of an organisation when it first makes a machine.",
    ),
    Setting(
        "org_template",
        text("FILE", "the path of a file with Kubernetes objects"),
        None,
        "More objects for a new organisation's namespace, such as a ResourceQuota.",
    ),
    Setting(
        "strict_idempotency",
        switch(),
        "false",
        "Refuse changes without an Idempotency-Key.",
    ),
    Setting("strict_if_match", switch(), "false", "Refuse changes of a machine without If-Match."),
    Setting(
        "keep_destroyed",
        duration("0s", "1w"),
        "10m",
        "How long a destroyed machine can still be read.",
    ),
    Setting(
        "drain",
        duration("0s", "10m"),
        "10s",
        "How long requests under way may take once the process is told to end.",
    ),
    *LOGGING,
)
"""Everything that can be set, in the order of the documentation."""


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """Settings of one gateway process; `SETTINGS` explains each."""

    kubeconfig: str | None
    address: str
    gateway_metrics_address: str
    keys_namespace: str
    database: str
    redis: str | None
    read_rate: float
    read_burst: int
    change_rate: float
    change_burst: int
    sleep_rate: float
    sleep_burst: int
    default_vcpu: float
    default_memory_mib: int
    default_storage_gib: int
    max_vcpu: float
    max_memory_mib: int
    max_storage_gib: int
    create_orgs: bool
    org_template: Path | None
    strict_idempotency: bool
    strict_if_match: bool
    keep_destroyed: float
    drain: float
    log_format: Literal["text", "json", "logfmt"]
    log_level: Literal["debug", "info", "warning", "error"]


def load_settings(
    *, flags: Mapping[str, Any], environ: Mapping[str, str]
) -> tuple[GatewaySettings, Written]:
    """Put together what the sources say.

    Raises:
        SettingsError: something is wrong; each line says where, which key, what, and what is allowed.
    """
    written = read_settings(SETTINGS, flags=flags, environ=environ)
    values: dict[str, Any] = {item.name: written.values.get(item.name) for item in SETTINGS}
    template = values.pop("org_template")
    return GatewaySettings(**values, org_template=Path(template) if template else None), written
