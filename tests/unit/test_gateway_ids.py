"""Ids of machines: of one key one name, both spellings, and never a guess."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from machine_operator.api import rules
from machine_operator.gateway.machine_ids import PREFIX, bare_id, new_name, own_id
from tests.support.machines import UID, a_machine

KEYS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)
ORGS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)


@given(org=ORGS, key=KEYS)
def test_a_key_always_makes_the_same_name_and_it_is_a_uuid(org: str, key: str) -> None:
    name = new_name(org, key)
    assert name == new_name(org, key)
    parsed = uuid.UUID(name.removeprefix(PREFIX))
    assert (parsed.version, parsed.variant) == (8, uuid.RFC_4122)
    assert name == f"dm-{parsed}"
    assert len(name) <= rules.MAX_NAME_LENGTH


@given(one=st.tuples(ORGS, KEYS), other=st.tuples(ORGS, KEYS))
def test_other_keys_and_other_organisations_make_other_names(
    one: tuple[str, str], other: tuple[str, str]
) -> None:
    assume(one != other)
    assert new_name(*one) != new_name(*other)


def test_an_organisation_and_a_key_are_not_run_together() -> None:
    assert new_name("a", "bc") != new_name("ab", "c")


def test_without_a_key_every_name_is_new() -> None:
    names = {new_name("acme", None) for _ in range(100)}
    assert len(names) == 100
    assert all(uuid.UUID(name.removeprefix(PREFIX)).version == 4 for name in names)


@given(st.uuids())
def test_both_spellings_are_the_same_id(made: uuid.UUID) -> None:
    assert bare_id(str(made)) == bare_id(f"dm-{made}") == str(made)


@pytest.mark.parametrize(
    "odd",
    [
        "",
        "dm-",
        "box",
        f"dm-dm-{UID}",
        f"DM-{UID}",
        UID.upper(),
        UID.replace("-", ""),
        f"{UID}\n",
        f" {UID}",
        f"{UID}/sleep",
        f"{{{UID}}}",
        f"urn:uuid:{UID}",
        UID[:-1],
        UID.replace("7", "\uff17"),
    ],
)
def test_nothing_else_is_an_id(odd: str) -> None:
    assert bare_id(odd) is None


@given(st.text(max_size=60))
def test_whatever_is_asked_for_is_an_id_or_none(text: str) -> None:
    found = bare_id(text)
    assert found is None or text in (found, f"dm-{found}")


@pytest.mark.parametrize("name", ["box", "dm-box", UID, f"dm-{UID.upper()}", f"x-{UID}"])
def test_a_machine_of_any_other_name_is_known_by_its_uid(name: str) -> None:
    uid = "11111111-2222-4333-8444-555555555555"
    assert own_id(a_machine(name=name, uid=uid)) == uid


def test_a_machine_that_was_made_over_rest_is_known_by_its_name() -> None:
    made = a_machine(name=f"dm-{UID}", uid="11111111-2222-4333-8444-555555555555")
    assert own_id(made) == UID
