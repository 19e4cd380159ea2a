from pathlib import Path

from click.testing import CliRunner

from machine_operator.cli.gateway import gateway, reference

ROOT = Path(__file__).parents[2]


def invoke(*words: str, **environ: str) -> str:
    result = CliRunner().invoke(gateway, [*words], env=environ)
    assert result.exit_code == 0, result.output
    return result.output


def test_the_reference_page_is_up_to_date() -> None:
    page = (ROOT / "docs/operations/gateway.md").read_text()
    assert page == reference(), (
        "run `machine-operator gateway --print-reference > docs/operations/gateway.md`"
    )
    assert invoke("--print-reference") == reference()


def test_passwords_in_urls_are_not_shown() -> None:
    shown = invoke(
        "--print-config",
        MACHINE_OPERATOR_DATABASE="postgresql://gateway:hunter2@db/gateway",
        MACHINE_OPERATOR_REDIS="redis://:hunter2@cache:6379/0",
    )
    assert "hunter2" not in shown
    assert "postgresql://***@db/gateway" in shown
    assert "redis://***@cache:6379/0" in shown


def test_what_is_wrong_is_told_without_repeating_a_url() -> None:
    result = CliRunner().invoke(
        gateway, ["--print-config", "--database", "mysql://gateway:hunter2@db", "--max-vcpu", "0"]
    )
    assert result.exit_code == 1
    assert "hunter2" not in result.output
    assert "database" in result.output
    assert "max_vcpu" in result.output
