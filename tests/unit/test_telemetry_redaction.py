"""Nothing that opens a door leaves through a log, in whatever notation it got into the text."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from machine_operator.telemetry.redaction import redact, redact_value

BODY = "b3BlbnNzaC1rZXktdjEAAAAA\nQyNTUxOQAAACB+/aaaa==\n"
PEM = f"-----BEGIN OPENSSH PRIVATE KEY-----\n{BODY}-----END OPENSSH PRIVATE KEY-----\n"
TOKEN = "k8s-aws-v1.aHR0cHM6Ly9zdHMu"
JWT = "eyJhbGciOiJSUzI1NiIs.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl"
SECRETS = ("b3BlbnNzaC1r", "QyNTUxOQ", TOKEN, "c2lnbmF0dXJl", "dXNlcjpwYXNz", "0a1b2c")


@pytest.mark.parametrize(
    "text",
    [
        PEM,
        PEM.replace("OPENSSH", "RSA"),
        PEM.replace("OPENSSH ", ""),
        PEM.replace("OPENSSH", "ENCRYPTED"),
        json.dumps({"data": PEM}),
        repr(PEM.encode()),
        json.dumps(json.dumps(PEM)),
        PEM.partition("-----END")[0],
        f"Authorization: Bearer {TOKEN}",
        f"authorization:bearer {TOKEN}",
        f"{{'Authorization': 'Bearer {TOKEN}', 'Accept': '*/*'}}",
        json.dumps(json.dumps({"Authorization": f"Bearer {TOKEN}"})),
        f"('Authorization', 'Bearer {TOKEN}')",
        f"(b'authorization', b'Bearer {TOKEN}')",
        "Authorization: Basic dXNlcjpwYXNz",
        'Authorization: Digest username=x, response="0a1b2c"',
        """{'Authorization': 'Digest username="x", response="0a1b2c"'}""",
        f"curl -H Authorization={TOKEN}",
        f"the token is bearer {TOKEN}.",
        f"id_token={JWT}",
        *(base64.b64encode(b"x" * n + PEM.encode()).decode() for n in range(3)),
    ],
)
def test_secrets_are_cut_out(text: str) -> None:
    redacted = redact(f"before {text} after")
    assert redacted.startswith("before ")
    assert "redacted" in redacted
    for secret in SECRETS:
        assert secret not in redacted
    if "==" in text and " " not in text:
        assert base64.b64encode(BODY.encode()).decode()[8:20] not in redacted


@pytest.mark.parametrize(
    "text",
    [
        "machine a/b: accepted -> running (DesiredStateReached)",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        "subjectaccessreviews.authorization.k8s.io is forbidden",
        "no authorization, ask an administrator",
        "the bearer of bad news",
        "Warning: bearer token expired",
    ],
)
def test_all_else_stays(text: str) -> None:
    assert redact(text) in {text, "Warning: bearer token expired"}


def test_only_the_secret_part_of_a_text_goes() -> None:
    headers = f"{{'Authorization': 'Bearer {TOKEN}', 'Accept': 'text/plain'}}"
    assert redact(headers) == "{'Authorization': '[redacted]', 'Accept': 'text/plain'}"
    two = redact(f"first {PEM} second {PEM} end")
    assert "second" in two
    assert two.endswith("end")


def test_fields_are_judged_by_their_name_too() -> None:
    assert redact_value("token", "abc") == "[redacted]"
    assert redact_value("headers", {"Authorization": "abc", "n": [1, b"x"]}) == {
        "Authorization": "[redacted]",
        "n": [1, "x"],
    }
    assert redact_value("seconds", 1.5) == 1.5
    assert redact_value("why", None) is None


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_surrounding_lets_a_key_through(before: str, after: str) -> None:
    assert "b3BlbnNzaC1r" not in redact(before + PEM + after)
