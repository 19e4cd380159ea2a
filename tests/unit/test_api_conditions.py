"""Conditions: when the transition time moves, and that equal outcomes are equal lists."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from machine_operator.api.conditions import (
    CONDITIONS,
    Condition,
    ConditionStatus,
    ConditionType,
    set_conditions,
)
from machine_operator.api.phases import Reason

THEN, NOW = "2026-03-01T10:00:00Z", "2026-03-01T11:00:00Z"
STATUSES: tuple[ConditionStatus, ...] = ("True", "False", "Unknown")


def ready(
    status: ConditionStatus = "True", message: str = "", stamp: str | None = None
) -> Condition:
    return Condition(
        type=ConditionType.READY,
        status=status,
        reason=Reason.DESIRED_STATE_REACHED,
        message=message,
        observedGeneration=3,
        lastTransitionTime=stamp,
    )


def test_a_new_condition_is_stamped_and_plain() -> None:
    [written] = set_conditions([], [ready(message="running")], now=NOW)
    assert written == {
        "type": "Ready",
        "status": "True",
        "reason": "DesiredStateReached",
        "message": "running",
        "observedGeneration": 3,
        "lastTransitionTime": NOW,
    }
    assert {type(value) for value in written.values()} == {str, int}


def test_the_time_stays_while_the_status_stays() -> None:
    first = set_conditions([], [ready(message="a")], now=THEN)
    [second] = set_conditions(first, [ready(message="b")], now=NOW)
    assert (second["message"], second["lastTransitionTime"]) == ("b", THEN)


def test_the_time_moves_when_the_status_flips() -> None:
    first = set_conditions([], [ready("True")], now=THEN)
    [second] = set_conditions(first, [ready("False")], now=NOW)
    assert second["lastTransitionTime"] == NOW


def test_a_known_time_of_a_flip_is_taken_over() -> None:
    first = set_conditions([], [ready("True")], now="2026-03-01T09:00:00Z")
    [second] = set_conditions(first, [ready("False", stamp=THEN)], now=NOW)
    assert second["lastTransitionTime"] == THEN


def test_a_previous_condition_without_time_is_stamped() -> None:
    broken: list[dict[str, Any]] = [{"type": "Ready", "status": "True"}]
    [written] = set_conditions(broken, [ready()], now=NOW)
    assert written["lastTransitionTime"] == NOW


def test_what_is_not_wanted_is_left_out() -> None:
    foreign = {"type": "Foreign", "status": "True", "lastTransitionTime": THEN}
    assert [c["type"] for c in set_conditions([foreign], [ready()], now=NOW)] == ["Ready"]


def test_generation_is_left_out_when_unknown() -> None:
    wanted = Condition(type="Ready", status="True", reason="A", message="")
    assert "observedGeneration" not in set_conditions([], [wanted], now=NOW)[0]


def test_a_type_twice_is_an_error() -> None:
    with pytest.raises(ValueError, match="wanted twice: Ready"):
        set_conditions([], [ready("True"), ready("False")], now=NOW)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from([*map(str, ConditionType), "Zebra", "Ant"]), st.sampled_from(STATUSES)
    ),
    st.integers(),
)
def test_order_is_stable_and_a_second_time_changes_nothing(
    wanted: dict[str, ConditionStatus], seed: int
) -> None:
    conditions = [
        Condition(type=kind, status=status, reason="A", message="")
        for kind, status in wanted.items()
    ]
    written = set_conditions([], conditions, now=THEN)
    expected = [str(kind) for kind in ConditionType if kind in wanted]
    expected += [kind for kind in ("Ant", "Zebra") if kind in wanted]
    assert [c["type"] for c in written] == expected

    random.Random(seed).shuffle(conditions)
    assert set_conditions(written, conditions, now=NOW) == written


def test_every_type_is_told() -> None:
    assert list(CONDITIONS) == list(ConditionType)
    assert all(text.endswith(".") for text in CONDITIONS.values())
