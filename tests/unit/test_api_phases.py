"""Phases and reasons: the tables are complete, and the words are those of the contract."""

import re

from machine_operator.api.phases import (
    PHASE_REASONS,
    REASONS,
    SETTLED,
    DesiredState,
    Phase,
    Power,
    Reason,
)


def test_phases_are_those_of_the_contract() -> None:
    assert [str(phase) for phase in Phase] == [
        "accepted",
        "placement_pending",
        "starting",
        "running",
        "stopping",
        "sleeping",
        "destroying",
        "destroyed",
        "failed",
    ]


def test_each_settled_phase_satisfies_one_desired_state() -> None:
    assert {str(phase) for phase in SETTLED} == {str(state) for state in DesiredState}
    assert {str(power) for power in Power} < {str(state) for state in DesiredState}


def test_settled_is_exactly_desired_state_reached() -> None:
    reached = {p for p, reason in PHASE_REASONS.items() if reason is Reason.DESIRED_STATE_REACHED}
    assert reached == SETTLED


def test_only_failed_has_no_reason_of_its_own() -> None:
    assert set(Phase) - set(PHASE_REASONS) == {Phase.FAILED}


def test_every_reason_is_in_the_table() -> None:
    assert list(REASONS) == list(Reason)


def test_reasons_are_words_which_kubernetes_takes() -> None:
    for reason in Reason:
        assert re.fullmatch("[A-Z][A-Za-z]+", reason), reason
        words = re.sub("(?<!^)(?=[A-Z])", "_", reason.replace("KubeVirt", "Kubevirt"))
        assert reason.name == words.upper()


def test_every_reason_is_told_in_sentences() -> None:
    for reason, facts in REASONS.items():
        assert facts.meaning.endswith("."), reason
        assert facts.unblocks.endswith("."), reason


def test_the_steady_reason_is_not_retryable() -> None:
    assert not REASONS[Reason.DESIRED_STATE_REACHED].retryable
