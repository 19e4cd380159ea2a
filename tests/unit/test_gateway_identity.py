"""Who asks, for which org, and what they may: the API-key side of the seam."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers

from machine_operator.gateway.identity import (
    NEEDED_SCOPES,
    Caller,
    Credentials,
    KeyOrgs,
    KeyScopes,
    Verb,
)
from machine_operator.gateway.keys import SCOPES
from machine_operator.gateway.problems import Coded


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in pairs])


def caller(*scopes: str) -> Caller:
    return Caller("acme", "api-key:abc", frozenset(scopes), "abc")


# ---- credentials


@pytest.mark.parametrize(
    ("sent", "token"),
    [
        ([], None),
        ([("Authorization", "Bearer one")], "one"),
        ([("Authorization", "bEARER   one ")], "one"),
        ([("Authorization", "Bearer\tone")], "one"),
        ([("Authorization", "Bearer")], None),
        ([("Authorization", "Bearer  ")], None),
        ([("Authorization", "")], None),
        ([("Authorization", "Basic one")], None),
        ([("Authorization", "Bearerone")], None),
        ([("x-api-key", "two")], "two"),
        ([("X-API-Key", " two ")], "two"),
        ([("x-api-key", " ")], None),
        ([("Authorization", "Basic one"), ("x-api-key", "two")], "two"),
        ([("Authorization", "Bearer "), ("x-api-key", "two")], "two"),
        ([("x-api-key", "two"), ("Authorization", "Bearer one")], "one"),
        ([("Authorization", "Bearer one"), ("Authorization", "bearer one")], "one"),
        ([("Authorization", "Basic x"), ("Authorization", "Bearer one")], "one"),
        ([("x-api-key", "two"), ("x-api-key", "two")], "two"),
    ],
)
def test_which_credential_counts(sent: list[tuple[str, str]], token: str | None) -> None:
    assert Credentials.from_headers(headers(*sent)).token == token


@pytest.mark.parametrize(
    "sent",
    [
        [("Authorization", "Bearer one"), ("Authorization", "Bearer two")],
        [("x-api-key", "one"), ("x-api-key", "two")],
        [("x-api-key", "one"), ("x-api-key", "")],
        [("Authorization", "Bearer " + "x" * 1025)],
        [("x-api-key", "x" * 60_000)],
    ],
)
def test_ambiguous_and_endless_credentials_are_refused(sent: list[tuple[str, str]]) -> None:
    with pytest.raises(Coded) as caught:
        Credentials.from_headers(headers(*sent))
    assert (caught.value.status, caught.value.error_code) == (401, "AUTH_INVALID")


def test_no_credential_is_in_the_representation() -> None:
    sent = headers(("Authorization", "Bearer first"), ("x-api-key", "second"))
    found = Credentials.from_headers(sent)
    assert (found.bearer, found.api_key) == ("first", "second")
    assert "first" not in repr(found)
    assert "second" not in repr(found)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"authorization", b"x-api-key", b"x-dedalus-org-id", b"accept"]),
            st.one_of(
                st.binary(max_size=40),
                st.binary(max_size=40).map(lambda value: b"Bearer " + value),
                st.sampled_from([b"bearer", b"Bearer a", b"a", b"x" * 2000]),
            ),
        ),
        max_size=6,
    )
)
def test_any_bytes_are_credentials_or_a_401(raw: list[tuple[bytes, bytes]]) -> None:
    refusal = None
    try:
        found = Credentials.from_headers(Headers(raw=raw))
    except Coded as error:
        refusal = error
    if refusal is not None:
        assert refusal.status == 401
        return
    for value in (found.bearer, found.api_key, found.org_id):
        assert value is None or value
    assert found.token == (found.bearer or found.api_key)


# ---- orgs


@pytest.mark.parametrize("asked", [None, "", "  ", "acme", " acme "])
def test_without_a_wish_it_is_the_org_of_the_key(asked: str | None) -> None:
    assert KeyOrgs().resolve(caller(), asked) == "acme"


@pytest.mark.parametrize("asked", ["other", "ACME", "acme,other", "acme\x00", "äcme"])
def test_another_org_is_refused(asked: str) -> None:
    with pytest.raises(Coded) as caught:
        KeyOrgs().resolve(caller(), asked)
    assert (caught.value.status, caught.value.error_code) == (403, "AUTH_ORG_MISMATCH")


def test_an_org_that_is_sent_twice_differently_is_no_org() -> None:
    two = headers(("X-Dedalus-Org-Id", "acme"), ("X-Dedalus-Org-Id", "other"))
    with pytest.raises(Coded, match="org scope"):
        KeyOrgs().resolve(caller(), Credentials.from_headers(two).org_id)
    same = headers(("X-Dedalus-Org-Id", "acme"), ("X-Dedalus-Org-Id", "acme"))
    assert Credentials.from_headers(same).org_id == "acme"


# ---- scopes


def may(who: Caller, verb: Verb, *, org: str = "acme") -> str | None:
    """None, or status and code of the refusal."""
    try:
        asyncio.run(KeyScopes().allow(who, org, verb))
    except Coded as error:
        return f"{error.status} {error.error_code}"
    return None


def test_each_verb_needs_a_scope_that_exists() -> None:
    assert set(NEEDED_SCOPES) == set(Verb)
    assert set(NEEDED_SCOPES.values()) <= set(SCOPES)


def test_readers_read_and_writers_write() -> None:
    reading = {Verb.LIST, Verb.GET, Verb.WATCH, Verb.USAGE}
    reads = {verb for verb in Verb if may(caller("machines:read"), verb) is None}
    writes = {verb for verb in Verb if may(caller("machines:write"), verb) is None}
    assert reads == reading
    assert writes == set(Verb) - reading


def test_the_star_may_do_everything_and_nobody_else_does() -> None:
    assert {may(caller("*"), verb) for verb in Verb} == {None}
    assert {may(caller("executions:write"), verb) for verb in Verb} == {"403 AUTH_SCOPE_FORBIDDEN"}
    assert {may(caller(), verb) for verb in Verb} == {"403 AUTH_SCOPE_FORBIDDEN"}


def test_no_scope_reaches_into_another_org() -> None:
    assert may(caller("*"), Verb.GET, org="other") == "403 AUTH_ORG_MISMATCH"
