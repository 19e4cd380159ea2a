"""`machine-operator keys`: what it writes, what it prints where, and its sentences."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import CliRunner, Result

from machine_operator.api.timestamps import parse_timestamp
from machine_operator.cli.keys import keys
from machine_operator.gateway.keys import EXPIRES, LAST_USED, key_id, read_key
from machine_operator.kube.client import KubeClient
from machine_operator.kube.errors import ApiError
from tests.support.apiserver import FakeApi, Object, Request, failure
from tests.support.client import FakeClient


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


def invoke(api: FakeApi, *arguments: str) -> Result:
    async def opener(_: str | None) -> KubeClient:
        return FakeClient(api, latency=0.0)

    return CliRunner().invoke(keys, arguments, obj=opener)


def made(api: FakeApi, *arguments: str) -> str:
    """The token of a new key."""
    result = invoke(api, "create", *arguments)
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


def identity(token: str) -> str:
    found = key_id(token)
    assert found is not None, token
    return found


def secrets(api: FakeApi) -> list[Object]:
    return api.all("secrets")


def ids(api: FakeApi) -> set[str]:
    return {read_key(secret).id for secret in secrets(api)}


# ---- create


def test_create_prints_the_token_alone_and_the_rest_beside(api: FakeApi) -> None:
    result = invoke(api, "create", "--org", "acme")
    assert result.exit_code == 0, result.output
    token = result.stdout.removesuffix("\n")
    (secret,) = secrets(api)
    key = read_key(secret)
    assert token.startswith(f"dsk-{key.id}-")
    assert "\n" not in token
    assert (key.org, key.scopes, key.expires_at) == ("acme", {"*"}, None)
    assert secret["metadata"]["namespace"] == "machine-operator"
    assert key.id in result.stderr
    assert "never expires" in result.stderr
    assert token not in result.stderr


def test_create_writes_what_it_is_told(api: FakeApi) -> None:
    before = datetime.now(UTC).timestamp()
    made(
        api,
        *("--org", "acme", "--scope", "machines:read", "--scope", "machines:write"),
        *("--expires", "90d", "--description", "for CI", "--namespace", "elsewhere"),
    )
    (secret,) = secrets(api)
    key = read_key(secret)
    assert key.scopes == {"machines:read", "machines:write"}
    assert key.expires_at is not None
    assert key.expires_at - before == pytest.approx(90 * 86_400, abs=60)
    assert secret["metadata"]["namespace"] == "elsewhere"
    assert "for CI" in secret["metadata"]["annotations"].values()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Missing option '--org'"),
        (["--org", "Acme"], "'Acme' cannot be an org"),
        (["--org", "kube-system"], "belong to Kubernetes"),
        (["--org", "acme", "--scope", "machines:fly"], "there is no scope 'machines:fly'"),
        (["--org", "acme", "--scope", "x"], "machines:write  create, change"),
        (["--org", "acme", "--expires", "soon"], "'soon' is no duration"),
        (["--org", "acme", "--expires", "0s"], "too short"),
        (["--org", "acme", "--expires", "9999w"], "too long"),
        (["--org", "acme", "--description", "x" * 257], "more than 256"),
    ],
)
def test_create_refuses_in_words(api: FakeApi, arguments: list[str], words: str) -> None:
    result = invoke(api, "create", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stdout == ""
    assert api.log == []


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (failure(404, "NotFound", 'namespaces "machine-operator" not found'), "install the op"),
        (failure(403, "Forbidden", "you may not"), "you may not"),
        (failure(409, "AlreadyExists", "there"), "run the command again"),
    ],
)
def test_create_prints_no_token_that_was_not_written(
    api: FakeApi, error: ApiError, words: str
) -> None:
    def refused(request: Request) -> ApiError | None:
        return error if request.verb == "create" else None

    api.refuse.append(refused)
    result = invoke(api, "create", "--org", "acme")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_cluster_that_is_away_is_a_sentence(api: FakeApi) -> None:
    api.down = True
    for arguments in (["create", "--org", "a"], ["list"], ["revoke", "abcdefabcdef"]):
        result = invoke(api, *arguments)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert result.stdout == ""


def test_without_a_kubeconfig_it_says_where_it_looked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    missing = str(tmp_path / "none")
    result = CliRunner().invoke(keys, ["list", "--kubeconfig", missing])
    assert result.exit_code == 1
    assert missing in result.stderr


# ---- list


def test_list_shows_everything_but_secrets(api: FakeApi) -> None:
    tokens = [made(api, "--org", org) for org in ("beta", "acme")]
    made(api, "--org", "acme", "--scope", "machines:read", "--expires", "90d")
    result = invoke(api, "list")
    assert result.exit_code == 0, result.output
    header, *rows = [re.split(r" {2,}", line) for line in result.stdout.splitlines()]
    assert header == ["ID", "ORG", "SCOPES", "CREATED", "EXPIRES", "LAST USED"]
    assert [row[1] for row in rows] == ["acme", "acme", "beta"]
    assert {row[2] for row in rows} == {"*", "machines:read"}
    assert {row[5] for row in rows} == {"-"}
    for token in tokens:
        assert token[17:] not in result.output
        assert identity(token) in result.stdout
    for secret in secrets(api):
        assert secret["data"]["sha256"] not in result.output
        assert read_key(secret).digest.hex() not in result.output


def test_list_as_json_says_when_and_what(api: FakeApi) -> None:
    token = made(api, "--org", "acme", "--expires", "1m", "--description", "for CI")
    made(api, "--org", "beta")
    past = {EXPIRES: "2026-01-02T00:00:00Z", LAST_USED: "2026-01-01T00:00:00Z"}
    (secret,) = [s for s in secrets(api) if read_key(s).org == "acme"]
    secret["metadata"]["annotations"].update(past)
    api.put("secrets", secret)
    result = invoke(api, "list", "--org", "acme", "--json")
    (row,) = json.loads(result.stdout)
    parse_timestamp(row.pop("created_at"))
    assert row == {
        "id": identity(token),
        "org": "acme",
        "scopes": ["*"],
        "expires_at": past[EXPIRES],
        "expired": True,
        "last_used_at": past[LAST_USED],
        "description": "for CI",
    }
    assert "2026-01-02T00:00:00Z (expired)" in invoke(api, "list").stdout


def test_list_of_none_is_a_sentence_or_an_empty_list(api: FakeApi) -> None:
    assert invoke(api, "list").stdout == "there are no API keys\n"
    assert json.loads(invoke(api, "list", "--json").stdout) == []


def test_list_warns_of_what_no_gateway_accepts(api: FakeApi) -> None:
    token = made(api, "--org", "acme")
    api.put("secrets", {**secrets(api)[0], "type": "Opaque"})
    result = invoke(api, "list")
    assert result.exit_code == 0
    assert f"Warning: Secret api-key-{identity(token)} is no API key" in result.stderr
    assert result.stdout == "there are no API keys\n"


# ---- revoke


def test_revoke_deletes_one_key_by_any_of_its_names(api: FakeApi) -> None:
    tokens = [made(api, "--org", "acme") for _ in range(4)]
    first, second, third, last = (identity(token) for token in tokens)
    for name in (first, f"api-key-{second}", tokens[2]):
        result = invoke(api, "revoke", name)
        assert result.exit_code == 0, result.output
        assert "of org acme is revoked" in result.stdout
        assert tokens[2] not in result.output
    assert ids(api) == {last}
    assert third not in ids(api)


def test_revoke_of_an_org_leaves_the_others(api: FakeApi) -> None:
    for org in ("acme", "acme", "beta"):
        made(api, "--org", org)
    result = invoke(api, "revoke", "--org", "acme", "--all")
    assert result.stdout == "2 API keys of org acme are revoked\n"
    assert [read_key(secret).org for secret in secrets(api)] == ["beta"]
    again = invoke(api, "revoke", "--org", "acme", "--all")
    assert again.exit_code == 0
    assert again.stderr == "0 API keys of org acme are revoked\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "say which key"),
        (["--org", "acme"], 2, "say which key"),
        (["--all"], 2, "--all takes --org ORG and no ID"),
        (["abcdefabcdef", "--org", "acme", "--all"], 2, "--all takes --org ORG and no ID"),
        (["../secrets/x"], 2, "no id of a key"),
        (["abcdefabcdef"], 1, "there is no API key abcdefabcdef"),
    ],
)
def test_revoke_refuses_in_words(api: FakeApi, arguments: list[str], code: int, words: str) -> None:
    made(api, "--org", "acme")
    result = invoke(api, "revoke", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(secrets(api)) == 1


def test_revoke_minds_the_org_and_touches_no_other_secret(api: FakeApi) -> None:
    token = made(api, "--org", "acme")
    result = invoke(api, "revoke", identity(token), "--org", "beta")
    assert result.exit_code == 1
    assert "is one of org acme, not of beta" in result.stderr
    meta = {"name": "api-key-abcdefabcdef", "namespace": "machine-operator"}
    api.put("secrets", {"metadata": meta, "type": "Opaque"})
    result = invoke(api, "revoke", "abcdefabcdef")
    assert result.exit_code == 1
    assert "does not have the label" in result.stderr
    assert len(secrets(api)) == 2


def test_a_mistyped_token_is_not_repeated(api: FakeApi) -> None:
    token = made(api, "--org", "acme")
    result = invoke(api, "revoke", f"{token}!")
    assert result.exit_code == 2
    assert token not in result.output
