"""What kube-apiserver's failures become: an answer in our words, with nothing in it that is the cluster's own."""

from __future__ import annotations

from typing import Any

import pytest

from machine_operator.gateway import failures
from machine_operator.gateway.problems import Coded
from machine_operator.kube.errors import (
    ConfigurationError,
    Conflict,
    Forbidden,
    KubeError,
    TooManyRequests,
    Unreachable,
    from_status,
)


def _status(code: int, message: str, **details: Any) -> KubeError:
    return from_status(code, {"message": message, "reason": "", "details": details})


_QUOTA = (
    'machines.machines.dedaluslabs.ai "dm-1" is forbidden: exceeded quota: org-limits, '
    "requested: count/machines.machines.dedaluslabs.ai=1,requests.storage=10Gi, "
    "used: count/machines.machines.dedaluslabs.ai=5,requests.storage=45Gi, "
    "limited: count/machines.machines.dedaluslabs.ai=5,requests.storage=50Gi"
)


def test_a_quota_is_told_in_figures_without_names() -> None:
    error = failures.from_kube(_status(403, _QUOTA))
    assert isinstance(error, Coded)
    assert (error.status, error.error_code, error.retryable) == (403, "QUOTA_EXCEEDED", False)
    assert error.message == (
        "quota exceeded: machines: 1 more asked for, 5 of 5 in use; "
        "requests.storage: 10Gi more asked for, 45Gi of 50Gi in use"
    )


def test_a_quota_that_cannot_be_read_is_still_one() -> None:
    error = failures.from_kube(_status(403, "exceeded quota: secret-name"))
    assert error.body()["error_code"] == "QUOTA_EXCEEDED"
    assert error.message == "quota exceeded"


@pytest.mark.parametrize(
    ("error", "wait"),
    [
        (Unreachable("https://10.0.0.1:6443: connection refused"), 1000),
        (ConfigurationError("/root/.kube/config"), 1000),
        (_status(401, "Unauthorized"), 1000),
        (_status(403, 'User "system:serviceaccount:ns:gateway" cannot create'), 1000),
        (_status(500, "etcdserver: leader changed"), 1000),
        (_status(409, "the object has been modified"), 1000),
        (TooManyRequests("slow down", status=429, retry_after=2.5), 2500),
        (TooManyRequests("slow down", status=429, retry_after=0), 0),
    ],
)
def test_a_cluster_that_cannot_be_used_is_503(error: KubeError, wait: int) -> None:
    answer = failures.from_kube(error)
    assert answer.status == 503
    assert answer.body() == {
        "error_code": "DEPENDENCY_UNAVAILABLE",
        "message": "runtime unavailable",
        "retryable": True,
        "retry_after_ms": wait,
    }


def _cause(field: str, message: str) -> dict[str, str]:
    return {"reason": "FieldValueInvalid", "field": field, "message": message}


@pytest.mark.parametrize(
    ("field", "said", "location", "message"),
    [
        (
            "spec.vcpu",
            "Invalid value: 0.1: spec.vcpu in body should be greater than or equal to 0.25",
            "body.vcpu",
            "should be greater than or equal to 0.25",
        ),
        (
            "spec.storage_gib",
            'Invalid value: "integer": storage_gib can grow but never shrink: it is 10',
            "body.storage_gib",
            "storage_gib can grow but never shrink: it is 10",
        ),
        (
            "spec.autosleep",
            'Invalid value: "so\\"on": autosleep must be a duration (got "soon")',
            "body.autosleep",
            'autosleep must be a duration (got "soon")',
        ),
        ("spec.vcpu", "Required value", "body.vcpu", "Required value"),
        ("spec.ssh_authorized_keys[0]", "Too long: may not be", "body.ssh_authorized_keys", None),
        ("spec.vcpu", "", "body.vcpu", "is not accepted"),
    ],
)
def test_a_broken_rule_of_the_kind_is_422_at_its_member(
    field: str, said: str, location: str, message: str | None
) -> None:
    causes = [_cause(field, said), _cause("metadata.name", "inner")]
    answer = failures.from_kube(_status(422, "Machine dm-1 is invalid", causes=causes))
    assert answer.status == 422
    (fault,) = answer.body()["errors"]
    assert fault["location"] == location
    assert message is None or fault["message"] == message


@pytest.mark.parametrize(
    "error",
    [
        _status(400, "admission webhook inner.example denied the request"),
        _status(422, "no causes"),
        _status(422, "odd", causes=[_cause("metadata.name", "inner"), "odd", {}]),
        _status(422, "odd", causes={"field": "spec.vcpu"}),
    ],
)
def test_other_refusals_are_400_without_inner_words(error: KubeError) -> None:
    answer = failures.from_kube(error)
    assert (answer.status, answer.media_type) == (400, "application/problem+json")
    assert answer.body()["detail"] == "the cluster does not accept the machine as it was asked for"


def test_nothing_of_a_cluster_failure_leaks() -> None:
    inner = "10.0.0.1 system:serviceaccount"
    for kind in (Forbidden, Conflict):
        answer = failures.from_kube(kind(inner, status=403, request=f"POST /{inner}"))
        assert "10.0.0.1" not in str(answer.body()) + str(answer.headers())
