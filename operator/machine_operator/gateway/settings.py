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
    choice,
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
        "credentials",
        text("DIRECTORY", "the path of a directory"),
        None,
        "Where the SSH authorities and the token key are; without it nobody gets into machines.",
    ),
    Setting(
        "public_url",
        text("URL", "an http:// or https:// URL without a path", pattern=r"https?://[^/?#\s]+"),
        None,
        "How clients reach the API, for links that answers contain.",
        found="as the request says",
    ),
    Setting(
        "guest_dialer",
        choice("portforward", "address"),
        "portforward",
        "The way to machines: through kube-apiserver, or straight to their addresses.",
    ),
    Setting("guest_port", whole(1, 65535), "22", "Where the guests' sshd listens."),
    Setting(
        "guest_user",
        text("USER", "a user of the guest", pattern=r"[a-z_][a-z0-9_-]{0,31}"),
        "root",
        "Who commands run as.",
    ),
    Setting(
        "guest_home",
        text("PATH", "an absolute path", pattern=r"/.*"),
        "/root",
        "Where commands begin.",
    ),
    Setting(
        "guest_connections", whole(1, 100_000), "512", "Warm connections to machines, at most."
    ),
    Setting("execution_timeout", duration("1s", "1w"), "1h", "Of an execution that names none."),
    Setting(
        "execution_longest",
        duration("1s", "4w"),
        "1d",
        "The longest timeout that may be asked for.",
    ),
    Setting("execution_output_kib", whole(1, 65_536), "1024", "Output that is kept, per stream."),
    Setting(
        "execution_limit", whole(1, 10_000), "64", "Executions at once, per machine; more wait."
    ),
    Setting("execution_queue", whole(1, 100_000), "1000", "Executions that may wait, per machine."),
    Setting(
        "execution_retention",
        duration("1m", "1000w"),
        "1d",
        "How long they can be read after their end.",
    ),
    Setting(
        "artifacts",
        secret_url("file", "memory", "s3"),
        "file:///var/lib/machine-operator/artifacts",
        "Where artifacts are kept. More than one replica needs a directory that they share, or a bucket: "
        "s3://[KEY:SECRET@]BUCKET/PREFIX[?endpoint_url=…&region=…], with `pip install machine-operator[s3]`.",
    ),
    Setting("artifact_limit_mib", whole(1, 1_048_576), "100", "The largest artifact."),
    Setting("artifact_retention", duration("1m", "1000w"), "1w", "How long artifacts are kept."),
    Setting("terminal_lifetime", duration("1m", "52w"), "1d", "How long a terminal may live."),
    Setting(
        "terminal_detached",
        duration("1s", "1w"),
        "10m",
        "How long its shell lives with nobody connected.",
    ),
    Setting(
        "ssh_address", address(), None, "Where the SSH gateway listens.", found="there is none"
    ),
    Setting(
        "ssh_endpoint",
        text("HOST:PORT", "HOST:PORT", pattern=r"[A-Za-z0-9.-]+:[0-9]{1,5}"),
        None,
        "How clients reach the SSH gateway.",
        found="as it listens",
    ),
    Setting(
        "ssh_session",
        duration("1m", "1d"),
        "10m",
        "How long a session's certificate lets people log in.",
    ),
    Setting(
        "preview_domain",
        text(
            "DOMAIN",
            "a domain, with :PORT where it is not the usual one",
            pattern=r"[a-z0-9.-]+(:[0-9]{1,5})?",
        ),
        None,
        "Previews are served at PREVIEW-ID.DOMAIN.",
        found="at a path of the API",
    ),
    Setting(
        "preview_wait",
        duration("0s", "5m"),
        "25s",
        "How long a request waits for a machine to wake.",
    ),
    Setting("wake_limit", whole(1, 10_000), "32", "Machines that are woken at once."),
    Setting("wake_org_limit", whole(1, 10_000), "8", "Of these, per organisation."),
    Setting(
        "activity_window",
        duration("1s", "5m"),
        "10s",
        "Use of a machine is written down at most twice in it.",
    ),
    Setting(
        "activity_lease",
        duration("5s", "1h"),
        "1m",
        "How long a gateway that died keeps a machine awake.",
    ),
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
    credentials: Path | None
    public_url: str | None
    guest_dialer: Literal["portforward", "address"]
    guest_port: int
    guest_user: str
    guest_home: str
    guest_connections: int
    execution_timeout: float
    execution_longest: float
    execution_output_kib: int
    execution_limit: int
    execution_queue: int
    execution_retention: float
    artifacts: str
    artifact_limit_mib: int
    artifact_retention: float
    terminal_lifetime: float
    terminal_detached: float
    ssh_address: str | None
    ssh_endpoint: str | None
    ssh_session: float
    preview_domain: str | None
    preview_wait: float
    wake_limit: int
    wake_org_limit: int
    activity_window: float
    activity_lease: float
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
    for name in ("org_template", "credentials"):
        values[name] = Path(values[name]) if values[name] else None
    return GatewaySettings(**values), written
