"""`machine-operator controller`: options, `--print-config` and the reference page are what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from machine_operator.cli.controller import reference
from machine_operator.cli.main import main
from machine_operator.controller import process
from machine_operator.controller.settings import SETTINGS, ControllerSettings
from machine_operator.kubevirt.authority import Authority

ROOT = Path(__file__).resolve().parents[2]


def invoke(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, ["controller", *arguments], env=environ)


def test_the_reference_page_is_what_the_command_prints():
    assert (ROOT / "docs/operations/configuration.md").read_text() == reference(), (
        "run `machine-operator controller --print-reference > docs/operations/configuration.md`"
    )
    assert invoke("--print-reference").output == reference()


def test_the_help_names_every_setting():
    shown = " ".join(invoke("--help").output.split())
    for item in SETTINGS:
        assert item.flag in shown
        assert item.help in shown


def test_print_config_says_where_each_value_comes_from(tmp_path: Path):
    path = tmp_path / "config.yaml"
    path.write_text("workers: 3\n")
    result = invoke(
        f"--config={path}",
        "--no-leader-elect",
        "--identity=12",
        "--print-config",
        MACHINE_OPERATOR_RESYNC="90m",
    )
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=2) for line in result.output.splitlines()]
    assert ["workers:", "3", f"# file {path}"] in lines
    assert ["leader_elect:", "false", "# flag --no-leader-elect"] in lines
    assert ["identity:", "'12'", "# flag --identity"] in lines
    assert ["resync:", "1h30m", "# environment MACHINE_OPERATOR_RESYNC"] in lines
    assert ["log_level:", "info", "# default"] in lines


def test_what_print_config_prints_is_a_file_with_the_same_meaning(tmp_path: Path):
    first = invoke("--print-config", "--workers=9", "--identity=true", "--grace-seconds=0").output
    path = tmp_path / "printed.yaml"
    path.write_text(first)
    second = invoke("--print-config", f"--config={path}").output
    assert yaml.safe_load(second) == yaml.safe_load(first)
    assert "identity: 'true'" in second


def test_what_is_wrong_ends_the_command_with_sentences():
    result = invoke("--workers=0", "--resync=never", "--print-config")
    assert result.exit_code == 1
    assert "flag --workers: workers: 0 is too small" in result.output
    assert "flag --resync: resync: never makes no sense here" in result.output


def test_a_doubt_is_a_warning():
    result = invoke("--print-config", MACHINE_OPERATOR_WORKRES="3")
    assert result.exit_code == 0
    assert "did you mean MACHINE_OPERATOR_WORKERS?" in result.stderr


def test_the_flags_of_the_local_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = tmp_path / "ca.pub"
    key.write_text("ssh-ed25519 AAAA ca\n")
    authority, private = Authority.generate(), tmp_path / "host-ca"
    private.write_bytes(authority.private_bytes())
    ran: list[ControllerSettings] = []
    monkeypatch.setattr(process, "run", ran.append)
    result = invoke(
        "--kubeconfig=/k.yaml",
        "--default-image=local/debian",
        "--ssh-port=2222",
        f"--ssh-user-ca={key}",
        f"--ssh-host-ca={private}",
        "--metrics-address=127.0.0.1:9999",
    )
    assert result.exit_code == 0, result.output
    (settings,) = ran
    assert (settings.kubeconfig, settings.metrics_address) == ("/k.yaml", "127.0.0.1:9999")
    assert (settings.machines.image, settings.machines.ssh_port) == ("local/debian", 2222)
    assert settings.machines.ssh_user_ca == "ssh-ed25519 AAAA ca"
    assert settings.machines.host_authority is not None
    assert settings.machines.host_authority.public == authority.public
