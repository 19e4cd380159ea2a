"""Settings: each source beats the ones before it, and whatever is wrong is told with where, what and what is right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.config.options import BadValue
from machine_operator.config.settings import SettingsError
from machine_operator.controller.settings import SETTINGS, Effective, load_settings
from machine_operator.kubevirt.authority import Authority
from machine_operator.kubevirt.settings import MachineDefaults
from machine_operator.lifecycle.limits import Limits

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKfakefakefakefake user-ca"
BY_NAME = {item.name: item for item in SETTINGS}


def load(
    *, flags: dict[str, Any] | None = None, environ: dict[str, str] | None = None, **more: Any
) -> Effective:
    return load_settings(
        flags=flags or {},
        environ=environ or {},
        **{"pod_namespace": Path("/nonexistent/namespace"), **more},
    )


def mistakes(**sources: Any) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(**sources)
    return str(caught.value).splitlines()


@pytest.fixture
def config(tmp_path: Path):
    path = tmp_path / "config.yaml"

    def write(text: str) -> dict[str, Any]:
        path.write_text(text)
        return {"config": str(path)}

    return write


def test_nothing_said_means_the_defaults():
    settings = load().settings
    assert settings.machines == MachineDefaults(image="quay.io/containerdisks/debian:12")
    assert settings.limits == Limits()
    assert (settings.kubeconfig, settings.workers) == (None, 32)
    assert settings.metrics_address == "0.0.0.0:8080"
    assert (settings.log_format, settings.log_level) == ("text", "info")
    assert (settings.leader_elect, settings.lease_name) == (True, "machine-operator")
    assert (settings.resync, settings.pass_limit) == (36000.0, 60.0)


def test_the_identity_is_new_in_each_process():
    one, other = load().settings.identity, load().settings.identity
    assert one != other
    assert one.rpartition("_")[0] == other.rpartition("_")[0] != ""


def test_each_source_beats_the_ones_before(config: Any):
    flags = config("workers: 2\ngrace_seconds: 2\nssh_port: 2\nresync: 2m\n")
    environ = {f"MACHINE_OPERATOR_{name}": "3" for name in ("WORKERS", "GRACE_SECONDS")}
    got = load(flags={**flags, "workers": "4"}, environ=environ)
    assert got.settings.workers == 4
    assert got.settings.machines.grace_seconds == 3
    assert got.settings.limits.grace == 3.0
    assert got.settings.machines.ssh_port == 2
    assert got.settings.resync == 120.0
    assert got.written.origins["workers"] == "flag --workers"
    assert got.written.origins["grace_seconds"] == "environment MACHINE_OPERATOR_GRACE_SECONDS"
    assert got.written.origins["ssh_port"] == f"file {flags['config']}"
    assert got.written.origins["log_level"] == "default"
    assert got.written.shown["resync"] == "2m"


def test_the_file_can_be_named_in_the_environment_and_a_flag_beats_that(config: Any):
    environ = {"MACHINE_OPERATOR_CONFIG": config("workers: 5\n")["config"]}
    assert load(environ=environ).settings.workers == 5
    (line,) = mistakes(flags={"config": "/nonexistent.yaml"}, environ=environ)
    assert line == "flag --config: /nonexistent.yaml cannot be read: No such file or directory"


def test_empty_variables_and_flags_not_given_say_nothing():
    got = load(flags={"workers": None}, environ={"MACHINE_OPERATOR_KUBECONFIG": ""})
    assert (got.settings.workers, got.settings.kubeconfig) == (32, None)


def test_all_that_is_wrong_is_told_at_once(config: Any):
    flags = config("worker: 3\nresync: never\nlog_level: loud\n")
    lines = mistakes(flags={**flags, "workers": "0"}, environ={"MACHINE_OPERATOR_SSH_PORT": "x"})
    where = f"file {flags['config']}"
    names = ", ".join(BY_NAME)
    assert lines == [
        f"{where}: worker: there is no such key; did you mean workers? All keys: {names}",
        f"{where}: resync: never makes no sense here; "
        "allowed: a duration such as 90s, 5m or 1h30m, from 1m to 1w",
        f"{where}: log_level: 'loud' is none of them; allowed: debug, info, warning or error",
        "environment MACHINE_OPERATOR_SSH_PORT: ssh_port: 'x' is no whole number; "
        "allowed: a whole number from 1 to 65535",
        "flag --workers: workers: 0 is too small; allowed: a whole number from 1 to 1000",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("workers: [", "it is not YAML"),
        ("- workers", "it has no keys"),
        ("just words", "it has no keys"),
        ("workers: 1\nworkers: 2", "workers: it is there more than once"),
        ("workers:", "workers: it has no value"),
        ("Leader-Elect: true", "did you mean leader_elect?"),
        ("{[1]: 2}", "it is not YAML"),
        ("workers: 1.5", "'1.5' is no whole number"),
        ("workers: true", "'True' is no whole number"),
        ("identity: 12", "12 is not text; put it in quotes"),
        ("resync: 2026-01-01", "is no duration"),
        ("resync: {a: b}", "is no duration"),
    ],
)
def test_a_file_that_cannot_be_used(config: Any, text: str, expected: str):
    lines = mistakes(flags=config(text))
    assert any(expected in line for line in lines), lines


def test_a_file_that_is_empty_or_not_text(tmp_path: Path, config: Any):
    assert load(flags=config("# nothing yet\n")).settings.workers == 32
    path = tmp_path / "binary"
    path.write_bytes(b"\xff\xfe\x00")
    assert mistakes(flags={"config": str(path)})
    assert mistakes(flags={"config": str(tmp_path)})


def test_what_yaml_makes_of_values_is_understood(config: Any):
    got = load(flags=config("leader_elect: no\nresync: 1800\nminimum_awake: 0s\nworkers: '7'\n"))
    assert (got.settings.leader_elect, got.settings.resync) == (False, 1800.0)
    assert (got.settings.limits.minimum_awake, got.settings.workers) == (0.0, 7)
    assert got.written.shown["minimum_awake"] == "0s"


def test_a_variable_that_kubernetes_made_is_explained():
    (line,) = mistakes(environ={"MACHINE_OPERATOR_SSH_PORT": "tcp://10.96.0.7:22"})
    assert "enableServiceLinks: false" in line


def test_a_mistyped_variable_is_doubted_and_foreign_ones_are_not():
    foreign = {"MACHINE_OPERATOR_CACHE": "x", "MACHINE_OPERATOR_METRICS_SERVICE_HOST": "10.0.0.1"}
    got = load(environ={**foreign, "MACHINE_OPERATOR_LEADERELECT": "false"})
    assert got.written.warnings == (
        "environment MACHINE_OPERATOR_LEADERELECT: it is not read; "
        "did you mean MACHINE_OPERATOR_LEADER_ELECT?",
    )


def test_the_lease_lives_in_the_pods_namespace_unless_the_cluster_is_another(tmp_path: Path):
    namespace = tmp_path / "namespace"
    namespace.write_text("operators\n")
    assert load().settings.lease_namespace == "machine-operator"
    assert load(pod_namespace=namespace).settings.lease_namespace == "operators"
    elsewhere = load(flags={"kubeconfig": "k"}, pod_namespace=namespace)
    assert elsewhere.settings.lease_namespace == "machine-operator"
    said = load(flags={"lease_namespace": "mine"}, pod_namespace=namespace)
    assert said.settings.lease_namespace == "mine"


def test_the_key_of_the_authority_is_read(tmp_path: Path):
    path = tmp_path / "ca.pub"
    path.write_text(f"# the authority\n\n{KEY}\n")
    got = load(flags={"ssh_user_ca": str(path)})
    assert got.settings.machines.ssh_user_ca == KEY
    assert got.written.shown["ssh_user_ca"] == str(path)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n", "is a private key"),
        (f"{KEY}\n{KEY}\n", "has 2 keys instead of one"),
        ("", "has 0 keys instead of one"),
        ("hello world\n", "has no public key of OpenSSH"),
    ],
)
def test_a_file_that_is_no_public_key(tmp_path: Path, content: str, expected: str):
    path = tmp_path / "ca.pub"
    path.write_text(content)
    (line,) = mistakes(flags={"ssh_user_ca": str(path)})
    assert expected in line
    assert "c2VjcmV0" not in line, "a secret is told"


def test_the_private_key_of_the_host_authority_is_read_and_never_shown(tmp_path: Path):
    authority, path = Authority.generate(), tmp_path / "host-ca"
    path.write_bytes(authority.private_bytes())
    got = load(flags={"ssh_host_ca": str(path)})
    assert got.settings.machines.host_authority is not None
    assert got.settings.machines.host_authority.public == authority.public
    assert got.written.shown["ssh_host_ca"] == str(path)
    assert "PRIVATE" not in repr(got)
    assert load().settings.machines.host_authority is None


RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            KEY.encode(),
            "it is no OpenSSH private key without a passphrase; name the file without .pub",
        ),
        (b"c2VjcmV0", "it is no OpenSSH private key without a passphrase"),
        (b"", "it is no OpenSSH private key without a passphrase"),
        (RSA, "it is no ed25519 key"),
        (b"\xff\xfe\x00", "is not a text file"),
    ],
    ids=["public", "garbage", "empty", "rsa", "binary"],
)
def test_a_file_that_is_no_private_key(tmp_path: Path, content: bytes, expected: str):
    path = tmp_path / "host-ca"
    path.write_bytes(content)
    (line,) = mistakes(flags={"ssh_host_ca": str(path)})
    assert line.startswith(f"flag --ssh-host-ca: ssh_host_ca: {path}")
    assert expected in line
    assert "c2VjcmV0" not in line, "a secret is told"


@pytest.mark.parametrize("path", ["/no/such/file", "a\0b", "~nobody-like-this/key"])
def test_a_path_that_leads_nowhere(path: str):
    for name in ("ssh_host_ca", "ssh_user_ca"):
        with pytest.raises(BadValue, match=r"cannot be read|is no path"):
            BY_NAME[name].kind.parse(path)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        (
            "metrics_address",
            ["[::1]:80", ":0", "h:65535"],
            ["80", "::1:80", "h:", "h:65536", "a b:1", "h:٣"],
        ),
        ("lease_namespace", ["a", "a-1"], ["A", "-a", "a.b", "a" * 64, "a\n"]),
        ("lease_name", ["a.b-c"], ["a..b", "A", ""]),
        ("identity", ["host_1a"], ["a b", "", "x" * 254]),
        ("log_format", ["text", "JSON", "logfmt"], ["xml", ""]),
        ("leader_elect", ["true", "No", "1", True], ["maybe", ""]),
        ("pass_limit", ["5s", "600"], ["4s", "11m", "", "1.5s", "-5s", "never", 1.5]),
        ("start_timeout", ["10s", "1d"], ["9s", "1d1s"]),
        ("workers", ["1", " 7 ", 1000], ["1001", "٣", "1e2", "0x10", "", "9" * 30]),
        ("default_image", ["r/i:t"], ["", "a b"]),
    ],
)
def test_what_is_allowed(name: str, good: list[Any], bad: list[Any]):
    parse = BY_NAME[name].kind.parse
    for raw in good:
        parse(raw)
    for raw in bad:
        with pytest.raises(BadValue):
            parse(raw)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=4,
)


@given(item=st.sampled_from(SETTINGS), raw=ANYTHING)
def test_any_value_is_understood_or_refused(item: Any, raw: Any):
    try:
        value = item.kind.parse(raw)
    except BadValue:
        return
    # What is shown means the same again.
    assert item.kind.parse(item.kind.show(value)) == value


def test_the_table_is_in_order():
    assert len(BY_NAME) == len(SETTINGS)
    for item in SETTINGS:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", item.name)
        assert item.help.endswith("."), item.name
        if item.default is not None:
            assert item.kind.show(item.kind.parse(item.default)) == item.default
