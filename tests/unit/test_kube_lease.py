"""The election in virtual time: never two leaders, and never none for longer than promised."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typing_extensions import override

from machine_operator.kube.client import KubeClient
from machine_operator.kube.connection import Connection
from machine_operator.kube.errors import ApiError, KubeError, Unreachable, from_status
from machine_operator.kube.lease import Election
from tests.support.virtual import eventually, run_virtual

Object = dict[str, Any]
DURATION, DEADLINE, RETRY = 15.0, 10.0, 2.0
WALL = datetime(2026, 3, 1, tzinfo=UTC)


def failure(code: int, reason: str, message: str) -> ApiError:
    """The error that a client makes of such an answer."""
    return from_status(code, {"kind": "Status", "reason": reason, "message": message})


def copied(value: Any) -> Any:
    """As it comes out at the other end of the wire."""
    return orjson.loads(orjson.dumps(value))


@dataclass(slots=True)
class Fate:
    """What becomes of one request: seconds for each way, and whether it or its answer is lost."""

    there: float = 0.01
    back: float = 0.01
    lost: str = ""


class LeaseServer:
    """Keeps one Lease, as kube-apiserver would: by resourceVersion, in namespaces that exist."""

    def __init__(self) -> None:
        self.lease: Object | None = None
        self.namespaces = {"ns"}
        self.version = 0
        self.refuse: Callable[[str, str], ApiError | None] = lambda _method, _path: None
        self.down = False
        self.requests: list[str] = []

    @property
    def spec(self) -> Object:
        assert self.lease is not None, "there is no lease"
        spec: Object = self.lease["spec"]
        return spec

    def handle(self, method: str, path: str, body: Any) -> Object:
        self.requests.append(f"{method} {path}")
        if self.down:
            raise Unreachable(f"{method} {path}: refused")
        error = self.refuse(method, path)
        if error is not None:
            raise error
        if path == "/api/v1/namespaces":
            self.namespaces.add(body["metadata"]["name"])
            return {}
        namespace = path.split("/")[5]
        if method == "POST" and namespace not in self.namespaces:
            raise no_namespace(namespace)
        answer: Object = copied(
            {"GET": self._get, "POST": self._post, "PUT": self._put}[method](body)
        )
        return answer

    def _get(self, _: Any) -> Object:
        if self.lease is None:
            raise failure(404, "NotFound", 'leases "l" not found')
        return self.lease

    def _post(self, body: Object) -> Object:
        if self.lease is not None:
            raise failure(409, "AlreadyExists", 'leases "l" already exists')
        return self.store(body)

    def _put(self, body: Object) -> Object:
        if self.lease is None:
            raise failure(404, "NotFound", 'leases "l" not found')
        if body["metadata"]["resourceVersion"] != self.lease["metadata"]["resourceVersion"]:
            raise failure(409, "Conflict", "the object has been modified")
        return self.store(body)

    def store(self, body: Object) -> Object:
        self.version += 1
        meta = {**body["metadata"], "resourceVersion": str(self.version)}
        self.lease = copied({**body, "metadata": {"uid": "u", **meta}})
        return self.lease


def no_namespace(name: str) -> ApiError:
    body = {"reason": "NotFound", "message": f'namespaces "{name}" not found'}
    return from_status(404, {**body, "details": {"kind": "namespaces", "name": name}})


class LeaseClient(KubeClient):
    """Requests travel on their own: what has left arrives, whether or not somebody still waits for the answer."""

    def __init__(self, server: LeaseServer, fate: Callable[[], Fate] = Fate) -> None:
        super().__init__(Connection(server="http://fake"))
        self.server, self.fate = server, fate
        self.dead = False

    @override
    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        timeout: float = 30.0,
    ) -> Object:
        loop, fate, sent = asyncio.get_running_loop(), self.fate(), copied(body)
        answer: asyncio.Future[Object | KubeError] = loop.create_future()

        def arrive() -> None:
            try:
                result: Object | KubeError = self.server.handle(method, path, sent)
            except KubeError as error:
                result = error
            if fate.lost != "answer":
                loop.call_later(fate.back, lambda: answer.done() or answer.set_result(result))

        if not self.dead and fate.lost != "request":
            loop.call_later(fate.there, arrive)
        result = await answer
        if isinstance(result, KubeError):
            raise result
        return result


@dataclass(slots=True)
class Elector:
    """One process: its election, and what it was told."""

    identity: str
    client: LeaseClient
    electors: list[Elector]
    skew: timedelta = timedelta(0)
    told: list[bool] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    election: Election = field(init=False)
    offset: float = 0.0

    def __post_init__(self) -> None:
        self.electors.append(self)
        self.election = Election(
            self.client,
            namespace="ns",
            name="l",
            identity=self.identity,
            on_change=self._changed,
            clock=lambda: asyncio.get_running_loop().time() + self.offset,
            now=lambda: WALL + self.skew + timedelta(seconds=now()),
            jitter=random.Random(self.identity).random,
        )

    def _changed(self, leads: bool) -> None:
        assert self.told[-1:] != [leads], f"{self.identity} was told {leads} twice"
        others = [e.identity for e in self.electors if e is not self and e.acts]
        assert not (leads and others), f"{self.identity} leads, and so does {others}"
        self.told.append(leads)

    @property
    def acts(self) -> bool:
        """Whether it works as the leader: told so, and alive."""
        return self.told[-1:] == [True] and not self.client.dead

    def start(self) -> Elector:
        self.task = asyncio.create_task(self.election.run(), name=self.identity)
        return self

    def kill(self) -> None:
        """As kill -9: nothing more is sent."""
        self.client.dead = True

    async def stop(self) -> None:
        """As SIGTERM. What the task failed with, such as two leaders, is raised."""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])
        if not self.task.cancelled():
            self.task.result()


class Group:
    """Some electors of one Lease; all are stopped in the end, and none may have failed."""

    def __init__(self, server: LeaseServer | None = None) -> None:
        self.server = server or LeaseServer()
        self.electors: list[Elector] = []

    def add(self, identity: str, *, fate: Callable[[], Fate] = Fate, **more: Any) -> Elector:
        client = LeaseClient(self.server, fate)
        return Elector(identity, client, self.electors, **more).start()

    @property
    def leaders(self) -> list[str]:
        return [elector.identity for elector in self.electors if elector.acts]

    async def __aenter__(self) -> Group:
        return self

    async def __aexit__(self, *_: object) -> None:
        for elector in self.electors:
            await elector.stop()


def now() -> float:
    return asyncio.get_running_loop().time()


# ---- plain lives


def test_the_first_creates_the_lease_and_keeps_it():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a", skew=timedelta(hours=3))
            await eventually(lambda: first.election.leads, within=1.0)
            second = group.add("b")
            await asyncio.sleep(100.0)
            assert (first.told, second.told) == ([True], [])
            assert (first.election.holder, second.election.holder) == ("a", "a")
            assert group.server.spec == {
                "holderIdentity": "a",
                "leaseDurationSeconds": 15,
                "acquireTime": "2026-03-01T03:00:00.020000Z",
                "renewTime": group.server.spec["renewTime"],
                "leaseTransitions": 0,
            }
            renewed = first.election.renewed_at
            assert renewed is not None
            assert now() - renewed <= RETRY + 0.1
            wall = datetime.fromisoformat(group.server.spec["renewTime"])
            assert wall == WALL + timedelta(hours=3, seconds=round(renewed, 6))

    run_virtual(scenario())


def test_a_renewal_is_one_request():
    async def scenario() -> None:
        async with Group() as group:
            group.add("a")
            await asyncio.sleep(10.0)
            before = len(group.server.requests)
            await asyncio.sleep(100.0)
            sent = group.server.requests[before:]
            assert {request.split()[0] for request in sent} == {"PUT"}, sent
            assert 50 <= len(sent) <= 65

    run_virtual(scenario())


@pytest.mark.parametrize("moment", [20.0, 20.7, 21.3, 21.99])
def test_failover_after_a_kill_takes_no_longer_than_duration_and_retry(moment: float):
    async def scenario() -> float:
        async with Group() as group:
            first, second = group.add("a"), group.add("b")
            await asyncio.sleep(moment)
            first.kill()
            killed = now()
            await eventually(lambda: second.acts, within=60.0, state=lambda: group.server.lease)
            assert group.server.spec["leaseTransitions"] == 1
            return now() - killed

    # The requests themselves and the polling of this test are not in the promise.
    assert DURATION - RETRY <= run_virtual(scenario()) <= DURATION + RETRY + 0.2


def test_a_clean_end_hands_over_at_once():
    async def scenario() -> None:
        async with Group() as group:
            first, second = group.add("a"), group.add("b")
            await asyncio.sleep(20.0)
            await first.stop()
            assert first.told == [True, False]
            assert group.server.spec["holderIdentity"] == ""
            await eventually(lambda: second.acts, within=RETRY + 0.2)
            assert group.server.spec["leaseTransitions"] == 1

    run_virtual(scenario())


def test_the_end_of_a_standby_leaves_the_lease_alone():
    async def scenario() -> None:
        async with Group() as group:
            group.add("a")
            await asyncio.sleep(1.0)
            second = group.add("b")
            await asyncio.sleep(5.0)
            await second.stop()
            assert group.server.spec["holderIdentity"] == "a"

    run_virtual(scenario())


def test_a_write_under_way_at_the_end_is_released_too():
    async def scenario() -> None:
        async with Group() as group:
            # Cancelled while the first write travels: it arrives, and nobody hears of it.
            first = group.add("a", fate=lambda: Fate(there=0.5, back=0.5))
            await asyncio.sleep(1.7)
            assert group.server.lease is not None
            assert first.told == []
            await first.stop()
            assert group.server.spec["holderIdentity"] == ""

    run_virtual(scenario())


def test_a_renewal_that_the_end_cuts_off_leaves_the_lease_released():
    async def scenario() -> None:
        async with Group() as group:
            fate = Fate()
            first = group.add("a", fate=lambda: fate)
            await asyncio.sleep(20.0)
            fate = Fate(lost="request")
            await asyncio.sleep(RETRY + 0.5)  # a renewal is under way and will not arrive
            fate = Fate()
            await first.stop()
            assert group.server.spec["holderIdentity"] == ""

    run_virtual(scenario())


def test_the_lease_of_a_successor_of_the_same_name_is_not_released():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a")
            await asyncio.sleep(5.0)
            lease = copied(group.server.lease)
            lease["spec"]["renewTime"] = "2026-03-01T00:00:07.000000Z"
            group.server.store(lease)
            await first.stop()
            assert group.server.spec["holderIdentity"] == "a"

    run_virtual(scenario())


def test_an_own_identity_is_taken_over_at_once():
    async def scenario() -> None:
        async with Group() as group:
            group.add("a")
            await asyncio.sleep(5.0)
            group.electors[0].kill()
            again = group.add("a")
            await eventually(lambda: again.acts, within=0.5)
            assert group.server.spec["leaseTransitions"] == 0

    run_virtual(scenario())


# ---- trouble


def test_a_leader_without_answers_gives_up_at_its_deadline_and_not_later():
    async def scenario() -> None:
        async with Group() as group:
            fate = Fate()
            first = group.add("a", fate=lambda: fate)
            await asyncio.sleep(20.0)
            fate = Fate(lost="request")
            renewed = first.election.renewed_at
            assert renewed is not None
            await eventually(lambda: first.told == [True, False], within=30.0)
            assert now() - renewed == pytest.approx(DEADLINE, abs=0.11)
            fate = Fate()
            await eventually(lambda: first.acts, within=RETRY + 3.0)  # nobody else wanted it

    run_virtual(scenario())


def test_our_time_counts_from_before_the_write_and_not_from_its_answer():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a", fate=lambda: Fate(there=1.0, back=1.0))
            await eventually(lambda: first.acts)
            assert first.election.renewed_at == pytest.approx(2.0, abs=0.01)
            assert now() == pytest.approx(4.0, abs=0.2)

    run_virtual(scenario())


def test_the_deadline_cuts_off_a_request_under_way():
    async def scenario() -> None:
        async with Group() as group:
            fate = Fate()
            first = group.add("a", fate=lambda: fate)
            await asyncio.sleep(20.0)
            renewed = first.election.renewed_at
            assert renewed is not None
            group.server.down = True  # fails at once, again and again
            await asyncio.sleep(renewed + 8.2 - now())
            fate = Fate(lost="request")  # the next one would hang for three seconds
            await eventually(lambda: first.told == [True, False], within=30.0)
            assert now() - renewed == pytest.approx(DEADLINE, abs=0.11)
            group.server.down, fate = False, Fate()

    run_virtual(scenario())


def test_who_was_frozen_between_question_and_answer_has_won_nothing():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a", fate=lambda: Fate(there=0.5, back=0.5))
            await asyncio.sleep(1.2)  # the first write is under way
            first.offset = DEADLINE + 1.0
            await asyncio.sleep(1.0)
            assert group.server.spec["holderIdentity"] == "a"
            assert first.told == []
            await eventually(lambda: first.told == [True], within=RETRY + 3.0)

    run_virtual(scenario())


def test_lost_answers_are_no_reason_to_give_up_when_the_next_ones_come():
    async def scenario() -> None:
        async with Group() as group:
            fates = iter([Fate(lost="answer"), Fate(), Fate()] * 100)
            first = group.add("a", fate=lambda: next(fates))
            second = group.add("b")
            await asyncio.sleep(200.0)
            assert sorted([first.told, second.told]) == [[], [True]]

    run_virtual(scenario())


def test_an_outage_longer_than_the_deadline_costs_leadership_once():
    async def scenario() -> None:
        async with Group() as group:
            group.add("a")
            await asyncio.sleep(1.0)
            group.add("b")
            await asyncio.sleep(20.0)
            group.server.down = True
            await asyncio.sleep(600.0)
            assert group.leaders == []
            assert "refused" in group.electors[0].election.trouble
            group.server.down = False
            await eventually(lambda: len(group.leaders) == 1, within=RETRY + 0.2)
            await asyncio.sleep(60.0)
            assert len(group.leaders) == 1
            assert group.electors[0].election.trouble == ""

    run_virtual(scenario())


def test_a_frozen_process_does_not_claim_to_lead():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a")
            await eventually(lambda: first.acts)
            first.offset = DEADLINE + 1.0  # as if nothing had run for so long
            assert not first.election.leads
            await eventually(lambda: first.told[:2] == [True, False], within=RETRY)

    run_virtual(scenario())


def test_a_foreign_holder_is_believed_for_as_long_as_it_claims_within_reason():
    async def scenario(claimed: int) -> float:
        async with Group() as group:
            spec = {"holderIdentity": "other", "leaseDurationSeconds": claimed}
            group.server.store({"metadata": {"name": "l"}, "spec": spec})
            first = group.add("a")
            await eventually(lambda: first.acts, within=1000.0)
            return now()

    assert run_virtual(scenario(1)) == pytest.approx(DURATION, abs=0.2)
    assert run_virtual(scenario(40)) == pytest.approx(40.0, abs=0.2)
    assert run_virtual(scenario(10**9)) == pytest.approx(600.0, abs=0.2)


def test_whoever_finds_the_lease_in_other_hands_stops_at_once():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a")
            await eventually(lambda: first.acts)
            lease = copied(group.server.lease)
            lease["spec"]["holderIdentity"] = "b"
            group.server.store(lease)
            await eventually(lambda: first.told == [True, False], within=RETRY + 0.2)
            assert first.election.holder == "b"

    run_virtual(scenario())


def test_a_lease_that_vanishes_is_made_again_by_its_leader():
    async def scenario() -> None:
        async with Group() as group:
            first = group.add("a")
            await eventually(lambda: first.acts)
            second = group.add("b")
            await asyncio.sleep(5.0)
            group.server.lease = None
            await asyncio.sleep(30.0)
            assert group.server.spec["holderIdentity"] == "a"
            assert (first.told, second.told) == ([True], [])

    run_virtual(scenario())


def test_a_missing_namespace_is_made():
    async def scenario() -> None:
        async with Group() as group:
            group.server.namespaces.clear()
            first = group.add("a")
            await eventually(lambda: first.acts, within=RETRY + 1.0)
            assert group.server.namespaces == {"ns"}

    run_virtual(scenario())


def test_a_missing_namespace_that_may_not_be_made_is_said(caplog: pytest.LogCaptureFixture):
    async def scenario() -> None:
        async with Group() as group:
            group.server.namespaces.clear()
            group.server.refuse = lambda _, path: (
                failure(403, "Forbidden", "no") if path == "/api/v1/namespaces" else None
            )
            first = group.add("a")
            await asyncio.sleep(30.0)
            assert first.told == []
            group.server.namespaces.add("ns")
            await eventually(lambda: first.acts, within=RETRY + 1.0)

    with caplog.at_level(logging.WARNING):
        run_virtual(scenario())
    (sentence,) = [record.getMessage() for record in caplog.records]
    assert 'namespaces "ns" not found' in sentence
    assert "kubectl create namespace ns" in sentence


def test_missing_rights_are_said_once_and_tried_again(caplog: pytest.LogCaptureFixture):
    async def scenario() -> None:
        async with Group() as group:
            group.server.refuse = lambda *_: failure(403, "Forbidden", "a cannot get leases")
            first = group.add("a")
            await asyncio.sleep(60.0)
            assert "cannot get leases" in first.election.trouble
            group.server.refuse = lambda *_: None
            await eventually(lambda: first.acts, within=RETRY + 1.0)

    with caplog.at_level(logging.WARNING):
        run_virtual(scenario())
    (sentence,) = [record.getMessage() for record in caplog.records]
    assert (
        "Allow get, create and update of leases (coordination.k8s.io) in namespace ns" in sentence
    )


def test_times_without_room_are_refused():
    with pytest.raises(ValueError, match="must grow"):
        Election(
            LeaseClient(LeaseServer()),
            namespace="ns",
            name="l",
            identity="a",
            on_change=lambda _: None,
            duration=10.0,
            deadline=10.0,
        )


# ---- any schedule

WINDOWS = st.lists(st.tuples(st.floats(0.0, 100.0), st.floats(1.0, 30.0)), max_size=3)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32),
    count=st.sampled_from([2, 3]),
    slow=st.sampled_from([0.05, 1.0, 4.0, 20.0]),
    losses=st.sampled_from([0.0, 0.1, 0.5]),
    outages=WINDOWS,
    ends=st.lists(st.tuples(st.floats(1.0, 100.0), st.sampled_from(["kill", "stop"])), max_size=2),
    skews=st.lists(st.integers(-48, 48), min_size=3, max_size=3),
)
def test_never_two_leaders_and_in_the_end_one(
    *,
    seed: int,
    count: int,
    slow: float,
    losses: float,
    outages: list[tuple[float, float]],
    ends: list[tuple[float, str]],
    skews: list[int],
) -> None:
    chance = random.Random(seed)

    def fate() -> Fate:
        if now() > 140.0:
            return Fate()
        lost = chance.choice(["request", "answer"]) if chance.random() < losses else ""
        return Fate(chance.uniform(0.0, slow), chance.uniform(0.0, slow), lost)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with Group() as group:
            for number in range(count):
                group.add(f"{number}", fate=fate, skew=timedelta(hours=skews[number]))
            for start, length in outages:
                loop.call_later(start, setattr, group.server, "down", True)
                loop.call_later(start + length, setattr, group.server, "down", False)
            for number, (moment, way) in enumerate(sorted(ends)):
                await asyncio.sleep(moment - now())
                elector = group.electors[number]
                if way == "kill":
                    elector.kill()
                else:
                    await elector.stop()
                group.add(f"{number} again", fate=fate)
            await asyncio.sleep(140.0 - now())
            # From here on all goes well. What was late may still arrive for some time.
            state = lambda: (group.leaders, group.server.lease)  # noqa: E731
            await eventually(lambda: group.leaders, within=25.0 + DURATION + RETRY, state=state)
            await asyncio.sleep(25.0)
            leaders = group.leaders
            assert len(leaders) == 1, state()
            await asyncio.sleep(60.0)
            assert group.leaders == leaders, "leadership moved for no reason"

    run_virtual(scenario())
